"""Does transferability predict? Cells from records, weighted tau, and intervals over transfers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
from helpers import examples, rewrite
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import weightedtau

from trm_bench.analysis.transferability import (
    CELLS,
    FEWEST_TRANSFERS,
    cells,
    predicts,
    weighted_tau,
)
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.store import Results, read_results

FAMILY = ["scratch", "finetune", "trm", "trm_prior"]
TRANSFERS = ["a->b", "b->a"]


def results(folder: Path, **changes: Any) -> Results:
    given = {"methods": FAMILY, "transfers": TRANSFERS, "seeds": (0, 1), "subjects": 6, "files": 1}
    synthetic.write(folder, **(given | changes))
    return read_results(ProtocolFolder(folder))


def edited(folder: Path, transfer: str, method: str, seed: int, **changes: Any) -> Results:
    """The results with one record changed."""
    place = ProtocolFolder(folder)
    for cell in read_results(place).cells:
        if (cell.transfer, cell.method, cell.seed) == (transfer, method, seed):
            rewrite(place.record(cell.run), lambda content: content.update(changes))
    return read_results(place)


def table(rows: Sequence[tuple[float, float, float]], seeds: int = 1) -> pd.DataFrame:
    """Cells from (leep, risk_mean, gain), so many seeds a transfer."""
    named = [("p", f"t{i // seeds}", i % seeds, *row) for i, row in enumerate(rows)]
    return pd.DataFrame(named, columns=CELLS)


def unrelated(draws: np.random.Generator, transfers: int, seeds: int) -> pd.DataFrame:
    """What a transfer has of its own, the same in all its seeds, and a little of each seed's."""
    own = np.repeat(draws.normal(size=(transfers, 3)), seeds, axis=0)
    return table((own + draws.normal(0, 0.2, own.shape)).tolist(), seeds)


def widths(found: pd.DataFrame) -> np.ndarray:
    return (found["high"] - found["low"]).to_numpy()


# Cells


def test_gains_are_those_of_the_records(tmp_path: Path) -> None:
    of = results(tmp_path / "p")
    dice: dict[tuple[str, str, int], float] = {}
    for cell, record in of.finished():
        by_subject = [[r["dice"] for r in s.values()] for s in record.metrics.values()]
        dice[cell.transfer, cell.method, cell.seed] = 100 * float(np.mean(by_subject))
    found = cells(of).set_index(["protocol", "transfer", "seed"])
    assert len(found) == 4
    for (protocol, transfer, seed), row in found.iterrows():
        gain = dice[transfer, "finetune", seed] - dice[transfer, "scratch", seed]
        assert protocol == "p" and row["gain"] == pytest.approx(gain)
    assert found["leep"].nunique() == found["risk_mean"].nunique() == 4


def test_a_distance_that_shrinks_is_a_gain(tmp_path: Path) -> None:
    of = results(tmp_path / "p")
    by_metric = {m: cells(of, metric=m)["gain"].to_numpy() for m in ("dice", "hd95")}
    # synthetic: hd95 = 60 (1 - dice)
    assert by_metric["hd95"] == pytest.approx(0.6 * by_metric["dice"])


def test_the_focus_gives_the_measures_else_another_that_has_them(tmp_path: Path) -> None:
    results(tmp_path / "p")
    other = {"leep": -9.0, "risk_mean": 9.0}
    of = edited(tmp_path / "p", "a->b", "trm_prior", 0, diagnostics=other)
    chosen = {focus: cells(of, focus=focus).set_index(["transfer", "seed"]) for focus in FAMILY}
    assert chosen["trm"].loc[("a->b", 0), "leep"] > -1
    assert chosen["trm_prior"].loc[("a->b", 0), "risk_mean"] == 9
    of = edited(tmp_path / "p", "a->b", "trm", 0, diagnostics={"leep": -1.0})
    assert cells(of).set_index(["transfer", "seed"]).loc[("a->b", 0), "leep"] == -9


@pytest.mark.parametrize("lacks", ["scratch", "finetune"])
def test_a_cell_without_either_method_is_left_out(tmp_path: Path, lacks: str) -> None:
    whole = cells(results(tmp_path / "p"))
    failed = {"state": "failed", "reason": "disk full", "metrics": {}}
    of = edited(tmp_path / "p", "b->a", lacks, 1, **failed)
    pd.testing.assert_frame_equal(cells(of), whole.iloc[:3])
    none = cells(results(tmp_path / "none", methods=[m for m in FAMILY if m != lacks]))
    assert none.empty and list(none) == CELLS


def test_without_a_risk_map_there_is_no_cell(tmp_path: Path) -> None:
    none = cells(results(tmp_path / "p", methods=["scratch", "finetune"]))
    assert none.empty and none["gain"].dtype == float
    found = predicts(none)
    assert list(found["n_cells"]) == [0, 0] and found["tau"].isna().all()
    assert found["note"].str.startswith("nothing to rank").all()


# Tau


