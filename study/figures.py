"""The study's three figures, made of the files in results/reference/study.

    python study/figures.py      writes them below results/reference/study/figures

The same files give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tables import METRIC, OF_ALL, REFERENCE, RUNS, parts

from trm_bench.report.style import BLUE, COLOURS, GREEN, LINE, MARKERS, ORANGE, STYLE, TEXT, WIDE

FIGURES = REFERENCE / "figures"
ROW = 0.27  # inches


def family() -> Figure:
    """Of each part: what fine-tuning loses, what trm gains, and what of it is the map's."""
    made = list(parts(RUNS))
    questions = (
        ("scratch - finetune: negative transfer?", ORANGE, "X"),
        ("trm - finetune: does it help?", BLUE, "D"),
        ("trm - trm_prior: is it the map?", GREEN, "s"),
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


def methods() -> Figure:
    """Every method's gain over fine-tuning in every part that ran them all."""
    made = list(parts(OF_ALL))
    scores = [part.summary["metrics"][METRIC] for _, part in made]
    gains = pd.DataFrame(
        {
            title: {method: row["gain"] for method, row in known.items()}
            for (title, _), known in zip(made, scores, strict=True)
        }
    ).drop(index="finetune")
    order = gains.mean(axis=1).sort_values(ascending=False).index
    figure = Figure(figsize=(WIDE, 1.1 + 0.75 * ROW * len(order)), layout="constrained")
    axes = figure.subplots()
    for place, title in enumerate(gains.columns):
        colour = (TEXT, BLUE, ORANGE, *COLOURS)[place % (3 + len(COLOURS))]
        marker = MARKERS[place % len(MARKERS)]
        rows = range(len(order))
        axes.plot(gains[title][order], rows, marker, color=colour, label=title, ms=4.5, alpha=0.8)
    _rows(axes, list(order), "gain over fine-tuning, points of Dice (mean over transfers)")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def leep() -> Figure:
    """LEEP of the source against what fine-tuning gains over training from scratch."""
    made = [(t, p) for t, p in parts(RUNS) if not p.folder.name.endswith("_tuned")]
    figure = Figure(figsize=(WIDE, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, (title, part) in enumerate(made):
        cells = part.table("transferability.csv")
        colour = (TEXT, BLUE, ORANGE, *COLOURS)[place % (3 + len(COLOURS))]
        marker = MARKERS[place % len(MARKERS)]
        axes.plot(cells.leep, cells.gain, marker, color=colour, label=title, ms=4, alpha=0.7)
    axes.axhline(0, color=TEXT, linewidth=0.8)
    axes.grid(color=LINE)
    axes.set_xlabel("LEEP of the source on the target's training subjects, nats")
    axes.set_ylabel("finetune - scratch, points of Dice")
    figure.legend(loc="outside upper left", ncols=2)
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


def save(folder: Path) -> None:
    """Draws all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = {"Date": None}
    with mpl.rc_context(STYLE):
        for name, figure in {"family": family, "methods": methods, "leep": leep}.items():
            figure().savefig(folder / f"{name}.svg", metadata=metadata)


if __name__ == "__main__":
    save(FIGURES)
