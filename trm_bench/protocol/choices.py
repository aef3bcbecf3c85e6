"""What a command chooses from a protocol: methods and seeds; transfers: `protocol.transfers`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trm_bench.errors import UserError, nearest
from trm_bench.protocol.schema import MethodConfig, Protocol
from trm_bench.protocol.strict import LARGEST_SEED


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


def refuse_twice(names: Sequence[str], where: str) -> None:
    """Raises `UserError` where a name comes twice in an option."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"'{name}' is named twice", where, "name each once")
