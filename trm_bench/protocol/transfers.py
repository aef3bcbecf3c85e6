"""The transfers of a protocol, spelled out against what its data sets have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING

from trm_bench.errors import UserError, nearest
from trm_bench.protocol.choices import refuse_twice
from trm_bench.protocol.data import Labels, name_of
from trm_bench.protocol.domains import CheckpointConfig, DomainConfig
from trm_bench.protocol.schema import Domain, Protocol, SetConfig, Transfer

if TYPE_CHECKING:
    from trm_bench.datasets.base import Dataset

OTHERS = "others"
"""The source under `leave_one_out`: all institutions but the target's."""

Datasets = Mapping[SetConfig, "Dataset"]
Source = Domain | CheckpointConfig


def choose_transfers(
    protocol: Protocol, datasets: Datasets, names: Sequence[str] = ()
) -> list[Transfer]:
    """The protocol's transfers, or those named.

    Raises:
        UserError: A name is not one of them or comes twice, or see `transfers_of`.
    """
    refuse_twice(names, "--transfers")
    transfers = transfers_of(protocol, datasets)
    _refuse_unknown(protocol, names, [t.name for t in transfers])
    return [t for t in transfers if not names or t.name in names]


def refuse_unknown(protocol: Protocol, names: Sequence[str]) -> None:
    """Refuses unknown names of transfers before data are made or opened, as far as that can be.

    What a data set says of itself is known when it is open: `choose_transfers` knows the rest.

    Raises:
        UserError: A name, of `names` or in a method's `per_transfer`, is not that of a transfer, or
            comes twice.
    """
    refuse_twice(names, "--transfers")
    ways = _stated_ways(protocol)
    if ways is not None:
        _refuse_unknown(protocol, names, [n for way in ways for n in _named(protocol, way)])


def _stated_ways(protocol: Protocol) -> list[tuple[str, ...]] | None:
    """The names along each transfer where no data are needed to know them, else None."""
    pairs, known = protocol.transfers.pairs, _stated_names(protocol)
    if not isinstance(pairs, str):
        if known is not None:
            _refuse_strange(protocol, known)
        return [tuple(path) for path in pairs]
    if known is None:
        return None
    checkpoints = {n for n, d in protocol.domains.items() if isinstance(d, CheckpointConfig)}
    return [(one, other) for one, other in permutations(known, 2) if other not in checkpoints]


def _stated_names(protocol: Protocol) -> list[str] | None:
    """What pairs can name, where the protocol or the data set's class says it, else None."""
    from trm_bench.datasets import REGISTRY

    data, kind = protocol.data, protocol.transfers.kind
    if kind == "cross_dataset":
        return list(protocol.domains)
    if kind == "cross_institution":
        return None
    if kind == "cross_modality" and data.modalities:
        return list(data.modalities)
    (own,) = protocol.sets
    attribute = "modalities" if kind == "cross_modality" else "label_maps"
    stated = getattr(REGISTRY.get(own.dataset), attribute, None)
    if not isinstance(stated, Mapping | tuple):
        return None
    return [*stated, *(data.label_maps if kind == "cross_task" else ())]


def _refuse_strange(protocol: Protocol, known: Sequence[str]) -> None:
    """Raises `UserError` where a pair names what is not known."""
    for name in (name for path in protocol.transfers.pairs for name in path):
        if name not in known:
            what = f"'{protocol.data.dataset}' has no '{name}'"
            if protocol.transfers.kind == "cross_dataset":
                what = f"no domain '{name}'"
            raise UserError(what, "transfers.pairs", nearest(name, list(known)))


