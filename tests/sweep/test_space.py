"""What is searched: read from the declarations, conditional, and nothing that cannot matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import InMemory, store, subject

from trm_bench.errors import UserError
from trm_bench.methods import Context, Method, Parameters, hyper
from trm_bench.methods.registry import REGISTRY, create
from trm_bench.methods.trm import TransferRiskMap, UniformRisk
from trm_bench.protocol.schema import MethodConfig, TrainingConfig
from trm_bench.protocol.sweep import SharedSpace, SweepConfig
from trm_bench.sweep.space import Space, declarations, space_of
from trm_bench.sweep.tuned import with_settings

TRAINING = TrainingConfig(steps=6, patch=(16, 16, 16))


def of(name: str, **settings: Any) -> Space:
    return space_of(MethodConfig(name=name, **settings), TRAINING, SweepConfig())


def names(space: Space) -> list[str]:
    return [d.name for d in space.dimensions]


@pytest.mark.parametrize("name", REGISTRY.names())
def test_every_method_has_a_space_that_holds_its_defaults(name: str) -> None:
    space, chosen = of(name), MethodConfig(name=name)
    assert space.dimensions
    assert bool(space.training) == (not declarations(REGISTRY.get(name)))
    values = space.default()
    assert all(d.holds(values[d.name]) for d in space.dimensions if d.name in values)
    tuned = with_settings(chosen, space.settings(values))
    assert create(name, tuned.parameters).p == create(name, {}).p
    assert tuned.training.applied(TRAINING) == TRAINING


@pytest.mark.parametrize("name", ["scratch", "finetune", "auto_rgn", "wise_ft", "frozen_encoder"])
def test_methods_without_own_ranges_tune_the_training(name: str) -> None:
    space = of(name)
    assert names(space) == ["lr", "weight_decay", "warmup", "dice_share"]
    assert [d.log for d in space.dimensions] == [True, True, False, False]
    assert space.default() == {"lr": 1e-3, "weight_decay": 1e-5, "warmup": 0.0, "dice_share": 0.5}


def test_every_method_may_tune_the_training() -> None:
    always = SweepConfig(tune_training="always")
    own, both = of("focal"), space_of(MethodConfig(name="focal"), TRAINING, always)
    assert names(both) == [*names(own), *names(of("finetune"))]
    assert both.default() == own.default() | of("finetune").default()
    assert both.hash != own.hash
    settings = both.settings({"gamma": 1.5, "lr": 0.02})
    assert settings.parameters == {"gamma": 1.5} and settings.training.lr == 0.02
    by_hand = MethodConfig(name="focal", gamma=1.0, training={"lr": 0.1})
    assert names(space_of(by_hand, TRAINING, always)) == ["weight_decay", "warmup", "dice_share"]
    plain = MethodConfig(name="finetune")
    assert space_of(plain, TRAINING, always) == space_of(plain, TRAINING, SweepConfig())


def test_a_parameter_matters_under_the_value_it_depends_on() -> None:
    space = of("trm")
    base, strength = (
        next(d for d in space.dimensions if d.name == n) for n in ("base", "strength")
    )
    matters = {
        weight: (
            space.matters(base, {"weight": weight}),
            space.matters(strength, {"weight": weight}),
        )
        for weight in ("risk", "affine", "power")
    }
    assert matters == {"risk": (False, False), "affine": (False, True), "power": (True, False)}
    assert "base" in space.default() and "strength" not in space.default()


def test_what_the_protocol_sets_is_not_searched() -> None:
    space = of("trm", weight="affine", scope="brain")
    assert not {"weight", "scope"} & set(names(space))
    assert "strength" in space.default() and "base" not in space.default()
    assert names(of("finetune", training={"lr": 0.1, "warmup": 0.0})) == [
        "weight_decay",
        "dice_share",
    ]
    everything = dict.fromkeys(("lr", "weight_decay", "warmup", "dice_share"), 0.1)
    with pytest.raises(UserError, match=r"methods\.finetune\.training: .* sets all"):
        of("finetune", training=everything)
    with pytest.raises(UserError, match="settings of one transfer"):
        of("trm", per_transfer={"a->b": {"base": 2.0}})


def test_the_hash_is_of_what_is_searched_and_held_fixed() -> None:
    chosen = MethodConfig(name="finetune")
    wider = space_of(chosen, TRAINING, SweepConfig(shared_space=SharedSpace(lr=(1e-5, 1e-1))))
    hashes = [of("finetune"), wider, of("trm"), of("trm", with_dice=0.5), of("trm", scope="brain")]
    assert len({space.hash for space in hashes}) == len(hashes)
    assert of("trm").hash == of("trm", label="other").hash


def _weights(kind: type[Method], **parameters: Any) -> list[torch.Tensor]:
    """The weight maps under a source that says something, on two random subjects."""
    subjects = [subject(seed, (4, 4, 4)) for seed in (0, 1)]
    method: Any = kind(kind.Parameters(**parameters))
    run: Any = _Run(subjects)
    return method.weights(run)


class _Run:
    """What the weight maps of `trm` need of a context."""

    classes, seed_axes = 3, ("test",)

    def __init__(self, subjects: list[InMemory]) -> None:
        self.training_set = store(*subjects)
        self.source, self.diagnostics = object(), dict[str, Any]()

    def predict(self, network: object, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([image.float(), -image.float()], 1).softmax(1)


@pytest.mark.parametrize("name", ["trm", "trm_prior", "trm_shuffled", "trm_uniform"])
def test_a_control_searches_what_changes_something_and_nothing_else(name: str) -> None:
    kind, full = REGISTRY.get(name), declarations(TransferRiskMap)
    assert set(declarations(kind)) == set(full) - set(kind.ignores)
    in_the_sum = {"denominator", "over", "with_dice"}
    for key, dimension in full.items():
        if key in in_the_sum:
            assert key not in kind.ignores
            continue
        context = dict(dimension.when)
        if key == "normalise":
            context["risk"] = "neg_log"
        maps = [_weights(kind, **context, **{key: value}) for value in dimension.search]
        changes = any(
            not torch.allclose(a, b)
            for other in maps[1:]
            for a, b in zip(maps[0], other, strict=True)
        )
        assert changes == (key not in kind.ignores), key
    assert set(UniformRisk.ignores) & set(full) == set(full) - in_the_sum


def _declared(**fields: Any) -> type[Method]:
    """A method whose parameters have these defaults."""
    own = type("Own", (Parameters,), {"__annotations__": dict.fromkeys(fields, Any), **fields})
    return type("Declared", (Method,), {"name": "declared", "Parameters": own})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"a": hyper(1.0, "", search=(2.0, 1.0))}, "its range is empty"),
        ({"a": hyper(1.0, "", search=(0.0, 1.0), log=True)}, "starts above 0"),
        ({"lr": hyper(1.0, "", search=(0.0, 1.0))}, "the training has a parameter of this name"),
        ({"a": hyper(1.0, "", search=(-1.0, 1.0), ge=0)}, "greater than or equal to 0"),
        ({"a": hyper("x", "", search=["x", "xy"], max_length=1)}, "search of methods.declared.a"),
        ({"a": hyper(1.0, "", search=(0.0, 1.0), when={"b": 1})}, "not declared before"),
        (
            {
                "a": hyper(1.0, "", search=(0.0, 1.0), when={"b": 1}),
                "b": hyper(1, "", search=[1, 2]),
            },
            "'a' cannot be searched: what it depends on is not declared before it",
        ),
    ],
)
def test_declarations_that_cannot_be_searched_are_named(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(REGISTRY, "get", lambda name: _declared(**fields))
    with pytest.raises(UserError) as error:
        of("declared")
    assert message in str(error.value)


def test_context_is_what_methods_take() -> None:
    """`_Run` stands for it above: these are attributes of it."""
    known = Context.__dataclass_fields__
    assert {"training_set", "source", "diagnostics", "predict", "seed_axes"} <= known.keys()
    assert "classes" in vars(Context)
