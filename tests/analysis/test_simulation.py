"""Error rates by simulation: a small version of benchmarks/statistics.py, which has them all."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import make_table

from trm_bench.analysis.intervals import mean_gains
from trm_bench.analysis.tests import compare
from trm_bench.analysis.verdict import RULES

FILE = Path(__file__).parents[2] / "benchmarks" / "statistics.py"
REPETITIONS = 300


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark, under a name that is not the standard library's."""
    spec = importlib.util.spec_from_file_location("benchmark_of_statistics", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


SCENARIOS = [
    ("one transfer", 9, 3, 4.0, {}),
    ("one transfer", 70, 5, 0.5, {}),
    ("one transfer", 139, 10, 1.0, {}),
    ("small table", 4, 3, 0.5, {}),
    ("missing", 30, 5, 4.0, {"missing": 0.1}),
    ("ties", 30, 5, 0.5, {"subject_sd": 0.2, "residual_sd": 0.3, "ties": True}),
    ("mean over 12 transfers", 30, 5, 4.0, {"transfers": 12}),
    ("own subjects", 12, 5, 0.5, {"transfers": 3, "shared": False}),
    ("resampled", 22, 5, 2.0, {"split": (9, 3, 2), "source": 0.5, "train": 0.5}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "subjects", "seeds", "sd", "more"), SCENARIOS)
def test_false_marks(
    bench: Any, kind: str, subjects: int, seeds: int, sd: float, more: dict[str, Any]
) -> None:
    rates = bench.simulate(bench.Scenario(kind, subjects, seeds, sd, **more), REPETITIONS)
    # a true rate of 0.05 stays below these with probability 0.999
    limits = {"one": 0.075, "family of 4": 0.093, "family of 17": 0.093}
    assert all(rates["generalised"][k] <= limit for k, limit in limits.items()), rates


@pytest.mark.slow
def test_what_fails_is_seen_to_fail(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same simulation condemns the test over subjects, whose marks were of networks."""
    rates = bench.simulate(bench.Scenario("one transfer", 70, 3, 1.0), 100)
    assert rates["Wilcoxon over subjects"]["one"] > 0.3
    assert rates["Wilcoxon over subjects"]["family of 17"] > 0.8
    assert rates["generalised"]["one"] < 0.1
    # without the inflation, splits of the same patients do the same
    s = bench.Scenario("resampled", 75, 10, 2.0, split=(30, 12, 8), source=0.5, train=0.5)
    inflated = bench.simulate(s, 150)["generalised"]["one"]
    monkeypatch.setattr(bench.Scenario, "design", bench.Design("resampled", 0.0))
    assert bench.simulate(s, 150)["generalised"]["one"] > 0.12 > 0.075 > inflated


def test_the_simulated_test_is_the_one_of_the_tables(bench: Any) -> None:
    s = bench.Scenario("one transfer", 12, 5, 1.0)
    gain = bench.table(s, np.random.default_rng(3))
    methods = {f"m{i}": 60 + of_method for i, of_method in enumerate(gain)}
    rows = compare(make_table({"finetune": np.full(gain.shape[1:], 60.0), **methods}))
    rows = rows[(rows["transfer"] == "mean")].set_index("method")
    for i, of_method in enumerate(gain):
        mean, squares = bench.squares_of(of_method, s.design)
        assert rows.loc[f"m{i}", "gain"] == pytest.approx(mean)
        p = float(bench.generalised.p_value(mean, squares))
        assert rows.loc[f"m{i}", "p"] == pytest.approx(p)
        alone = mean_gains(of_method, ["a"], np.ones(of_method.shape, bool)).iloc[-1]
        assert (alone["low"] > 0 or alone["high"] < 0) == (p < 0.05)


def test_every_scenario_can_be_drawn(bench: Any) -> None:
    kinds = {s.kind: s for s in bench.scenarios()}
    assert len(kinds) > 10 and len({s.name for s in bench.scenarios()}) > 100
    for s in kinds.values():
        rates = bench.simulate(s, 2)
        assert set(rates["generalised"]) == {"one", "family of 4", "family of 17"}


@pytest.mark.slow
@pytest.mark.parametrize("sd", [0.25, 1.0])
def test_verdicts_on_known_gains(bench: Any, sd: float) -> None:
    none, tenth, whole = (bench.verdicts(70, 5, sd, part, 1000) for part in (0.0, 0.1, 1.0))
    assert none["reproduced"] <= 0.025 and none["exit 0"] == 0
    assert tenth["exit 0"] <= 0.05
    assert whole["exit 0"] > 0.5 and whole["contradicted"] == 0
    for found in (none, tenth, whole):
        assert sum(found[word] for word in RULES) == pytest.approx(1)
