"""Checks, paired tests and intervals, against numbers worked out otherwise and by simulation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import stats

from trm_bench.analysis import intervals
from trm_bench.analysis.intervals import (
    Bootstrap,
    bootstrap_gain,
    mean_gains,
    seed_spread,
    smallest_detectable_gain,
)
from trm_bench.analysis.table import KEYS, OVERALL, check, grid, mean_over
from trm_bench.analysis.tests import compare, friedman, mixed_model, signed_rank
from trm_bench.errors import UserError

Values = NDArray[np.float64]
FAST = Bootstrap(resamples=200)


def make_table(methods: Mapping[str, Values], metric: str = "dice", **columns: Any) -> pd.DataFrame:
    """The long table of (transfer, subject, seed[, class]) values by method; NaN: no row."""
    stack = np.stack([v if v.ndim == 4 else v[..., None] for v in methods.values()])
    names = ["transfer", "subject", "seed", "class"]
    labels = [
        [i if name == "seed" else f"{name[0]}{i:03}" for i in range(n)]
        for name, n in zip(names, stack.shape[1:], strict=True)
    ]
    index = pd.MultiIndex.from_product([list(methods), *labels], names=["method", *names])
    table = pd.DataFrame({"value": stack.ravel()}, index).dropna().reset_index()
    table = table.assign(protocol="p", metric=metric, **columns)
    return table[[*KEYS, "value", *columns]]


def some_table(
    seed: int = 0, transfers: int = 3, subjects: int = 12, seeds: int = 3
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    shape = (transfers, subjects, seeds, 2)
    base = 0.7 + 0.1 * rng.normal(size=(1, subjects, 1, 1))
    means = {"finetune": 0.0, "scratch": -0.02, "trm": 0.05, "trm_prior": 0.03}
    return make_table(
        {name: base + gain + 0.03 * rng.normal(size=shape) for name, gain in means.items()},
        data="real",
    )


# ---------------------------------------------------------------------------------------- integrity


def test_a_complete_table_has_no_faults() -> None:
    assert check(some_table()) == []


def _lacks(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    hit = np.logical_and.reduce([table[key] == value for key, value in where.items()])
    return table[~hit]


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
        lambda t: _lacks(t, method="trm", transfer="t001", seed=2),
        "p, t001, dice: trm lacks 24 of 72 values: seed 2",
    ),
    "subject": (
        lambda t: _lacks(t, method="scratch", transfer="t000", subject="s003"),
        "p, t000, dice: scratch lacks 6 of 72 values: subject s003",
    ),
    "cell": (
        lambda t: _lacks(
            t, method="trm", transfer="t002", subject="s003", seed=1, **{"class": "c000"}
        ),
        "trm lacks 1 of 72 values: 1 single values, for instance seed 1, subject s003, c000",
    ),
    "method": (
        lambda t: _lacks(t, method="trm", transfer="t001"),
        "p, t001, dice: trm lacks every value",
    ),
    "everyone's seed": (
        lambda t: _lacks(t, transfer="t001", seed=0),
        "finetune lacks 24 of 72 values: seed 0",
    ),
    "metric": (
        lambda t: pd.concat([t, _lacks(t, transfer="t001").assign(metric="hd95")]),
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
    [grid, compare, bootstrap_gain, friedman, mixed_model, seed_spread],
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
        compare(some_table(), pairs=[("trm_prio", "finetune")])
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
    expected = [0.1, 0.1, (0.2 + 0.9 - values[0, 2, 1].mean()) / 3]
    assert (row["n_subjects"], row["n_seeds"], row["left_out"]) == (3, 3, 1 + 3 + 1)
    assert row["mean_gain"] == pytest.approx(np.mean(expected))
    used = [values[0, 0, 1:].mean(), values[0, 1, :2].mean(), values[0, 2].mean()]
    assert row["relative_gain"] == pytest.approx(100 * np.mean(expected) / np.mean(used))
    interval = bootstrap_gain(table).iloc[0]
    assert (interval["n_subjects"], interval["n_seeds"], interval["left_out"]) == (3, 3, 5)
    spread = seed_spread(table).set_index(["method", "transfer"]).loc[("trm", "t000")]
    # only subject 2 is there under all seeds
    assert (spread["n_subjects"], spread["left_out"]) == (
        1,
        2,
    )


def test_a_value_that_is_not_finite_counts_as_missing() -> None:
    table = some_table()
    table.loc[table.index[(table["method"] == "trm") & (table["subject"] == "s000")], "value"] = (
        np.inf
    )
    rows = compare(table, pairs=[("trm", "finetune")])
    assert (
        set(rows["n_subjects"]) == {11}
        and set(rows["left_out"]) == {3}
        and np.isfinite(rows["mean_gain"]).all()
    )


def test_a_method_that_lacks_a_transfer_gets_an_empty_row_and_stays_out_of_holm() -> None:
    table = _lacks(some_table(), method="trm", transfer="t001")
    rows = compare(table, pairs=[("trm", "finetune"), ("scratch", "finetune")])
    empty = rows[(rows["transfer"] == "t001") & (rows["method"] == "trm")].iloc[0]
    assert empty["n_subjects"] == 0 and np.isnan(empty["p"]) and np.isnan(empty["p_holm"])
    others = rows.drop(empty.name)
    assert (others["p_holm"] >= others["p"]).all()
    overall = bootstrap_gain(table, pairs=[("trm", "finetune")]).iloc[-1]
    assert (overall["n_transfers"], overall["left_out"]) == (2, 36)


# -------------------------------------------------------------------------------------------- tests


def _all_signs(differences: list[float]) -> float:
    """Two-sided p from all 2^n changes of sign, ranks of zeros dropped."""
    d = np.array(differences)
    ranks = stats.rankdata(abs(d)) * (d != 0)
    signs = np.array(list(itertools.product([0, 1], repeat=len(d))))
    sums, mine = signs @ ranks, ranks[d > 0].sum()
    return min(1.0, 2 * min((sums <= mine + 1e-9).mean(), (sums >= mine - 1e-9).mean()))


@pytest.mark.parametrize(
    ("differences", "how"),
    [
        ([0.3], "exact"),
        ([1, 2, -3, 4], "exact"),
        ([0.11, 0.25, -0.02, 0.4, 0.31, 0.07, 0.18, -0.01], "exact"),
        ([1, 1, -1, 2, 2, 3, -2, 4], "permutation"),
        ([0, 0, 1, 2, -3, 4, 5, 6], "permutation"),
        ([0, 0, 0, 0, 1], "permutation"),
        ([1, 1, 1, -1, -1, -1], "permutation"),
    ],
)
def test_p_of_small_samples_is_that_of_all_changes_of_sign(
    differences: list[float], how: str
) -> None:
    test = signed_rank(differences)
    assert test.method == how
    assert test.p == pytest.approx(_all_signs(differences), abs=1e-12)


def test_p_of_larger_samples_is_scipys() -> None:
    rng = np.random.default_rng(3)
    d = rng.normal(0.2, 1, 40)
    assert signed_rank(d).p == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)
    tied = np.round(rng.normal(0.2, 1, 80), 1)
    test = signed_rank(tied)
    assert (test.method, test.zeros) == ("asymptotic", int((tied == 0).sum()))
    assert test.zeros and test.p == pytest.approx(
        stats.wilcoxon(tied, zero_method="pratt", correction=False).pvalue
    )


def test_effect_sizes_by_hand() -> None:
    test = signed_rank([1, 2, -3, 4])  # R+ = 1 + 2 + 4, R- = 3
    assert (test.rank_biserial, test.superiority) == (pytest.approx(4 / 10), 0.75)
    test = signed_rank([0, 0, 2, -1])  # ranks 1.5, 1.5, 4, 3
    assert (test.rank_biserial, test.superiority, test.zeros) == (
        pytest.approx(1 / 10),
        0.5 * 1 / 2 + 1 / 4,
        2,
    )
    assert signed_rank([1, 2, 3]).rank_biserial == 1 and signed_rank([-1, -2, -3]).superiority == 0


def test_rounding_errors_are_no_differences() -> None:
    assert signed_rank([0.1 + 0.2 - 0.3, 0.0]) == (2, 2, 1.0, 0.0, 0.5, "all zero")
    tied = signed_rank([0.3 - 0.2, 0.2 - 0.1, 0.1, 0.5])  # 0.3 - 0.2 != 0.1 in floating point
    assert tied.method == "permutation"


def test_no_differences_and_faulty_differences() -> None:
    assert signed_rank([]).n == 0 and np.isnan(signed_rank([]).p)
    with pytest.raises(ValueError, match="finite"):
        signed_rank([1.0, np.nan])


def test_compare_by_hand() -> None:
    finetune = np.array(
        [[[[0.5, 0.7], [0.6, 0.6]], [[0.4, 0.4], [0.2, 0.6]], [[0.8, 0.6], [0.9, 0.7]]]]
    )
    trm = finetune + np.array([0.02, 0.04, -0.01])[None, :, None, None]
    row = compare(make_table({"finetune": finetune, "trm": trm})).iloc[0]
    assert row[["transfer", "method", "versus"]].tolist() == ["t000", "trm", "finetune"]
    assert row["mean_gain"] == pytest.approx(0.05 / 3) and row["median_gain"] == pytest.approx(0.02)
    assert row["relative_gain"] == pytest.approx(100 * (0.05 / 3) / ((0.6 + 0.4 + 0.75) / 3))
    assert row["rank_biserial"] == pytest.approx((2 + 3 - 1) / 6) and row[
        "superiority"
    ] == pytest.approx(2 / 3)
    assert (row["n_subjects"], row["n_seeds"], row["zeros"], row["left_out"]) == (3, 2, 0, 0)
    assert row["p"] == row["p_holm"] == pytest.approx(0.5)


def test_a_smaller_distance_is_a_gain() -> None:
    distances = np.array([[[4.0], [6.0], [5.0]]])
    table = make_table({"finetune": distances, "trm": distances / 2}, metric="hd95")
    row, interval = compare(table, "hd95").iloc[0], bootstrap_gain(table, "hd95").iloc[-1]
    assert row["mean_gain"] == interval["gain"] == pytest.approx(2.5) and row["superiority"] == 1
    assert row["relative_gain"] == interval["relative"] == pytest.approx(50)


def test_holm_by_hand_over_all_rows_shown() -> None:
    rows = compare(some_table())
    order = np.argsort(rows["p"].to_numpy())
    stepwise = rows["p"].to_numpy()[order] * np.arange(len(rows), 0, -1)
    assert rows["p_holm"].to_numpy()[order] == pytest.approx(
        np.minimum(np.maximum.accumulate(stepwise), 1)
    )


def test_the_family_is_each_against_the_reference_and_the_focus_against_each() -> None:
    rows = compare(some_table())
    pairs = [
        ("scratch", "finetune"),
        ("trm", "finetune"),
        ("trm_prior", "finetune"),
        ("trm", "scratch"),
    ]
    assert (
        list(zip(rows["method"], rows["versus"], strict=True)) == [*pairs, ("trm", "trm_prior")] * 3
    )


# ---------------------------------------------------------------------------------------- intervals


def test_the_standard_error_is_that_of_a_two_way_analysis_of_variance() -> None:
    rng = np.random.default_rng(5)
    gain = (
        rng.normal(size=(2, 15, 1)) * 0.1
        + rng.normal(size=4) * 0.1
        + rng.normal(size=(2, 15, 4)) * 0.05
    )
    row = bootstrap_gain(
        make_table({"finetune": np.full(gain.shape, 0.5), "trm": 0.5 + gain})
    ).iloc[-1]
    cells = gain.mean(axis=0)  # the mean over transfers: 15 subjects crossed with 4 seeds
    residual = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=0) + cells.mean()
    subjects, seeds = 4 * cells.mean(axis=1).var(ddof=1), 15 * cells.mean(axis=0).var(ddof=1)
    noise = (residual**2).sum() / (14 * 3)
    assert seeds > noise
    assert row["standard_error"] == pytest.approx(np.sqrt((subjects + seeds - noise) / (15 * 4)))
    assert row["gain"] == pytest.approx(gain.mean())


def test_with_one_seed_the_interval_is_close_to_students() -> None:
    gain = np.random.default_rng(6).normal(0.1, 1, (1, 40, 1))
    row = bootstrap_gain(make_table({"finetune": np.ones(gain.shape), "trm": 1 + gain})).iloc[-1]
    low, high = stats.t.interval(0.95, 39, gain.mean(), stats.sem(gain.ravel()))
    assert row["standard_error"] == pytest.approx(stats.sem(gain.ravel()))
    assert [row["low"], row["high"]] == pytest.approx([low, high], abs=0.05 * (high - low))


def test_one_subject_gives_no_interval() -> None:
    row = bootstrap_gain(
        make_table({"finetune": np.full((1, 1, 3), 0.5), "trm": np.full((1, 1, 3), 0.6)})
    ).iloc[-1]
    assert row["gain"] == pytest.approx(0.1) and np.isnan(row["low"]) and np.isnan(row["high"])
    table = some_table()
    # transfers without common subjects, one with one subject
    table["subject"] = table["transfer"] + table["subject"]
    rows = bootstrap_gain(
        table[(table["transfer"] != "t001") | (table["subject"] == "t001s000")]
    ).set_index("transfer")
    assert np.isnan(rows.loc[["t001", OVERALL], ["low", "high"]]).all(axis=None)
    assert np.isfinite(rows.loc["t000", ["low", "high"]].astype(float)).all(axis=None)


def test_a_row_depends_neither_on_the_other_pairs_nor_on_chance() -> None:
    table = some_table()
    alone = bootstrap_gain(table, pairs=[("trm", "scratch")])
    among = bootstrap_gain(table)
    among = among[(among["method"] == "trm") & (among["versus"] == "scratch")].reset_index(
        drop=True
    )
    pd.testing.assert_frame_equal(alone, among)
    other = bootstrap_gain(table, pairs=[("trm", "scratch")], how=Bootstrap(seed=1))
    assert not np.array_equal(alone["low"], other["low"])
    assert other["low"].to_numpy() == pytest.approx(alone["low"].to_numpy(), abs=0.002)


def test_the_overall_gain_gives_each_transfer_the_same_weight() -> None:
    gain = np.full((2, 10, 2), 0.1)
    gain[0, 4:] = np.nan  # 4 subjects in one transfer, 10 in the other
    gain[1] = 0.3
    row = bootstrap_gain(
        make_table({"finetune": np.where(np.isnan(gain), np.nan, 0.5), "trm": 0.5 + gain})
    ).iloc[-1]
    assert row["gain"] == pytest.approx(0.2) and row["relative"] == pytest.approx(40)
    assert row["transfer"] == OVERALL and row["n_subjects"] == 10


FINITE = st.floats(-1, 1, allow_nan=False).map(lambda x: round(x, 3))
VALUES = arrays(
    float, st.tuples(st.integers(1, 2), st.integers(2, 7), st.integers(1, 3)), elements=FINITE
)


@settings(max_examples=15, deadline=None)
@given(VALUES)
def test_identical_methods_differ_in_nothing(values: Values) -> None:
    table = make_table({"finetune": values, "trm": values})
    rows, intervals = compare(table), bootstrap_gain(table, how=FAST)
    assert (
        (rows["p"] == 1).all()
        and (rows["p_holm"] == 1).all()
        and (rows["superiority"] == 0.5).all()
    )
    assert (rows["rank_biserial"] == 0).all() and (intervals[["gain", "low", "high"]] == 0).all(
        axis=None
    )


@settings(max_examples=15, deadline=None)
@given(VALUES, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(values: Values, random: Any) -> None:
    table = make_table(
        {"finetune": values, "trm": values**2, "scratch": np.roll(values, 1, axis=1)}
    )
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = table.iloc[order]
    for function in (compare, bootstrap_gain, seed_spread):
        more = {"how": FAST} if function is bootstrap_gain else {}
        pd.testing.assert_frame_equal(
            function(table, **more), function(shuffled, **more), check_exact=True
        )
    assert str(friedman(table)) == str(friedman(shuffled)) and check(shuffled) == []


@settings(max_examples=15, deadline=None)
@given(VALUES, VALUES)
def test_methods_swapped_change_signs_and_nothing_else(a: Values, b: Values) -> None:
    shape = tuple(min(x, y) for x, y in zip(a.shape, b.shape, strict=True))
    cut = tuple(slice(n) for n in shape)
    table = make_table({"a": a[cut], "b": b[cut]})
    one, other = compare(table, pairs=[("a", "b")]), compare(table, pairs=[("b", "a")])
    for column in ("mean_gain", "median_gain", "rank_biserial"):
        assert one[column].to_numpy() == pytest.approx(-other[column].to_numpy(), abs=1e-12)
    assert one["p"].to_numpy() == pytest.approx(other["p"].to_numpy())
    assert one["superiority"].to_numpy() == pytest.approx(1 - other["superiority"].to_numpy())
    left, right = (bootstrap_gain(table, pairs=[p], how=FAST) for p in (("a", "b"), ("b", "a")))
    assert left["low"].to_numpy() == pytest.approx(-right["high"].to_numpy(), abs=1e-9, rel=1e-9)
    assert (left["low"] <= left["gain"]).all() and (left["gain"] <= left["high"]).all()


# -------------------------------------------------------------------------------------- simulations


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 80])
@pytest.mark.parametrize("kind", ["normal", "skewed", "ties"])
def test_false_positives_under_the_null(kind: str, n: int) -> None:
    """2,000 pairs of methods without any difference; each pair shares its subjects' difficulty."""
    rng = np.random.default_rng(n)
    subject = rng.beta(5, 2, (2000, 1, n, 1))
    noise = {
        "normal": rng.normal,
        "ties": rng.normal,
        "skewed": lambda size: -rng.exponential(size=size),
    }[kind]
    values = subject[:, None] + 0.05 * noise(size=(2000, 2, 1, n, 1))
    values = np.round(values, 2 if kind == "ties" else 12)
    methods = {f"{'ab'[j]}{i}": values[i, j] for i in range(2000) for j in range(2)}
    rows = compare(make_table(methods), pairs=[(f"a{i}", f"b{i}") for i in range(2000)])
    assert kind != "ties" or rows["zeros"].mean() > 0.2
    assert 0.04 <= (rows["p"] <= 0.05).mean() <= 0.06


