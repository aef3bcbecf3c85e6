"""Where the parts of a figure stand: panels of one size, a legend above, labels below and beside.

Each panel is measured once, where matplotlib's constrained layout does so twice and solves a system
of equations, which cost a third of a report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

PAD = (0.06, 0.07)  # inches around a panel with all that is written beside it: across, and up

# of matplotlib: size and width of a tick's mark in points
TICKS: tuple[tuple[Literal["major", "minor"], float, float], ...] = (
    ("major", 3.5, 0.8),
    ("minor", 2.0, 0.6),
)


class _Beside(NamedTuple):
    """Pixels that what belongs to a panel takes on each side of it."""

    left: float
    right: float
    below: float
    above: float


def arrange(figure: Figure) -> None:
    """Gives the panels of a figure their places, so that nothing is cut or covered.

    Texts of the figure stand at its left edge where they are turned, and else at its lower one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    unlabelled = [
        axis
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        if axis.get_visible() and not _is_labelled(axis)
    ]
    for axis in unlabelled:
        axis.set_visible(False)  # takes no room
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            if not axis.get_label_text():  # else a place is looked for in every drawing
                axis.set_label_coords(0, 0)
    renderer = FigureCanvasAgg(figure).get_renderer()
    across, up = (pad * figure.dpi for pad in PAD)
    left = bottom = top = 0.0
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        if text.get_rotation():
            left = box.width + across
            text.set_x(across / figure.bbox.width)
        else:
            bottom = box.height + up / 2
            text.set_y(up / 2 / figure.bbox.height)
    for shown in figure.legends:
        top = shown.get_window_extent(renderer).height + up / 2
    places = {ax: ax.get_subplotspec() for ax in figure.axes}
    grid = next(iter(places.values())).get_gridspec()  # type: ignore[union-attr]
    sides = np.zeros((grid.nrows, grid.ncols, 4))
    for ax, place in places.items():
        assert place is not None
        sides[place.rowspan.start, place.colspan.start] = _beside(ax, renderer)
    lefts, rights = sides[..., 0].max(axis=0) + across, sides[..., 1].max(axis=0) + across
    belows, aboves = sides[..., 2].max(axis=1) + up, sides[..., 3].max(axis=1) + up
    size = figure.bbox.size
    # where names leave no room at all, a panel of one pixel is still a figure
    width = max(1.0, (size[0] - left - (lefts + rights).sum()) / grid.ncols)
    height = max(1.0, (size[1] - bottom - top - (belows + aboves).sum()) / grid.nrows)
    for ax, place in places.items():
        assert place is not None
        row, column = place.rowspan.start, place.colspan.start
        x = left + (lefts + rights)[:column].sum() + lefts[column] + column * width
        y = size[1] - top - (aboves + belows)[:row].sum() - aboves[row] - (row + 1) * height
        ax.set_position((x / size[0], y / size[1], width / size[0], height / size[1]))
    for axis in unlabelled:  # now that its length is known, which decides where its ticks are
        _ticks_together(axis)


def _beside(ax: Axes, renderer: object) -> _Beside:
    for spine in ax.spines.values():  # whose ticks are measured with their labels
        spine.set_in_layout(False)
    whole = ax.get_tightbbox(renderer, for_layout_only=True)  # type: ignore[arg-type]
    own = ax.get_position(original=True).transformed(ax.figure.transSubfigure)
    if whole is None:
        return _Beside(0, 0, 0, 0)
    beside = own.x0 - whole.x0, whole.x1 - own.x1, own.y0 - whole.y0, whole.y1 - own.y1
    return _Beside(*(max(0.0, float(size)) for size in beside))


def measured_as_one(texts: list[Text]) -> None:
    """Of texts that stand in one column, only the longest needs room."""
    longest = max(texts, key=lambda text: len(text.get_text()), default=None)
    for text in texts:
        text.set_in_layout(text is longest)


def _is_labelled(axis: Axis) -> bool:
    """Whether anything is written at an axis."""
    shown = axis.get_tick_params()
    return bool(axis.get_label_text() or shown.get("labelbottom") or shown.get("labelleft"))


def _ticks_together(axis: Axis) -> None:
    """The ticks of an axis as a line or two, where matplotlib makes five artists for each."""
    from matplotlib import rcParams
    from matplotlib.markers import TICKDOWN, TICKLEFT

    ax = axis.axes
    is_x = axis is ax.xaxis
    across = ax.get_xaxis_transform() if is_x else ax.get_yaxis_transform()
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    for which, size, width in TICKS:
        places = axis.get_majorticklocs() if which == "major" else axis.get_minorticklocs()
        at = [x for x in places if low - slack <= x <= high + slack]
        if not at:
            continue
        marks = _line(ax, is_x, at, [0] * len(at), transform=across, clip_on=False)
        marks.set(linestyle="none", marker=TICKDOWN if is_x else TICKLEFT)
        marks.set(color=rcParams["xtick.color"], markersize=size, markeredgewidth=width)
        if axis.get_tick_params(which=which)["gridOn"]:
            ends = np.tile([0, 1, np.nan], len(at))
            lines = _line(ax, is_x, np.repeat(at, 3), ends, transform=across)
            lines.set(color=rcParams["grid.color"], linewidth=rcParams["grid.linewidth"])


def _line(ax: Axes, is_x: bool, along: Any, across: Any, **style: Any) -> Line2D:
    """A line below all that a panel shows, which does not count for its limits."""
    from matplotlib.lines import Line2D

    x, y = (along, across) if is_x else (across, along)
    line = Line2D(x, y, zorder=0.5, **style)
    ax.add_artist(line)
    return line
