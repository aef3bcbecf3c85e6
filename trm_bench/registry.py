"""The methods by name: the built-in ones, and those of installed packages (entry points of `trm_bench.methods`)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from trm_bench import networks
from trm_bench.errors import UserError, nearest
from trm_bench.methods import Method
from trm_bench.protocol import Protocol

BUILTIN = {
    "scratch": "baselines.scratch:Scratch",
    "finetune": "baselines.finetune:Finetune",
    "trm": "trm_bench.trm:TransferRiskMap",
    "trm_prior": "trm_bench.trm:PriorRisk",
    "trm_uniform": "trm_bench.trm:UniformRisk",
    "trm_shuffled": "trm_bench.trm:ShuffledRisk",
    "focal": "baselines.focal:Focal",
    "topk": "baselines.topk:TopK",
    "frozen_encoder": "baselines.frozen_encoder:FrozenEncoder",
    "lp_ft": "baselines.lp_ft:LpFt",
    "l2_sp": "baselines.l2_sp:L2Sp",
    "delta": "baselines.delta:Delta",
    "bss": "baselines.bss:Bss",
    "stochnorm": "baselines.stochnorm:StochNorm",
    "co_tuning": "baselines.co_tuning:CoTuning",
    "wise_ft": "baselines.wise_ft:WiseFt",
    "auto_rgn": "baselines.auto_rgn:AutoRgn",
    "forkmerge": "baselines.forkmerge:ForkMerge",
    "disagreement": "baselines.disagreement:Disagreement",
}
GROUP = "trm_bench.methods"


@cache
def known() -> Mapping[str, str]:
    """Names of all methods, built in and installed, and where they are ("module:Class").

    Raises:
        UserError: An installed package claims a name that is taken.
    """
    found = dict(BUILTIN)
    for entry in entry_points(group=GROUP):
        package = entry.dist.name if entry.dist else "?"
        if entry.name in found:
            raise UserError(f"the method '{entry.name}' of '{package}' is already taken", GROUP, "rename or remove it")
        found[entry.name] = entry.value
    return found


@cache
def get(name: str) -> type[Method]:
    """The method's class.

    Raises:
        UserError: There is no such method, or a third-party one cannot be loaded.
    """
    if name not in known():
        raise UserError(f"no method '{name}'", "methods", nearest(name, list(known())))
    module, _, attribute = known()[name].partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the method '{name}' cannot be loaded: {error}", known()[name], "mend its package") from error
    if not (inspect.isclass(found) and issubclass(found, Method)) or found.name != name:
        raise UserError(f"'{name}' is not a Method of that name", known()[name], "mend its package")
    return found


def trainable(protocol: Protocol) -> list[str]:
    """The methods that can train a protocol's network: StochNorm, for one, needs batch normalisation."""
    network = networks.build(protocol.network, 1, 2, protocol.spatial_dims, seed=0)
    parts = networks.parts(protocol.network, 1, protocol.spatial_dims)
    found = []
    for name in known():
        with suppress(UserError):
            create(name, {}).check(network, parts)
            found.append(name)
    return found


def create(name: str, parameters: Mapping[str, Any], where: str = "methods") -> Method:
    """A method with its parameters checked.

    Raises:
        UserError: A parameter is unknown or has a wrong value.
    """
    kind = get(name)
    try:
        return kind(kind.Parameters(**parameters))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            unknown = problem["type"] == "extra_forbidden"
            hint = nearest(key, list(kind.Parameters.model_fields)) if kind.Parameters.model_fields else "it has none"
            lines.append(f"{key}: unknown parameter; {hint}" if unknown else f"{key}: {problem['msg']}")
        raise UserError(
            f"parameters of '{name}': {'; '.join(lines)}", where, f"see: trm-bench methods {name}"
        ) from error
