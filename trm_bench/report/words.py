"""A verdict in words: the same sentences and rows for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trm_bench.analysis.intervals import MIN_SEEDS
from trm_bench.analysis.table import OVERALL
from trm_bench.analysis.verdict import RULES
from trm_bench.analysis.voxels import ALL_VOXELS, LOST_OR_WON, SCRATCH
from trm_bench.plurals import counted
from trm_bench.protocol.schema import Claim
from trm_bench.report.captions import how_it_was_tuned
from trm_bench.report.evidence import NAMES, PHANTOM, Evidence
from trm_bench.report.tables import MISSING, USED

if TYPE_CHECKING:
    import pandas as pd

ALL_TRANSFERS = "mean over transfers"
HOLDS = "at least half of the claim is shown in each reading of its unit"
YES, NO, OPEN, UNKNOWN = "yes", "no", "cannot be told", "not known"


class Finding(NamedTuple):
    """What came out of a protocol, with or without a claim.

    Attributes:
        best: The best method in a few words.
        told: Whether it can be told from the reference.
        gain: Its gain, in sentences.
        harm: Whether there is negative transfer: `YES`, `NO`, `OPEN` or `UNKNOWN`.
        transfer: Where, in sentences.
        amount: How many transfers and seeds were seen.
        seen: What else was seen, in a sentence.
    """

    best: str
    told: bool
    gain: str
    harm: str
    transfer: str
    amount: str
    seen: str


def finding(evidence: Evidence) -> str:
    """The finding as plain text: the best methods, negative transfer, how much was seen.

    It says how methods were tuned, where they were. On stand-in data the last sentence says that it
    is no evidence.
    """
    parts, plan = found(evidence), evidence.results.plan
    sentences = [
        f"{parts.best}. {parts.gain}",
        f"Negative transfer: {parts.harm}. {parts.transfer}",
        f"Seen: {parts.amount}; {parts.seen}",
        *([how_it_was_tuned(plan.tuned, evidence.results.folder)] if plan.tuned else []),
        *([PHANTOM] if evidence.phantom else []),
    ]
    return " ".join(sentence.strip() for sentence in sentences)


def found(evidence: Evidence) -> Finding:
    """The parts of the finding."""
    harm, transfer = _negative_transfer(evidence)
    transfers, seeds = len(evidence.transfers), len(evidence.seeds)
    amount = f"{counted(transfers, 'transfer')}, {counted(seeds, 'seed')}"
    return Finding(*_best(evidence), harm, transfer, amount, _seen(evidence))


def _best(evidence: Evidence) -> tuple[str, bool, str]:
    """The best method in a few words, whether it can be told from the reference, its gain."""
    scores, best, reference = evidence.main, evidence.best, evidence.reference
    if best is None:
        needs = f"it takes {reference} and another method, with numbers in the same transfers"
        return "No method can be compared yet", False, _sentence(scores.fault or needs)
    unit, name = evidence.gain_unit(scores.metric), NAMES[scores.metric]
    number = f"{signed(best.gain)} {unit}"
    over = f"over {reference}"
    if not np.isfinite(best.low):
        lead = f"{best.method} is ahead" if best.gain > 0 else f"{reference} is ahead"
        of = f"the gain of {best.method} {over} is {number} of {name}"
        return lead, False, f"{_sentence(of)} {_no_interval(evidence)}"
    ends = f"{number} of {name} {interval(best.low, best.high)}"
    known = "95 % interval" + (
        f", corrected for having looked at {best.looked} methods" if best.looked > 1 else ""
    )
    if best.method in best.better:
        others = [m for m in best.better if m != best.method]
        also = f" Better than {reference}, so corrected, too: {_listed(others)}." if others else ""
        told = f"{best.method} gains {ends} {over} ({known}), which is more than chance."
        return f"{best.method} beats {reference}", True, told + also
    first = f"The largest gain {over} is" if best.gain > 0 else f"Closest to {reference} comes"
    told = f"{first} {'that of ' if best.gain > 0 else ''}{best.method}: {ends} ({known})"
    if best.high < 0:
        return f"No method reaches {reference}", True, f"{told}."
    return f"No method can be told from {reference}", False, f"{told}, which holds 0."


def _no_interval(evidence: Evidence) -> str:
    """Why gains have no interval."""
    seeds = len(evidence.seeds)
    if seeds < MIN_SEEDS:
        return (
            f"That may be chance: {counted(seeds, 'seed')} {'give' if seeds > 1 else 'gives'} no "
            f"interval, {MIN_SEEDS} would."
        )
    return "That may be chance: there is no interval, which takes two test subjects everywhere."


def _negative_transfer(evidence: Evidence) -> tuple[str, str]:
    """Whether training from scratch would have been better, and where."""
    rows = overall_classes(evidence)
    if SCRATCH not in evidence.methods:
        why = f"It takes the method {SCRATCH} (training without a source) beside the others."
        return UNKNOWN, why
    method = evidence.reference if evidence.reference != SCRATCH else evidence.focus
    own = {row["transfer"]: row for row in rows[rows["method"] == method].to_dict("records")}
    if not own:
        return UNKNOWN, f"It takes numbers of both {SCRATCH} and {method}."
    unit = evidence.gain_unit(evidence.main.metric)
    overall = own.get(OVERALL) or next(iter(own.values()))
    gap, low, high = (float(overall[key]) for key in ("gap", "low", "high"))
    where = "Over all transfers " if len(evidence.transfers) > 1 else ""
    text = (
        f"{where}{method} is {abs(gap):.2f} {unit} {'worse' if gap > 0 else 'better'} "
        f"than {SCRATCH}"
    )
    if not np.isfinite(low):
        return OPEN, f"{text}; without an interval that may be chance."
    text += f" (95 % interval of {method} minus {SCRATCH}: {interval(-high, -low)})"
    present = [t for t in evidence.transfers if t in own and own[t]["low"] > 0]
    alone = f"; each on its own, {method} loses in {_listed(present)}" if present else ""
    if low > 0:
        return YES, f"{text}{alone}."
    if present:
        of = counted(len(evidence.transfers), "transfer")
        return f"in {len(present)} of {of}", f"{text}{alone}."
    if high < 0:
        return NO, f"{text}, and no single transfer shows a loss."
    return OPEN, f"{text}, which holds 0."


def _seen(evidence: Evidence) -> str:
    """Methods, test subjects, and runs without numbers."""
    parts = [counted(len(evidence.methods), "method")]
    if evidence.main.grid is not None:
        numbers = sorted({int(cells.any(axis=1).sum()) for cells in evidence.main.grid.cells})
        ends = "-".join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))
        each = " in each transfer" if len(evidence.transfers) > 1 else ""
        parts.append(f"{ends} test subject{'' if ends == '1' else 's'}{each}")
    lacking = len(evidence.results.unfinished())
    without = f"; {counted(lacking, 'run')} without numbers" if lacking else ""
    return f"{', '.join(parts)}{without}."


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _holds(evidence: Evidence) -> str:
    """Why a claim is upheld."""
    decisive = evidence.judgement.decisive if evidence.judgement else ()
    over = " and ".join(decisive)
    return HOLDS + (f", and the gain over {over} survives" if over else "")


def verdict(evidence: Evidence) -> str:
    """A protocol's verdict for the terminal: word, rule, controls, negative transfer."""
    lines = [f"{evidence.name}: {' / '.join(evidence.words) or 'no verdict'}"]
    lines += [f"  {line}" for line in reasons(evidence)]
    lines.append(f"  {finding(evidence)}")
    judgement = evidence.judgement
    if judgement is None:
        return "\n".join(lines)
    unit = evidence.gain_unit(judgement.claim.metric)
    lines += [
        "",
        *_columns(
            [
                ("gain", "measured", "interval", "claimed", "verdict"),
                *(r[:5] for r in gains(evidence)),
            ]
        ),
    ]
    if over := list(controls(evidence)):
        head = (f"{evidence.focus} against", f"gain [{unit}]", "interval", "survives")
        lines += ["", *_columns([head, *over])]
    if overall := main_gaps(evidence):
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
    """Why this verdict, or why none; the claim, or without one what was measured."""
    if evidence.no_verdict:
        lines = [_sentence(evidence.no_verdict.removeprefix("no verdict: "))]
    else:
        lines = [_sentence(RULES[word]) for word in evidence.words]
        fails = evidence.judgement.fails if evidence.judgement else ""
        lines.append(_sentence(f"the claim is not upheld: {fails}" if fails else _holds(evidence)))
    claim = evidence.protocol.claim
    if claim and claim.gain is not None:
        source = f" ({claim.source})" if claim.source else ""
        lines.append(
            f"Claim{source}: {claim.method} gains {claim.gain:g} "
            f"{_claim_unit(evidence, claim)} in {NAMES[claim.metric]} over {claim.versus}."
        )
    elif gain := evidence.main.gain(evidence.focus):
        metric = evidence.main.metric
        lines.append(
            f"Measured: {evidence.focus} gains {signed(gain['gain'])} {evidence.gain_unit(metric)} "
            f"{interval(gain['low'], gain['high'])} in {NAMES[metric]} over {evidence.reference}."
        )
    return lines


