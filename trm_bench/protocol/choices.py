"""What a command chooses from a protocol: methods, seeds, transfers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trm_bench.errors import UserError, nearest
from trm_bench.protocol.schema import Domain, MethodConfig, Protocol, Transfer
from trm_bench.protocol.strict import LARGEST_SEED

if TYPE_CHECKING:
    from trm_bench.datasets.base import Dataset


def choose_methods(protocol: Protocol, labels: Sequence[str], known: Sequence[str]) -> Protocol:
    """The protocol with some methods, by label; one that it does not list gets its defaults.

    Args:
        protocol: To choose from.
        labels: Of its methods, or names of registered ones; one that comes again counts once.
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


def refuse_borrowed_labels(protocol: Protocol, known: Sequence[str]) -> None:
    """Raises `UserError` where a method is labelled with the name of another registered one."""
    for i, method in enumerate(protocol.methods):
        if method.label != method.name and method.label in known:
            what = f"'{method.name}' is labelled '{method.label}', the name of another method"
            raise UserError(what, f"methods.{i}.label", "choose a label that is no method's name")


def choose_seeds(protocol: Protocol, seeds: Sequence[str]) -> Protocol:
    """The protocol with other seeds.

    Raises:
        UserError: They are not different whole numbers from 0 to 2^31 - 1.
    """
    fix = "for example --seeds 0,1,2"
    numbers = tuple(int(s) for s in seeds if re.fullmatch("[0-9]{1,10}", s))
    if len({n for n in numbers if n <= LARGEST_SEED}) < len(seeds):
        what = f"'{','.join(seeds)[:200]}' are not different whole numbers"
        raise UserError(f"{what} from 0 to {LARGEST_SEED}", "--seeds", fix)
    return protocol.model_copy(update={"seeds": numbers})


def choose_transfers(
    protocol: Protocol, dataset: Dataset, names: Sequence[str] = ()
) -> list[Transfer]:
    """The protocol's transfers, or those named.

    Raises:
        UserError: A name is not one of them or comes twice, or see `transfers_of`.
    """
    refuse_twice(names, "--transfers")
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


def refuse_twice(names: Sequence[str], where: str) -> None:
    """Raises `UserError` where a name comes twice in an option."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"'{name}' is named twice", where, "name each once")


def _require(name: str, known: Sequence[str], where: str, dataset: str) -> None:
    if name not in known:
        raise UserError(f"'{dataset}' has no '{name}'", where, nearest(name, list(known)))
