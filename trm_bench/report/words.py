"""A verdict in words: the same sentences and rows for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trm_bench.analysis.table import OVERALL
from trm_bench.analysis.verdict import RULES
from trm_bench.analysis.voxels import ALL_VOXELS, LOST_OR_WON
from trm_bench.protocol.schema import Claim
from trm_bench.report.evidence import GAIN_UNITS, NAMES, Evidence
from trm_bench.report.tables import MISSING

if TYPE_CHECKING:
    import pandas as pd

ALL_TRANSFERS = "mean over transfers"


def verdict(evidence: Evidence) -> str:
    """A protocol's verdict for the terminal: word, rule, controls, negative transfer."""
    lines = [f"{evidence.name}: {' / '.join(evidence.words) or 'no verdict'}"]
    lines += [f"  {line}" for line in reasons(evidence)]
    judgement = evidence.judgement
    if judgement is None:
        return "\n".join(lines)
    unit = GAIN_UNITS[judgement.claim.metric]
    lines += [
        "",
        *_columns(
            [
                ("gain", "measured", "95 % interval", "claimed", "verdict"),
                *(r[:5] for r in gains(evidence)),
            ]
        ),
    ]
    if over := list(controls(evidence)):
        head = (f"{evidence.focus} against", f"gain [{unit}]", "95 % interval", "survives")
        lines += ["", *_columns([head, *over])]
    if overall := [row[1:] for row in gaps(evidence) if row[0] == ALL_TRANSFERS]:
        head = ("negative transfer", f"gap [{unit}]", "95 % interval", "present")
        lines += ["", *_columns([head, *overall]), f"  {gone(evidence)}"]
    return "\n".join([*lines, *(f"  {note}" for note in notes(evidence))])


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def reasons(evidence: Evidence) -> list[str]:
    """Why this verdict, or why none; the claim; without a claim, what was measured."""
    if evidence.no_verdict:
        lines = [_sentence(evidence.no_verdict.removeprefix("no verdict: "))]
    else:
        lines = [_sentence(RULES[word]) for word in evidence.words]
    if claim := evidence.protocol.claim:
        lines.append(
            f"Claim ({claim.source}): {claim.method} gains {claim.gain:g} {_claim_unit(claim)} in "
            f"{NAMES[claim.metric]} over {claim.versus}."
        )
    elif gain := evidence.main.gain(evidence.focus):
        metric = evidence.main.metric
        lines.append(
            f"Measured: {evidence.focus} gains {signed(gain['gain'])} {GAIN_UNITS[metric]} "
            f"{interval(gain['low'], gain['high'])} in {NAMES[metric]} over {evidence.reference}."
        )
    return lines


