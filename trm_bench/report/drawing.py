"""What the charts share: style, panels, colours, legends, and writing a chart as PNG and SVG.

Shape and order tell as much as colour does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm_bench.analysis.verdict import CONTROLS
from trm_bench.analysis.voxels import SCRATCH
from trm_bench.files import write_atomically
from trm_bench.report.evidence import Evidence, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito
BLUE, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"
DARK, GREY, PALE = "#222222", "#767676", "#c8c8c8"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "xtick.color": DARK,
    "ytick.color": DARK,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "trm-bench",  # the same numbers give the same file
    "text.parse_math": False,  # a name with $ in it is no formula
}


@dataclass(frozen=True)
class Drawing:
    """A chart before it is written: title, and what it shows for who reads or cannot see it."""

    figure: Figure
    title: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Chart:
    """A written chart."""

    name: str
    title: str
    caption: str
    alt: str
    png: Path
    svg: Path


class DoesNotApply(Exception):
    """Why a chart cannot be drawn from this evidence."""


def write(drawing: Drawing, name: str, png: Path, svg: Path, phantom: bool) -> Chart:
    """Writes a chart; one of stand-in data says so in itself, since files get about."""
    figure = drawing.figure
    if phantom:
        _mark_as_phantom(figure)
    figure.draw_without_rendering()
    # the layout has done its work by now, which takes as long as drawing does
    figure.set_layout_engine("none")
    write_atomically(png, figure.savefig)
    write_atomically(svg, partial(figure.savefig, metadata={"Date": None}))
    return Chart(name, drawing.title, drawing.caption, drawing.alt, png, svg)


def _mark_as_phantom(figure: Figure) -> None:
    """Above the legend where there is one, since the layout puts a title over it."""
    text = "phantom: stand-in data, no evidence on the paper"
    if not figure.legends:
        figure.suptitle(text, x=0.01, ha="left", fontsize=8.5, color=ORANGE, weight="bold")
        return
    from matplotlib.font_manager import FontProperties

    legend = figure.legends[0]
    legend.set_title(text, prop=FontProperties(size=8.5, weight="bold"))
    legend.get_title().set_color(ORANGE)
    legend.set_alignment("left")


def scored(evidence: Evidence) -> Scores:
    """The scores of the main metric.

    Raises:
        DoesNotApply: There are none.
    """
    if evidence.main.grid is None:
        raise DoesNotApply(evidence.main.fault)
    return evidence.main


def panels(
    number: int, width: float, height: float, most: int = 4, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of panels, filled row by row; places that are not needed stay empty.

    Args:
        number: Of panels.
        width: Of one, inches.
        height: Likewise.
        most: Panels in a row.
        shared: Of `Figure.subplots`.
    """
    from matplotlib.figure import Figure

    columns = min(number, most)
    rows = -(-number // columns)
    figure = Figure(figsize=(max(width * columns, 4.2), height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for ax in axes[number:]:
        ax.remove()
    for ax in axes[max(0, number - columns) : number]:
        ax.tick_params(labelbottom=True)  # the last of each column, also above an empty place
    return figure, list(axes[:number])


def look(evidence: Evidence, method: str) -> tuple[str, str, str]:
    """Colour, marker and line of a method: the focus, its controls and the references stand out."""
    fixed = {
        evidence.focus: (BLUE, "D", "-"),
        evidence.reference: (DARK, "o", "-"),
        SCRATCH: (ORANGE, "X", "--"),
        "trm_prior": (GREEN, "s", "-."),
        "trm_uniform": (PINK, "^", ":"),
        "trm_shuffled": (SKY, "v", "--"),
    }
    return fixed.get(method, (GREY, "o", "-"))


def highlights(evidence: Evidence) -> list[str]:
    """Methods that are drawn in colour; the others are pale."""
    named = (SCRATCH, evidence.reference, evidence.focus, *CONTROLS)
    return [m for m in evidence.methods if m in named]


def legend(figure: Figure, axes: Sequence[Axes], others: bool) -> None:
    """A legend of all panels above them; `others`: whether there are pale lines."""
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if others:
        entries["other methods"] = Line2D([], [], color=PALE, linewidth=1.2)
    longest = max(map(len, entries), default=0)
    needed = max(1.35, 0.45 + 0.068 * longest)  # inches
    columns = max(1, min(len(entries), 4, int(figure.get_figwidth() / needed)))
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper left", ncols=columns, fontsize=8.5
    )


def plain(text: str) -> str:
    """A name as charts show it; matplotlib leaves one that begins with _ out of legends."""
    return (f" {text}" if text.startswith("_") else text).replace("->", " → ")


def heading(transfer: str, inches: float) -> str:
    """A transfer's name in lines that fit above a panel: broken before arrows, cut if need be."""
    most = int(inches / 0.085)  # characters of a title
    first, *rest = plain(transfer).split(" → ")
    lines = [shortened(first, most)]
    for name in rest:
        longer = f"{lines[-1]} → {name}"
        if len(longer) > most:
            lines.append(f"→ {shortened(name, most - 2)}")
        else:
            lines[-1] = longer
    return "\n".join(lines)


def shortened(name: str, most: int) -> str:
    """A name of so many characters, without its middle where it has more."""
    if len(name) <= most:
        return name
    end = (most - 1) // 2
    return f"{name[: most - 1 - end]}…{name[len(name) - end :]}"


def signed(value: float) -> str:
    """A number with its sign, two decimals."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
