"""One word on a paper's claim, with the rule that gave it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from trm_bench.analysis.intervals import bootstrap_gain
from trm_bench.analysis.table import OVERALL
from trm_bench.analysis.voxels import SCRATCH
from trm_bench.errors import UserError
from trm_bench.protocol.schema import Claim

# An interval holds its own ends: one that touches 0 holds 0, one that touches the claim holds it.
RULES = {
    "reproduced": "the interval lies above 0 and holds the claimed gain",
    "direction reproduced": "the interval lies above 0 and does not hold the claimed gain",
    "inconclusive": "the interval holds both 0 and the claimed gain",
    "not reproduced": "the interval holds 0 and not the claimed gain",
    "contradicted": "the interval lies below 0",
}
# same loss, without the map's information
CONTROLS = ("trm_prior", "trm_uniform", "trm_shuffled")
# one point: 0.01 of a Dice, 1 mm of a distance
POINTS = {"dice": 100.0, "surface_dice": 100.0, "hd95": 1.0}
INTERVAL = ["gain", "low", "high"]


class Verdict(NamedTuple):
    """The word and the rule behind it."""

    word: str
    rule: str


def verdict(low: float, high: float, claimed: float) -> Verdict:
    """Judges a claimed gain by the confidence interval of the measured one, in the claim's unit.

    An interval holds its ends. The measured gain itself plays no part.

    Raises:
        UserError: The interval is not finite or upside down, or the claimed gain is not above 0.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        fix = "a verdict needs two subjects with both methods or more"
        raise UserError(f"[{low}, {high}] is not an interval", fix=fix)
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

    Attributes:
        claim: As given.
        no_verdict: Why there is no verdict; "" where there is one.
        gains: Rows points and relative (%): measured gain, low, high over all transfers; claimed,
            word and rule in the claim's unit or units ("" in the other, and throughout where there
            is no verdict).
        controls: For each control in the table: gain of the claim's method over it in points, low,
            high, and `survives`: the interval lies above 0.
        negative_transfer: For the claim's `versus` and its method, each transfer and the mean: the
            gap metric(scratch) - metric(method) in points (positive = training from scratch is
            better), low, high, and `present`: the interval lies above 0.
        gone: Over all transfers, negative transfer is present with `versus` and not with the
            claim's method; None where it is not present with `versus`, so that there is nothing to
            avoid. "Not present" is no proof of absence.
        notes: What a reader must know: cells left out, methods not in the table, few seeds.
    """

    claim: Claim
    no_verdict: str
    gains: pd.DataFrame
    controls: pd.DataFrame
    negative_transfer: pd.DataFrame
    gone: bool | None
    notes: list[str]


def judge(table: pd.DataFrame, claim: Claim) -> Judgement:
    """Judges a protocol's claim, and says what the gain is due to.

    Intervals are those of `intervals.bootstrap_gain` (95 %, each on its own). Where the claim
    leaves open whether its percentages are points or relative, both readings are judged. A verdict
    needs data marked "real" throughout.

    Args:
        table: The long table of one protocol.
        claim: Of the protocol.

    Raises:
        UserError: The claim's methods have no values, its gain is not above 0, or the table is at
            fault (see `table.grid`).
    """
    method, versus = claim.method, claim.versus
    methods = _methods(table, claim.metric)
    controls = [name for name in CONTROLS if name in methods and name != method]
    with_scratch = SCRATCH in methods - {versus, method}
    pairs = [(method, versus), *((method, name) for name in controls if name != versus)]
    pairs += [(SCRATCH, name) for name in (versus, method)] if with_scratch else []
    rows = bootstrap_gain(table, claim.metric, pairs)
    rows[INTERVAL] *= POINTS[claim.metric]
    overall = rows[rows["transfer"] == OVERALL]
    main = overall.iloc[0]  # the pair of the claim is the first one

    no_verdict = _no_verdict(table)
    gains = _gains(main, claim, not no_verdict)
    if not no_verdict and (gains["word"] == "").all():
        no_verdict = (
            "no verdict: there is no interval, since a transfer has fewer than two subjects with "
            "both methods"
        )
    over = overall[(overall["method"] == method) & overall["versus"].isin(controls)]
    over = over[["versus", *INTERVAL]].rename(columns={"versus": "control"}).reset_index(drop=True)
    gaps = rows[(rows["method"] == SCRATCH) & with_scratch][["versus", "transfer", *INTERVAL]]
    gaps = gaps.rename(columns={"versus": "method", "gain": "gap"}).reset_index(drop=True)
    gaps["present"] = gaps["low"] > 0
    present = gaps[gaps["transfer"] == OVERALL].set_index("method")["present"].to_dict()
    return Judgement(
        claim=claim,
        no_verdict=no_verdict,
        gains=gains,
        controls=over.assign(survives=over["low"] > 0),
        negative_transfer=gaps,
        gone=not present[method] if present.get(versus) else None,
        notes=_notes(main, rows, controls, with_scratch),
    )


def _methods(table: pd.DataFrame, metric: str) -> set[str]:
    """Methods with values; none in a table without the columns, which `grid` then refuses."""
    if not {"metric", "method"} <= set(table):
        return set()
    return set(table.loc[table["metric"] == metric, "method"])


def _gains(main: pd.Series, claim: Claim, judged: bool) -> pd.DataFrame:
    """The measured gain in both units, with the claimed one and the word where it is judged."""
    columns = {"points": INTERVAL, "relative": ["relative", "relative_low", "relative_high"]}
    rows = {}
    for unit, names in columns.items():
        gain, low, high = (float(main[name]) for name in names)
        row: dict[str, Any] = dict(zip(INTERVAL, (gain, low, high), strict=True))
        row |= {"claimed": np.nan, "word": "", "rule": ""}
        if claim.unit in (unit, "points-or-relative"):
            row["claimed"] = claim.gain
            if judged and np.isfinite([low, high]).all():
                row |= verdict(low, high, claim.gain)._asdict()
        rows[unit] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _no_verdict(table: pd.DataFrame) -> str:
    """Why the data of a table give no verdict on a paper; "" where they do."""
    stated = "data" in table and bool(table["data"].notna().all())
    kinds = set(table["data"]) if stated else {"not stated"}
    if kinds == {"real"}:
        return ""
    if kinds == {"phantom"}:
        return (
            "no verdict: these are stand-in data (the phantom), which say nothing about the paper"
        )
    listed = ", ".join(sorted(map(str, kinds)))
    return f"no verdict: the table does not say that its data are real, but: {listed}"


def _notes(
    main: pd.Series, rows: pd.DataFrame, controls: list[str], with_scratch: bool
) -> list[str]:
    notes = []
    if main["left_out"]:
        notes.append(
            f"{main['left_out']} (subject, seed) cells lack one of the two methods and are left out"
        )
    transfers = rows["transfer"].nunique() - 1
    if main["n_transfers"] < transfers:
        lacking = transfers - main["n_transfers"]
        notes.append(f"{lacking} of {transfers} transfers lack one of the two methods")
    if main["n_seeds"] == 1:
        notes.append("one seed: the interval holds the spread of subjects alone")
    if absent := [name for name in CONTROLS if name not in controls]:
        notes.append(f"controls not in the table: {', '.join(absent)}")
    if not with_scratch:
        notes.append("no method 'scratch' in the table: negative transfer cannot be told")
    return notes
