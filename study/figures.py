"""The study's figures, made of the files in results/reference/study.

    python study/figures.py      writes them below results/reference/study/figures

The same files give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from parts import METRIC, OF_ALL, ONCE, REFERENCE, RUNS, gains_of, of_all, parts

from trm_bench.report.style import (
    BLUE,
    COLOURS,
    GREEN,
    LINE,
    MARKERS,
    ORANGE,
    SMALL,
    STYLE,
    TEXT,
    WIDE,
)

DRAWN = REFERENCE / "figures"
ROW = 0.27  # inches


def family() -> Figure:
    """Of each part: what fine-tuning loses, what trm gains, and what of it is the map's."""
    made = list(parts(RUNS))
    questions = (
        ("scratch - finetune: harm?", ORANGE, "X"),
        ("trm - finetune: help?", BLUE, "D"),
        ("trm - trm_prior: the map?", GREEN, "s"),
    )
    figure = Figure(figsize=(WIDE, 1.1 + 1.9 * ROW * len(made)), layout="constrained")
    axes = figure.subplots()
    for place, (_, part) in enumerate(made):
        values = (part.gap_values(), part.gain_values("trm"), part.gain_values("trm", "trm_prior"))
        for step, (known, (_, colour, marker)) in enumerate(zip(values, questions, strict=True)):
            if known is not None:
                _interval(axes, known, place + (step - 1) * 0.25, colour, marker)
    for name, colour, marker in questions:
        axes.plot([], [], color=colour, marker=marker, label=name)
    _rows(axes, [title for title, _ in made], "points of Dice, with 95 % intervals")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def methods(values: str) -> Figure:
    """Gains over fine-tuning of the methods of all parts that ran every method.

    Args:
        values: "" for the defaults, `_tuned` for those that were found.
    """
    made = of_all(values)
    scores = {title: part.summary["metrics"][METRIC] for title, part in made.items()}
    gains = gains_of(made).dropna()
    order = gains.mean(axis=1).sort_values(ascending=False).index
    figure = Figure(figsize=(WIDE, 1.1 + ROW * len(order)), layout="constrained")
    axes, palette = figure.subplots(), (BLUE, ORANGE, *COLOURS)
    for place, (title, known) in enumerate(scores.items()):
        kind = [*OF_ALL.values()].index(title)  # alike in all figures
        colour, marker = palette[kind % len(palette)], MARKERS[kind % len(MARKERS)]
        shift = (place - (len(scores) - 1) / 2) * 0.6 / len(scores)
        for row, method in enumerate(order):
            if method in known:
                ends = known[method]["gain_interval"]
                _interval(axes, (known[method]["gain"], *ends), row + shift, colour, marker)
        axes.plot([], [], color=colour, marker=marker, label=title)
    axes.set_xscale("symlog", linthresh=2)
    ticks = [-50, -20, -10, -5, -2, -1, 0, 1, 2, 5]
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    label = "gain over fine-tuning, points of Dice, with 95 % intervals (logarithmic beyond 2)"
    _rows(axes, [*order], label)
    figure.legend(loc="outside upper left", ncols=len(made))
    return figure


def leep() -> Figure:
    """LEEP of the source against what fine-tuning gains over training from scratch, by part."""
    made = [(t, p) for t, p in parts(RUNS) if p.folder.name.endswith(ONCE)]
    rows = -(-len(made) // 3)
    figure = Figure(figsize=(WIDE, 0.5 + 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False).flat
    for (title, part), axes in zip(made, panels, strict=False):  # spare panels are left over
        cells = part.cells()
        for place, (_, own) in enumerate(cells.groupby("transfer", sort=False)):
            marker = MARKERS[place % len(MARKERS)]
            axes.plot(own.leep, own.gain, marker, color=BLUE, ms=4, alpha=0.6)
        axes.axhline(0, color=TEXT, linewidth=0.8)
        axes.grid(color=LINE)
        axes.set_title(f"{title.split(',')[0]} (rank corr. {part.leep():+.2f})", fontsize=SMALL)
    for spare in panels:
        spare.set_visible(False)
    figure.supxlabel("LEEP of the source on the training subjects, nats", fontsize=SMALL)
    figure.supylabel("finetune - scratch, points of Dice", fontsize=SMALL)
    return figure


def _interval(axes: Axes, known: Sequence[float], y: float, colour: str, marker: str) -> None:
    value, low, high = known
    axes.plot([low, high], [y, y], color=colour, linewidth=1.6)
    axes.plot([value], [y], marker=marker, color=colour, markersize=5)


def _rows(axes: Axes, names: Sequence[str], label: str) -> None:
    axes.axvline(0, color=TEXT, linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color=LINE)
    axes.set_xlabel(label)


FIGURES = {
    "family": family,
    "methods": partial(methods, ""),
    "methods_tuned": partial(methods, "_tuned"),
    "leep": leep,
}


def save(folder: Path) -> None:
    """Draws all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = {"Date": None}
    with mpl.rc_context(STYLE):
        for name, draw in FIGURES.items():
            draw().savefig(folder / f"{name}.svg", metadata=metadata)


if __name__ == "__main__":
    save(DRAWN)
