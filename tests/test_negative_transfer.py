"""Negative transfer: the gap's sign, pairing, classes, intervals; voxels lost and won; what a map finds of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from trm_bench import negative_transfer
from trm_bench.negative_transfer import ALL_VOXELS, LOST_OR_WON
from trm_bench.results import COLUMNS


def table(
    loss: float, noise: float = 0.01, metric: str = "dice", methods: tuple[str, ...] = ("scratch", "finetune")
) -> pd.DataFrame:
    """Twenty subjects, three seeds, two classes; the second method is `loss` below the first in class b alone."""
    draws = np.random.default_rng(0)
    rows = []
    for subject in range(20):
        level = draws.uniform(0.5, 0.8)
        for seed in range(3):
            for index, method in enumerate(methods):
                for name in ("a", "b"):
                    value = level - (loss if index and name == "b" else 0) + draws.normal(0, noise)
                    rows.append(("p", "x->y", method, seed, f"s{subject}", name, metric, value))
    return pd.DataFrame(rows, columns=COLUMNS)


def of(found: pd.DataFrame, name: str) -> pd.Series:
    return found[(found["transfer"] == "x->y") & (found["class"] == name)].iloc[0]


def test_the_gap_is_scratch_minus_transfer_per_class() -> None:
    data = table(0.1)
    found = negative_transfer.gaps(data)
    wide = data.pivot(index=["seed", "subject", "class"], columns="method", values="value")
    difference = (wide.scratch - wide.finetune).groupby("class").mean()
    for name in ("a", "b"):
        assert of(found, name).gap == pytest.approx(difference[name])
    assert of(found, "mean").gap == pytest.approx(difference.mean())
    assert of(found, "b").negative_transfer and of(found, "mean").negative_transfer
    assert not of(found, "a").negative_transfer, "class a lost nothing"
    assert of(found, "b").low < 0.1 < of(found, "b").high
    assert set(found["method"]) == {"finetune"}


def test_a_gain_is_no_negative_transfer() -> None:
    found = of(negative_transfer.gaps(table(-0.1)), "b")
    assert found.gap < 0 and found.high < 0 and not found.negative_transfer


def test_a_distance_counts_the_other_way() -> None:
    """A larger HD95 after transfer is a loss."""
    found = of(negative_transfer.gaps(table(-0.1, metric="hd95"), "hd95"), "b")
    assert found.gap == pytest.approx(0.1, abs=0.01) and found.negative_transfer


def test_without_scratch_there_is_no_gap() -> None:
    assert negative_transfer.gaps(table(0.1, methods=("finetune", "trm"))).empty


VOLUMES = arrays(np.uint8, (3, 4, 5, 3), elements=st.integers(0, 2))  # label, scratch and transfer


class TestVoxels:
    @examples(60)
    @given(VOLUMES)
    def test_outcomes_count_voxel_by_voxel(self, volumes: np.ndarray) -> None:
        label, scratch, transfer = volumes
        by_hand = np.zeros((3, 3), int)
        for y, s, t in zip(label.flat, scratch.flat, transfer.flat, strict=True):
            by_hand[y] += [1, s == y != t, t == y != s]
        np.testing.assert_array_equal(negative_transfer.outcomes(label, scratch, transfer, 3), by_hand)

    @examples(40)
    @given(VOLUMES)
    def test_swapping_the_sides_swaps_lost_and_won(self, volumes: np.ndarray) -> None:
        label, scratch, transfer = volumes
        there = negative_transfer.outcomes(label, scratch, transfer, 4)
        back = negative_transfer.outcomes(label, transfer, scratch, 4)
        np.testing.assert_array_equal(there[:, [0, 2, 1]], back)
        # what is won minus what is lost is the difference in right voxels
        net = there[:, 2].sum() - there[:, 1].sum()
        assert net == (transfer == label).sum() - (scratch == label).sum()

    @examples(40)
    @given(arrays(np.float64, 30, elements=st.sampled_from([0.0, 0.1, 0.5, 2.0])), arrays(bool, 30))
    def test_the_area_is_the_mann_whitney_statistic(self, risk: np.ndarray, lost: np.ndarray) -> None:
        found = negative_transfer.roc(risk, lost)
        if lost.all() or not lost.any():
            assert found is None
            return
        assert found is not None
        u = stats.mannwhitneyu(risk[lost], risk[~lost]).statistic / (lost.sum() * (~lost).sum())
        area, curve = found
        assert area == pytest.approx(u)
        assert (np.diff(curve) >= 0).all() and curve[-1] == 1 and len(curve) == 101

    def test_a_map_constant_within_a_class_finds_nothing_there(self) -> None:
        area, curve = negative_transfer.roc(np.full(10, 3.0), np.arange(10) < 4) or (None, None)
        assert area == 0.5
        np.testing.assert_allclose(curve, negative_transfer.FALSE_POSITIVE_RATES)


def audits(areas: dict[str, float], subjects: int = 12, **changes: Any) -> list[dict[str, Any]]:
    """Two transfers under three seeds; of 1,000 voxels 20 + i are lost and 50 + i won, i being the subject."""
    draws = np.random.default_rng(0)
    names = [f"s{i}" for i in range(subjects)]
    places = (ALL_VOXELS, LOST_OR_WON, "tumour")
    return [
        {
            "transfer": transfer,
            "seed": seed,
            "classes": ["background", "tumour"],
            "outcomes": {"finetune": {s: [[0, 0, 0], [1000, 20 + i, 50 + i]] for i, s in enumerate(names)}},
            "auroc": {
                m: {s: {p: area + draws.normal(0, 0.01) for p in places} for s in names} for m, area in areas.items()
            },
        }
        | changes
        for transfer in ("x->y", "y->x")
        for seed in range(3)
    ]


def test_rates_are_means_over_subjects() -> None:
    found = negative_transfer.rates(audits({}))
    assert set(found["class"]) == {"tumour", ALL_VOXELS}, "a class without voxels has no rate"
    assert set(found["transfer"]) == {"x->y", "y->x", "mean"}
    row = of(found, "tumour")
    assert (row.negative_rate, row.positive_rate, row.net) == pytest.approx((0.0255, 0.0555, 0.03))
    assert (row.n_subjects, row.n_seeds) == (12, 3)
    assert row.low == pytest.approx(0.03) == row.high, "the net rate is the same in every subject"


def test_findings_compare_with_the_prior() -> None:
    found = negative_transfer.findings(audits({"trm": 0.9, "trm_prior": 0.6}))
    trm, prior = (
        found[(found["map"] == m) & (found["transfer"] == "mean")].set_index("class") for m in ("trm", "trm_prior")
    )
    assert list(trm.index) == [ALL_VOXELS, LOST_OR_WON, "tumour"]
    assert trm.loc["tumour", "auroc"] == pytest.approx(0.9, abs=0.01)
    assert trm.loc["tumour", "low"] < 0.3 < trm.loc["tumour", "high"] < 0.4
    assert prior["over_prior"].isna().all() and prior.loc["tumour", "auroc"] == pytest.approx(0.6, abs=0.01)


def test_without_audits_there_are_no_rows() -> None:
    assert negative_transfer.rates([]).empty and negative_transfer.findings([]).empty
    only = negative_transfer.findings(audits({"trm": 0.9}))
    assert only["over_prior"].isna().all() and only["auroc"].notna().all()
