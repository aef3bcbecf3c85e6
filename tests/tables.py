"""Long tables from arrays, for the tests of the analysis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trm_bench.analysis.table import KEYS

Values = NDArray[np.float64]


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


def lacks(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """The table without the rows that hold all these values."""
    hit = np.logical_and.reduce([table[key] == value for key, value in where.items()])
    return table[~hit]