def _refuse_unknown(protocol: Protocol, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises `UserError` where a command or a method names a transfer that is not known."""
    given = [(f"methods.{m.label}.per_transfer", sorted(m.per_transfer)) for m in protocol.methods]
    for where, several in [*given, ("--transfers", names)]:
        for name in several:
            if name not in known:
                what = f"the protocol has no transfer '{name}'"
                raise UserError(what, where, nearest(name, list(known)))


def _named(protocol: Protocol, way: Sequence[str]) -> list[str]:
    """The names of the transfers along a way, one for each number of target subjects."""
    name = "->".join(way)
    return [f"{name}@{n}" for n in protocol.transfers.shots or ()] or [name]


def transfers_of(protocol: Protocol, datasets: Datasets) -> list[Transfer]:
    """Expands `transfers` against what the data sets have.

    Raises:
        UserError: A modality, label map, institution or domain is unknown, a checkpoint is not
            where a transfer begins, or `shots` exceeds `split.target.train`.
    """
    most = protocol.split.target.train
    shots = protocol.transfers.shots or (most,)
    if max(shots) > most:
        raise UserError(
            f"{max(shots)} shots, but only {most} target training subjects",
            "transfers.shots",
            "raise split.target.train or lower the shots",
        )
    transfers = []
    for path in _paths(protocol, _domains(protocol, datasets)):
        names = tuple(name for name, _ in path)
        way = "->".join(names)
        *sources, target = (domain for _, domain in path)
        if isinstance(target, CheckpointConfig):
            fix = "a transfer begins with a checkpoint, and ends with subjects"
            raise UserError(f"the target of '{way}' is a checkpoint", "transfers.pairs", fix)
        if any(isinstance(source, CheckpointConfig) for source in sources[1:]):
            fix = "name it first: what was trained elsewhere starts from nothing of ours"
            raise UserError(f"'{way}' passes a checkpoint", "transfers.pairs", fix)
        for n, name in zip(shots, _named(protocol, names), strict=True):
            transfers.append(
                Transfer(sources=tuple(sources), target=target, shots=n, way=names, name=name)
            )
    return transfers


def _paths(protocol: Protocol, known: Mapping[str, Source]) -> list[list[tuple[str, Source]]]:
    """The domains along each transfer, sources first, with their names."""
    pairs = protocol.transfers.pairs
    if pairs == "leave_one_out":
        return [[(OTHERS, _others(domain)), (name, domain)] for name, domain in known.items()]
    if pairs == "all":
        ways = permutations(known.items(), 2)
        return [[*way] for way in ways if not isinstance(way[1][1], CheckpointConfig)]
    _refuse_strange(protocol, list(known))
    return [[(name, known[name]) for name in path] for path in pairs]


def _others(domain: Source) -> Source:
    """All institutions but that of a domain."""
    assert isinstance(domain, Domain)
    changes = {"name": OTHERS, "institutions": (), "except_institutions": domain.institutions}
    return domain.model_copy(update=changes)


def _domains(protocol: Protocol, datasets: Datasets) -> dict[str, Source]:
    """What pairs can name."""
    data, kind = protocol.data, protocol.transfers.kind

    @cache  # each time it is asked, a data set looks through its folder
    def sites(of: SetConfig) -> list[str]:
        return institutions_of(datasets[of])

    if kind == "cross_dataset":
        return {
            name: _spelled_out(protocol, name, domain, datasets, sites)
            if isinstance(domain, DomainConfig)
            else domain
            for name, domain in protocol.domains.items()
        }
    (own,) = protocol.sets
    dataset = datasets[own]
    if kind == "cross_modality":
        names = data.modalities or dataset.modalities
        choices = {name: DomainConfig(images=(name,)) for name in names}
    elif kind == "cross_task":
        choices = {name: DomainConfig(labels=name) for name in dataset.label_maps}
    else:
        choices = {name: DomainConfig(institutions=(name,)) for name in sites(own)}
        if len(choices) < 2:
            what = f"'{dataset.name}' tells {len(choices)} institutions apart"
            raise UserError(what, "transfers.kind", "cross_institution takes two or more")
    return {
        name: _spelled_out(protocol, name, domain, datasets, sites)
        for name, domain in choices.items()
    }


def _spelled_out(
    protocol: Protocol,
    name: str,
    domain: DomainConfig,
    datasets: Datasets,
    sites: Callable[[SetConfig], list[str]],
) -> Domain:
    """A domain with what it takes from `data`, every name in it known to its data set."""
    data, where = protocol.data, f"domains.{name}" if name in protocol.domains else "data"
    own = protocol.set_of(domain)
    dataset = datasets[own]
    images = domain.images or _shared_modalities(protocol, own) or dataset.modalities
    labels = domain.labels if domain.labels is not None else data.labels
    assert labels is not None, "which validation has seen to"
    institutions = domain.institutions or ()
    key = "images" if name in protocol.domains and domain.images else "modalities"
    known = sites(own) if institutions else []
    _require("modality", images, dataset.modalities, f"{where}.{key}", dataset)
    _require("label map", [name_of(labels)], [*dataset.label_maps], f"{where}.labels", dataset)
    _require("institution", institutions, known, f"{where}.institutions", dataset)
    return Domain(
        name=name, data=own, images=images, labels=name_of(labels), institutions=institutions
    )


def _require(
    noun: str, names: Sequence[str], known: Sequence[str], where: str, dataset: Dataset
) -> None:
    for name in names:
        if name not in known:
            what = f"the dataset '{dataset.name}' has no {noun} '{name}'"
            raise UserError(what, where, nearest(name, list(known)))


def institutions_of(dataset: Dataset) -> list[str]:
    """The institutions of a data set's subjects."""
    return sorted({subject.institution for subject in dataset.subjects()} - {""})


def in_play(protocol: Protocol, data: SetConfig, dataset: Dataset) -> tuple[str, ...]:
    """The modalities of a data set that some domain sees, in the data set's order."""
    shared = _shared_modalities(protocol, data) or dataset.modalities
    if not protocol.domains:
        return shared
    domains = [d for d in protocol.domains.values() if isinstance(d, DomainConfig)]
    seen = {m for d in domains if protocol.set_of(d) == data for m in d.images or shared}
    return tuple(modality for modality in dataset.modalities if modality in seen)


def _shared_modalities(protocol: Protocol, data: SetConfig) -> tuple[str, ...] | None:
    """`data.modalities`, which are those of `data.dataset`."""
    return protocol.data.modalities if data.dataset == protocol.data.dataset else None


def add_label_maps(protocol: Protocol, data: SetConfig, dataset: Dataset) -> None:
    """Gives a data set the label maps that a protocol describes itself.

    Raises:
        UserError: The data set has another one of that name, or not these label values.
    """
    shared, own = protocol.data, list[tuple[str, Labels | None]]()
    domains = {n: d for n, d in protocol.domains.items() if isinstance(d, DomainConfig)}
    mine = {n: d for n, d in domains.items() if protocol.set_of(d) == data}
    own += [(f"domains.{name}.labels", domain.labels) for name, domain in mine.items()]
    if not domains or any(domain.labels is None for domain in mine.values()):
        own.append(("data.labels", shared.labels))
    described = [(where, name_of(labels), labels) for where, labels in own if labels is not None]
    if not domains or (data.dataset, data.root) == (shared.dataset, shared.root):
        described += [(f"data.label_maps.{n}", n, c) for n, c in shared.label_maps.items()]
    for where, name, classes in described:
        if isinstance(classes, str):
            continue
        try:
            found = dataset.label_map(classes)
        except UserError as error:
            raise UserError(error.what, where, error.fix) from error
        if dataset.label_maps.get(name, found) != found:
            what = f"the dataset '{dataset.name}' has another label map '{name}'"
            raise UserError(what, where, "choose another name")
        dataset.label_maps = {**dataset.label_maps, name: found}
