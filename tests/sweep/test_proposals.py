"""Proposals: a function of what earlier trials gave, and of nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from trm_bench.protocol.schema import MethodConfig, TrainingConfig
from trm_bench.protocol.sweep import SweepConfig
from trm_bench.sweep.proposals import Trial, propose
from trm_bench.sweep.space import Dimension, Space, space_of

SPACE = space_of(
    MethodConfig(name="trm"), TrainingConfig(steps=6, patch=(16, 16, 16)), SweepConfig()
)
LINE = Space((Dimension("x", "float", (0.0, 1.0)),), {"x": 0.5}, {}, ())


def sweep(
    space: Space, score: Any, trials: int, sampler: Any = "tpe", batch: int = 4
) -> list[Trial]:
    """A sweep of a function that takes no time."""
    done: list[Trial] = []
    while len(done) < trials:
        values: list[dict[str, Any]] = []
        for n in range(len(done), min(len(done) + batch, trials)):
            values.append(propose(space, done, values, sampler, 1000 + n))
        done += [Trial(len(done) + i, v, score(v)) for i, v in enumerate(values)]
    return done


def reading(values: dict[str, Any]) -> float:
    return 0.5 + 0.2 * (values["risk"] == "neg_log") - 0.01 * abs(values.get("base", 50) - 10)


def test_the_first_trial_has_the_defaults() -> None:
    assert propose(SPACE, [], [], "tpe", 3) == SPACE.default()
    assert propose(SPACE, [], [], "random", 4) == SPACE.default()


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_records_give_the_same_proposals(sampler: Any) -> None:
    once = sweep(SPACE, reading, 24, sampler)
    assert sweep(SPACE, reading, 24, sampler) == once
    for n in (5, 17, 23):  # as after a restart: values and scores as they come back from a file
        stored = [Trial(t.number, json.loads(json.dumps(t.values)), t.score) for t in once]
        first = n - n % 4
        mates = [t.values for t in stored[first:n]]
        assert propose(SPACE, stored[:first], mates, sampler, 1000 + n) == once[n].values


def test_another_seed_or_another_result_gives_another_proposal() -> None:
    done = sweep(LINE, lambda v: v["x"], 16)
    one = propose(LINE, done, [], "tpe", 7)
    assert propose(LINE, done, [], "tpe", 8) != one
    turned = [Trial(t.number, t.values, -(t.score or 0)) for t in done]
    assert propose(LINE, turned, [], "tpe", 7) != one
    assert propose(LINE, done, [one] * 3, "tpe", 7) != one  # mates that run are kept away from


def test_values_lie_in_the_space_and_only_those_that_matter_are_drawn() -> None:
    trials = sweep(SPACE, reading, 32, "random")
    assert len({t.values["weight"] for t in trials}) == 3
    for trial in trials:
        assert ("base" in trial.values) == (trial.values["weight"] == "power")
        assert ("strength" in trial.values) == (trial.values["weight"] == "affine")
        assert all(
            d.holds(trial.values[d.name]) for d in SPACE.dimensions if d.name in trial.values
        )


def test_whole_numbers_lists_and_logarithms_are_drawn_as_declared() -> None:
    space = Space(
        (
            Dimension("n", "int", (1, 4)),
            Dimension("c", "choice", ([0.0, 1.0], None, "a")),
            Dimension("x", "float", (1e-4, 1.0), log=True),
        ),
        {"n": 1, "c": None, "x": 1.0},
        {},
        training=(),
    )
    values = [t.values for t in sweep(space, lambda v: v["x"], 120, "random")[1:]]
    assert {v["n"] for v in values} == {1, 2, 3, 4}
    assert all(type(v["n"]) is int and v["c"] in ([0.0, 1.0], None, "a") for v in values)
    below = sum(v["x"] < 1e-2 for v in values) / len(values)
    assert abs(below - 0.5) < 4 * math.sqrt(0.25 / len(values))


def test_failed_trials_are_no_bad_scores_and_defaults_may_lie_outside() -> None:
    done = sweep(LINE, lambda v: v["x"], 12)
    failed = [*done, Trial(12, {"x": 0.99}, None)]
    worst = [*done, Trial(12, {"x": 0.99}, -1.0)]
    assert 0 <= propose(LINE, failed, [], "tpe", 5)["x"] <= 1
    assert propose(LINE, failed, [], "tpe", 5) == propose(LINE, done, [], "tpe", 5)
    assert propose(LINE, worst, [], "tpe", 5) != propose(LINE, done, [], "tpe", 5)
    outside = Space(LINE.dimensions, {"x": 7.0}, {}, ())
    assert propose(outside, [], [], "tpe", 1) == {"x": 7.0}
    first = [Trial(0, {"x": 7.0}, 0.9)]
    assert 0 <= propose(outside, first, [{"x": 0.3}], "tpe", 1)["x"] <= 1


def test_the_sampler_learns() -> None:
    """Far better than chance at a peak that takes up 2 % of the line."""
    best = max(t.score or 0 for t in sweep(LINE, lambda v: 1 - abs(v["x"] - 0.123), 48)[16:])
    assert best > 0.99
    late = [
        abs(t.values["x"] - 0.123) for t in sweep(LINE, lambda v: 1 - abs(v["x"] - 0.123), 48)[32:]
    ]
    assert sorted(late)[len(late) // 2] < 0.15
