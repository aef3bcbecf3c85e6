"""Mean gains and their intervals, against numbers worked out otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from tables import Values, make_table, some_table

from trm_bench.analysis import generalised
from trm_bench.analysis.intervals import (
    Design,
    above_zero,
    gains,
    mean_gains,
    mean_squares,
    over_transfers,
    overlap,
    seed_spread,
    several_mean_gains,
)
from trm_bench.analysis.table import OVERALL, check, grid, mean_over
from trm_bench.analysis.tests import compare, friedman

# ---------------------------------------------------------------------------------------- intervals


def two_way(shape: tuple[int, int, int], sds: tuple[float, float, float], seed: int) -> Values:
    """Gains (transfer, subject, seed) with effects of subjects, seeds and a residual."""
    rng = np.random.default_rng(seed)
    _, n, m = shape
    subjects, seeds = sds[0] * rng.normal(size=(1, n, 1)), sds[1] * rng.normal(size=m)
    return np.asarray(subjects + seeds + sds[2] * rng.normal(size=shape))


def squares_by_hand(cells: Values) -> tuple[float, float, float]:
    """A, B and E of a complete table (subject, seed): a textbook's two-way analysis of variance."""
    n, m = cells.shape
    rest = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=0) + cells.mean()
    return (
        cells.mean(axis=1).var(ddof=1) / n,
        cells.mean(axis=0).var(ddof=1) / m,
        (rest**2).sum() / ((n - 1) * (m - 1) * n * m),
    )


def test_mean_squares_are_those_of_a_two_way_analysis_of_variance() -> None:
    gain = two_way((2, 15, 4), (0.1, 0.1, 0.05), 5)
    squares = mean_squares(gain)
    assert squares is not None
    a, b, e = squares_by_hand(gain.mean(axis=0))  # the mean over transfers
    assert (squares.a, squares.b, squares.e) == pytest.approx((a, b, e))
    assert (squares.f_a, squares.f_b, squares.inflation) == (14, 3, 1)
    row = mean_gains(gain, ["a", "b"], np.ones(gain.shape, bool)).iloc[-1]
    assert b > e and row["standard_error"] == pytest.approx(np.sqrt(a + b - e))
    assert row["gain"] == pytest.approx(gain.mean())
    assert row["p"] == pytest.approx(float(generalised.p_value(gain.mean(), squares)))


def test_a_resampled_design_has_the_residual_of_its_cells_and_an_inflation() -> None:
    gain = two_way((1, 12, 5), (1, 1, 1), 6)
    gain[0, np.random.default_rng(0).random((12, 5)) < 0.4] = np.nan
    design = Design("resampled", 0.7)
    squares = mean_squares(gain, design)
    assert squares is not None
    there = np.isfinite(gain[0])
    s = np.where(there, gain[0] - np.nanmean(gain), 0) / there.sum()
    assert squares.e == pytest.approx((s**2).sum())
    assert squares.inflation == pytest.approx(1 + 5 * 0.7)
    assert squares.b == pytest.approx(5 / 4 * (s.sum(axis=0) ** 2).sum())


def test_the_overlap_of_splits() -> None:
    # n_test / n_train rules where few are learned from, the source's share of all where many are
    assert overlap(source=10, train=10, test=60, patients=100) == pytest.approx(3)
    assert overlap(source=60, train=10, test=20, patients=100) == pytest.approx(0.6 / 0.4)


@pytest.mark.parametrize("design", ["fixed", "disjoint"])
def test_missing_cells_hardly_change_the_residual(design: Any) -> None:
    gain = two_way((1, 60, 5), (2, 1, 0.5), 7)
    whole = mean_squares(gain, Design(design))
    gain[0, np.random.default_rng(1).random((60, 5)) < 0.1] = np.nan
    some = mean_squares(gain, Design(design))
    assert whole is not None and some is not None
    # an additive model takes the subjects' part out; by plain means it would be in the residual
    assert float(some.e) == pytest.approx(float(whole.e), rel=0.25)


def test_the_residual_of_missing_cells_is_that_of_least_squares() -> None:
    gain = two_way((1, 8, 4), (2, 1, 0.5), 8)
    gain[0, 1, 2] = gain[0, 5, 0] = np.nan
    there = np.isfinite(gain[0])
    subject, seed = np.nonzero(there)
    effects = np.column_stack([subject[:, None] == np.arange(8), seed[:, None] == np.arange(4)])
    y = gain[0][there]
    fitted = effects @ np.linalg.lstsq(effects.astype(float), y, rcond=None)[0]
    freedom = there.sum() - 8 - 4 + 1
    squares = mean_squares(gain)
    assert squares is not None
    assert squares.e == pytest.approx(((y - fitted) ** 2).sum() / freedom / there.sum(), rel=1e-6)


