"""The few comparisons that a protocol declares, and what their marks may say.

Marks speak of methods, not of the networks that happened to be trained: p-values and intervals are
those of `intervals`, over subjects and seeds. Holm's procedure keeps the probability of any false
mark in the family at `ALPHA`. Where it rejects R of K comparisons, all K intervals are drawn at the
level 1 - ALPHA / max(K - R, 1), so that a comparison is marked exactly where its interval does not
hold 0: the smallest p that is not rejected is above ALPHA / (K - R), and all before are below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trm_bench.analysis.intervals import FIXED, Design, gains
from trm_bench.analysis.table import Grid, Pairs, grid
from trm_bench.protocol.schema import CONTROLS, Claim

ALPHA = 0.05
BETTER, WORSE = "better", "worse"
COLUMNS = ["method", "versus", "k", "p_holm", "family_low", "family_high", "mark"]


def pairs_of(
    claim: Claim | None, methods: Sequence[str], reference: str, focus: str
) -> list[tuple[str, str]]:
    """The comparisons of the family that the methods of a table allow.

    Args:
        claim: Declares the family; without it, that of `Claim.family`'s default.
        methods: Of the table.
        reference: The method that others are compared with.
        focus: The method that the claim is about.
    """
    family = claim.family if claim else "controls"
    if family == "controls":
        pairs: Iterable[tuple[str, str]] = [(focus, versus) for versus in (reference, *CONTROLS)]
    elif family == "all":
        pairs = [(method, reference) for method in methods]
    else:
        pairs = family
    known = set(methods)
    return [(a, b) for a, b in dict.fromkeys(pairs) if a != b and {a, b} <= known]


def seeds_for_marks(k: int) -> int:
    """How many seeds a family of k needs before it is marked: 5, or 8 beyond four comparisons."""
    return 5 if k <= 4 else 8


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values corrected for their number by Holm's step-down procedure (1979).

    statsmodels' collects garbage at every call, which takes longer than all the rest of a report.
    """
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def level_of(p_holm: Iterable[float], k: int) -> float:
    """The level of all intervals of a family of k with these corrected p-values."""
    rejected = sum(p <= ALPHA for p in p_holm)
    return 1 - ALPHA / max(k - rejected, 1)


def judge(
    table: pd.DataFrame | Grid, metric: str, pairs: Pairs, *, design: Design = FIXED
) -> pd.DataFrame:
    """Tests a family on the mean over transfers.

    Args:
        table: The long table of one protocol, or its grid.
        metric: Which metric.
        pairs: Of the family; one that cannot be tested counts as not rejected.
        design: Of the splits.

    Returns:
        One row a pair: k, the size of the family; p_holm; family_low and family_high, with
        relative_low and relative_high (the metric's units, and %); mark: `better` or `worse`, ""
        for neither, or below `seeds_for_marks`; and what `intervals.mean_gains` gives besides.
    """
    if not pairs:
        return pd.DataFrame(columns=COLUMNS)
    g = table if isinstance(table, Grid) else grid(table, metric)

    overall = partial(gains, g, metric, pairs, design=design, each=False)
    k = len(pairs)
    p = overall(level=1 - ALPHA, relative=False)["p"].to_numpy(float)
    tested = np.isfinite(p)
    p_holm = np.where(tested, holm(np.where(tested, p, 1.0)), np.nan)
    rows = overall(level=level_of(p_holm[tested], k))
    enough = rows["n_seeds"] >= seeds_for_marks(k)
    side = np.where(rows["gain"] > 0, BETTER, WORSE)
    rows["mark"] = np.where(enough & (p_holm <= ALPHA), side, "")
    rows = rows.rename(columns={"low": "family_low", "high": "family_high"})
    return rows.assign(k=k, p_holm=p_holm)
