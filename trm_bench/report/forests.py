"""Charts with a row for each method: gains, gains in each transfer, each subject, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trm_bench.analysis.table import HIGHER_IS_BETTER, OVERALL
from trm_bench.report.drawing import (
    DoesNotApply,
    Drawing,
    heading,
    label_below,
    legend,
    panels,
    plain,
    scored,
    shortened,
    signed,
)
from trm_bench.report.evidence import NAMES, Evidence, Scores
from trm_bench.report.layout import measured_as_one
from trm_bench.report.marks import (
    LONGEST_NAME,
    ROW,
    Interval,
    Points,
    bar,
    entry,
    explained,
    intervals,
    lines,
    rows,
)
from trm_bench.report.style import SMALL, SOFT, TEXT, WIDE, look
from trm_bench.report.svg import tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DOTS = 2500  # in all; more are drawn as quartiles


# ------------------------------------------------------------------------------------------ gains


def gains(evidence: Evidence, width: float = WIDE) -> Drawing:
    """Forest plot: the gain of each method over the reference, over all transfers."""
    scores = scored(evidence)
    overall = _has_overall(evidence, scores)
    return _gains(evidence, scores, [OVERALL] if overall else evidence.transfers, width)


def gains_by_transfer(evidence: Evidence, width: float = WIDE) -> Drawing:
    """The same in each transfer."""
    scores = scored(evidence)
    if not _has_overall(evidence, scores):
        raise DoesNotApply("the gains are of single transfers already")
    return _gains(evidence, scores, evidence.transfers, width)


def _has_overall(evidence: Evidence, scores: Scores) -> bool:
    if scores.gains.empty:
        raise DoesNotApply(f"no '{evidence.reference}' beside another method with numbers")
    return len(evidence.transfers) > 1 and not evidence.is_mixed(scores.metric)


def _gains(evidence: Evidence, scores: Scores, places: Sequence[str], width: float) -> Drawing:
    methods = _ordered(evidence, scores, places)
    height = ROW * len(methods) + (0.5 if len(places) == 1 else 0.6)
    room = {"least": 1.1 if width < WIDE else 1.7, "beside": _beside(methods)}
    figure, axes, own = panels(len(places), width, height, sharex=True, sharey=True, **room)
    alone, shown = len(axes) == 1, []
    for ax, place in zip(axes, places, strict=True):
        rows(ax, methods)
        shown += _forest(ax, evidence, scores, place, methods, alone, width == WIDE)
        if place != OVERALL:
            ax.set_title(heading(place, own))
    more = explained(shown)
    if places[0] == OVERALL:
        more.append(entry("a single transfer", "|", TEXT, 6))
    legend(figure, axes, more)
    unit = evidence.gain_unit(scores.metric)
    label_below(figure, f"gain in {NAMES[scores.metric]} over {evidence.reference} [{unit}], "
                        "better to the right")  # fmt: skip
    listed = [f"{m} {signed(g['gain'])}" for m in methods if (g := scores.gain(m, places[0]))]
    where = "over all transfers" if places[0] == OVERALL else "in each transfer"
    return Drawing(
        figure,
        f"Gain over {evidence.reference}"
        + (", by transfer" if places[0] != OVERALL and not alone else ""),
        f"Gain of each method over {evidence.reference} {where}, with its 95 % interval over "
        "subjects and seeds, each on its own (exploratory). Right of 0 is better than "
        f"{evidence.reference}. A filled mark has an interval that does not hold 0; a cross has "
        "none, where there are too few seeds.",
        f"Forest plot of gains in {unit}, {where}."
        + (f" {plain(places[0])}: {', '.join(listed)}." if listed else ""),
    )


def _ordered(evidence: Evidence, scores: Scores, places: Sequence[str]) -> list[str]:
    """The methods with a gain, the largest one first, by the first place that has it."""

    def first(method: str) -> float:
        found = (scores.gain(method, place) for place in (OVERALL, *places))
        return next((gain["gain"] for gain in found if gain), -math.inf)

    others = [m for m in evidence.methods if m != evidence.reference]
    return sorted((m for m in others if first(m) > -math.inf), key=first, reverse=True)


def _beside(names: Sequence[str]) -> float:
    """Inches that names of rows take."""
    longest = max((len(shortened(plain(n), LONGEST_NAME)) for n in names), default=0)
    return 0.12 + 0.068 * longest


def _forest(
    ax: Axes,
    evidence: Evidence,
    scores: Scores,
    place: str,
    methods: Sequence[str],
    alone: bool,
    with_ends: bool,
) -> list[tuple[float, float]]:
    """One panel, with numbers where it is alone; returns the ends of the intervals in it."""
    shown, texts = [], []
    for y, method in enumerate(methods):
        gain = scores.gain(method, place)
        if gain is None:
            ax.text(0, y, " no numbers", fontsize=SMALL, color=SOFT, va="center")
            continue
        colour, ends = look(evidence, method).colour, (gain["low"], gain["high"])
        said = f"{signed(gain['gain'])} {_bracketed(ends)}".strip()
        title = f"{method}, {plain(place)}: {said}"
        if place == OVERALL:
            _single_transfers(ax, evidence, scores, method, y + 0.36)
        shown.append(Interval(y, gain["gain"], ends, colour, method, title))
        if alone:
            text = ax.text(1.02, y, said if with_ends else said.split(" ")[0], va="center")
            text.set(transform=ax.get_yaxis_transform(), fontsize=SMALL)
            tag(text, method, title)
            texts.append(text)
    intervals(ax, shown)
    measured_as_one(texts)
    return [one.ends for one in shown]


def _bracketed(ends: tuple[float, float]) -> str:
    return f"[{signed(ends[0])}, {signed(ends[1])}]" if math.isfinite(ends[0]) else ""


def _single_transfers(ax: Axes, evidence: Evidence, scores: Scores, method: str, y: float) -> None:
    """Small ticks below the mean: what it is the mean of."""
    found = {t: g["gain"] for t in evidence.transfers if (g := scores.gain(method, t))}
    (line,) = ax.plot(list(found.values()), [y] * len(found), "|", color=SOFT, markersize=4)
    line.set(zorder=1, markeredgewidth=0.9)
    tag(line, method, *(f"{method}, {plain(t)}: {signed(g)}" for t, g in found.items()))


# --------------------------------------------------------------------------------------- subjects


def subjects(evidence: Evidence, width: float = WIDE) -> Drawing:
    """What each test subject gains with each method, over the reference."""
    scores = scored(evidence)
    gained = _by_subject(evidence, scores)
    methods = [m for m in _ordered(evidence, scores, list(gained)) if
               any(m in by_method for by_method in gained.values())]  # fmt: skip
    height = ROW * len(methods) + 0.75
    room = {"least": 1.7 if width < WIDE else 2.1, "beside": _beside(methods)}
    figure, axes, own = panels(len(gained), width, height, sharex=True, sharey=True, **room)
    dots = sum(len(v) for by in gained.values() for v in by.values()) <= MOST_DOTS
    for ax, (transfer, by_method) in zip(axes, gained.items(), strict=True):
        rows(ax, methods)
        strips = [
            Strip(y, np.array([*values.values()]), look(evidence, method).colour, method, values)
            for y, method in enumerate(methods)
            if (values := by_method.get(method))
        ]
        _strips(ax, strips, dots)
        ax.set_title(heading(transfer, own - 0.6))
        style: Any = {"fontsize": SMALL - 1, "color": SOFT, "va": "bottom"}
        ax.text(1.02, 1, "better :\nworse", transform=ax.transAxes, **style)
    shapes = [entry("a test subject", "o", TEXT, 3)]
    if not dots:
        shapes = [bar("middle half of the subjects", 5), bar("from 5 to 95 %", 1)]
    legend(figure, axes, [*shapes, entry("mean", "|", TEXT, 9)])
    unit = evidence.gain_unit(scores.metric)
    label_below(figure, f"gain in {NAMES[scores.metric]} over {evidence.reference} [{unit}], "
                        "better to the right")  # fmt: skip
    drawn = "A dot is a test subject's gain" if dots else "Bars show the test subjects' gains"
    return Drawing(
        figure,
        f"Each subject: gain over {evidence.reference}",
        f"{drawn} over {evidence.reference}, mean over seeds. At the right, how many subjects are "
        f"better and how many worse than under {evidence.reference}.",
        f"Gains of single test subjects in {unit}. {_counted(evidence, gained)}.",
    )


def _by_subject(evidence: Evidence, scores: Scores) -> dict[str, dict[str, dict[str, float]]]:
    """Transfer to method to subject to its gain over the reference.

    Raises:
        DoesNotApply: There is none.
    """
    sign = 1 if HIGHER_IS_BETTER[scores.metric] else -1
    gained: dict[str, dict[str, dict[str, float]]] = {}
    for transfer in evidence.transfers:
        base = scores.by_subject(transfer, evidence.reference)
        for method in evidence.methods:
            own = scores.by_subject(transfer, method)
            both = {s: sign * (own[s] - base[s]) for s in own if s in base}
            if both and method != evidence.reference:
                gained.setdefault(transfer, {})[method] = both
    if not gained:
        raise DoesNotApply(f"no subject has {evidence.reference} and another method")
    return gained


class Strip(NamedTuple):
    """One method in one panel: what each subject gains with it."""

    y: int
    gains: Points
    colour: str
    method: str
    by_subject: Mapping[str, float]


class _Said(NamedTuple):
    """What `svg.tag` says of a mark."""

    method: str
    title: str


def _strips(ax: Axes, strips: Sequence[Strip], dots: bool) -> None:
    """The methods of one panel: each subject's gain, or their quartiles; mean; better and worse."""
    for share, thick in () if dots else ((90, 1.0), (50, 5.0)):
        edges = [50 - share / 2, 50 + share / 2]
        ends = [np.percentile(strip.gains, edges) for strip in strips]
        paths = [np.column_stack([x, [s.y, s.y]]) for x, s in zip(ends, strips, strict=True)]
        said = [
            f"{s.method}: {share} % of {len(s.gains)} subjects in {_bracketed((x[0], x[1]))}"
            for x, s in zip(ends, strips, strict=True)
        ]
        shown = [_Said(s.method, text) for s, text in zip(strips, said, strict=True)]
        lines(ax, paths, [s.colour for s in strips], thick, shown, alpha=0.75)
    if dots:
        for strip in strips:
            _dots(ax, strip)
    means, places = [float(s.gains.mean()) for s in strips], [s.y for s in strips]
    mark = ax.scatter(means, places, s=100, marker="|", c=TEXT, linewidths=1.6, zorder=3)
    said = [f"{s.method}, mean: {signed(mean)}" for s, mean in zip(strips, means, strict=True)]
    tag(mark, [s.method for s in strips], *said)
    texts = []
    for strip in strips:
        better, worse = int((strip.gains > 0).sum()), int((strip.gains < 0).sum())
        text = ax.text(1.02, strip.y, f"{better} : {worse}", va="center", fontsize=SMALL - 1)
        text.set(transform=ax.get_yaxis_transform(), color=SOFT)
        tag(text, strip.method, f"{strip.method}: {better} subjects better, {worse} worse")
        texts.append(text)
    measured_as_one(texts)


