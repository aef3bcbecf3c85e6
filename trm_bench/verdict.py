"""One word on a paper's claim, with the rule that gave it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from trm_bench.errors import UserError, nearest
from trm_bench.statistics import OVERALL, bootstrap_gain

# An interval holds its own ends: one that touches 0 holds 0, one that touches the claim holds the claim.
RULES = {
    "reproduced": "the interval lies above 0 and holds the claimed gain",
    "direction reproduced": "the interval lies above 0 and does not hold the claimed gain",
    "inconclusive": "the interval holds both 0 and the claimed gain",
    "not reproduced": "the interval holds 0 and not the claimed gain",
    "contradicted": "the interval lies below 0",
}
CONTROLS = ("trm_prior", "trm_uniform", "trm_shuffled")  # same loss, without the map's information
POINTS = {"dice": 100.0, "surface_dice": 100.0, "hd95": 1.0}  # one point: 0.01 of a Dice, 1 mm of a distance
UNITS = {"points": ["points"], "relative": ["relative"], "points-or-relative": ["points", "relative"]}


class Verdict(NamedTuple):
    """The word and the rule behind it."""

    word: str
    rule: str


def verdict(low: float, high: float, claimed: float) -> Verdict:
    """Judges a claimed gain by the confidence interval of the measured one (all in the claim's unit).

    An interval holds its ends. The measured gain itself plays no part.

    Raises:
        UserError: The interval is not finite or upside down, or the claimed gain is not above 0.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise UserError(
            f"[{low}, {high}] is not an interval", fix="a verdict needs two subjects with both methods or more"
        )
    if not (np.isfinite(claimed) and claimed > 0):
        raise UserError(f"a claimed gain must be above 0, not {claimed}", where="claim.gain")
    if high < 0:
        word = "contradicted"
    elif low > 0:
        word = "reproduced" if low <= claimed <= high else "direction reproduced"
    else:
        word = "inconclusive" if claimed <= high else "not reproduced"
    return Verdict(word, RULES[word])


class Judgement(NamedTuple):
    """A protocol's claim beside what was measured.

    claim: As given.
    no_verdict: Why there is no verdict; "" where there is one.
    gains: Rows points and relative (%): measured gain, low, high over all transfers; claimed, word and rule in the
        claim's unit or units (None in the other, and throughout where there is no verdict).
    controls: For each control in the table: gain of the claim's method over it in points, low, high, and `survives`:
        the interval lies above 0.
    negative_transfer: For the claim's `versus` and its method, each transfer and the mean: the gap
        metric(scratch) - metric(method) in points (positive = training from scratch is better), low, high, and
        `present`: the interval lies above 0.
    gone: Over all transfers, negative transfer is present with `versus` and not with the claim's method; None where it
        is not present with `versus`, so that there is nothing to avoid. "Not present" is no proof of absence.
    notes: What a reader must know: cells left out, methods that are not in the table, few seeds.
    """

    claim: dict[str, Any]
    no_verdict: str
    gains: pd.DataFrame
    controls: pd.DataFrame
    negative_transfer: pd.DataFrame
    gone: bool | None
    notes: list[str]


def judge(table: pd.DataFrame, claim: Mapping[str, Any], *, resamples: int = 10_000, seed: int = 0) -> Judgement:
    """Judges a protocol's claim, and says what the gain is due to.

    Intervals are those of `statistics.bootstrap_gain` (95 %, each on its own). Where the claim leaves open whether its
    percentages are points or relative, both readings are judged. A verdict needs data marked "real" throughout.

    Args:
        table: The long table of one protocol.
        claim: source, metric, gain, unit (points, relative, points-or-relative), method, versus.
        resamples: Bootstrap replicates.
        seed: Of the bootstrap.

    Raises:
        UserError: The claim is incomplete, its unit is unknown, its methods have no values, or the table is at fault
            (see `statistics.grid`).
    """
    absent = [key for key in ("source", "metric", "gain", "unit", "method", "versus") if key not in claim]
    if absent:
        raise UserError(f"a claim needs {', '.join(absent)}", where="claim")
    if claim["unit"] not in UNITS:
        raise UserError(
            f"unknown unit '{claim['unit']}'", where="claim.unit", fix=nearest(str(claim["unit"]), list(UNITS))
        )
    metric, method, versus = str(claim["metric"]), str(claim["method"]), str(claim["versus"])
    methods = set(table.loc[table["metric"] == metric, "method"]) if {"metric", "method"} <= set(table) else set()
    controls = [name for name in CONTROLS if name in methods and name != method]
    against = [("scratch", name) for name in (versus, method)] if "scratch" in methods - {versus, method} else []
    pairs = [(method, versus), *((method, name) for name in controls if name != versus), *against]
    rows = bootstrap_gain(table, metric, pairs, resamples=resamples, seed=seed)
    points = POINTS[metric]
    rows[["gain", "low", "high"]] *= points
    overall = rows[rows["transfer"] == OVERALL].set_index(["method", "versus"])
    main = overall.loc[(method, versus)]

    kinds = set(table["data"].dropna()) if "data" in table and table["data"].notna().all() else {"not stated"}
    no_verdict = ""
    if "phantom" in kinds:
        no_verdict = "no verdict: these are stand-in data (the phantom) and say nothing about the paper"
    elif kinds != {"real"}:
        no_verdict = "no verdict: the table does not say that its data are real"
    elif not np.isfinite([main["low"], main["high"]]).all():
        no_verdict = "no verdict: fewer than two subjects have both methods"
    gains = pd.DataFrame(
        [main[["gain", "low", "high"]].to_list(), main[["relative", "relative_low", "relative_high"]].to_list()],
        index=["points", "relative"],
        columns=["gain", "low", "high"],
    )
    words = {
        unit: verdict(gains.low[unit], gains.high[unit], claim["gain"])
        for unit in UNITS[claim["unit"]]
        if not no_verdict
    }
    for column, value in (("word", lambda v: v.word), ("rule", lambda v: v.rule)):
        gains[column] = pd.Series({u: value(words[u]) if u in words else None for u in gains.index}, dtype=object)
    gains.insert(3, "claimed", [float(claim["gain"]) if u in UNITS[claim["unit"]] else np.nan for u in gains.index])

    control_rows = overall.loc[[(method, name) for name in controls], ["gain", "low", "high"]].reset_index(
        level="versus"
    )
    control_rows = control_rows.rename(columns={"versus": "control"}).reset_index(drop=True)
    control_rows["survives"] = control_rows["low"] > 0
    gaps = rows[rows["method"] == "scratch"][["versus", "transfer", "gain", "low", "high"]].reset_index(drop=True)
    gaps = gaps.rename(columns={"versus": "method", "gain": "gap"})
    gaps["present"] = gaps["low"] > 0
    gone = None
    if against:
        present = gaps[gaps["transfer"] == OVERALL].set_index("method")["present"]
        gone = bool(not present[method]) if present[versus] else None

    return Judgement(
        dict(claim), no_verdict, gains, control_rows, gaps, gone, _notes(main, rows, controls, bool(against))
    )


def _notes(main: pd.Series, rows: pd.DataFrame, controls: list[str], scratch: bool) -> list[str]:
    notes = []
    if main["left_out"]:
        notes.append(f"{main['left_out']} (subject, seed) cells lack one of the two methods and are left out")
    transfers = rows["transfer"].nunique() - 1
    if main["n_transfers"] < transfers:
        notes.append(f"{transfers - main['n_transfers']} of {transfers} transfers lack one of the two methods")
    if main["n_seeds"] == 1:
        notes.append("one seed: the interval holds the spread of subjects alone")
    if len(controls) < len(CONTROLS):
        notes.append(f"controls not in the table: {', '.join(name for name in CONTROLS if name not in controls)}")
    if not scratch:
        notes.append("no method 'scratch' in the table: negative transfer cannot be told")
    return notes