def test_transfers_without_common_subjects_have_means_of_their_own() -> None:
    one, other = two_way((1, 9, 3), (1, 0.5, 1), 9)[0], two_way((1, 6, 3), (1, 0.5, 1), 10)[0] + 50
    gain = np.full((2, 15, 3), np.nan)
    gain[0, :9], gain[1, 9:] = one, other
    squares = mean_squares(gain)
    assert squares is not None and squares.f_a == 15 - 2
    # the distance of 50 between the transfers is in no part of the variance
    gain[1] -= 50
    near = mean_squares(gain)
    assert near is not None
    assert (squares.a, squares.b, squares.e) == pytest.approx((near.a, near.b, near.e))


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_seeds_nothing_is_said(seeds: int) -> None:
    gain = two_way((1, 40, seeds), (1, 0, 1), 6)
    row = mean_gains(gain, ["a"], np.ones(gain.shape, bool), gain + 50).iloc[-1]
    assert np.isfinite([row["gain"], row["relative"]]).all()
    names = ["low", "high", "p", "standard_error", "relative_low", "relative_high"]
    assert row[names].isna().all()


def test_one_subject_gives_no_interval() -> None:
    row = gains(
        make_table({"finetune": np.full((1, 1, 3), 0.5), "trm": np.full((1, 1, 3), 0.6)})
    ).iloc[-1]
    assert row["gain"] == pytest.approx(0.1) and np.isnan(row["low"]) and np.isnan(row["high"])
    table = some_table()
    # transfers without common subjects, one with one subject
    table["subject"] = table["transfer"] + table["subject"]
    rows = gains(table[(table["transfer"] != "t001") | (table["subject"] == "t001s000")]).set_index(
        "transfer"
    )
    assert np.isnan(rows.loc[["t001", OVERALL], ["low", "high"]]).all(axis=None)
    assert np.isfinite(rows.loc["t000", ["low", "high"]].astype(float)).all(axis=None)


def test_a_row_does_not_depend_on_the_other_pairs() -> None:
    table = some_table()
    alone = gains(table, pairs=[("trm", "scratch")])
    among = gains(table)
    among = among[(among["method"] == "trm") & (among["versus"] == "scratch")].reset_index(
        drop=True
    )
    pd.testing.assert_frame_equal(alone, among, check_exact=True)


def test_the_relative_interval_is_fiellers() -> None:
    gain, base = two_way((1, 25, 5), (1, 0.3, 1), 11) + 2, two_way((1, 25, 5), (8, 1, 2), 12) + 60
    row = mean_gains(gain, ["a"], np.ones(gain.shape, bool), base).iloc[-1]
    assert row["relative"] == pytest.approx(100 * gain.mean() / base.mean())
    for end in ("relative_low", "relative_high"):  # at either end the difference has p = 0.05
        rest = gain - row[end] / 100 * base
        squares = mean_squares(rest)
        assert squares is not None
        assert float(generalised.p_value(rest.mean(), squares)) == pytest.approx(0.05, rel=1e-4)
    per_transfer = mean_gains(gain, ["a"], np.ones(gain.shape, bool), base).iloc[0]
    assert np.isnan(per_transfer["relative_low"])


def test_a_ratio_to_nearly_nothing_has_no_interval() -> None:
    gain, base = two_way((1, 9, 3), (1, 1, 1), 13), two_way((1, 9, 3), (1, 2, 1), 14)
    base += 0.2 - base.mean()
    row = mean_gains(gain, ["a"], np.ones(gain.shape, bool), base).iloc[-1]
    assert np.isnan([row["relative_low"], row["relative_high"]]).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-1, 1))
def test_the_relative_interval_holds_0_where_that_of_the_gain_does(seed: int, mean: float) -> None:
    gain, base = two_way((2, 8, 4), (1, 0.5, 1), seed) + mean, two_way((2, 8, 4), (3, 1, 1), 1) + 70
    row = mean_gains(gain, ["a", "b"], np.ones(gain.shape, bool), base).iloc[-1]
    clear = row["low"] > 0 or row["high"] < 0
    assert clear == (row["relative_low"] > 0 or row["relative_high"] < 0) == (row["p"] < 0.05)


