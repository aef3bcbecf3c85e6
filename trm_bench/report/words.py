"""A verdict in words: the same sentences and rows for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trm_bench.report.evidence import GAIN_UNITS, NAMES, OVERALL, Evidence
from trm_bench.report.tables import MISSING
from trm_bench.verdict import RULES


def verdict(evidence: Evidence) -> str:
    """A protocol's verdict for the terminal: the word, its rule, the controls, negative transfer."""
    lines = [f"{evidence.name}: {' / '.join(evidence.words) or 'no verdict'}"]
    lines += [f"  {line}" for line in reasons(evidence)]
    judgement = evidence.judgement
    if judgement is None:
        return "\n".join(lines)
    unit = GAIN_UNITS[judgement.claim["metric"]]
    lines += [
        "",
        *_columns([("gain", "measured", "95 % interval", "claimed", "verdict"), *(r[:5] for r in gains(evidence))]),
    ]
    if found := list(controls(evidence)):
        head = (f"{evidence.focus} against", f"gain [{unit}]", "95 % interval", "survives")
        lines += ["", *_columns([head, *found])]
    if found := [row[1:] for row in gaps(evidence) if row[0] == "mean over transfers"]:
        head = ("negative transfer", f"gap [{unit}]", "95 % interval", "present")
        lines += ["", *_columns([head, *found]), f"  {gone(evidence)}"]
    return "\n".join([*lines, *(f"  {note}" for note in notes(evidence))])


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def reasons(evidence: Evidence) -> list[str]:
    """Why this verdict, or why none; the claim; without a claim, what was measured."""
    if evidence.no_verdict:
        lines = [_sentence(evidence.no_verdict.removeprefix("no verdict: "))]
    else:
        lines = [_sentence(RULES[word]) for word in evidence.words]
    claim = evidence.results.plan["protocol"].get("claim")
    if claim:
        lines.append(
            f"Claim ({claim['source']}): {claim['method']} gains {claim['gain']:g} {_claim_unit(claim)} in "
            f"{NAMES[claim['metric']]} over {claim['versus']}."
        )
    elif found := evidence.main.gain(evidence.focus):
        lines.append(
            f"Measured: {evidence.focus} gains {signed(found['gain'])} {GAIN_UNITS[evidence.main.metric]} "
            f"{interval(found['low'], found['high'])} in {NAMES[evidence.main.metric]} over {evidence.reference}."
        )
    return lines


def _claim_unit(claim: dict[str, Any]) -> str:
    units = {"points": GAIN_UNITS[claim["metric"]], "relative": "% (relative)"}
    return units.get(claim["unit"], "% (points or relative: the source does not say)")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def gains(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Unit, measured gain, interval, claimed gain, word, rule."""
    if evidence.judgement is None:
        return
    unit = GAIN_UNITS[evidence.judgement.claim["metric"]]
    for name, row in evidence.judgement.gains.iterrows():
        label = unit if name == "points" else "% relative"
        claimed = f"{row['claimed']:+g}" if np.isfinite(row["claimed"]) else MISSING
        judged = (row[key] if isinstance(row[key], str) and row[key] else MISSING for key in ("word", "rule"))
        yield label, signed(row["gain"]), interval(row["low"], row["high"]), claimed, *judged


def controls(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Control, gain over it, interval, whether it survives."""
    if evidence.judgement is not None:
        for _, row in evidence.judgement.controls.iterrows():
            yield row["control"], signed(row["gain"]), interval(row["low"], row["high"]), _yes(row["survives"])


def gaps(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Transfer, method, negative transfer gap, interval, whether it is present; the means over transfers first."""
    if evidence.judgement is None:
        return
    rows = evidence.judgement.negative_transfer
    order = [OVERALL, *evidence.transfers]
    for transfer in order:
        for _, row in rows[rows.transfer == transfer].iterrows():
            place = "mean over transfers" if transfer == OVERALL else transfer
            found = signed(row["gap"]), interval(row["low"], row["high"]), _yes(row["present"])
            yield place, row["method"], *found


def gone(evidence: Evidence) -> str:
    """Whether there was negative transfer, and whether the focus avoids it."""
    if evidence.judgement is None:
        return ""
    if evidence.judgement.gone is None:
        return f"Over all transfers, no negative transfer was found with {evidence.reference}: there is none to avoid."
    now = "is not found" if evidence.judgement.gone else "is still there"
    return (
        f"Over all transfers, negative transfer is present with {evidence.reference} and {now} with {evidence.focus}."
    )


def notes(evidence: Evidence) -> list[str]:
    """What a reader must know of the verdict."""
    return [_sentence(note) for note in evidence.judgement.notes] if evidence.judgement else []


def signed(value: float) -> str:
    """A number with its sign, two decimals."""
    return f"{value:+.2f}" if np.isfinite(value) else MISSING


def interval(low: float, high: float) -> str:
    """Both ends, or a dash where there is none."""
    return f"[{low:+.2f}, {high:+.2f}]" if np.isfinite([low, high]).all() else MISSING


def _yes(value: object) -> str:
    return "yes" if value else "no"
