"""The methods by name, and a method from its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trm_bench import networks
from trm_bench.errors import UserError, nearest
from trm_bench.methods import Method
from trm_bench.plugins import Registry

if TYPE_CHECKING:
    from trm_bench.protocol.schema import Protocol

BUILTIN = {
    "scratch": "trm_bench.baselines.scratch:Scratch",
    "finetune": "trm_bench.baselines.finetune:Finetune",
    "finetune_longer": "trm_bench.baselines.finetune_longer:FinetuneLonger",
    "finetune_with_validation": "trm_bench.baselines.finetune_with_validation:WithValidation",
    "trm": "trm_bench.methods.trm:TransferRiskMap",
    "trm_prior": "trm_bench.methods.trm:PriorRisk",
    "trm_paper_literal": "trm_bench.methods.trm:PaperLiteral",
    "trm_minmax_power": "trm_bench.methods.trm:MinmaxPower",
    "trm_uniform": "trm_bench.methods.trm:UniformRisk",
    "trm_shuffled": "trm_bench.methods.trm:ShuffledRisk",
    "trm_decomposed": "trm_bench.methods.decomposed:DecomposedRisk",
    "trm_oracle": "trm_bench.methods.decomposed:OracleRisk",
    "transferability_weighted": (
        "trm_bench.methods.transferability_weighted:TransferabilityWeighted"
    ),
    "focal": "trm_bench.baselines.focal:Focal",
    "topk": "trm_bench.baselines.topk:TopK",
    "frozen_encoder": "trm_bench.baselines.frozen_encoder:FrozenEncoder",
    "lp_ft": "trm_bench.baselines.lp_ft:LpFt",
    "lora": "trm_bench.baselines.lora:Lora",
    "adapters": "trm_bench.baselines.adapters:Adapters",
    "bitfit": "trm_bench.baselines.bitfit:BitFit",
    "norm_tuning": "trm_bench.baselines.norm_tuning:NormTuning",
    "l2_sp": "trm_bench.baselines.l2_sp:L2Sp",
    "delta": "trm_bench.baselines.delta:Delta",
    "spd": "trm_bench.baselines.spd:Spd",
    "ftp": "trm_bench.baselines.ftp:Ftp",
    "bss": "trm_bench.baselines.bss:Bss",
    "stochnorm": "trm_bench.baselines.stochnorm:StochNorm",
    "co_tuning": "trm_bench.baselines.co_tuning:CoTuning",
    "wise_ft": "trm_bench.baselines.wise_ft:WiseFt",
    "soup": "trm_bench.baselines.soup:Soup",
    "greedy_soup": "trm_bench.baselines.soup:GreedySoup",
    "auto_rgn": "trm_bench.baselines.auto_rgn:AutoRgn",
    "forkmerge": "trm_bench.baselines.forkmerge:ForkMerge",
    "disagreement": "trm_bench.baselines.disagreement:Disagreement",
    "refine": "trm_bench.baselines.refine:Refine",
    "style_contrast": "trm_bench.baselines.style_contrast:StyleContrast",
}
PRESET = "preset"  # the key of a protocol's method that names one; see `Method.presets`
REGISTRY = Registry(Method, "method", "trm_bench.methods", BUILTIN, "methods")


def _preset(kind: type[Method], preset: object, where: str) -> Mapping[str, Any]:
    if preset not in list(kind.presets):
        known = list(kind.presets)
        fix = nearest(str(preset), known) if known else "it has none"
        raise UserError(f"'{kind.name}' has no preset '{preset}'", f"{where}.{PRESET}", fix)
    return kind.presets[str(preset)]


def trainable(protocol: Protocol) -> list[str]:
    """The methods that can train a protocol's network.

    StochNorm, for one, needs batch normalisation.
    """
    network = networks.build(protocol.network, 1, 2, protocol.spatial_dims, seed=0)
    parts = networks.parts(protocol.network, 1, protocol.spatial_dims)
    names = []
    for name in REGISTRY.names():
        with suppress(UserError):
            create(name, {}).check(network, parts)
            names.append(name)
    return names


def has_own_modules(name: str) -> bool:
    """Whether a method may put modules of its own into the network; see `Method.architecture`."""
    return REGISTRY.get(name).architecture is not Method.architecture


def create(name: str, parameters: Mapping[str, Any], where: str = "methods") -> Method:
    """A method with its parameters checked.

    Args:
        name: Of the method.
        parameters: Its parameters, over those of its preset where `preset` names one.
        where: The protocol's key that they stand at, for messages.

    Raises:
        UserError: A parameter or a preset is unknown, or a parameter has a wrong value.
    """
    kind = REGISTRY.get(name)
    own = {key: value for key, value in parameters.items() if key != PRESET}
    if (preset := parameters.get(PRESET)) is not None:
        own = {**_preset(kind, preset, where), **own}
    try:
        return kind(kind.Parameters.model_validate(own))
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            key = ".".join(map(str, problem["loc"]))
            unknown = problem["type"] == "extra_forbidden"
            hint = (
                nearest(key, list(kind.Parameters.model_fields))
                if kind.Parameters.model_fields
                else "it has none"
            )
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{key}: unknown parameter; {hint}" if unknown else f"{key}: {message}")
        raise UserError(
            f"parameters of '{name}': {'; '.join(lines)}", where, f"see: trm-bench methods {name}"
        ) from error