def _dots(ax: Axes, strip: Strip) -> None:
    """A dot a subject, spread, but not by chance."""
    beside = strip.y + 0.56 * ((np.arange(len(strip.gains)) * 0.618034) % 1 - 0.5)
    (line,) = ax.plot(strip.gains, beside, "o", color=strip.colour, markersize=2.8, alpha=0.65)
    line.set_markeredgewidth(0)
    gained = strip.by_subject.items()
    tag(line, strip.method, *(f"{strip.method}, {s}: {signed(g)}" for s, g in gained))


def _counted(evidence: Evidence, gained: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """How many subjects the focus, or the first method, makes better and worse."""
    counts = []
    for transfer, by_method in gained.items():
        method = evidence.focus if evidence.focus in by_method else next(iter(by_method))
        values = np.array(list(by_method[method].values()))
        better, worse = (values > 0).sum(), (values < 0).sum()
        counts.append(f"{transfer}, {method}: {better} better, {worse} worse of {len(values)}")
    return "; ".join(counts)


# ------------------------------------------------------------------------------------------ ranks


def ranks(evidence: Evidence, width: float = WIDE) -> Drawing:
    """Mean ranks over transfers (Demsar 2006), with half the critical difference to each side."""
    scored(evidence)
    test, note = evidence.ranked
    if test is None:
        raise DoesNotApply(f"Friedman's test {note}")
    order = test.ranks.sort_values()
    methods, half = [str(m) for m in order.index], test.critical_difference / 2
    figure, (ax,), _ = panels(1, width, ROW * len(methods) + 0.4, least=1)
    rows(ax, methods)
    ax.lines[0].remove()
    shown = []
    for y, (method, rank) in enumerate(zip(methods, order, strict=True)):
        colour = look(evidence, method).colour
        title, ends = f"{method}: mean rank {rank:.2f}", (rank - half, rank + half)
        shown.append(Interval(y, rank, ends, colour, method, title, filled=True))  # no rank is 0
        text = ax.text(1.02, y, f"{rank:.2f}", va="center", fontsize=SMALL)
        text.set_transform(ax.get_yaxis_transform())
        tag(text, method, title)
    intervals(ax, shown)
    ax.set_xlim(1 - half - 0.3, len(methods) + half + 0.3)
    ax.set_xticks(sorted({1, *range(5, len(methods), 5), len(methods)}))
    label_below(figure, "mean rank over transfers (1 is best), and half the critical difference")
    difference = f"{test.critical_difference:.2f}"
    caption = (
        f"Friedman's test over {test.n_transfers} transfers: p = {test.p:.3g}. Two methods whose "
        "bars overlap differ by less than Nemenyi's critical difference (5 %), "
        f"{difference}. Transfers that share subjects are not independent: read it as a "
        "description."
    )
    listed = ", ".join(f"{m} {r:.2f}" for m, r in order.items())
    return Drawing(
        figure,
        "Ranks over transfers",
        f"{caption} {note[:1].upper() + note[1:] + '.' if note else ''}".strip(),
        f"Mean ranks: {listed}; critical difference {difference}.",
    )
