"""Paired tests of trained networks, all comparisons, and ranks, against other computations."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from scipy import stats
from tables import Values, lacks, make_table, some_table

from trm_bench.analysis.intervals import gains
from trm_bench.analysis.table import OVERALL
from trm_bench.analysis.tests import compare, friedman, signed_rank, signed_ranks
from trm_bench.protocol.schema import Claim


def _all_signs(differences: list[float]) -> float:
    """Two-sided p from all 2^n changes of sign, ranks of zeros dropped."""
    d = np.array(differences)
    ranks = stats.rankdata(abs(d)) * (d != 0)
    signs = np.array(list(itertools.product([0, 1], repeat=len(d))))
    sums, mine = signs @ ranks, ranks[d > 0].sum()
    return min(1.0, 2 * min((sums <= mine + 1e-9).mean(), (sums >= mine - 1e-9).mean()))


def test_many_at_once_are_each_alone() -> None:
    rng = np.random.default_rng(0)
    whole = [np.round(rng.normal(0.3, 2, n)) for n in (5, 5, 13, 13, 20, 60) for _ in range(4)]
    several = [*whole, *(rng.normal(0.3, 2, n) for n in (5, 20, 20, 51, 80)), np.zeros(4), []]
    at_once = signed_ranks(several)
    assert {test.method for test in at_once} == {
        *("exact", "permutation", "asymptotic", "all zero", "no subjects")
    }
    for test, differences in zip(at_once, several, strict=True):
        assert test == signed_rank(differences) or np.isnan(test.p)
        if test.method in ("exact", "asymptotic"):
            given = {"zero_method": "pratt", "correction": False, "method": test.method}
            assert test.p == pytest.approx(stats.wilcoxon(differences, **given).pvalue, rel=1e-12)
        if test.n > test.zeros:
            changed = np.array(differences)[np.array(differences) != 0]
            signed = stats.rankdata(abs(changed)) * np.sign(changed)
            assert test.rank_biserial == pytest.approx(signed.sum() / abs(signed).sum())


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
    test = signed_rank([0, 0, 2, -1])  # without the zeros: ranks 2 and 1
    assert (test.rank_biserial, test.superiority, test.zeros) == (
        pytest.approx(1 / 3),
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
    rows = compare(make_table({"finetune": finetune, "trm": trm}))
    assert rows["transfer"].tolist() == ["t000", OVERALL]
    row, overall = rows.iloc[0], rows.iloc[1]
    assert row[["transfer", "method", "versus"]].tolist() == ["t000", "trm", "finetune"]
    assert row["gain"] == pytest.approx(0.05 / 3) and row["median_gain"] == pytest.approx(0.02)
    assert row["relative"] == pytest.approx(100 * (0.05 / 3) / ((0.6 + 0.4 + 0.75) / 3))
    assert row["rank_biserial"] == pytest.approx((2 + 3 - 1) / 6) and row[
        "superiority"
    ] == pytest.approx(2 / 3)
    assert (row["n_subjects"], row["n_seeds"], row["zeros"], row["left_out"]) == (3, 2, 0, 0)
    assert row["networks_p"] == row["networks_p_holm"] == pytest.approx(0.5)
    # two seeds: nothing is said of methods
    assert np.isnan([row["p"], row["low"], overall["p_holm"], overall["family_low"]]).all()
    assert (row["role"], overall["role"]) == ("exploratory", "family")
    assert np.isnan(overall["networks_p"]) and overall["mark"] == ""


def test_a_smaller_distance_is_a_gain() -> None:
    distances = np.array([[[4.0], [6.0], [5.0]]])
    table = make_table({"finetune": distances, "trm": distances / 2}, metric="hd95")
    row, overall = compare(table, "hd95").iloc[0], gains(table, "hd95").iloc[-1]
    assert row["gain"] == overall["gain"] == pytest.approx(2.5) and row["superiority"] == 1
    assert row["relative"] == overall["relative"] == pytest.approx(50)


def test_holm_by_hand_over_all_networks() -> None:
    rows = compare(some_table())
    rows = rows[rows["transfer"] != OVERALL]
    order = np.argsort(rows["networks_p"].to_numpy())
    stepwise = rows["networks_p"].to_numpy()[order] * np.arange(len(rows), 0, -1)
    assert rows["networks_p_holm"].to_numpy()[order] == pytest.approx(
        np.minimum(np.maximum.accumulate(stepwise), 1)
    )


def test_each_is_compared_with_the_reference_and_the_focus_with_each() -> None:
    rows = compare(some_table())
    pairs = [
        ("scratch", "finetune"),
        ("trm", "finetune"),
        ("trm_prior", "finetune"),
        ("trm", "scratch"),
        ("trm", "trm_prior"),
    ]
    for transfer in ("t000", "t001", "t002", OVERALL):
        part = rows[rows["transfer"] == transfer]
        assert list(zip(part["method"], part["versus"], strict=True)) == pairs
    declared = rows[rows["role"] == "family"]
    assert set(declared["transfer"]) == {OVERALL} and declared["k"].eq(2).all()
    assert declared["versus"].tolist() == ["finetune", "trm_prior"]


def test_a_declared_pair_is_compared_even_if_it_is_no_default_one() -> None:
    claim = Claim(family=(("scratch", "trm_prior"),))
    rows = compare(some_table(), claim=claim)
    declared = rows[rows["role"] == "family"]
    assert declared[["method", "versus"]].to_numpy().tolist() == [["scratch", "trm_prior"]]


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
    pairwise = scikit_posthocs.posthoc_nemenyi_friedman(means)
    for a, b in itertools.combinations(range(4), 2):
        apart = abs(ranks[a] - ranks[b]) > result.critical_difference
        assert (pairwise.loc[a, b] < 0.05) == apart


def test_friedman_ranks_small_distances_first() -> None:
    distances = np.arange(5.0)[:, None] + [1.0, 2, 3]
    result, _ = friedman(_transfers(distances, "hd95"), "hd95")
    assert result is not None and result.ranks.index.tolist() == ["m0", "m1", "m2"]


def test_friedman_says_why_not_and_what_it_leaves_out() -> None:
    means = np.arange(18.0).reshape(6, 3)
    needs = "needs 3 methods and 5 transfers"
    assert friedman(_transfers(means[:, :2])) == (None, f"{needs}, has 2 and 6")
    assert friedman(_transfers(means[:4])) == (None, f"{needs}, has 3 and 4")
    table = lacks(_transfers(means), method="m1", transfer="t001")
    result, note = friedman(lacks(table, method="m0", transfer="t000", subject="s000"))
    assert result is not None and result.n_transfers == 5
    assert (
        "left out, since no subject and seed has all methods: t001" in note
        and "1 (subject, seed) cells" in note
    )
    result, _ = friedman(_transfers(np.ones((5, 3))))
    assert result is not None and (result.p, result.ranks.to_list()) == (1, [2, 2, 2])
