"""Marks in rows: a row for each name, values with their intervals, and what legends say of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trm_bench.report.drawing import plain, shortened
from trm_bench.report.layout import measured_as_one
from trm_bench.report.style import BACK, SMALL, SOFT, TEXT
from trm_bench.report.svg import tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 0.25  # inches
LONGEST_NAME = 22  # characters that are shown of a method's
CAP = 0.2  # rows, from the middle: ends of an interval stand out above and below its mark
INTERVAL = "95 % interval"

Points = NDArray[np.float64]


def rows(ax: Axes, names: Sequence[str], longest: int = LONGEST_NAME) -> None:
    """A row for each name, from above, and a line at 0; panels of one figure share the rows."""
    ax.axvline(0, color=SOFT, linewidth=0.9, zorder=1)
    place = ax.get_subplotspec()
    assert place is not None
    if place.num1 == 0:
        ax.set_ylim(len(names) - 0.4, -0.6)
    ax.yaxis.set_visible(False)
    if place.is_first_col():
        beside, vertical, horizontal = ax.get_yaxis_text1_transform(3.5)
        style: Any = {"transform": beside, "va": vertical, "ha": horizontal, "fontsize": SMALL}
        measured_as_one(
            [ax.text(0, y, shortened(plain(n), longest), **style) for y, n in enumerate(names)]
        )
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")


class Interval(NamedTuple):
    """A value with its interval.

    Attributes:
        y: Row.
        middle: The value.
        ends: Of the interval; NaN where there is none.
        colour: Of both.
        method: See `svg.tag`.
        title: Likewise.
        filled: Its mark; where the interval does not hold 0, if nothing else says that.
    """

    y: float
    middle: float
    ends: tuple[float, float]
    colour: str
    method: str
    title: str
    filled: bool | None = None

    @property
    def is_known(self) -> bool:
        return all(map(math.isfinite, self.ends))

    @property
    def path(self) -> Points:
        """From end to end, with a cap at each."""
        (low, high), cap = self.ends, [self.y - CAP, self.y + CAP]
        x = [low, low, math.nan, low, high, math.nan, high, high]
        return np.column_stack([x, [*cap, math.nan, self.y, self.y, math.nan, *cap]])


def intervals(ax: Axes, several: Sequence[Interval]) -> None:
    """Marks with their intervals, drawn together: an artist each would take many times as long."""
    known = [one for one in several if one.is_known]
    colours = [one.colour for one in known]
    lines(ax, [one.path for one in known], colours, 1.8, known)
    for marker, part in (("o", known), ("x", [one for one in several if not one.is_known])):
        filled = [is_clear(*one.ends) if one.filled is None else one.filled for one in part]
        edges = [one.colour for one in part]
        faces = [e if full else BACK for e, full in zip(edges, filled, strict=True)]
        colour: Any = {"edgecolors": edges, "facecolors": faces} if marker == "o" else {"c": edges}
        if part:
            x, y = [one.middle for one in part], [one.y for one in part]
            mark = ax.scatter(x, y, s=25, marker=marker, linewidths=1.3, zorder=3, **colour)
            tag(mark, [one.method for one in part], *(one.title for one in part))


def lines(
    ax: Axes,
    paths: Sequence[Points],
    colours: Sequence[str],
    thick: float,
    shown: Sequence[Any],
    **style: Any,
) -> None:
    """Lines that are drawn together.

    Args:
        ax: Where.
        paths: Each (point, 2); a NaN breaks a line.
        colours: Of each.
        thick: All of them, points.
        shown: `method` and `title` of each, for `svg.tag`.
        style: Of all.
    """
    from matplotlib.collections import LineCollection

    if not paths:
        return
    drawn = LineCollection(
        paths, colors=colours, linewidths=thick, capstyle="butt", zorder=2, **style
    )
    ax.add_collection(drawn, autolim=False)
    ax.update_datalim(np.concatenate(paths))  # and what is drawn next sets the limits
    tag(drawn, [one.method for one in shown], *(one.title for one in shown))


def is_clear(low: float, high: float) -> bool:
    """Whether an interval does not hold 0."""
    return low > 0 or high < 0


def explained(found: Sequence[tuple[float, float]], noun: str = INTERVAL) -> list[Any]:
    """Entries of a legend for the marks that are shown.

    Args:
        found: The ends of their intervals.
        noun: What an interval is.
    """
    shown = {None if math.isnan(low) else is_clear(low, high) for low, high in found}
    kinds: list[tuple[bool | None, str, str, str]] = [
        (True, f"{noun} without 0", "o", TEXT),
        (False, f"{noun} holds 0", "o", BACK),
        (None, f"no {noun}", "x", TEXT),
    ]
    return [entry(label, marker, face) for kind, label, marker, face in kinds if kind in shown]


def entry(label: str, marker: str, face: str, size: float = 5) -> Any:
    from matplotlib.lines import Line2D

    style: Any = {"color": TEXT, "markerfacecolor": face, "markersize": size, "linestyle": "none"}
    return Line2D([], [], marker=marker, label=label, **style)


def bar(label: str, thick: float) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=TEXT, linewidth=thick, label=label, solid_capstyle="butt")
