"""One word on a claimed gain, with the rule that gave it and how often the rule is wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from trm_bench.analysis import family, power
from trm_bench.analysis.intervals import FIXED, Design, above_zero, gains
from trm_bench.analysis.power import Spread, Widths
from trm_bench.analysis.table import OVERALL, Grid, grid, mean_over
from trm_bench.analysis.voxels import SCRATCH
from trm_bench.errors import UserError
from trm_bench.protocol.schema import CONTROLS, Claim

# An interval holds its own ends: one that touches 0 holds 0, one that touches the claim holds it.
RULES = {
    "reproduced": "the interval lies above 0 and reaches the claimed gain",
    "smaller than claimed": "the interval lies above 0 and below the claimed gain",
    "inconclusive": "the interval holds both 0 and the claimed gain",
    "not reproduced": "the interval holds 0 and lies below the claimed gain",
    "contradicted": "the interval lies below 0",
}
# without these two the gain is that of a weighting, not of the map
DECISIVE = ("trm_prior", "trm_shuffled")
SEEDS = (5, 8, 10)  # of the confusion table: fewer give no verdict
NOISE = (0.5, 1.0, 2.0)  # times what was measured
GIVEN = {"no gain": 0.0, "a tenth": 0.1, "half": 0.5, "as claimed": 1.0}  # parts of the claim


class Verdict(NamedTuple):
    """The word and the rule behind it."""

    word: str
    rule: str


def words(low: ArrayLike, high: ArrayLike, claimed: float) -> NDArray[np.str_]:
    """The word for each interval, in the claim's unit."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    reaches = high >= claimed
    return np.select(
        [high < 0, (low > 0) & reaches, low > 0, reaches],
        ["contradicted", "reproduced", "smaller than claimed", "inconclusive"],
        "not reproduced",
    )


