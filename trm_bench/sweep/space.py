"""What a sweep may change of a method: read from the method's own declarations, nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic.fields import FieldInfo

from trm_bench.errors import UserError
from trm_bench.fingerprint import digest_of
from trm_bench.methods import Method
from trm_bench.methods.registry import REGISTRY, create
from trm_bench.protocol.schema import MethodConfig, MethodSettings, MethodTraining, TrainingConfig
from trm_bench.protocol.sweep import SharedSpace, SweepConfig


@dataclass(frozen=True)
class Dimension:
    """One parameter of a search space.

    Attributes:
        name: Of the parameter.
        kind: `float` and `int` are drawn from a range, both ends included; `choice` from a list.
        search: Low and high of a range, or the choices (JSON values).
        log: Whether a range is drawn on a logarithmic scale.
        when: Parameter to value: others that must have a value for this one to matter.
    """

    name: str
    kind: Literal["float", "int", "choice"]
    search: tuple[Any, ...]
    log: bool = False
    when: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range or is one of the choices."""
        if self.kind == "choice":
            return value in self.search
        return bool(self.search[0] <= value <= self.search[1])

    def __str__(self) -> str:
        between = " | " if self.kind == "choice" else " .. "
        conditions = "".join(f", when {k} is {v}" for k, v in self.when.items())
        return between.join(map(str, self.search)) + (" (log)" if self.log else "") + conditions


@dataclass(frozen=True)
class Space:
    """The search space of a method in a protocol.

    Attributes:
        dimensions: What is searched; those in a `when` stand before those that name them.
        defaults: Value of each dimension where nothing is tuned.
        fixed: Parameters that are not searched, with their values.
        training: Names of the dimensions that are of the training and not the method's own.
    """

    dimensions: tuple[Dimension, ...]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    training: tuple[str, ...]

    def matters(self, dimension: Dimension, values: Mapping[str, Any]) -> bool:
        """Whether a dimension matters under the values of those before it."""
        known = {**self.fixed, **values}
        return all(known.get(name) == value for name, value in dimension.when.items())

    def default(self) -> dict[str, Any]:
        """The values of a trial that tunes nothing, of the dimensions that matter."""
        values: dict[str, Any] = {}
        for dimension in self.dimensions:
            if self.matters(dimension, values):
                values[dimension.name] = self.defaults[dimension.name]
        return values

    def settings(self, values: Mapping[str, Any]) -> MethodSettings:
        """Values of a trial as a protocol says them."""
        own = {name: value for name, value in values.items() if name not in self.training}
        shared = {name: value for name, value in values.items() if name in self.training}
        return MethodSettings(training=MethodTraining(**shared), **own)

    def described(self) -> dict[str, Any]:
        """Dimension to what it is, as JSON values."""
        described: dict[str, Any] = {}
        for d in self.dimensions:
            described[d.name] = {"kind": d.kind, "search": list(d.search), "log": d.log}
            described[d.name] |= {"when": dict(d.when)} if d.when else {}
        return described

    @property
    def hash(self) -> str:
        """16 hex digits: of the dimensions and of what is fixed; defaults are code, or training."""
        return digest_of(self.described(), dict(self.fixed), self.training)[:16]


def space_of(chosen: MethodConfig, training: TrainingConfig, sweep: SweepConfig) -> Space:
    """The search space of a method: its own parameters, the shared space of the training, or both.

    What the protocol sets of a method by hand is not searched.

    Args:
        chosen: The method in the protocol.
        training: The target training of the protocol.
        sweep: Of the protocol; says who searches the shared space, and its ranges.

    Raises:
        UserError: A declaration cannot be searched, or the protocol leaves nothing to search.
    """
    where = f"methods.{chosen.label}"
    if chosen.per_transfer:
        fix = "remove per_transfer, or choose other methods with --methods"
        raise UserError("a method with settings of one transfer is not swept", where, fix)
    method = create(chosen.name, chosen.parameters, where)
    declared = declarations(type(method))
    _refuse_bad(chosen.name, declared)
    own = [d for name, d in declared.items() if name not in chosen.parameters]
    set_by_hand = chosen.training.model_dump(exclude_none=True)
    shared = []
    if not own or sweep.tune_training == "always":
        ranges = sweep.shared_space.model_dump()
        shared = [
            Dimension(name, "float", tuple(bounds), log=name in ("lr", "weight_decay"))
            for name, bounds in ranges.items()
            if name not in set_by_hand
        ]
    if not own and not shared:
        fix = "remove some of them, or choose other methods with --methods"
        raise UserError("the protocol sets all that could be tuned", f"{where}.training", fix)
    values = method.p.model_dump(mode="json")
    current = {
        "lr": training.optimizer.lr,
        "weight_decay": training.optimizer.weight_decay,
        "warmup": training.warmup,
        "dice_share": training.loss.dice_share,
    }
    searched = {d.name for d in own}
    return Space(
        dimensions=(*own, *shared),
        defaults={
            d.name: (values if d.name in searched else current)[d.name] for d in (*own, *shared)
        },
        fixed={k: v for k, v in values.items() if k not in searched} | {"training": set_by_hand},
        training=tuple(d.name for d in shared),
    )


def dimensions_of(described: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """The dimensions that `Space.described` tells of, as tuned.yaml holds them."""
    return tuple(
        Dimension(name, d["kind"], tuple(d["search"]), d["log"], d.get("when", {}))
        for name, d in described.items()
    )


def declarations(kind: type[Method]) -> dict[str, Dimension]:
    """What a method declares to be searched, by name, in the order of its parameters."""
    return {
        name: dimension
        for name, info in kind.Parameters.model_fields.items()
        if name not in kind.ignores and (dimension := _dimension(name, info)) is not None
    }


def _dimension(name: str, info: FieldInfo) -> Dimension | None:
    extra = info.json_schema_extra
    about: Any = extra if isinstance(extra, dict) else {}
    if not about.get("search"):
        return None
    kind: Literal["float", "int", "choice"] = "choice"
    if about["range"]:
        kind = "int" if info.annotation is int else "float"
    search = tuple(json.loads(json.dumps(about["search"])))  # a tuple becomes a list, as in a file
    return Dimension(name, kind, search, about["log"], about["when"])


def _refuse_bad(name: str, declared: Mapping[str, Dimension]) -> None:
    """Refuses a range that is none or outside a parameter's limits, and a `when` out of order."""
    known = REGISTRY.get(name).Parameters.model_fields
    for place, (key, dimension) in enumerate(declared.items()):
        low = dimension.search[0]
        what = ""
        if dimension.kind != "choice" and not low < dimension.search[-1]:
            what = "its range is empty"
        elif dimension.log and low <= 0:
            what = "a logarithmic range starts above 0"
        elif not dimension.when.keys() <= known.keys() - set(list(declared)[place:]):
            what = "what it depends on is not declared before it"
        elif key in SharedSpace.model_fields:
            what = "the training has a parameter of this name"
        if what:
            fix = "correct its hyper(...)"
            raise UserError(f"'{key}' cannot be searched: {what}", f"methods.{name}", fix)
        for value in dimension.search:
            create(name, {key: value}, f"the search of methods.{name}.{key}")
