"""The negative transfer gap: sign, pairing, classes, intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from trm_bench import negative_transfer
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