def test_the_overall_gain_gives_each_transfer_the_same_weight() -> None:
    gain = np.full((2, 10, 2), 0.1)
    gain[0, 4:] = np.nan  # 4 subjects in one transfer, 10 in the other
    gain[1] = 0.3
    row = gains(
        make_table({"finetune": np.where(np.isnan(gain), np.nan, 0.5), "trm": 0.5 + gain})
    ).iloc[-1]
    assert row["gain"] == pytest.approx(0.2) and row["relative"] == pytest.approx(40)
    assert row["transfer"] == OVERALL and row["n_subjects"] == 10


FINITE = st.floats(1, 2, allow_nan=False).map(lambda x: round(x, 3))
VALUES = arrays(
    float, st.tuples(st.integers(1, 2), st.integers(2, 7), st.integers(1, 3)), elements=FINITE
)


@settings(max_examples=8, deadline=None)
@given(VALUES)
def test_identical_methods_differ_in_nothing(values: Values) -> None:
    table = make_table({"finetune": values, "trm": values})
    rows = compare(table)
    known = rows["n_seeds"] >= 3
    assert (rows.loc[known, "p"] == 1).all() and (rows["gain"] == 0).all()
    assert (rows.loc[known, ["low", "high"]] == 0).all(axis=None)
    assert rows.loc[~known, ["p", "low", "high"]].isna().all(axis=None)
    networks = rows[rows["transfer"] != OVERALL]
    assert (networks["networks_p_holm"] == 1).all() and (networks["superiority"] == 0.5).all()
    assert (networks["rank_biserial"] == 0).all() and (rows["mark"] == "").all()


@settings(max_examples=8, deadline=None)
@given(VALUES, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(values: Values, random: Any) -> None:
    table = make_table(
        {"finetune": values, "trm": values**2, "scratch": np.roll(values, 1, axis=1)}
    )
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = table.iloc[order]
    for function in (compare, gains, seed_spread):
        pd.testing.assert_frame_equal(function(table), function(shuffled), check_exact=True)
    assert str(friedman(table)) == str(friedman(shuffled)) and check(shuffled) == []


@settings(max_examples=8, deadline=None)
@given(VALUES, VALUES)
def test_methods_swapped_change_signs_and_nothing_else(a: Values, b: Values) -> None:
    shape = tuple(min(x, y) for x, y in zip(a.shape, b.shape, strict=True))
    cut = tuple(slice(n) for n in shape)
    table = make_table({"a": a[cut], "b": b[cut]})
    one, other = compare(table, "dice", "b", "a"), compare(table, "dice", "a", "b")
    for column in ("gain", "median_gain", "rank_biserial"):
        assert one[column].to_numpy() == pytest.approx(
            -other[column].to_numpy(), abs=1e-12, nan_ok=True
        )
    for column in ("p", "networks_p"):
        assert one[column].to_numpy() == pytest.approx(
            other[column].to_numpy(), rel=1e-6, nan_ok=True
        )
    low, high = one["low"].to_numpy(), other["high"].to_numpy()
    assert low == pytest.approx(-high, abs=1e-9, rel=1e-6, nan_ok=True)


def test_above_zero_is_open_without_an_interval() -> None:
    assert above_zero(pd.Series([0.1, -0.1, 0.0, np.nan])).tolist() == [True, False, False, None]


def test_transfers_as_a_sample_by_students_t() -> None:
    gain = two_way((6, 9, 2), (1, 1, 1), 3) + np.arange(6)[:, None, None]
    means = gain.mean(axis=(1, 2))
    low, high = stats.t.interval(0.95, 5, means.mean(), stats.sem(means))
    assert over_transfers(gain) == pytest.approx((low, high))
    assert np.isnan(over_transfers(gain[:2])).all()


# ---------------------------------------------------------------------------------- size and spread


def test_seed_spread_by_hand() -> None:
    # (transfer, subject, seed)
    values = np.array([[[0.5, 0.7], [0.3, 0.3]], [[0.2, 0.2], [0.4, 0.6]]])
    rows = seed_spread(make_table({"trm": values})).set_index("transfer")
    assert rows["sd"].to_dict() == pytest.approx(
        {"t000": 0.1 / 2**0.5, "t001": 0.1 / 2**0.5, OVERALL: 0.1 / 2**0.5}
    )
    assert rows["mean"].to_dict() == pytest.approx({"t000": 0.45, "t001": 0.35, OVERALL: 0.4})
    assert rows["n_seeds"].eq(2).all()
    assert np.isnan(seed_spread(make_table({"trm": values[..., :1]}))["sd"]).all()


# -------------------------------------------------------------------------------------- the entries


def with_gaps(seed: int) -> pd.DataFrame:
    """A table that lacks a fifth of its cells, and one method in one transfer."""
    rng = np.random.default_rng(seed)
    values = {m: rng.random((3, 9, 3)) for m in ("finetune", "trm")}
    for v in values.values():
        v[rng.random(v.shape) < 0.2] = np.nan
    values["trm"][1] = np.nan
    return make_table(values)


def test_many_gains_at_once_are_each_alone() -> None:
    g = grid(with_gaps(1))
    rng = np.random.default_rng(2)
    several = [g.gain("trm", "finetune") + rng.normal(size=g.cells.shape) for _ in range(5)]
    bases = [20 + g.of("finetune") + rng.normal(size=g.cells.shape) for _ in range(5)]
    rows = several_mean_gains(several, g.transfers, g.cells, bases)
    parts = [mean_gains(x, g.transfers, g.cells, y) for x, y in zip(several, bases, strict=True)]
    alone = pd.concat(parts, ignore_index=True)
    pd.testing.assert_frame_equal(rows, alone, check_exact=False, rtol=1e-10)
    assert alone["relative_low"].notna().sum() == 5


def test_all_transfers_alone_are_what_they_are_beside_each() -> None:
    table = with_gaps(3)
    pairs = [("trm", "finetune"), ("finetune", "trm")]
    rows = gains(table, pairs=pairs)
    alone = gains(table, pairs=pairs, each=False)
    assert len(rows) == 2 * 4 and alone["transfer"].tolist() == [OVERALL, OVERALL]
    overall = rows[rows["transfer"] == OVERALL].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, overall, check_exact=False, rtol=1e-10)


