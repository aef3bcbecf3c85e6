"""What a protocol could show, before it is run: detectable gains, and the seeds that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trm_bench.analysis import family, power
from trm_bench.analysis.designs import sizes_of
from trm_bench.analysis.intervals import MIN_SEEDS, Design, overlap
from trm_bench.analysis.power import Spread
from trm_bench.data.cohorts import Cohort
from trm_bench.data.divisions import same_patients
from trm_bench.data.splits import split
from trm_bench.datasets.base import Subject
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.plurals import counted
from trm_bench.preparing import open_sets
from trm_bench.protocol import Protocol
from trm_bench.protocol.schema import Domain
from trm_bench.protocol.transfers import transfers_of
from trm_bench.report.evidence import Evidence, collect
from trm_bench.runs.folders import protocol_folders
from trm_bench.runs.plan import Plan
from trm_bench.runs.store import read_results

# standard deviations of subjects, seeds and residual, in points: the medians of 17 methods over
# fine-tuning on Hippocampus (results/reference)
ASSUMED = (0.9, 0.5, 1.8)
SEEDS = (3, 5, 8, 10, 15, 20)


@dataclass(frozen=True)
class Prospect:
    """What is known before a benchmark.

    Attributes:
        name: Of the protocol.
        question: Which method over which.
        gain: That is claimed, in points; None without a claim.
        k: Size of the family.
        spread: Of the gains.
        seeds: Of the protocol.
        origin: Of the spread.
    """

    name: str
    question: str
    gain: float | None
    k: int
    spread: Spread
    seeds: int
    origin: str

    @property
    def level(self) -> float:
        """Of the intervals of a family in which nothing is rejected yet."""
        return family.level_of([], self.k)


def of_results(folder: Path) -> list[Prospect]:
    """From the spread that results, a pilot's, show; protocols without three seeds have none.

    Raises:
        UserError: There are no results with enough seeds.
    """
    several = [collect(read_results(f)) for f in protocol_folders(folder)]
    known = [p for p in map(_of_evidence, several) if p is not None]
    if not known:
        what = f"no results with {MIN_SEEDS} seeds of a method and of what it is compared with"
        raise UserError(what, folder, "run more seeds, or give a protocol and --sd")
    return known


def _of_evidence(evidence: Evidence) -> Prospect | None:
    spread = evidence.spread(evidence.focus)
    if spread is None:
        return None
    seeds = len(evidence.seeds)
    return _prospect(evidence.protocol, spread, f"measured with {seeds} seeds")


def of_protocol(
    protocol: Protocol,
    subjects: int | None = None,
    deviations: tuple[float, float, float] | None = None,
) -> Prospect:
    """From stated, or else assumed, standard deviations.

    Args:
        protocol: Its split says how many test subjects there are.
        subjects: Test subjects; those of the protocol's data where not given.
        deviations: Of subjects, seeds and residual.

    Raises:
        UserError: The data are not there, and no number of subjects is given.
    """
    known = deviations or ASSUMED
    if subjects is None or protocol.split.design == "resampled":
        members, shared = _members(protocol)
        division = split(members, protocol.split, protocol.seeds[0], with_source=shared)
        sizes = len(division.source), len(division.train), subjects or len(division.test)
        spread = _spread(protocol, known, *sizes, len(members))
    else:
        spread = Spread(*known, subjects, Design(protocol.split.design))
    return _prospect(protocol, spread, "stated" if deviations else "assumed; --sd states others")


def _members(protocol: Protocol) -> tuple[list[Subject], bool]:
    """The subjects of the first transfer's target, and whether its source has the same."""
    opened = open_sets(protocol, None, Display(quiet=True))
    transfer = transfers_of(protocol, opened)[0]
    target, dataset = transfer.target, opened[transfer.target.data]
    domains = [source for source in transfer.sources if isinstance(source, Domain)]
    shared = any(same_patients(source, target) for source in domains)
    return Cohort(target.data, dataset, dataset.subjects(), {}).of(target), shared


def of_plan(protocol: Protocol, plan: Plan) -> Prospect:
    """From assumed standard deviations, and the subjects of a plan."""
    config = next((job.config for job in plan.runs if job.source), plan.runs[0].config)
    spread = _spread(protocol, ASSUMED, *sizes_of(config))
    return _prospect(protocol, spread, "assumed: trm-bench power")