def _claim_unit(claim: Claim) -> str:
    units = {"points": GAIN_UNITS[claim.metric], "relative": "% (relative)"}
    return units.get(claim.unit, "% (points or relative: the source does not say)")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def gains(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Unit, measured gain, interval, claimed gain, word, rule."""
    if evidence.judgement is None:
        return
    unit = GAIN_UNITS[evidence.judgement.claim.metric]
    for name, row in evidence.judgement.gains.iterrows():
        label = unit if name == "points" else "% relative"
        claimed = f"{row['claimed']:+g}" if np.isfinite(row["claimed"]) else MISSING
        judged = (
            row[key] if isinstance(row[key], str) and row[key] else MISSING
            for key in ("word", "rule")
        )
        yield label, signed(row["gain"]), interval(row["low"], row["high"]), claimed, *judged


def controls(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Control, gain over it, interval, whether it survives."""
    if evidence.judgement is not None:
        for _, row in evidence.judgement.controls.iterrows():
            yield (
                row["control"],
                signed(row["gain"]),
                interval(row["low"], row["high"]),
                _yes(row["survives"]),
            )


def gaps(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Transfer, method, negative transfer gap, interval, whether it is present; means first."""
    if evidence.judgement is None:
        return
    rows = evidence.judgement.negative_transfer
    for transfer in [OVERALL, *evidence.transfers]:
        for _, row in rows[rows.transfer == transfer].iterrows():
            cells = signed(row["gap"]), interval(row["low"], row["high"]), _yes(row["present"])
            yield _place(transfer), row["method"], *cells


def _place(transfer: str) -> str:
    return ALL_TRANSFERS if transfer == OVERALL else transfer


def rates(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Transfer, method, class, negative, positive and net rate, its interval (%)."""
    yield from _voxel_rows(
        evidence,
        evidence.rates,
        lambda row: (
            row["method"],
            row["class"],
            *(f"{100 * row[k]:.3f}" for k in ("negative_rate", "positive_rate")),
            f"{100 * row['net']:+.3f}",
            interval(100 * row["low"], 100 * row["high"], 3),
        ),
    )


def findings(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Transfer, map, voxels, area under the ROC curve, how much above the prior's, its interval."""
    yield from _voxel_rows(
        evidence,
        evidence.findings,
        lambda row: (
            row["map"],
            row["class"],
            f"{row['auroc']:.3f}",
            f"{row['over_prior']:+.3f}" if np.isfinite(row["over_prior"]) else MISSING,
            interval(row["low"], row["high"], 3),
        ),
    )


def _voxel_rows(
    evidence: Evidence, table: pd.DataFrame, cells: Callable[[pd.Series], tuple[str, ...]]
) -> Iterator[tuple[str, ...]]:
    several = len(evidence.transfers) > 1
    for transfer in [*([OVERALL] if several else []), *evidence.transfers]:
        rows = table[table["transfer"] == transfer]
        places = rows["class"].unique()
        # all voxels first, lost against won next, then the classes as they come
        for place in sorted(places, key=lambda c: (ALL_VOXELS, LOST_OR_WON, c).index(c)):
            for _, row in rows[rows["class"] == place].iterrows():
                yield _place(transfer), *cells(row)


def sensitivity(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Method, gain, interval, smallest detectable gain overall and in one, deviation over seeds."""
    table = evidence.sensitivity
    for method in evidence.methods:
        rows = {r["transfer"]: r for r in table[table["method"] == method].to_dict("records")}
        if not rows:
            continue
        overall = rows.pop(OVERALL)
        single = [r["smallest_gain"] for r in rows.values() if np.isfinite(r["smallest_gain"])]
        gain = evidence.main.gain(method)
        yield (
            method,
            signed(gain["gain"]) if gain else MISSING,
            interval(gain["low"], gain["high"]) if gain else MISSING,
            _plain(overall["smallest_gain"]),
            f"{_plain(min(single))} to {_plain(max(single))}" if len(single) > 1 else MISSING,
            _plain(overall["sd_over_seeds"]),
        )


def mixed_model(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Method, gain, interval, p, deviations of transfers, subjects and residual, note."""
    for _, row in evidence.mixed_model.iterrows():
        p = f"{row['p']:.3g}" if np.isfinite(row["p"]) else MISSING
        deviations = (_plain(row[f"sd_{k}"]) for k in ("transfer", "subject", "residual"))
        yield (
            row["method"],
            signed(row["gain"]),
            interval(row["low"], row["high"]),
            p,
            *deviations,
            row["note"],
        )


def _plain(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else MISSING


def gone(evidence: Evidence) -> str:
    """Whether there was negative transfer, and whether the focus avoids it."""
    if evidence.judgement is None:
        return ""
    reference = evidence.reference
    if evidence.judgement.gone is None:
        return (
            f"Over all transfers, no negative transfer was found with {reference}: there is none "
            "to avoid."
        )
    now = "is not found" if evidence.judgement.gone else "is still there"
    return (
        f"Over all transfers, negative transfer is present with {reference} and {now} with "
        f"{evidence.focus}."
    )


def notes(evidence: Evidence) -> list[str]:
    """What a reader must know of the verdict."""
    return [_sentence(note) for note in evidence.judgement.notes] if evidence.judgement else []


def signed(value: float) -> str:
    """A number with its sign, two decimals."""
    return f"{value:+.2f}" if np.isfinite(value) else MISSING


def interval(low: float, high: float, digits: int = 2) -> str:
    """Both ends, or a dash where there is none."""
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]" if np.isfinite([low, high]).all() else MISSING


def _yes(value: object) -> str:
    return "yes" if value else "no"