def _claim_unit(evidence: Evidence, claim: Claim) -> str:
    units = {"points": evidence.gain_unit(claim.metric), "relative": "% (relative)"}
    return units.get(claim.unit, "% (points or relative: the source does not say)")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def gains(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Unit, measured gain, interval, claimed gain, word, rule."""
    if evidence.judgement is None:
        return
    unit = evidence.gain_unit(evidence.judgement.claim.metric)
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
    rows = overall_classes(evidence)
    for transfer in [OVERALL, *evidence.transfers]:
        for row in rows[rows["transfer"] == transfer].to_dict("records"):
            present = _yes(row["negative_transfer"])
            cells = signed(row["gap"]), interval(row["low"], row["high"]), present
            yield _place(transfer), row["method"], *cells


def main_gaps(evidence: Evidence) -> list[tuple[str, ...]]:
    """Of the reference and the focus over all transfers: what `gaps` has after the transfer."""
    two = (evidence.reference, evidence.focus)
    return [r[1:] for r in gaps(evidence) if r[0] == ALL_TRANSFERS and r[1] in two]


def overall_classes(evidence: Evidence) -> pd.DataFrame:
    """The negative transfer gaps over all classes, in the main metric."""
    rows = evidence.gaps[evidence.gaps["metric"] == evidence.main.metric]
    return rows.drop_duplicates(["transfer", "method"])  # those over all classes come first


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
            *(f"{row[k]:.3f}" for k in ("negative_rate", "positive_rate")),
            f"{row['net']:+.3f}",
            interval(row["low"], row["high"], 3),
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
    """Method, gain, interval, smallest detectable gain, deviations of the gain and of the method.

    The gain's are those of subjects, seeds and residual.
    """
    table = evidence.sensitivity
    for method in evidence.methods:
        rows = table[(table["method"] == method) & (table["transfer"] == OVERALL)]
        if rows.empty:
            continue
        row, gain = rows.iloc[0], evidence.main.gain(method)
        yield (
            method,
            signed(gain["gain"]) if gain else MISSING,
            interval(gain["low"], gain["high"]) if gain else MISSING,
            _plain(row["smallest_gain"]),
            *(_plain(row[f"sd_of_{part}"]) for part in ("subjects", "seeds", "residual")),
            _plain(row["sd_over_seeds"]),
        )


def over_transfers(evidence: Evidence) -> str:
    """The focus's gain, were the transfers a sample; "" where it cannot be told."""
    low, high = evidence.over_transfers
    gain = evidence.main.gain(evidence.focus)
    if gain is None or not np.isfinite(low):
        return ""
    return (
        f"Intervals take the transfers as given. As a sample of transfers (Student's t over their "
        f"means), {evidence.focus} gains {signed(gain['gain'])} {interval(low, high)} over "
        f"{evidence.reference}."
    )


def costs(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Method, steps, passes, times fine-tuning's, trained parameters, seconds, what it used."""
    for row in evidence.costs.to_dict("records"):
        used = [name for key, name in USED.items() if row[key]]
        numbers = (row[key] for key in ("steps", "passes"))
        yield (
            row["method"],
            *(f"{x:.0f}" if np.isfinite(x) else MISSING for x in numbers),
            _plain(row["times_finetune"]),
            f"{row['trained']:,.0f}" if np.isfinite(row["trained"]) else MISSING,
            _plain(row["seconds"]),
            ", ".join(used) or MISSING,
        )


def confusion(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """Noise, seeds, true gain, and the probabilities of each word and of `holds`, in per cent."""
    if evidence.judgement is None:
        return
    for row in evidence.judgement.confusion.to_dict("records"):
        chances = (f"{100 * row[word]:.1f}" for word in (*RULES, "holds"))
        given = f"{row['gain']:.2f} ({row['given']})"
        yield f"{row['noise']:g}", f"{row['seeds']:.0f}", given, *chances


def _plain(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else MISSING


def gone(evidence: Evidence) -> str:
    """Whether there was negative transfer, and whether the focus avoids it; "" if not known."""
    if evidence.judgement is None or any(row[-1] == MISSING for row in main_gaps(evidence)):
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
    return MISSING if value is None else "yes" if value else "no"
