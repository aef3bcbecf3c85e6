"""What a command chooses from a protocol: methods, seeds, transfers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trm_bench.errors import UserError, nearest
from trm_bench.protocol.schema import Domain, MethodConfig, Protocol, Transfer

if TYPE_CHECKING:
    from trm_bench.datasets.base import Dataset


def choose_methods(protocol: Protocol, labels: Sequence[str], known: Sequence[str]) -> Protocol:
    """The protocol with some methods, by label; one that it does not list gets its defaults.

    Args:
        protocol: To choose from.
        labels: Of its methods, or names of registered ones; each once.
        known: Names of the registered methods.

    Raises:
        UserError: There is no such method.
    """
    listed = {m.label: m for m in protocol.methods}
    for label in labels:
        if label not in listed and label not in known:
            fix = nearest(label, [*listed, *known])
            raise UserError(f"no method '{label}'", "--methods", fix)
    chosen = tuple(listed.get(label) or MethodConfig(name=label) for label in dict.fromkeys(labels))
    return protocol.model_copy(update={"methods": chosen})


def choose_seeds(protocol: Protocol, seeds: Sequence[str]) -> Protocol:
    """The protocol with other seeds.

    Raises:
        UserError: They are not different whole numbers.
    """
    if not all(s.isdigit() for s in seeds) or len(set(seeds)) < len(seeds):
        what = f"'{','.join(seeds)}' are not different whole numbers"
        raise UserError(what, "--seeds", "for example --seeds 0,1,2")
    return protocol.model_copy(update={"seeds": tuple(int(s) for s in seeds)})


def choose_transfers(
    protocol: Protocol, dataset: Dataset, names: Sequence[str] = ()
) -> list[Transfer]:
    """The protocol's transfers, or those named.

    Raises:
        UserError: A name is not one of them, or see `transfers_of`.
    """
    transfers = transfers_of(protocol, dataset)
    known = [t.name for t in transfers]
    for method in protocol.methods:
        for name in sorted(method.per_transfer.keys() - set(known)):
            what = f"the protocol has no transfer '{name}'"
            where = f"methods.{method.label}.per_transfer"
            raise UserError(what, where, nearest(name, known))
    for name in names:
        if name not in known:
            what = f"the protocol has no transfer '{name}'"
            raise UserError(what, "--transfers", nearest(name, known))
    return [t for t in transfers if not names or t.name in names]


def transfers_of(protocol: Protocol, dataset: Dataset) -> list[Transfer]:
    """Expands `transfers` against what the dataset has.

    Raises:
        UserError: A modality or label map is unknown, or `shots` exceeds `split.target.train`.
    """
    modalities = protocol.data.modalities or dataset.modalities
    for modality in modalities:
        _require(modality, dataset.modalities, "data.modalities", dataset.name)
    by_modality = protocol.transfers.kind == "cross_modality"
    known = list(modalities) if by_modality else list(dataset.label_maps)
    if protocol.transfers.pairs == "all":
        pairs: Sequence[tuple[str, str]] = [(a, b) for a in known for b in known if a != b]
    else:
        pairs = protocol.transfers.pairs
        for name in (x for pair in pairs for x in pair):
            _require(name, known, "transfers.pairs", dataset.name)
    most = protocol.split.target.train
    shots = protocol.transfers.shots or (most,)
    if max(shots) > most:
        raise UserError(
            f"{max(shots)} shots, but only {most} target training subjects",
            "transfers.shots",
            "raise split.target.train or lower the shots",
        )
    if by_modality:
        dataset.label_map(protocol.data.labels or "")  # raises for an unknown one
    transfers = []
    for a, b in pairs:
        if by_modality:
            labels = protocol.data.labels or ""
            source = Domain(images=(a,), labels=labels)
            target = Domain(images=(b,), labels=labels)
        else:
            source, target = (Domain(images=tuple(modalities), labels=x) for x in (a, b))
        for n in shots:
            name = f"{a}->{b}@{n}" if protocol.transfers.shots else f"{a}->{b}"
            transfers.append(Transfer(source=source, target=target, shots=n, name=name))
    return transfers


def _require(name: str, known: Sequence[str], where: str, dataset: str) -> None:
    if name not in known:
        raise UserError(f"'{dataset}' has no '{name}'", where, nearest(name, list(known)))