@examples(60)
@given(st.integers(2, 12), st.integers(2, 9), st.integers(0, 10**6))
def test_tau_of_every_resample_is_that_of_scipy(n: int, levels: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    x, y = draws.integers(0, levels, (2, n)).astype(float)  # with ties
    counts = draws.integers(0, 3, (5, n)) + (np.arange(n) < 2)
    repeated = [(np.repeat(x, k), np.repeat(y, k)) for k in counts]
    expected = [weightedtau(*pair).statistic for pair in repeated]
    np.testing.assert_allclose(weighted_tau(x, y, counts), expected, atol=1e-12)


def test_tau_by_hand_and_its_sign() -> None:
    # gains 3 > 2 > 1, and LEEP has the two best the wrong way round. Pairs (first, second),
    # (first, third), (second, third) weigh 1 + 1/2, 1 + 1/3, 1/2 + 1/3, in both rankings
    found = predicts(table([(-2.0, 1.0, 3.0), (-1.0, 2.0, 2.0), (-3.0, 3.0, 1.0)]))
    leep, risk = (row for _, row in found.iterrows())
    weights = np.array([3 / 2, 4 / 3, 5 / 6])
    assert leep["tau"] == pytest.approx(weights @ [-1, 1, 1] / weights.sum())
    assert leep["tau_plain"] == pytest.approx(1 / 3)
    assert (risk["tau"], risk["tau_plain"]) == (pytest.approx(-1), pytest.approx(-1))


def test_both_measures_stress_the_transfers_that_look_best() -> None:
    """The same ranking under either name has the same tau, of the other sign."""
    draws = np.random.default_rng(3)
    leep, gain = draws.normal(size=(2, 8))
    leep_row, risk_row = predicts(table(list(zip(leep, -leep, gain, strict=True)))).to_dict(
        "records"
    )
    for name in ("tau", "tau_plain"):
        assert leep_row[name] == pytest.approx(-risk_row[name])
    assert (leep_row["low"], leep_row["high"]) == (-risk_row["high"], -risk_row["low"])
    # and it is not that of the ranking from the other end
    assert abs(weightedtau(-leep, gain).statistic + leep_row["tau"]) > 1e-3


# Intervals


def test_where_nothing_is_related_the_interval_holds_0() -> None:
    draws = np.random.default_rng(0)
    tables = [predicts(unrelated(draws, transfers=10, seeds=3)) for _ in range(150)]
    found = pd.concat(tables)
    # 91-93 % in longer simulations; a bootstrap of cells rather than transfers holds 0 in 64 %
    assert ((found["low"] <= 0) & (found["high"] >= 0)).mean() > 0.87


def test_a_ranking_that_is_right_has_an_interval_on_its_side() -> None:
    draws = np.random.default_rng(0)
    x = np.repeat(draws.normal(size=12), 2) + draws.normal(0, 0.1, 24)
    leep, risk = predicts(table(list(zip(x, -x, 2 * x, strict=True)), seeds=2)).to_dict("records")
    assert leep["low"] > 0 and risk["high"] < 0
    assert leep["tau"] == pytest.approx(1) and risk["tau"] == pytest.approx(-1)


@examples(10)
@given(st.integers(FEWEST_TRANSFERS, 10), st.integers(2, 4), st.integers(0, 10**6))
def test_more_seeds_that_say_the_same_narrow_nothing(
    transfers: int, copies: int, seed: int
) -> None:
    once = unrelated(np.random.default_rng(seed), transfers, seeds=1)
    again = pd.concat([once.assign(seed=s) for s in range(copies)], ignore_index=True)
    assert (widths(predicts(again)) >= 0.9 * widths(predicts(once))).all()


def test_too_few_transfers_have_no_interval_and_a_note() -> None:
    draws = np.random.default_rng(0)
    few = predicts(unrelated(draws, FEWEST_TRANSFERS - 1, seeds=9))
    assert few[["low", "high"]].isna().all(axis=None) and few["tau"].notna().all()
    assert few["note"].str.contains(f"{FEWEST_TRANSFERS - 1} transfers").all()
    enough = predicts(unrelated(draws, FEWEST_TRANSFERS, seeds=1))
    assert enough[["low", "high"]].notna().all(axis=None) and (enough["note"] == "").all()


def test_a_measure_that_never_differs_ranks_nothing() -> None:
    found = predicts(table([(-1.0, 0.1 * i, float(i)) for i in range(6)])).set_index("measure")
    assert np.isnan(found.loc["leep", "tau"]) and "no difference" in found.loc["leep", "note"]
    assert found.loc["risk_mean", "tau"] == pytest.approx(1)


def test_a_transfer_of_several_protocols_is_several(tmp_path: Path) -> None:
    two = [cells(results(tmp_path / name, seed=i)) for i, name in enumerate(("p", "q"))]
    found = predicts(pd.concat(two, ignore_index=True))
    assert list(found["n_cells"]) == [8, 8] and list(found["n_transfers"]) == [4, 4]
    twice = predicts(pd.concat([two[0], two[0]], ignore_index=True))
    assert list(twice["n_transfers"]) == [2, 2], "results that are there twice are no evidence"
