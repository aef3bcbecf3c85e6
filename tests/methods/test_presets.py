"""Named sets of a method's values, chosen in a protocol."""

from __future__ import annotations

from typing import Any

import pytest
from harness import same, trained

from trm_bench.errors import UserError
from trm_bench.methods.registry import REGISTRY, create
from trm_bench.protocol.schema import MethodConfig, MethodSettings, TrainingConfig
from trm_bench.protocol.sweep import SweepConfig
from trm_bench.sweep.space import space_of
from trm_bench.sweep.tuned import with_settings

PRESETS = [(name, p) for name in REGISTRY.names() for p in REGISTRY.get(name).presets]
PAPERS = {
    "l2_sp": {"alpha": 0.1, "beta": 0.01},
    "bss": {"eta": 1e-3, "k": 1},
    "stochnorm": {"p": 0.5},
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_values_have_a_name(name: str) -> None:
    assert create(name, {"preset": "paper"}).p.model_dump() == PAPERS[name]
    assert same(
        trained(name, {"preset": "paper"}).after,
        trained(name, PAPERS[name]).after,
    )


def test_what_is_given_wins_over_the_preset() -> None:
    made = create("l2_sp", {"alpha": 0.5, "preset": "paper"})
    assert made.p.model_dump() == {"alpha": 0.5, "beta": 0.01}
    chosen = MethodConfig(
        name="l2_sp", preset="paper", per_transfer={"a->b": MethodSettings(beta=0.0)}
    )
    assert create("l2_sp", chosen.at("a->b").parameters).p.model_dump() == {"alpha": 0.1, "beta": 0}


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_preset_is_valid_and_of_parameters_that_matter(name: str, preset: str) -> None:
    values = create(name, {"preset": preset}).p.model_dump(mode="json")
    given = REGISTRY.get(name).presets[preset]
    assert given and {key: values[key] for key in given} == dict(given)


@pytest.mark.parametrize(
    ("name", "preset", "said"),
    [
        ("l2_sp", "papre", r"'l2_sp' has no preset 'papre'[\s\S]*did you mean 'paper'"),
        ("l2_sp", ["paper"], r"'l2_sp' has no preset"),
        ("finetune", "paper", r"'finetune' has no preset 'paper'[\s\S]*it has none"),
    ],
)
def test_an_unknown_preset_is_named(name: str, preset: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        create(name, {"preset": preset}, "methods.3")


def test_a_sweep_begins_with_the_preset_and_searches_its_parameters() -> None:
    training = TrainingConfig(steps=6, patch=(16, 16, 16))
    made = create("stochnorm", {"preset": "paper"}).p.model_dump()
    chosen = MethodConfig(name="stochnorm", preset="paper")
    space = space_of(chosen, training, SweepConfig())
    assert space.default() == made, "trial 0"
    plain = space_of(MethodConfig(name="stochnorm"), training, SweepConfig())
    assert space.dimensions == plain.dimensions
    tuned = with_settings(chosen, space.settings({"p": 0.25}))
    assert create("stochnorm", tuned.parameters).p.p == 0.25
    assert tuned.parameters["preset"] == "paper"