@pytest.mark.parametrize("relative", [True, False])
def test_intervals_of_arrays_are_those_of_a_table(relative: bool) -> None:
    table = with_gaps(0)
    rows = gains(table, pairs=[("trm", "finetune")], relative=relative)
    g = grid(table)
    base = g.of("finetune") if relative else None
    alone = mean_gains(g.gain("trm", "finetune"), g.transfers, g.cells, base)
    pd.testing.assert_frame_equal(rows.drop(columns=["method", "versus"]), alone, check_exact=True)
    assert list(rows.columns[:3]) == ["transfer", "method", "versus"]
    assert alone["relative"].notna().any() == relative
    # the gain by hand: every cell of a transfer, and every transfer, weighs the same
    gain = g.of("trm") - g.of("finetune")
    means = [np.nanmean(gain[t]) for t in (0, 2)]
    assert alone["gain"].to_numpy() == pytest.approx(
        [means[0], np.nan, means[1], np.mean(means)], nan_ok=True
    )
    assert alone["n_transfers"].tolist() == [1, 0, 1, 2]
    assert alone["left_out"].tolist() == [
        int(g.cells[t].sum() - np.isfinite(gain[t]).sum()) for t in ([0], [1], [2], [0, 1, 2])
    ]


def test_an_interval_moves_and_scales_with_the_gain() -> None:
    gain = np.random.default_rng(2).normal(size=(2, 12, 3))
    cells = np.ones(gain.shape, bool)
    rows, moved = (mean_gains(g, ["a", "b"], cells) for g in (gain, 2 * gain + 5))
    for end in ("gain", "low", "high"):
        assert moved[end].to_numpy() == pytest.approx(2 * rows[end].to_numpy() + 5)


def test_means_over_what_is_there_are_those_of_pandas() -> None:
    table = with_gaps(1)
    g = grid(table)
    wide = table.set_index("method").loc["trm"]
    values = g.of("trm")
    per_subject = wide.groupby(["transfer", "subject"])["value"].mean()
    per_seed = wide.groupby(["transfer", "seed"])["value"].mean()
    for axis, expected, names in ((2, per_subject, g.subjects), (1, per_seed, g.seeds)):
        means = mean_over(values, axis=axis)
        assert np.isfinite(means).sum() == len(expected) > 0
        for (transfer, name), mean in expected.items():
            at = g.transfers.index(transfer), names.index(name)
            assert means[at] == pytest.approx(mean)
    over_all = mean_over(values, axis=(0, 2))
    assert over_all == pytest.approx(wide.groupby("subject")["value"].mean().to_numpy())
    assert np.isnan(mean_over(values, axis=(1, 2))).tolist() == [False, True, False]