def _spread(
    protocol: Protocol,
    deviations: tuple[float, float, float],
    source: int,
    train: int,
    test: int,
    patients: int,
) -> Spread:
    """The spread, from the numbers of patients in each part."""
    if protocol.split.design != "resampled":
        return Spread(*deviations, test, Design(protocol.split.design))
    # As `Spread.of` sees it: of the patients that some seed tests, with the residual in their share
    subject, seed, residual = deviations
    seeds = len(protocol.seeds)
    tested = max(round(patients * (1 - (1 - test / patients) ** seeds)), 2)
    of_subjects = np.sqrt(subject**2 + residual**2 * tested / (seeds * test))
    ratio = overlap(source, train, test, patients)
    return Spread(float(of_subjects), seed, 0.0, tested, Design("resampled", ratio))


def _prospect(protocol: Protocol, spread: Spread, origin: str) -> Prospect:
    claim = protocol.claim
    method, versus = (claim.method, claim.versus) if claim else ("trm", "finetune")
    labels = [m.label for m in protocol.methods]
    k = max(len(family.pairs_of(claim, labels, versus, method)), 1)
    gain = claim.gain if claim and claim.unit != "relative" else None
    seeds = len(protocol.seeds)
    return Prospect(protocol.name, f"{method} over {versus}", gain, k, spread, seeds, origin)


def table(prospect: Prospect) -> Iterator[tuple[str, ...]]:
    """Seeds, smallest detectable gain alone and in the family, power for the claim; a head first.

    Numbers of seeds that allow no mark have no power.
    """
    p = prospect
    claimed = () if p.gain is None else (f"power for {p.gain:+g}",)
    yield ("seeds", "smallest gain, alone", f"in a family of {p.k}", *claimed)
    for seeds in sorted({*SEEDS, max(p.seeds, MIN_SEEDS)}):
        alone, among = (
            power.smallest_gain(p.spread, seeds, level) for level in (1 - family.ALPHA, p.level)
        )
        marked = seeds >= family.seeds_for_marks(p.k)
        row = [f"{seeds}", f"{alone:.2f}", f"{among:.2f}" if marked else "no marks"]
        if p.gain is not None:
            found = power.widths(p.spread, seeds, p.level).power(p.gain) if marked else np.nan
            row.append(f"{found:.2f}" if marked else "no marks")
        yield tuple(row)


def sentences(prospect: Prospect) -> Iterator[str]:
    """What the numbers rest on, and what the claim takes."""
    p = prospect
    parts = ", ".join(
        f"{name} {value:.2f}"
        for name, value in zip(("subjects", "seeds", "residual"), p.spread[:3], strict=True)
    )
    yield (
        f"{p.name}: {p.question}, {counted(p.spread.subjects, 'test subject')}, "
        f"splits {p.spread.design.name}"
    )
    yield f"standard deviations [points]: {parts} ({p.origin})"
    if p.gain is None:
        return
    least = family.seeds_for_marks(p.k)
    seeds = power.seeds_needed(p.gain, p.spread, p.level, least)
    takes = counted(seeds, "seed") if seeds else f"more than {power.MOST_SEEDS} seeds"
    yield f"a gain of {p.gain:+g} points takes {takes} with these subjects (power {power.POWER:g})"
    if p.spread.design.name != "resampled":
        at = max(p.seeds, least)
        subjects = power.subjects_needed(p.gain, p.spread, at, p.level)
        takes = counted(subjects, "subject") if subjects else "more seeds, whatever the subjects,"
        yield f"with {counted(at, 'seed')} it takes {takes}"


def line(prospect: Prospect) -> str:
    """The smallest detectable gain of a protocol as it stands."""
    p = prospect
    if p.seeds < MIN_SEEDS:
        return f"{counted(p.seeds, 'seed')}: nothing is said over seeds"
    smallest = power.smallest_gain(p.spread, p.seeds, p.level)
    claimed = "" if p.gain is None else f"; the claim is {p.gain:+g}"
    return (
        f"smallest detectable gain {smallest:.2f} points ({counted(p.seeds, 'seed')}, "
        f"{counted(p.spread.subjects, 'test subject')}, family of {p.k}, power {power.POWER:g}; "
        f"spread {p.origin}){claimed}"
    )