def _coverage(gain: Values, base: Values, truth: dict[str, float]) -> list[float]:
    """How often intervals of (experiment, transfer, subject, seed) gains hold the truth."""
    methods = {f"a{i}": b + g for i, (g, b) in enumerate(zip(gain, base, strict=True))}
    methods |= {f"b{i}": b for i, b in enumerate(base)}
    rows = bootstrap_gain(
        make_table(methods),
        pairs=[(f"a{i}", f"b{i}") for i in range(len(gain))],
        how=Bootstrap(resamples=1000),
    )
    rows = rows[rows["transfer"] == OVERALL]
    return [
        ((rows[f"{c}low"] <= true) & (rows[f"{c}high"] >= true)).mean() for c, true in truth.items()
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subjects", "seeds", "sd_subject", "sd_seed", "sd_residual"),
    [
        (20, 3, 1, 0, 0.5),
        (20, 3, 1, 0.3, 1.5),
        (20, 5, 1, 0.3, 0.7),
        (50, 4, 1, 0.3, 0.7),
        (100, 3, 1, 0.1, 1),
        (100, 3, 1, 0.5, 1),
    ],
)
def test_coverage(
    subjects: int, seeds: int, sd_subject: float, sd_seed: float, sd_residual: float
) -> None:
    rng = np.random.default_rng([subjects, seeds])
    gain = sd_subject * rng.normal(size=(2000, 1, subjects, 1)) + sd_seed * rng.normal(
        size=(2000, 1, 1, seeds)
    )
    gain = gain + sd_residual * rng.normal(size=(2000, 1, subjects, seeds))
    assert 0.93 <= _coverage(gain, np.zeros_like(gain), {"": 0.0})[0] <= 0.97


