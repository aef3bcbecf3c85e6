"""Declared comparisons: which they are, and marks that agree with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from tables import make_table

from trm_bench.analysis import family
from trm_bench.analysis.family import BETTER, WORSE, judge, level_of, pairs_of, seeds_for_marks
from trm_bench.analysis.intervals import Design, gains
from trm_bench.analysis.table import OVERALL
from trm_bench.protocol.schema import Claim

METHODS = ["finetune", "scratch", "trm", "trm_prior", "trm_shuffled", "trm_uniform"]
FAMILY = [("trm", versus) for versus in ("finetune", "trm_prior", "trm_uniform", "trm_shuffled")]


def table(means: dict[str, float], seeds: int = 5, seed: int = 0, noise: float = 1.0) -> Any:
    rng = np.random.default_rng(seed)
    shape = (1, 12, seeds)
    base = 60 + 5 * rng.normal(size=(1, 12, 1))
    return make_table(
        {
            m: base + means.get(m, 0.0) + noise * (rng.normal(size=shape) + rng.normal(size=seeds))
            for m in METHODS
        }
    )


def test_the_default_family_is_the_method_against_reference_and_controls() -> None:
    for claim in (None, Claim(), Claim(gain=4, source="paper")):
        assert pairs_of(claim, METHODS, "finetune", "trm") == FAMILY
    some = ["finetune", "trm", "trm_shuffled"]
    assert pairs_of(None, some, "finetune", "trm") == [FAMILY[0], FAMILY[3]]


def test_other_families() -> None:
    all_of_them = pairs_of(Claim(family="all"), METHODS, "finetune", "trm")
    assert all_of_them == [(m, "finetune") for m in METHODS if m != "finetune"]
    declared = Claim(family=(("scratch", "trm"), ("trm", "focal")))
    assert pairs_of(declared, METHODS, "finetune", "trm") == [("scratch", "trm")]


def test_the_level_by_hand() -> None:
    assert level_of([], 4) == pytest.approx(1 - 0.05 / 4)
    assert level_of([0.01, 0.02, 0.2, 0.3], 4) == pytest.approx(1 - 0.05 / 2)
    assert level_of([0.01] * 4, 4) == level_of([0.01] * 3 + [0.06], 4) == pytest.approx(0.95)


def test_marks_want_seeds() -> None:
    assert [seeds_for_marks(k) for k in (1, 4, 5, 17)] == [5, 5, 8, 8]
    clear = {"trm": 40.0}
    assert judge(table(clear), "dice", FAMILY)["mark"].eq(BETTER).all()
    few = judge(table(clear, seeds=4), "dice", FAMILY)
    assert few["mark"].eq("").all() and (few["p_holm"] < 0.05).all()
    assert (few["family_low"] > 0).all()
    for seeds, marked in ((7, 0), (8, 5)):
        declared = pairs_of(Claim(family="all"), METHODS, "finetune", "trm")
        rows = judge(table(dict.fromkeys(METHODS[1:], 40.0), seeds=seeds), "dice", declared)
        assert (rows["mark"] == BETTER).sum() == marked


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.floats(-4, 4), min_size=4, max_size=4))
def test_a_mark_stands_exactly_where_the_interval_does_not_hold_0(
    seed: int, means: list[float]
) -> None:
    given_means = dict(zip(["finetune", "trm_prior", "trm_uniform"], means, strict=False))
    rows = judge(table(given_means, seed=seed), "dice", FAMILY)
    above, below = rows["family_low"] > 0, rows["family_high"] < 0
    assert ((rows["mark"] == BETTER) == above).all() and ((rows["mark"] == WORSE) == below).all()
    assert ((rows["p_holm"] <= 0.05) == (above | below)).all()
    # the corrected p by hand
    p = gains(table(given_means, seed=seed), "dice", FAMILY)
    p = p[p["transfer"] == OVERALL]["p"].to_numpy()
    order = np.argsort(p)
    stepwise = np.minimum(np.maximum.accumulate(p[order] * [4, 3, 2, 1]), 1)
    assert rows["p_holm"].to_numpy()[order] == pytest.approx(stepwise)


def test_holm_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for k in (1, 4, 17):
        p = rng.random(k) ** 3
        assert family.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_a_pair_without_numbers_counts_in_the_family() -> None:
    rows = table({"trm": 3.0})
    rows = rows[(rows["method"] != "trm_prior") | (rows["seed"] < 2)]  # two seeds: no p
    judged = judge(rows, "dice", FAMILY).set_index("versus")
    whole = judge(rows[rows["method"] != "trm_prior"], "dice", [FAMILY[0], *FAMILY[2:]])
    assert np.isnan(judged.loc["trm_prior", "p_holm"]) and judged["k"].eq(4).all()
    assert judged.loc["trm_prior", "mark"] == ""
    smallest = whole.set_index("versus")["p_holm"].min()
    assert judged["p_holm"].min() == pytest.approx(smallest * 4 / 3)


def test_the_design_reaches_the_test() -> None:
    rows = table({"trm": 3.0})
    plain = judge(rows, "dice", FAMILY)
    inflated = judge(rows, "dice", FAMILY, design=Design("resampled", 2.0))
    assert (inflated["p_holm"] >= plain["p_holm"]).all()
    assert (inflated["family_high"] > plain["family_high"]).all()


def test_no_family_is_an_empty_table() -> None:
    assert judge(table({}), "dice", []).empty
    assert set(family.COLUMNS) <= set(judge(table({}), "dice", []).columns)
