"""Faults of a table, and what is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
from tables import lacks, make_table, some_table

from trm_bench.analysis.intervals import gains, seed_spread
from trm_bench.analysis.table import OVERALL, check, grid, long_table
from trm_bench.analysis.tests import compare, friedman
from trm_bench.errors import UserError
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.store import read_results


def test_a_complete_table_has_no_faults() -> None:
    assert check(some_table()) == []


FAULTS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "column": (lambda t: t.drop(columns="seed"), "no column seed"),
    "key": (
        lambda t: t.assign(subject=t["subject"].where(t.index != 5)),
        "1 row is without subject",
    ),
    "duplicate": (
        lambda t: pd.concat([t, t.iloc[[7, 9]]]),
        "2 rows are given more than once, for instance protocol p",
    ),
    "conflict": (
        lambda t: pd.concat([t, t.iloc[[7]].assign(value=0.1)]),
        "1 row is given more than once",
    ),
    "mixed": (
        lambda t: t.assign(data=np.where(t.index < 9, "phantom", "real")),
        "different kinds in one table: phantom",
    ),
    "unstated": (lambda t: t.assign(data=t["data"].where(t.index > 9)), "not stated, real"),
    "nan": (
        lambda t: t.assign(value=t["value"].where(t.index != 3)),
        "1 value is not finite, for instance protocol p",
    ),
    "infinite": (
        lambda t: t.assign(value=t["value"].replace(t["value"].iloc[3], np.inf)),
        "1 value is not finite",
    ),
    "seed": (
        lambda t: lacks(t, method="trm", transfer="t001", seed=2),
        "p, t001, dice: trm lacks 24 of 72 values: seed 2",
    ),
    "subject": (
        lambda t: lacks(t, method="scratch", transfer="t000", subject="s003"),
        "p, t000, dice: scratch lacks 6 of 72 values: subject s003",
    ),
    "cell": (
        lambda t: lacks(
            t, method="trm", transfer="t002", subject="s003", seed=1, **{"class": "c000"}
        ),
        "trm lacks 1 of 72 values: 1 single values, for instance seed 1, subject s003, c000",
    ),
    "method": (
        lambda t: lacks(t, method="trm", transfer="t001"),
        "p, t001, dice: trm lacks every value",
    ),
    "everyone's seed": (
        lambda t: lacks(t, transfer="t001", seed=0),
        "finetune lacks 24 of 72 values: seed 0",
    ),
    "metric": (
        lambda t: pd.concat([t, lacks(t, transfer="t001").assign(metric="hd95")]),
        "p, t001, hd95: trm lacks every value",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_reported(fault: str) -> None:
    spoil, words = FAULTS[fault]
    assert any(words in problem for problem in check(spoil(some_table()))), check(
        spoil(some_table())
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        *(FAULTS[name] for name in ("column", "key", "duplicate", "conflict", "mixed", "unstated")),
        (lambda t: pd.concat([t, t.assign(protocol="q")]), "several protocols"),
        (lambda t: t.assign(transfer="mean", subject=t["transfer"] + t["subject"]), "named 'mean'"),
        (lambda t: t.assign(metric="hd95"), "no values of metric 'dice'"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [grid, compare, gains, friedman, seed_spread],
    ids=lambda f: f.__name__,
)
def test_no_test_is_run_on_a_table_at_fault(
    function: Callable[..., Any], spoil: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        function(spoil(some_table()))


def test_unknown_names_are_said_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'dice'"):
        compare(some_table(), "dise")
    with pytest.raises(UserError, match="did you mean 'trm_prior'"):
        gains(some_table(), pairs=[("trm_prio", "finetune")])
    with pytest.raises(UserError, match="nothing to compare"):
        compare(some_table(), reference="x", focus="y")


def test_missing_cells_are_left_out_of_both_methods_and_counted() -> None:
    values = np.arange(24, dtype=float).reshape(1, 4, 3, 2) / 100
    better = values + 0.1
    better[0, 1, 2] = np.nan  # subject 1 not under seed 2
    better[0, 3] = np.nan  # subject 3 not at all
    # subject 0 under seed 0 without one of two classes: the whole cell is missing
    better[0, 0, 0, 1] = np.nan
    better[0, 2, 1] = 0.9
    table = make_table({"finetune": values, "trm": better})
    row = compare(table).iloc[0]
    # every cell that both have weighs the same: 2 of subject 0, 2 of subject 1, 3 of subject 2
    expected = [0.1] * 4 + [0.1, 0.9 - values[0, 2, 1].mean(), 0.1]
    assert (row["n_subjects"], row["n_seeds"], row["left_out"]) == (3, 3, 1 + 3 + 1)
    assert row["gain"] == pytest.approx(np.mean(expected))
    used = [*values[0, 0, 1:].mean(axis=1), *values[0, 1, :2].mean(axis=1)]
    used += [*values[0, 2].mean(axis=1)]
    assert row["relative"] == pytest.approx(100 * np.mean(expected) / np.mean(used))
    interval = gains(table).iloc[0]
    assert (interval["n_subjects"], interval["n_seeds"], interval["left_out"]) == (3, 3, 5)
    spread = seed_spread(table).set_index(["method", "transfer"]).loc[("trm", "t000")]
    # only subject 2 is there under all seeds
    assert (spread["n_subjects"], spread["left_out"]) == (
        1,
        2,
    )


def test_a_value_that_is_not_finite_counts_as_missing() -> None:
    table = some_table()
    hit = (table["method"] == "trm") & (table["subject"] == "s000")
    table.loc[table.index[hit], "value"] = np.inf
    rows = gains(table, pairs=[("trm", "finetune")])
    assert set(rows["n_subjects"]) == {11} and np.isfinite(rows["gain"]).all()
    assert rows["left_out"].tolist() == [3, 3, 3, 9]


def test_a_method_that_lacks_a_transfer_gets_an_empty_row_and_stays_out_of_holm() -> None:
    table = lacks(some_table(), method="trm", transfer="t001")
    rows = compare(table)
    empty = (rows["transfer"] == "t001") & (rows["method"] == "trm")
    assert (rows.loc[empty, "n_subjects"] == 0).all() and rows.loc[empty, "p"].isna().all()
    assert rows.loc[empty, "networks_p_holm"].isna().all()
    others = rows[~empty & (rows["transfer"] != OVERALL)]
    assert (others["networks_p_holm"] >= others["networks_p"]).all()
    overall = gains(table, pairs=[("trm", "finetune")]).iloc[-1]
    assert (overall["n_transfers"], overall["left_out"]) == (2, 36)


def test_records_are_shares_and_the_table_is_in_per_cent(tmp_path: Path) -> None:
    folder = synthetic.write(tmp_path / "p", transfers=["a->b"], subjects=3, seeds=[0])
    results = read_results(ProtocolFolder(folder))
    long = long_table(results).set_index(["method", "subject", "class", "metric"])["value"]
    long = long.sort_index()
    for cell, record in results.finished():
        for subject, regions in record.metrics.items():
            for region, metrics in regions.items():
                known = long[cell.method, subject, region]
                assert known["dice"] == pytest.approx(100 * metrics["dice"])
                assert known["hd95"] == metrics["hd95"]
