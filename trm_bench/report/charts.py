"""Charts of the evidence, each as PNG and SVG.

A chart that does not apply is not drawn, and says in one line why not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trm_bench.analysis.table import HIGHER_IS_BETTER, OVERALL
from trm_bench.analysis.tests import friedman
from trm_bench.analysis.voxels import SCRATCH
from trm_bench.report import curves, transferability
from trm_bench.report.drawing import (
    BLUE,
    DARK,
    GREY,
    ORANGE,
    STYLE,
    Chart,
    DoesNotApply,
    Drawing,
    heading,
    look,
    panels,
    scored,
    shortened,
    signed,
    write,
)
from trm_bench.report.evidence import NAMES, Evidence, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def draw(evidence: Evidence) -> tuple[list[Chart], list[str]]:
    """Draws every chart that applies into the folder's figures.

    Returns:
        The charts, and a line for each one that does not apply.
    """
    import matplotlib as mpl

    charts, absent = [], []
    for name, make in CHARTS.items():
        png, svg = (evidence.results.folder.figures / f"{name}.{end}" for end in ("png", "svg"))
        try:
            with mpl.rc_context(STYLE):
                charts.append(write(make(evidence), name, png, svg, evidence.phantom))
        except DoesNotApply as reason:
            png.unlink(missing_ok=True)
            svg.unlink(missing_ok=True)
            absent.append(f"{name.replace('_', ' ')}: {reason}")
    return charts, absent


# ------------------------------------------------------------------------------------------ gains


def gains(evidence: Evidence) -> Drawing:
    """Forest plot: the gain of each method over the reference, over all transfers and in each."""
    scores = scored(evidence)
    if scores.gains.empty:
        raise DoesNotApply(f"no '{evidence.reference}' beside another method with numbers")
    several = len(evidence.transfers) > 1 and not evidence.is_mixed(scores.metric)
    places = [*([OVERALL] if several else []), *evidence.transfers]
    others = [m for m in evidence.methods if m != evidence.reference]
    methods = [m for m in others if any(scores.gain(m, place) for place in places)]
    height = 0.235 * len(methods) + 0.75
    figure, axes = panels(len(places), 3.0, height, sharex=True, sharey=True)
    for ax, place in zip(axes, places, strict=True):
        _forest(ax, evidence, scores, place, methods)
        overall = place == OVERALL
        title = "mean over transfers" if overall else heading(place, 2.8)
        ax.set_title(title, weight="bold" if overall else "normal")
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    unit = evidence.gain_unit(scores.metric)
    label = f"gain in {NAMES[scores.metric]} over {evidence.reference} [{unit}], 95 % interval"
    figure.supxlabel(label, fontsize=9)
    overall_gains = {m: scores.gain(m) for m in methods}
    listed = ", ".join(f"{m} {signed(g['gain'])}" for m, g in overall_gains.items() if g)
    return Drawing(
        figure,
        f"Gain over {evidence.reference}",
        f"Gain of each method over {evidence.reference} with its 95 % interval over subjects and "
        "seeds, each on its own (exploratory). Right of zero is better; a filled mark has an "
        "interval that does not hold 0; none is drawn where there are too few seeds.",
        f"Forest plot of gains in {unit}." + (f" Mean over transfers: {listed}." if listed else ""),
    )


def _forest(ax: Axes, evidence: Evidence, scores: Scores, place: str, methods: list[str]) -> None:
    """One panel: a row a method, from above."""
    ax.axvline(0, color=GREY, linewidth=0.9)
    for y, method in enumerate(methods):
        gain = scores.gain(method, place)
        if gain is None:
            ax.text(0, y, " no numbers", fontsize=7, color=GREY, va="center")
            continue
        colour, marker, _ = look(evidence, method)
        ends = [gain["low"], gain["high"]]
        ax.plot(ends, [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
        face = colour if _clear(gain) else "white"
        ax.plot(
            gain["gain"],
            y,
            marker=marker,
            markersize=5,
            markeredgecolor=colour,
            markerfacecolor=face,
        )
    ax.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    ax.set_axisbelow(True)


def _clear(gain: dict[str, float]) -> bool:
    """Whether the interval does not hold 0."""
    return gain["low"] > 0 or gain["high"] < 0


# --------------------------------------------------------------------------------------- subjects


def subjects(evidence: Evidence) -> Drawing:
    """Paired slopes: each test subject under the reference and under the focus."""
    scores = scored(evidence)
    methods = scores.grid.methods if scores.grid else ()
    if missing := [m for m in (evidence.reference, evidence.focus) if m not in methods]:
        raise DoesNotApply(f"no numbers of {' and '.join(missing)}")
    pairs = {}
    for transfer in evidence.transfers:
        left, right = (scores.by_subject(transfer, m) for m in (evidence.reference, evidence.focus))
        if both := [s for s in left if s in right]:
            pairs[transfer] = np.array([[left[s], right[s]] for s in both])
    if not pairs:
        raise DoesNotApply(f"no subject has both {evidence.reference} and {evidence.focus}")
    sign = 1 if HIGHER_IS_BETTER[scores.metric] else -1
    figure, axes = panels(len(pairs), 2.35, 2.7, most=6, sharey=True)
    counts = []
    for ax, (transfer, values) in zip(axes, pairs.items(), strict=True):
        change = sign * np.diff(values, axis=1)[:, 0]
        alpha = 0.85 if len(values) < 25 else 0.5
        for group, colour, line in (
            (change >= 0, BLUE, "-"),
            (change < 0, ORANGE, (0, (3, 1.5))),
        ):
            lines: Any = {"color": colour, "linestyle": line, "linewidth": 0.9, "alpha": alpha}
            ax.plot([0, 1], values[group].T, **lines)
        ax.plot([0, 1], values.mean(axis=0), color="black", linewidth=2.6, marker="o", markersize=5)
        better, worse = int((change > 0).sum()), int((change < 0).sum())
        counts.append(f"{transfer}: {better} better, {worse} worse of {len(values)}")
        ax.set_title(f"{heading(transfer, 2.2)}\n{better} better, {worse} worse")
        ax.set_xticks([0, 1], [evidence.reference, evidence.focus])
        ax.set_xlim(-0.25, 1.25)
    axes[0].set_ylabel(f"{NAMES[scores.metric]} [{evidence.unit(scores.metric)}]")
    return Drawing(
        figure,
        f"Each subject: {evidence.reference} and {evidence.focus}",
        f"One line a test subject (mean over seeds). Solid blue: {evidence.focus} is better or "
        "equal; dashed orange: worse; thick black: mean.",
        f"Paired slopes of each test subject. {'; '.join(counts)}.",
    )


# ------------------------------------------------------------------------------------------ ranks


def ranks(evidence: Evidence) -> Drawing:
    """Critical-difference diagram (Demsar 2006) of mean ranks over transfers."""
    from matplotlib.figure import Figure
    from scikit_posthocs import critical_difference_diagram

    scores = scored(evidence)
    rows = evidence.long[evidence.long.metric == scores.metric]
    test, note = friedman(rows, scores.metric)
    if test is None:
        raise DoesNotApply(f"Friedman's test {note}")
    k = len(test.ranks)
    figure = Figure(figsize=(8.2, 1.2 + 0.21 * k), layout="constrained")
    ax = figure.subplots()
    artists = critical_difference_diagram(
        test.ranks,
        test.nemenyi,
        ax=ax,
        label_fmt_left="{label}  {rank:.2f} ",
        label_fmt_right=" {rank:.2f}  {label}",
        text_h_margin=0.02 * k,
        marker_props={"color": DARK, "s": 12},
        elbow_props={"color": GREY, "linewidth": 0.8},
        crossbar_props={"color": BLUE, "linewidth": 3.2, "solid_capstyle": "round"},
    )
    for (bar,) in artists["crossbars"]:
        bar.set_xdata(sorted(bar.get_xdata()))  # drawn in a set's order, which changes the file
    for label in artists["labels"]:
        focus = evidence.focus in label.get_text().split()
        label.set(color=DARK, weight="bold" if focus else "normal")
    ax.set_xticks(range(1, k + 1))
    ax.spines["top"].set(bounds=(1, k), visible=True)
    difference = f"{test.critical_difference:.2f}"
    ax.set_xlabel(f"mean rank over transfers (1 is best); critical difference {difference}")
    ax.xaxis.set_label_position("top")
    caption = (
        f"Friedman's test over {test.n_transfers} transfers: p = {test.p:.3g}. Methods joined by a "
        "bar differ by less than Nemenyi's critical difference (5 %). Transfers that share "
        "subjects are not independent: read it as a description."
    )
    listed = ", ".join(f"{m} {r:.2f}" for m, r in test.ranks.items())
    return Drawing(
        figure,
        "Ranks over transfers",
        f"{caption} {note[:1].upper() + note[1:] + '.' if note else ''}".strip(),
        f"Critical-difference diagram. Mean ranks: {listed}; critical difference {difference}.",
    )


# ----------------------------------------------------------------------------------------- matrix


class _Map(NamedTuple):
    """Gains by source and target, NaN where there is none, and whether the interval lacks 0."""

    title: str
    values: np.ndarray
    clear: np.ndarray


LONG_NAME = 10  # characters, from which on names below a map are slanted
LONGEST_NAME = 24  # characters that are shown of one


def matrix(evidence: Evidence) -> Drawing:
    """Heat maps of source by target: what transfer brings, and what the focus adds to it."""
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    scores = scored(evidence)
    sources, targets, maps = _maps(evidence, scores)
    rows, columns = ([shortened(n, LONGEST_NAME) for n in names] for names in (sources, targets))
    long = max(map(len, [*rows, *columns])) > LONG_NAME
    wide, high = (2.1, 2.2) if long else (1.1, 1.3)
    size = ((0.95 * len(columns) + wide) * len(maps) + 1.0, 0.72 * len(rows) + high)
    figure = Figure(figsize=size)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    most = max(np.nanmax(np.abs(m.values)) for m in maps) or 1.0
    for ax, shown in zip(axes, maps, strict=True):
        norm = TwoSlopeNorm(0, -most, most)
        image = ax.imshow(shown.values, cmap="PuOr", norm=norm, aspect="auto")
        _write_gains(ax, image, shown)
        slanted: Any = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
        ax.set_xticks(range(len(columns)), columns, **slanted)
        ax.set_yticks(range(len(rows)), rows)
        ax.set_xlabel("target")
        ax.set_title(shown.title)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("source")
    label = f"gain [{evidence.gain_unit(scores.metric)}]"
    figure.colorbar(image, ax=list(axes), label=label, shrink=0.85)
    return Drawing(
        figure,
        "Transfer matrix",
        "Gains by source (row) and target (column); below 0 on the left is negative transfer. An "
        "asterisk marks a 95 % interval that does not hold 0.",
        "Heat maps of gains by source and target: "
        f"{'; '.join(_in_words(sources, targets, shown) for shown in maps)}.",
    )


def _write_gains(ax: Axes, image: AxesImage, shown: _Map) -> None:
    """The number in every cell that has one."""
    for (i, j), value in np.ndenumerate(shown.values):
        if np.isfinite(value):
            clear = shown.clear[i, j]
            dark = np.dot(image.cmap(image.norm(value))[:3], (0.3, 0.59, 0.11)) < 0.5
            ax.text(
                j,
                i,
                signed(value) + ("\u2009*" if clear else ""),
                ha="center",
                va="center",
                fontsize=9,
                color="white" if dark else "black",
                weight="bold" if clear else "normal",
            )


def _maps(evidence: Evidence, scores: Scores) -> tuple[list[str], list[str], list[_Map]]:
    """Sources, targets, and the maps: of the reference over scratch, and of the focus."""
    pairs = _pairs(evidence)
    names = list(dict.fromkeys(name for pair in pairs.values() for name in pair))
    if len(names) < 3:
        raise DoesNotApply(f"needs 3 domains, has {len(names)}")
    sources, targets = ([n for n in names if n in {p[i] for p in pairs.values()}] for i in (0, 1))
    kinds = [
        (f"{evidence.reference} over scratch", SCRATCH, -1),
        (f"{evidence.focus} over {evidence.reference}", evidence.focus, 1),
    ]
    maps = []
    for title, method, sign in kinds:
        shape = (len(sources), len(targets))
        shown = _Map(title, np.full(shape, np.nan), np.zeros(shape, bool))
        for transfer, (source, target) in pairs.items():
            if gain := scores.gain(method, transfer):
                place = sources.index(source), targets.index(target)
                shown.values[place], shown.clear[place] = sign * gain["gain"], _clear(gain)
        if np.isfinite(shown.values).any():
            maps.append(shown)
    if not maps:
        raise DoesNotApply(f"no gains of {evidence.focus} or over scratch")
    return sources, targets, maps


def _pairs(evidence: Evidence) -> dict[str, list[str]]:
    """Transfer to its source and target.

    Raises:
        DoesNotApply: A transfer is more, or less, than a way from one domain to another.
    """
    transfers = evidence.protocol.transfers
    pairs = {transfer: transfer.split("->") for transfer in evidence.transfers}
    other = transfers.kind == "cross_task" or transfers.pairs == "leave_one_out"
    with_shots = any(re.search(r"@\d+$", transfer) for transfer in pairs)
    if other or with_shots or any(len(pair) != 2 for pair in pairs.values()):
        raise DoesNotApply("only for pairs of modalities, institutions or data sets, without shots")
    return pairs


def _in_words(sources: list[str], targets: list[str], shown: _Map) -> str:
    values = shown.values
    lowest, highest = (
        np.unravel_index(at, values.shape) for at in (np.nanargmin(values), np.nanargmax(values))
    )

    def text(at: Any) -> str:
        return f"{sources[at[0]]} to {targets[at[1]]} {signed(values[at])}"

    return f"{shown.title}, from {text(lowest)} up to {text(highest)}"


CHARTS: dict[str, Callable[[Evidence], Drawing]] = {
    "gains": gains,
    "subjects": subjects,
    "ranks": ranks,
    "shots": curves.shots,
    "gain_by_shots": curves.gain_by_shots,
    "transfer_matrix": matrix,
    "roc_of_lost_voxels": curves.lost_voxels,
    "transferability": transferability.chart,
    "training_loss": curves.training,
    "training_validation": partial(curves.training, kind="validation"),
    "balance_of_the_loss": partial(curves.training, kind="voxel_share"),
}
