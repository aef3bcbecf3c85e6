"""What each side of a transfer is: data sets, institutions, networks from elsewhere, chains."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from trm_bench.analysis.designs import shares_split
from trm_bench.datasets import REGISTRY
from trm_bench.errors import Damaged, UserError
from trm_bench.protocol.domains import DomainConfig
from trm_bench.protocol.schema import Protocol, SetConfig
from trm_bench.protocol.transfers import OTHERS
from trm_bench.runs.arrays import open_checkpoint
from trm_bench.runs.config import Imported, RunConfig
from trm_bench.runs.records import Loading
from trm_bench.runs.store import Results

DIGITS = 12  # of a sha256 that are shown in a sentence
MOST_NAMES = 3  # of tensors in a sentence
PARTS = {"train": "train", "val": "validate"}


@dataclass(frozen=True)
class Way:
    """A transfer as its runs took it.

    Attributes:
        names: Of its domains, the target's last.
        configs: Of the trainings there, likewise; what was trained elsewhere comes first.
        loading: What the target's network took of the last source's.
    """

    names: tuple[str, ...]
    configs: tuple[RunConfig | Imported, ...]
    loading: Loading | None


def ways(results: Results) -> dict[tuple[str, int], Way]:
    """Of each transfer and seed with a finished run that started from a source."""
    found: dict[tuple[str, int], Way] = {}
    with_shots = results.plan.protocol.transfers.shots is not None
    for cell, record in results.finished():
        if record.config.source is None or (cell.transfer, cell.seed) in found:
            continue
        chain: list[RunConfig | Imported] = [record.config]
        while isinstance(last := chain[-1], RunConfig) and last.source is not None:
            chain.append(last.source)
        way = re.sub(r"@\d+$", "", cell.transfer) if with_shots else cell.transfer
        names = tuple(way.split("->", len(chain) - 1))
        if len(names) == len(chain):
            found[cell.transfer, cell.seed] = Way(names, tuple(chain[::-1]), record.loading)
    return found


def is_one_data_set(results: Results) -> bool:
    """Whether every transfer is a single step within one data set and its patients."""
    kind = results.plan.protocol.transfers.kind
    within = kind in ("cross_modality", "cross_task")
    return within and all(len(way.names) == 2 for way in ways(results).values())


def data_sets(results: Results) -> list[dict[str, str]]:
    """The data sets in play, each once: name (with its folder), title, licence, citation, url."""
    stand_in = results.plan.data == "phantom"
    found: dict[str, dict[str, str]] = {}
    for data in results.plan.protocol.sets:
        name = data.dataset if stand_in else set_name(data)
        about = dict.fromkeys(("title", "licence", "citation", "url"), "")
        with contextlib.suppress(UserError):  # of a package that is not installed here
            kind = REGISTRY.get(data.dataset)
            about = {key: getattr(kind, key) for key in about}
        found[name] = {"name": name, **about}
    return list(found.values())


def own_patients(way: Way) -> dict[str, RunConfig]:
    """The sources of a way that learn from other patients than the target, by name."""
    *sources, target = way.configs
    assert isinstance(target, RunConfig), "a transfer ends with subjects"
    return {
        name: source
        for name, source in zip(way.names, sources, strict=False)
        if isinstance(source, RunConfig) and not shares_split(source, target)
    }


# --------------------------------------------------------------------------------------- sentences


def notes(results: Results) -> list[str]:
    """What a caption says of the sides; nothing where all is of one data set."""
    if is_one_data_set(results):
        return []
    known = ways(results)
    said = _data(results, known)
    said += [_imported(results, name, one) for name, one in imported(results).items()]
    chains = dict.fromkeys(way.names for way in known.values() if len(way.names) > 2)
    said += [_chain(names) for names in chains]
    return [*said, *_loaded(known)]


def _data(results: Results, known: Mapping[tuple[str, int], Way]) -> list[str]:
    """The domains with subjects: in one sentence where they differ in their institution alone."""
    protocol, stand_in = results.plan.protocol, results.plan.data == "phantom"
    seen: dict[str, str] = {}
    for way in known.values():
        for name, config in zip(way.names, way.configs, strict=True):
            if isinstance(config, RunConfig):
                seen.setdefault(
                    name, f"{_where(protocol, name, config, stand_in)}, {_what(config)}"
                )
    if protocol.transfers.kind != "cross_dataset" and len({*seen.values()}) == 1:
        kind = protocol.transfers.kind.removeprefix("cross_")
        noun = {"institution": "institutions", "modality": "modalities", "task": "tasks"}[kind]
        rest = f" '{OTHERS}' are all institutions but the target's." if OTHERS in seen else ""
        return [f"Between {noun} of {next(iter(seen.values()))}.{rest}"]
    return [f"Domains: {'; '.join(f'{name} is {what}' for name, what in seen.items())}."]


def _where(protocol: Protocol, name: str, config: RunConfig, stand_in: bool) -> str:
    """The data set of a domain, with the name of its folder, and its institutions."""
    domain = protocol.domains.get(name)
    domain = domain if isinstance(domain, DomainConfig) else DomainConfig()
    where = config.dataset if stand_in else set_name(protocol.set_of(domain))
    if domain.institutions:
        where += f", of {', '.join(domain.institutions)}"
    return where


def set_name(data: SetConfig) -> str:
    """A data set with the name of its folder, which tells two of one layout apart."""
    folder = PurePath(data.root).name
    return f"{data.dataset} ({folder})" if folder else data.dataset


def _what(config: RunConfig) -> str:
    """What a network sees and learns."""
    images, classes = config.domain.images, config.domain.classes[1:]
    noun = "channel" if len(images) == 1 else "channels"
    return f"{noun} {', '.join(images)}, labels {config.domain.labels} ({', '.join(classes)})"


def imported(results: Results) -> dict[str, Imported]:
    """The networks from elsewhere that runs started from, by domain."""
    return {
        name: config
        for way in ways(results).values()
        for name, config in zip(way.names, way.configs, strict=True)
        if isinstance(config, Imported)
    }


def _imported(results: Results, name: str, config: Imported) -> str:
    head = classes_of(config)
    noun = "channel" if len(config.domain.images) == 1 else "channels"
    return (
        f"{name} is a network from elsewhere, sha256 {config.sha256[:DIGITS]}…, {noun} "
        f"{', '.join(config.domain.images)}, {head}; {account(results, config)}."
    )


def classes_of(config: Imported) -> str:
    """The classes of a network from elsewhere."""
    return f"classes {', '.join(config.domain.classes)}" if config.has_head else "no head"


def account(results: Results, config: Imported) -> str:
    """What became of the tensors of a network's file."""
    try:
        told: Mapping[str, Any] = open_checkpoint(results.folder.results.source(config.id)).account
    except (FileNotFoundError, Damaged, UserError):
        return "what was loaded is not known, since its file in sources/ is gone"
    reasons = Counter(told.get("left_out", {}).values())
    why = "; ".join(f"{reason}: {n}" for reason, n in reasons.items())
    said = [f"{len(told.get('loaded', {}))} tensors of its file loaded"]
    said += [f"{sum(reasons.values())} left out ({why})"] if reasons else []
    if initial := told.get("initial"):
        said.append(f"{len(initial)} of the network not in it ({_some(initial)})")
    return ", ".join(said)


