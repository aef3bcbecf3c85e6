"""Negative transfer: the gap's sign, classes, intervals; voxels lost and won, and found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from trm_bench.analysis import negative_transfer, voxels
from trm_bench.analysis.intervals import gains
from trm_bench.analysis.table import COLUMNS, KEYS
from trm_bench.analysis.voxels import ALL_VOXELS, LOST_OR_WON
from trm_bench.runs.records import VoxelAudit


def table(
    loss: float,
    noise: float = 0.01,
    metric: str = "dice",
    methods: tuple[str, ...] = ("scratch", "finetune"),
) -> pd.DataFrame:
    """20 subjects, 3 seeds; the second method is `loss` below the first in class b alone."""
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


def of(rows: pd.DataFrame, name: str) -> pd.Series:
    return rows[(rows["transfer"] == "x->y") & (rows["class"] == name)].iloc[0]


def test_the_gap_is_scratch_minus_transfer_per_class() -> None:
    data = table(0.1)
    gaps = negative_transfer.gaps(data)
    wide = data.pivot(index=["seed", "subject", "class"], columns="method", values="value")
    difference = (wide.scratch - wide.finetune).groupby("class").mean()
    for name in ("a", "b"):
        assert of(gaps, name).gap == pytest.approx(difference[name])
    assert of(gaps, "mean").gap == pytest.approx(difference.mean())
    assert of(gaps, "b").negative_transfer and of(gaps, "mean").negative_transfer
    assert not of(gaps, "a").negative_transfer, "class a lost nothing"
    assert of(gaps, "b").low < 0.1 < of(gaps, "b").high
    assert set(gaps["method"]) == {"finetune"}


def test_a_gain_is_no_negative_transfer() -> None:
    gap = of(negative_transfer.gaps(table(-0.1)), "b")
    assert gap.gap < 0 and gap.high < 0 and not gap.negative_transfer


def test_a_distance_counts_the_other_way() -> None:
    """A larger HD95 after transfer is a loss."""
    gap = of(negative_transfer.gaps(table(-0.1, metric="hd95"), "hd95"), "b")
    assert gap.gap == pytest.approx(0.1, abs=0.01) and gap.negative_transfer


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
        np.testing.assert_array_equal(voxels.outcomes(label, scratch, transfer, 3), by_hand)

    @examples(40)
    @given(VOLUMES)
    def test_swapping_the_sides_swaps_lost_and_won(self, volumes: np.ndarray) -> None:
        label, scratch, transfer = volumes
        there = voxels.outcomes(label, scratch, transfer, 4)
        back = voxels.outcomes(label, transfer, scratch, 4)
        np.testing.assert_array_equal(there[:, [0, 2, 1]], back)
        # what is won minus what is lost is the difference in right voxels
        net = there[:, 2].sum() - there[:, 1].sum()
        assert net == (transfer == label).sum() - (scratch == label).sum()

    @examples(40)
    @given(arrays(np.float64, 30, elements=st.sampled_from([0.0, 0.1, 0.5, 2.0])), arrays(bool, 30))
    def test_the_area_is_the_mann_whitney_statistic(
        self, risk: np.ndarray, lost: np.ndarray
    ) -> None:
        result = voxels.roc(risk, lost)
        if lost.all() or not lost.any():
            assert result is None
            return
        assert result is not None
        u = stats.mannwhitneyu(risk[lost], risk[~lost]).statistic / (lost.sum() * (~lost).sum())
        area, curve = result
        assert area == pytest.approx(u)
        assert (np.diff(curve) >= 0).all() and curve[-1] == 1 and len(curve) == 101
        below = np.trapezoid(curve, voxels.FALSE_POSITIVE_RATES)
        assert below == pytest.approx(area, abs=0.03), "the curve is that of the area"

    def test_a_map_constant_within_a_class_finds_nothing_there(self) -> None:
        area, curve = voxels.roc(np.full(10, 3.0), np.arange(10) < 4) or (None, None)
        assert area == 0.5
        np.testing.assert_allclose(curve, voxels.FALSE_POSITIVE_RATES)


def audits(areas: dict[str, float], subjects: int = 12) -> list[VoxelAudit]:
    """Two transfers, three seeds; of 1,000 voxels 20 + i are lost, 50 + i won, i the subject."""
    draws = np.random.default_rng(0)
    names = [f"s{i}" for i in range(subjects)]
    places = (ALL_VOXELS, LOST_OR_WON, "tumour")

    def area(mean: float) -> dict[str, dict[str, float]]:
        return {s: {p: mean + draws.normal(0, 0.01) for p in places} for s in names}

    return [
        VoxelAudit(
            transfer=transfer,
            seed=seed,
            runs={},
            code="",
            classes=("background", "tumour"),
            outcomes={
                "finetune": {s: [(0, 0, 0), (1000, 20 + i, 50 + i)] for i, s in enumerate(names)}
            },
            auroc={name: area(mean) for name, mean in areas.items()},
            roc={},
        )
        for transfer in ("x->y", "y->x")
        for seed in range(3)
    ]


def test_rates_are_means_over_subjects() -> None:
    rates = negative_transfer.rates(audits({}))
    assert set(rates["class"]) == {"tumour", ALL_VOXELS}, "a class without voxels has no rate"
    assert set(rates["transfer"]) == {"x->y", "y->x", "mean"}
    row = of(rates, "tumour")
    assert (row.negative_rate, row.positive_rate, row.net) == pytest.approx((2.55, 5.55, 3.0))
    assert (row.n_subjects, row.n_seeds) == (12, 3)
    assert row.low == pytest.approx(3.0) == row.high, "the net rate is the same in every subject"


def test_the_net_rate_has_the_interval_of_a_gain() -> None:
    """Won against lost voxels, as if they were two methods of a table."""
    draws = np.random.default_rng(1)
    made = audits({})
    rows = []
    for audit in made:
        for subject, counts in audit.outcomes["finetune"].items():
            lost, won = (int(n) for n in draws.integers(0, 90, 2))
            counts[1] = (1000, lost, won)
            key = ("", audit.transfer, audit.seed, subject, "tumour", "share")
            rows += [(*key, "lost", lost / 10), (*key, "won", won / 10)]
    order = ["protocol", "transfer", "seed", "subject", "class", "metric", "method", "value"]
    table = pd.DataFrame(rows, columns=order)[[*KEYS, "value"]]
    of_won = gains(table, "share", [("won", "lost")]).set_index("transfer")
    net = negative_transfer.rates(made)
    net = net[net["class"] == "tumour"].set_index("transfer")
    for column, same in (("net", "gain"), ("low", "low"), ("high", "high")):
        assert net[column].to_dict() == of_won[same].to_dict()
    assert net.loc["mean", "low"] < net.loc["mean", "net"] < net.loc["mean", "high"]


def test_findings_compare_with_the_prior() -> None:
    findings = negative_transfer.findings(audits({"trm": 0.9, "trm_prior": 0.6}))
    trm, prior = (
        findings[(findings["map"] == m) & (findings["transfer"] == "mean")].set_index("class")
        for m in ("trm", "trm_prior")
    )
    assert list(trm.index) == [ALL_VOXELS, LOST_OR_WON, "tumour"]
    assert trm.loc["tumour", "auroc"] == pytest.approx(0.9, abs=0.01)
    assert trm.loc["tumour", "low"] < 0.3 < trm.loc["tumour", "high"] < 0.4
    assert prior["over_prior"].isna().all() and prior.loc["tumour", "auroc"] == pytest.approx(
        0.6, abs=0.01
    )


def test_without_audits_there_are_no_rows() -> None:
    assert negative_transfer.rates([]).empty and negative_transfer.findings([]).empty
    only = negative_transfer.findings(audits({"trm": 0.9}))
    assert only["over_prior"].isna().all() and only["auroc"].notna().all()