@pytest.mark.slow
def test_coverage_of_the_relative_gain() -> None:
    rng = np.random.default_rng(8)
    gain = 0.1 * rng.normal(size=(1000, 1, 30, 1)) + 0.03 * rng.normal(size=(1000, 1, 1, 4))
    gain = gain + 0.1 * rng.normal(size=(1000, 1, 30, 4)) + 0.2
    base = 0.6 + 0.2 * rng.normal(size=(1000, 1, 30, 1)) + np.zeros_like(gain)
    assert all(
        0.93 <= share <= 0.97
        for share in _coverage(gain, base, {"": 0.2, "relative_": 100 * 0.2 / 0.6})
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["shared subjects", "own subjects", "shared seeds", "missing", "skewed"]
)
def test_coverage_over_transfers(kind: str) -> None:
    """Four transfers with the same or other subjects and seeds, and data that are not ideal."""
    rng = np.random.default_rng(9)
    n, t, s, m = 2000, 4, 20, 3
    people = t * s if kind == "own subjects" else s
    draw = rng.normal if kind != "skewed" else lambda size: rng.exponential(size=size) - 1
    gain = 0.7 * draw(size=(n, 1, people, 1)) + 0.7 * draw(size=(n, t, people, 1))
    gain = gain + 0.3 * rng.normal(size=(n, 1 if kind == "shared seeds" else t, 1, m))
    gain = gain + 0.5 * rng.normal(size=(n, t, people, m))
    if kind == "own subjects":
        for i in range(t):
            gain[:, i, [j for j in range(people) if j // s != i]] = np.nan
    if kind == "missing":
        gain[rng.random(gain.shape) < 0.1] = np.nan
    how = Bootstrap(resamples=1000)
    means = np.nanmean(gain, axis=(2, 3)).mean(axis=1)
    ends = np.array([intervals._interval(g, how)[:2] for g in gain]) + means[:, None]
    assert 0.93 <= ((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean() <= 0.97


# ----------------------------------------------------------------------------------- over transfers


def _transfers(means: Values, metric: str = "dice") -> pd.DataFrame:
    """A table whose methods m0, m1, ... have these means (transfer, method)."""
    return make_table(
        {f"m{i}": np.repeat(m[:, None, None], 2, axis=1) for i, m in enumerate(means.T)}, metric
    )


def test_friedman_and_demsars_critical_difference() -> None:
    means = np.random.default_rng(0).normal([0, 0.5, 1, 3], size=(14, 4))
    result, note = friedman(_transfers(means))
    assert result is not None and note == ""
    # Demsar 2006, section 3.2.3: 4 methods, 14 sets
    assert result.critical_difference == pytest.approx(1.25, abs=0.005)
    assert (result.statistic, result.p) == pytest.approx(tuple(stats.friedmanchisquare(*means.T)))
    ranks = stats.rankdata(-means, axis=1).mean(axis=0)
    assert result.ranks.to_dict() == pytest.approx({f"m{i}": rank for i, rank in enumerate(ranks)})
    assert result.ranks.index[0] == "m3"
    for a, b in itertools.combinations(result.ranks.index, 2):
        apart = abs(result.ranks[a] - result.ranks[b]) > result.critical_difference
        assert (result.nemenyi.loc[a, b] < 0.05) == apart


def test_friedman_ranks_small_distances_first() -> None:
    result, _ = friedman(_transfers(np.array([[1.0, 2, 3], [2, 3, 4]]), "hd95"), "hd95")
    assert result is not None and result.ranks.index.tolist() == ["m0", "m1", "m2"]


def test_friedman_says_why_not_and_what_it_leaves_out() -> None:
    means = np.arange(6.0).reshape(2, 3)
    assert friedman(_transfers(means[:, :2])) == (
        None,
        "needs 3 methods and 2 transfers, has 2 and 2",
    )
    assert friedman(_transfers(means[:1])) == (None, "needs 3 methods and 2 transfers, has 3 and 1")
    table = _lacks(_transfers(np.arange(9.0).reshape(3, 3)), method="m1", transfer="t001")
    result, note = friedman(_lacks(table, method="m0", transfer="t000", subject="s000"))
    assert result is not None and result.n_transfers == 2
    assert (
        "left out, since no subject and seed has all methods: t001" in note
        and "1 (subject, seed) cells" in note
    )
    result, _ = friedman(_transfers(np.ones((3, 3))))
    assert result is not None and (result.p, result.nemenyi.to_numpy().min()) == (1, 1)


def test_the_mixed_model_is_the_balanced_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    gain = (
        0.04
        + 0.03 * rng.normal(size=(6, 1))
        + 0.05 * rng.normal(size=20)
        + 0.03 * rng.normal(size=(6, 20))
    )
    row = mixed_model(
        make_table({"finetune": np.full((6, 20, 1), 0.5), "trm": 0.5 + gain[..., None]})
    ).iloc[0]
    rest = gain - gain.mean(axis=1, keepdims=True) - gain.mean(axis=0) + gain.mean()
    of_transfers, of_subjects = (
        20 * gain.mean(axis=1).var(ddof=1),
        6 * gain.mean(axis=0).var(ddof=1),
    )
    noise = (rest**2).sum() / (5 * 19)
    assert row["converged"] and row["gain"] == pytest.approx(gain.mean())
    assert row["standard_error"] == pytest.approx(
        np.sqrt((of_transfers + of_subjects - noise) / 120), rel=1e-3
    )
    assert row["sd_transfer"] == pytest.approx(np.sqrt((of_transfers - noise) / 20), rel=1e-3)
    assert row["sd_subject"] == pytest.approx(np.sqrt((of_subjects - noise) / 6), rel=1e-3)
    assert row["low"] < row["gain"] < row["high"] and row["n_values"] == 120


def test_the_mixed_model_reports_what_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from statsmodels.regression.mixed_linear_model import MixedLM

    flat = np.full((2, 3, 1), 0.5)
    assert (
        mixed_model(make_table({"finetune": flat, "trm": flat + 0.1})).iloc[0]["note"]
        == "all gains are equal"
    )
    assert mixed_model(some_table(transfers=1))["note"].eq("needs 2 transfers").all()
    fit = MixedLM.fit
    monkeypatch.setattr(MixedLM, "fit", lambda self, **kw: fit(self, method="powell", maxiter=1))
    row = mixed_model(some_table(), methods=["trm"]).iloc[0]
    assert (
        not row["converged"]
        and "failed" in row["note"]
        and np.isnan(row["p"])
        and np.isfinite(row["gain"])
    )


def test_the_mixed_model_without_shared_subjects_has_no_subject_effect() -> None:
    table = some_table()
    row = mixed_model(
        table.assign(subject=table["transfer"] + table["subject"]), methods=["trm"]
    ).iloc[0]
    assert row["converged"] and np.isnan(row["sd_subject"]) and np.isfinite(row["standard_error"])


# ---------------------------------------------------------------------------------- size and spread


@pytest.mark.parametrize("n", [15, 60])
def test_the_smallest_detectable_gain_is_found_with_the_power_asked_for(n: int) -> None:
    rng = np.random.default_rng(n)
    sample = rng.normal(size=n)
    sample = 0.03 * (sample - sample.mean()) / sample.std(ddof=1)
    gain = smallest_detectable_gain(sample)
    detected = stats.wilcoxon(rng.normal(gain, 0.03, (4000, n)), axis=1).pvalue <= 0.05
    assert detected.mean() == pytest.approx(0.8, abs=0.03)
    assert (
        smallest_detectable_gain(sample, alpha=0.005)
        > gain
        > smallest_detectable_gain(sample, power=0.5)
    )


def test_the_smallest_detectable_gain_of_degenerate_differences() -> None:
    assert np.isnan(smallest_detectable_gain([0.1, 0.2])) and smallest_detectable_gain(
        [0.1] * 5
    ) == pytest.approx(0)
    assert np.isfinite(smallest_detectable_gain([0.1, 0.2, 0.4]))


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


@pytest.mark.parametrize("relative", [True, False])
def test_intervals_of_arrays_are_those_of_a_table(relative: bool) -> None:
    table = with_gaps(0)
    rows = bootstrap_gain(table, pairs=[("trm", "finetune")], relative=relative)
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