def _chain(names: Sequence[str]) -> str:
    first, *others, target = names
    between = "".join(f", then trained on {name}" for name in others)
    way = "->".join(names)
    return f"{way} is a chain: the network of {first}{between}, then fine-tuned on {target}."


def _loaded(known: Mapping[tuple[str, int], Way]) -> list[str]:
    """What targets took of their sources, alike ones together."""
    by_what: dict[str, list[str]] = {}
    for (transfer, _), way in known.items():
        if way.loading is not None:
            by_what.setdefault(_loading(way, way.loading), []).append(transfer)
    several = len(by_what) > 1
    told = [
        f"{what} ({', '.join(dict.fromkeys(transfers))})" if several else what
        for what, transfers in by_what.items()
    ]
    return [f"Tensors that targets took of their source: {'; '.join(told)}."] if told else []


def _loading(way: Way, loading: Loading) -> str:
    said = [f"{loading.loaded} loaded"]
    if loading.adapted:
        source, target = way.configs[-2:]
        assert isinstance(target, RunConfig)
        channels = f"{len(source.domain.images)} to {len(target.domain.images)} channels"
        said[0] += (
            f", {len(loading.adapted)} of them adapted from {channels} by '{target.channels}' "
            f"({_some(loading.adapted)})"
        )
    if loading.skipped:
        said.append(f"{len(loading.skipped)} at their initial values ({_some(loading.skipped)})")
    return ", ".join(said)


def _some(names: Sequence[str]) -> str:
    more = f", … {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def patients_note(results: Results) -> str:
    """Which sources have patients of their own, and how many; "" where none has."""
    sizes: dict[str, dict[str, set[int]]] = {}
    for way in ways(results).values():
        for name, config in own_patients(way).items():
            counts = sizes.setdefault(name, {part: set() for part in PARTS})
            for part in PARTS:
                counts[part].add(len(config.subjects.parts().get(part, ())))
    alike: dict[str, list[str]] = {}
    for name, counts in sizes.items():
        numbers = (f"{_range(counts[part])} {verb}" for part, verb in PARTS.items())
        alike.setdefault(" and ".join(numbers), []).append(name)
    told = [f"{', '.join(names)} ({how_many})" for how_many, names in alike.items()]
    return f"Sources with subjects of their own: {'; '.join(told)}." if told else ""


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}-{high}"
