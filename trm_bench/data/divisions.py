"""Which subjects a transfer's sources and target get, whatever data sets they come from."""

from __future__ import annotations

from dataclasses import dataclass

from trm_bench.data.cohorts import Cohorts
from trm_bench.data.splits import Held, Split, refuse_leakage, split, split_source
from trm_bench.datasets.base import Subject
from trm_bench.protocol.schema import Domain, SplitConfig, Transfer

Part = tuple[str, ...]


@dataclass(frozen=True)
class Division:
    """The subjects of a transfer under one seed.

    Attributes:
        target: Of the target.
        sources: Training and validation subjects of each source; none of a checkpoint.
    """

    target: Split
    sources: tuple[tuple[Part, Part], ...]


def divide(transfer: Transfer, cohorts: Cohorts, config: SplitConfig, seed: int) -> Division:
    """Divides the patients of a transfer.

    A source that draws on the same patients as the target, as between modalities or label maps,
    shares one split with it. Any other has a split of its own, without the target's patients.

    Args:
        transfer: Its domains say whose patients.
        cohorts: The data sets.
        config: The protocol's `split`.
        seed: The training seed.

    Raises:
        UserError: There are too few patients, no training set for the seed, or one patient or scan
            is on two sides.
    """
    target = transfer.target
    pool = cohorts[target.data].of(target)
    domains = [s if isinstance(s, Domain) else None for s in transfer.sources]
    shared = [s is not None and same_patients(s, target) for s in domains]
    for source, shares in zip(domains, shared, strict=True):
        if source is not None and shares:  # of another preparation, which some may not have passed
            usable = {s.id for s in cohorts[source.data].of(source)}
            pool = [s for s in pool if s.id in usable]
    own = split(pool, config, seed, with_source=any(shared))
    parts: list[tuple[Part, Part]] = []
    for source, shares in zip(domains, shared, strict=True):
        if source is None:
            parts.append(((), ()))
        elif shares:
            parts.append((own.source, own.val))
        else:
            parts.append(split_source(_without(source, target, pool, cohorts), config, seed))
    division = Division(own, tuple(parts))
    refuse_leakage(_held(division, domains, shared, target, cohorts))
    return division


def same_patients(source: Domain, target: Domain) -> bool:
    """Whether two domains draw on the same patients."""
    ours, theirs = (
        (d.data.dataset, d.data.root, set(d.institutions), set(d.except_institutions))
        for d in (source, target)
    )
    return ours == theirs


def _without(
    source: Domain, target: Domain, pool: list[Subject], cohorts: Cohorts
) -> list[Subject]:
    """The subjects of a source whose patients are not the target's."""
    subjects = cohorts[source.data].of(source)
    if cohorts[source.data].origin != cohorts[target.data].origin:
        return subjects
    patients = {subject.patient for subject in pool}
    return [subject for subject in subjects if subject.patient not in patients]


def _held(
    division: Division,
    domains: list[Domain | None],
    shared: list[bool],
    target: Domain,
    cohorts: Cohorts,
) -> dict[str, list[Held]]:
    """What each part holds; sources may share subjects with each other."""
    cohort = cohorts[target.data]
    parts = {name: cohort.held(ids) for name, ids in division.target.parts().items()}
    for i, ids in enumerate(division.target.others, 1):
        parts[f"train of other seeds, {i}"] = cohort.held(ids)
    for source, shares, (train, val) in zip(domains, shared, division.sources, strict=True):
        if source is not None and not shares:
            parts.setdefault("source", []).extend(cohorts[source.data].held((*train, *val)))
    return parts
