"""Readings: effects of options over datasets, where raw means would be wrong."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from helpers import Run
from reported import documented
from scipy import stats

from trm_bench.errors import UserError
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Budget, SweptMethod, SweptTrial, Trials, Tuned, TunedMethod
from trm_bench.runs.store import write_tuned
from trm_bench.sweep.findings import Finding
from trm_bench.sweep.readings import (
    Dataset,
    balance,
    collect,
    effects,
    observations,
    over_datasets,
)

SPACE: dict[str, Any] = {
    "scope": {"kind": "choice", "search": ["all", "brain", "labelled"], "log": False},
    "weight": {"kind": "choice", "search": ["risk", "power"], "log": False},
    "base": {
        "kind": "float",
        "search": [1.5, 100.0],
        "log": True,
        "when": {"weight": "power"},
    },
    "over": {"kind": "choice", "search": ["all", None], "log": False},
}
TRUE = {"all": 2.0, "brain": -3.0, "labelled": 1.0, "risk": -6.0, "power": 6.0}
SCOPES = ("all", "brain", "labelled")
SLOPE = 1.5  # points for each factor e of base
MIDDLE = (math.log(1.5) + math.log(100)) / 2


def method(
    name: str = "trm",
    trials: int = 24,
    noise: float = 0.0,
    seed: int = 0,
    shift: float = 0.0,
    scopes: tuple[str, ...] = SCOPES,
    failed: int = 0,
    space: dict[str, Any] = SPACE,
) -> tuple[TunedMethod, SweptMethod]:
    """Trials whose scope comes mostly with one weight, as a sampler that seeks would draw them."""
    draws, told = random.Random(seed), []
    for i in range(trials):
        scope = draws.choice(scopes)
        likely, other = ("power", "risk") if scope == "brain" else ("risk", "power")
        weight = likely if draws.random() < 0.8 else other
        values: dict[str, Any] = {"scope": scope, "weight": weight, "over": "all"}
        score = 60 + TRUE[scope] + TRUE[weight] + (shift if scope == "all" else 0)
        if weight == "power":
            values["base"] = math.exp(draws.uniform(0.5, 4.5))
            score += SLOPE * (math.log(values["base"]) - MIDDLE)
        score += draws.gauss(0, noise)
        told.append(
            SweptTrial(
                number=i,
                values=values,
                validation_dice=None if i < failed else score / 100,
                voxel_share=0.9 if scope == "all" else 0.3,
                seconds=1.0,
                runs=(f"run{i}",),
            )
        )
    entry = TunedMethod(
        method=name,
        name=name,
        transfer=None,
        trial=failed,
        values=told[min(failed, trials - 1)].values,
        validation_dice=told[min(failed, trials - 1)].validation_dice,
        default_validation_dice=told[0].validation_dice,
        finished=trials - failed,
        failed=failed,
        runs=trials,
        steps=trials,
        passes=trials,
        space=space,
        space_hash="0",
        code="0",
    )
    return entry, SweptMethod(method=name, transfer=None, seconds=1.0, trials=tuple(told))


def finding(**named: Any) -> Finding:
    entry, swept = method(**named)
    return Finding(entry, swept.trials, swept.seconds)


def datasets(*findings: Finding) -> list[Dataset]:
    return [Dataset(f"d{i}", Path(f"d{i}"), "real", f, ()) for i, f in enumerate(findings)]


def folder(path: Path, data: str = "real", **named: Any) -> ProtocolFolder:
    pairs = [method(**named), method("trm_paper_literal", seed=9)]
    budget = Budget(
        trials=24, steps=5, seeds=(0,), transfers=("a->b",), per="protocol", sampler="random",
        batch=4, seed=0,
    )  # fmt: skip
    tuned = Tuned(
        protocol=path.name,
        data=data,  # type: ignore[arg-type]
        budget=budget,
        conditions={"subjects": "0"},
        methods=tuple(entry for entry, _ in pairs),
    )
    made = ProtocolFolder(path)
    write_tuned(made, tuned, Trials(methods=tuple(swept for _, swept in pairs)))
    return made


def saturated(found: Finding) -> bool:
    """As many trials as coefficients, and all of them estimable but those of `over`."""
    table = effects(found)
    return bool(table.df.iloc[0] == 0 and table[table.option != "over"].effect.notna().all())


def column(table: pd.DataFrame, name: str = "effect") -> dict[str, float]:
    return dict(zip(table.value, table[name], strict=True))


class TestOneDataset:
    def test_effects_are_found_where_raw_means_are_wrong(self) -> None:
        found = finding(trials=40)
        known = column(effects(found))
        for value, true in TRUE.items():
            if value != "all":
                assert known[value] == pytest.approx(true, abs=1e-6)
        assert known["per factor e"] == pytest.approx(SLOPE, abs=1e-6)
        table = effects(found)
        scope = table[(table.option == "scope") & (table.value == "all")]
        assert float(scope.effect.iloc[0]) == pytest.approx(2, abs=1e-6)
        raw = {
            s: np.mean(
                [100 * (t.validation_dice or 0) for t in found.trials if t.values["scope"] == s]
            )
            for s in ("all", "brain")
        }
        assert raw["brain"] > raw["all"], "the confounded means say the contrary"

    def test_standard_errors_are_those_of_least_squares(self) -> None:
        """Of the two weights, against a regression on one dummy and the rest, by statsmodels."""
        found = finding(trials=30, noise=2.0)
        rows = [t for t in found.trials if t.validation_dice is not None]
        log = np.array([math.log(t.values.get("base", 1)) for t in rows])
        has = np.array(["base" in t.values for t in rows])
        log = np.where(has, log - MIDDLE, 0)
        x = np.stack([
            np.array([(t.values["scope"] == s) for t in rows], float) for s in ("brain", "labelled")
        ] + [has.astype(float), log], axis=1)  # fmt: skip
        y = np.array([100 * (t.validation_dice or 0) for t in rows])
        model = sm.OLS(y, sm.add_constant(x)).fit()
        table = effects(found)
        power = table[table.value == "power"].iloc[0]
        assert power.effect == pytest.approx(model.params[3] / 2)
        assert power.se == pytest.approx(model.bse[3] / 2)
        slope = table[table.option == "base"].iloc[0]
        assert slope.effect == pytest.approx(model.params[4])
        assert slope.df == model.df_resid

    def test_what_cannot_be_told_is_not_guessed(self) -> None:
        table = effects(finding(trials=30, scopes=("all", "brain")))
        by_value = table[table.option == "scope"].set_index("value")
        assert by_value.trials["labelled"] == 0 and math.isnan(by_value.effect["labelled"])
        assert by_value.effect["all"] == pytest.approx(2.5, abs=1e-6)
        over = table[table.option == "over"]  # one value was drawn, so that nothing is compared
        assert over.effect.isna().all()
        few = effects(finding(trials=3))
        assert few.effect.isna().any()
        assert effects(finding(trials=4, failed=4)).effect.isna().all()

    def test_values_that_can_be_compared_are_so_beside_one_that_cannot(self) -> None:
        """`labelled` comes with weight=risk alone, and no other value does: they are one thing."""
        trials = [
            SweptTrial(
                number=i, values={"scope": s, "weight": w, "over": "all"}, seconds=1.0,
                validation_dice=(60 + TRUE[s] + TRUE[w]) / 100, runs=(f"run{i}",),
            )
            for i, (s, w) in enumerate(
                [("all", "power"), ("brain", "power"), ("labelled", "risk"), ("all", "power")]
            )
        ]  # fmt: skip
        entry, _ = method()
        table = effects(Finding(entry, tuple(trials), 1.0))
        scope = table[table.option == "scope"].set_index("value")
        assert dict(scope.effect[["all", "brain"]]) == pytest.approx({"all": 2.5, "brain": -2.5})
        assert scope.effect.isna()["labelled"] and scope.why["labelled"] == "not told apart"
        assert table[table.option == "weight"].effect.isna().all()

    def test_trials_that_share_a_run_are_one(self) -> None:
        found = finding(trials=20, noise=1.0)
        again = Finding(found.entry, found.trials * 3, 1.0)
        pd.testing.assert_frame_equal(effects(found), effects(again))

    def test_without_trials_left_for_the_error_there_is_no_interval(self) -> None:
        """Five trials for the mean, two scopes, a weight and a slope."""
        few = next(f for seed in range(99) if saturated(f := finding(trials=5, seed=seed)))
        row = over_datasets(datasets(few)).set_index("value").loc["power"]
        assert row.effect == pytest.approx(6, abs=1e-6) and math.isnan(row.low)
        assert row.interval == "one dataset, no residual"

    def test_the_value_of_intervals(self) -> None:
        """Of 95 % intervals some 95 % hold the effect."""
        hits = 0
        for seed in range(200):
            row = effects(finding(trials=24, noise=3.0, seed=seed)).set_index("value").loc["power"]
            half = stats.t.ppf(0.975, row.df) * row.se
            hits += abs(row.effect - TRUE["power"]) <= half
        assert 181 <= hits <= 198

    def test_failed_trials_do_not_count(self) -> None:
        table = effects(finding(trials=40, failed=10))
        assert table[table.option == "scope"].failed.sum() == 10
        assert table[table.option == "scope"].trials.sum() == 30
        assert column(table)["power"] == pytest.approx(6, abs=1e-6)


class TestSeveral:
    @pytest.mark.parametrize("number", [1, 2, 3, 5])
    def test_intervals_say_what_they_are(self, number: int) -> None:
        several = [finding(trials=40, noise=1.0, seed=i) for i in range(number)]
        table = over_datasets(datasets(*several)).set_index("value")
        own = [float(effects(f).set_index("value").effect["power"]) for f in several]
        row = table.loc["power"]
        assert row.effect == pytest.approx(np.mean(own)) and row.datasets == number
        if number == 1:
            one = effects(several[0]).set_index("value").loc["power"]
            low, high = stats.t.interval(0.95, one.df, one.effect, one.se)
            assert row.interval.startswith("one dataset")
        elif number == 2:
            low, high = min(own), max(own)
        else:
            low, high = stats.t.interval(0.95, number - 1, np.mean(own), stats.sem(own))
        assert (row.low, row.high) == pytest.approx((low, high))
        assert row["rank"] == 1 and row.best == number
        assert math.isnan(table.loc["per factor e"]["rank"])

    def test_ranks_are_means_over_datasets(self) -> None:
        several = datasets(finding(trials=40), finding(trials=40, shift=-20.0))
        table = over_datasets(several)
        ranks = table[table.option == "scope"].set_index("value")["rank"]
        assert dict(ranks) == {"all": 2.0, "brain": 2.5, "labelled": 1.5}

    def test_the_balance_by_value(self) -> None:
        shares = balance(datasets(finding(), finding(scopes=("all",))), "scope")
        assert shares["all"] == pytest.approx({"d0": 0.9, "d1": 0.9})
        assert shares["brain"] == pytest.approx({"d0": 0.3})

    def test_datasets_that_drew_other_values_have_one_zero(self) -> None:
        """The method is the same in both, so that its effects are too."""
        both = datasets(finding(trials=40), finding(trials=40, scopes=("all", "brain")))
        table = over_datasets(both)
        scope = table[table.option == "scope"].set_index("value")
        assert scope.against.unique().tolist() == ["all, brain"]
        for name in ("d0", "d1"):
            assert dict(scope[name][["all", "brain"]]) == pytest.approx({"all": 2.5, "brain": -2.5})
        assert scope.effect["labelled"] == pytest.approx(1.5) and scope.d1.isna()["labelled"]
        assert scope["rank"].tolist() == [1, 3, 2], "of the one dataset that has all values"
        assert scope.ranked.tolist() == [1, 1, 1] and scope.best.tolist() == [1, 0, 0]
        assert table[table.option == "weight"].ranked.tolist() == [2, 2]

    def test_three_datasets_of_which_two_lack_a_value(self) -> None:
        lacking = {"scopes": ("all", "brain"), "trials": 40, "noise": 1.0}
        several = [finding(trials=40, noise=1.0), finding(**lacking), finding(**lacking, seed=5)]
        table = over_datasets(datasets(*several)).set_index("value")
        row = table.loc["labelled"]
        assert row.datasets == 1 and row.interval.startswith("one dataset")
        assert table.loc["brain"].datasets == 3
        # by hand: labelled against the mean of the other two, whose dummies carry the regression
        trials = observations(several[0])
        has = np.array(["base" in t.values for t in trials], float)
        log = [math.log(t.values["base"]) - MIDDLE if "base" in t.values else 0.0 for t in trials]
        scope = [t.values["scope"] for t in trials]
        x = np.stack([[s == v for s in scope] for v in TRUE if v in SCOPES] + [has, log], 1)
        y = np.array([100 * (t.validation_dice or 0) for t in trials])
        test = sm.OLS(y, np.array(x, float)).fit().t_test([-0.5, -0.5, 1, 0, 0])
        assert row.effect == pytest.approx(float(test.effect[0]))
        assert (row.low, row.high) == pytest.approx(tuple(test.conf_int()[0]))


class TestCommand:
    def test_it_writes_what_it_says(self, tmp_path: Path, trm_bench: Run) -> None:
        for name in ("one", "two"):
            folder(tmp_path / "results" / name, trials=40)
        code, text = trm_bench("readings", tmp_path / "results", "--out", tmp_path / "out")
        assert code == 0 and "readings.md" in text
        table = pd.read_csv(tmp_path / "out" / "readings.csv")
        assert table[table.value == "power"].effect.iloc[0] == pytest.approx(6)
        *common, each = documented("### readings.csv")
        assert each == "{dataset}" and [*table] == [*common, "one", "two"]
        page = (tmp_path / "out" / "readings.md").read_text()
        assert "| weight | power | +6.00 | [+6.00, +6.00] | range of two datasets" in page
        assert "trm_paper_literal" in page and (tmp_path / "out" / "readings.svg").is_file()
        assert "The same subjects: one, two." in page and "ends are the two datasets" in page
        assert "phantom" not in page

    def test_nothing_to_be_told_is_said(self, tmp_path: Path, trm_bench: Run) -> None:
        folder(tmp_path / "few", trials=2)
        code, _ = trm_bench("readings", tmp_path / "few", "--out", tmp_path / "out")
        page = (tmp_path / "out" / "readings.md").read_text()
        assert code == 0 and "No effect is estimable" in page
        assert "not estimable: never drawn" in page

    def test_a_sweep_counts_once_and_names_are_told_apart(self, tmp_path: Path) -> None:
        for place in ("r", "s"):
            folder(tmp_path / place / "a")
        given = [tmp_path / "r", tmp_path / "r" / "a", tmp_path / "s" / ".." / "s"]
        found = collect(given, "trm")
        assert [d.name for d in found] == ["r/a", "s/a"]
        assert {"r/a", "s/a"} <= set(over_datasets(found).columns)

    def test_stand_in_data_stay_apart_and_are_named(self, tmp_path: Path, trm_bench: Run) -> None:
        folder(tmp_path / "a")
        folder(tmp_path / "b", data="phantom")
        with pytest.raises(UserError, match="phantom and real data never stand in one table"):
            collect([tmp_path], "trm")
        assert trm_bench("readings", tmp_path / "b", "--out", tmp_path)[0] == 0
        assert "phantom" in (tmp_path / "readings.md").read_text()

    def test_what_cannot_be_read_is_one_line(self, tmp_path: Path) -> None:
        folder(tmp_path / "results" / "a")
        other = {**SPACE, "over": {"kind": "choice", "search": ["all"], "log": False}}
        folder(tmp_path / "results" / "b", space=other)
        with pytest.raises(UserError, match="these sweeps searched different spaces"):
            collect([tmp_path / "results"], "trm")
        with pytest.raises(UserError, match="no trials of 'focal' here"):
            collect([tmp_path / "results"], "focal")
        with pytest.raises(UserError, match="no sweep here"):
            collect([tmp_path / "nothing"], "trm")