def verdict(low: float, high: float, claimed: float) -> Verdict:
    """Judges a claimed gain by the confidence interval of the measured one, in the claim's unit.

    An interval holds its ends. The measured gain itself plays no part.

    Raises:
        UserError: The interval is not finite or upside down, or the claimed gain is not above 0.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        fix = "a verdict needs two subjects with both methods or more, and five seeds"
        raise UserError(f"[{low}, {high}] is not an interval", fix=fix)
    if not (np.isfinite(claimed) and claimed > 0):
        raise UserError(f"a claimed gain must be above 0, not {claimed}", where="claim.gain")
    word = str(words(low, high, claimed))
    return Verdict(word, RULES[word])


class Judgement(NamedTuple):
    """A protocol's claim beside what was measured.

    Attributes:
        claim: As given.
        no_verdict: Why there is no verdict; "" where there is one.
        gains: Rows points and relative (%): measured gain, low, high over all transfers, at the
            family's level; claimed, word and rule in the claim's unit or units ("" in the other,
            and throughout where there is no verdict).
        controls: For each control in the table: gain of the claim's method over it in points, low,
            high (at the family's level), and `survives`: it is marked as better.
        negative_transfer: For the claim's `versus` and its method, each transfer and the mean: the
            gap metric(scratch) - metric(method) in points (positive = training from scratch is
            better), low, high, and `present`: the interval lies above 0; None without one.
        gone: Over all transfers, negative transfer is present with `versus` and not with the
            claim's method; None where it is not present with `versus`, so that there is nothing to
            avoid. "Not present" is no proof of absence.
        holds: Whether the claim stands: in each reading of its unit the interval lies above half
            the claimed gain, and the gain over `DECISIVE` controls survives.
        fails: Why it does not; "" where it does or there is no verdict.
        decisive: The controls whose gain must survive; none where the method weighs by no map.
        confusion: See `confusion`; empty where the spread is not known.
        notes: What a reader must know: cells left out, methods not in the table, few seeds.
    """

    claim: Claim
    no_verdict: str
    gains: pd.DataFrame
    controls: pd.DataFrame
    negative_transfer: pd.DataFrame
    gone: bool | None
    holds: bool
    fails: str
    decisive: tuple[str, ...]
    confusion: pd.DataFrame
    notes: list[str]


def judge(
    table: pd.DataFrame, claim: Claim, *, design: Design = FIXED, mapped: bool = True
) -> Judgement:
    """Judges a protocol's claim, and says what the gain is due to.

    The claim's comparison and those with its controls stand in the family; see `family`. Where the
    claim leaves open whether its percentages are points or relative, both readings are judged. A
    verdict needs data marked "real" throughout, and as many seeds as marks do.

    Args:
        table: The long table of one protocol.
        claim: Of the protocol, with a gain.
        design: Of the splits.
        mapped: Whether the claim is about a map of risks, so that `CONTROLS` tell what its gain is
            due to.

    Raises:
        UserError: The claim's methods have no values, its gain is not above 0, or the table is at
            fault (see `table.grid`).
    """
    method, versus = claim.method, claim.versus
    g = grid(table, claim.metric)
    g.gain(method, versus)  # raises for methods without values
    pairs = family.pairs_of(claim, g.methods, versus, method)
    pairs = list(dict.fromkeys([(method, versus), *pairs]))
    rows = family.judge(g, claim.metric, pairs, design=design).set_index(["method", "versus"])
    main: pd.Series = rows.iloc[0]
    asked = CONTROLS if mapped else ()
    controls = [name for name in asked if (method, name) in rows.index and name != versus]
    over = _over(rows, method, controls)
    no_verdict = _no_verdict(table) or _too_few(main)
    measured = _gains(main, claim, not no_verdict)
    gaps = _gaps(g, claim, design)
    present = gaps[gaps["transfer"] == OVERALL].set_index("method")["present"].to_dict()
    decisive = DECISIVE if mapped else ()
    fails = "" if no_verdict else _fails(measured, over, decisive)
    spread = Spread.of(g.gain(method, versus), design)
    mean_of_versus = float(np.nanmean(mean_over(g.of(versus), (1, 2))))
    return Judgement(
        claim=claim,
        no_verdict=no_verdict,
        gains=measured,
        controls=over,
        negative_transfer=gaps,
        gone=not present[method] if present.get(versus) else None,
        holds=not (no_verdict or fails),
        fails=fails,
        decisive=decisive,
        confusion=confusion(spread, claim, len(pairs), mean_of_versus),
        notes=_notes(
            main,
            len(g.transfers),
            [name for name in asked if name not in controls],
            SCRATCH in g.methods,
        ),
    )


def _over(rows: pd.DataFrame, method: str, controls: list[str]) -> pd.DataFrame:
    """`Judgement.controls`, from the family's rows."""
    over = rows.loc[[(method, name) for name in controls]]
    return pd.DataFrame(
        {
            "control": controls,
            "gain": over["gain"].to_numpy(float),
            "low": over["family_low"].to_numpy(float),
            "high": over["family_high"].to_numpy(float),
            "survives": (over["mark"] == family.BETTER).to_numpy(bool),
        }
    )


def _gaps(g: Grid, claim: Claim, design: Design) -> pd.DataFrame:
    """`Judgement.negative_transfer`."""
    against = [m for m in (claim.versus, claim.method) if m != SCRATCH and SCRATCH in g.methods]
    columns = ["method", "transfer", "gap", "low", "high", "present"]
    if not against:
        return pd.DataFrame(columns=columns)
    pairs = [(SCRATCH, method) for method in against]
    rows = gains(g, claim.metric, pairs, design=design, relative=False)
    rows = rows.drop(columns="method").rename(columns={"versus": "method", "gain": "gap"})
    return rows.assign(present=above_zero(rows["low"]))[columns]


def _gains(main: pd.Series, claim: Claim, judged: bool) -> pd.DataFrame:
    """The measured gain in both units, with the claimed one and the word where it is judged."""
    columns = {
        "points": ["gain", "family_low", "family_high"],
        "relative": ["relative", "relative_low", "relative_high"],
    }
    rows = {}
    for unit, names in columns.items():
        gain, low, high = (float(main[name]) for name in names)
        row: dict[str, Any] = {"gain": gain, "low": low, "high": high}
        row |= {"claimed": np.nan, "word": "", "rule": ""}
        if claim.unit in (unit, "points-or-relative"):
            row["claimed"] = claim.gain
            if judged:
                assert claim.gain is not None
                row |= verdict(low, high, claim.gain)._asdict()
        rows[unit] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _fails(measured: pd.DataFrame, controls: pd.DataFrame, decisive: tuple[str, ...]) -> str:
    judged = measured[measured["word"] != ""]
    reasons = [
        f"the gain [{unit}] is not shown to be half of what is claimed"
        for unit, row in judged.iterrows()
        if not row["low"] >= row["claimed"] / 2
    ]
    survives = dict(zip(controls["control"], controls["survives"], strict=True))
    reasons += [
        f"it is not shown to gain over {name}"
        if name in survives
        else f"{name} is not in the table, so that the gain may be that of a weighting"
        for name in decisive
        if not survives.get(name)
    ]
    return "; ".join(reasons)


def _no_verdict(table: pd.DataFrame) -> str:
    """Why the data of a table give no verdict on a paper; "" where they do."""
    stated = "data" in table and bool(table["data"].notna().all())
    kinds = set(table["data"].unique()) if stated else {"not stated"}
    if kinds == {"real"}:
        return ""
    if kinds == {"phantom"}:
        return (
            "no verdict: these are stand-in data (the phantom), which say nothing about the paper"
        )
    listed = ", ".join(sorted(map(str, kinds)))
    return f"no verdict: the table does not say that its data are real, but: {listed}"


def _too_few(main: pd.Series) -> str:
    """Why these numbers give no verdict; "" where they do."""
    if main["n_seeds"] < (needed := family.seeds_for_marks(main["k"])):
        return (
            f"no verdict: {main['n_seeds']} of the {needed} seeds that a family of {main['k']} "
            f"comparison{'' if main['k'] == 1 else 's'} needs"
        )
    if not np.isfinite(main["family_low"]):
        return (
            "no verdict: there is no interval, since a transfer has fewer than two subjects with "
            "both methods"
        )
    if not np.isfinite(main["relative_low"]):
        return "no verdict: the other method's mean is not clearly above 0"
    return ""


def _notes(main: pd.Series, transfers: int, absent: list[str], with_scratch: bool) -> list[str]:
    notes = []
    if main["left_out"]:
        notes.append(
            f"{main['left_out']} (subject, seed) cells lack one of the two methods and are left out"
        )
    if main["n_transfers"] < transfers:
        lacking = transfers - main["n_transfers"]
        notes.append(f"{lacking} of {transfers} transfers lack one of the two methods")
    if absent:
        notes.append(f"controls not in the table or the family: {', '.join(absent)}")
    if not with_scratch:
        notes.append("no method 'scratch' in the table: negative transfer cannot be told")
    return notes


def confusion(spread: Spread | None, claim: Claim, k: int, mean_of_versus: float) -> pd.DataFrame:
    """How often each word comes out, were the true gain what `GIVEN` says.

    Gains vary as measured, or half or twice as much; intervals are at the level of a family in
    which nothing is rejected. A claim that leaves its unit open gets its word as points here;
    `holds` asks for both readings, the relative one with the mean of `versus` taken as known, and
    takes the controls' survival for granted, so that it is an upper limit.

    Args:
        spread: Of the gains; None where it is not known.
        claim: With a gain.
        k: Size of the family.
        mean_of_versus: For relative claims, in per cent.

    Returns:
        One row for each noise (times the measured), number of seeds and true gain (its name, and
        points): the probability of each word, and of `holds`.
    """
    if spread is None or claim.gain is None:
        return pd.DataFrame()
    readings = {"points": claim.gain, "relative": claim.gain * mean_of_versus / 100}
    claimed = [v for unit, v in readings.items() if claim.unit in (unit, "points-or-relative")]
    level = family.level_of([], k)
    rows = []
    for noise in NOISE:
        for seeds in (m for m in SEEDS if m >= family.seeds_for_marks(k)):
            widths = power.widths(spread.times(noise), seeds, level)
            for name, part in GIVEN.items():
                gain = part * claimed[0]
                chances = _chances(gain, claimed[0], widths)
                holds = widths.beyond(max(claimed) / 2 + widths.half - gain)
                row = {"noise": noise, "seeds": seeds, "given": name, "gain": gain}
                rows.append({**row, **chances, "holds": holds})
    return pd.DataFrame(rows)


def _chances(gain: float, claimed: float, widths: Widths) -> dict[str, float]:
    """The probability of each word: each is a stretch of the measured gain."""
    half = widths.half
    above = widths.beyond(half - gain)
    reproduced = widths.beyond(np.maximum(half, claimed - half) - gain)
    contradicted = 1 - widths.beyond(-half - gain)
    inconclusive = widths.beyond(np.minimum(half, claimed - half) - gain) - above
    return {
        "reproduced": reproduced,
        "smaller than claimed": above - reproduced,
        "inconclusive": inconclusive,
        "not reproduced": 1 - above - inconclusive - contradicted,
        "contradicted": contradicted,
    }
