"""Where the parts of a figure stand: panels of one size, a legend above, labels below and beside.

Each panel is measured once, where matplotlib's constrained layout does so twice and solves a system
of equations, which cost a third of a report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

PAD = (0.06, 0.07)  # inches around a panel with all that is written beside it: across, and up


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


def _beside(ax: Axes, renderer: object) -> _Beside:
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
