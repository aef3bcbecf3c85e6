"""What the charts share: panels, legends, names, and writing a chart for pages and for papers.

A chart is a function of a width in inches. It is drawn twice: for a page (`style.WIDE`; PNG and
SVG) and for a telephone (`style.NARROW`; SVG).
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm_bench.files import write_atomically, write_text
from trm_bench.report.evidence import Evidence, Scores
from trm_bench.report.layout import arrange
from trm_bench.report.style import NARROW, NORMAL, ORANGE, SMALL, STYLE, TEXT, WIDE
from trm_bench.report.svg import finished
from trm_bench.runs.store import uncollected

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAND_IN = "phantom: stand-in data, no evidence on the paper"


@dataclass(frozen=True)
class Drawing:
    """A chart before it is written: title, and what it shows for who reads or cannot see it."""

    figure: Figure
    title: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Chart:
    """A written chart or picture.

    Attributes:
        png: For papers and slides.
        svg: For pages, see `svg.finished`; None of a picture, which is made of pixels.
        narrow: The same for narrow pages.
    """

    name: str
    title: str
    caption: str
    alt: str
    png: Path
    svg: Path | None = None
    narrow: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Those there are."""
        return [path for path in (self.png, self.svg, self.narrow) if path]


class DoesNotApply(Exception):
    """Why a chart cannot be drawn from this evidence."""


# ----------------------------------------------------------------------------------------- writing


def files_of(name: str, folder: Path) -> tuple[Path, Path, Path]:
    """Where a chart lies: PNG, SVG, and the narrow SVG."""
    return folder / f"{name}.png", folder / f"{name}.svg", folder / f"{name}.narrow.svg"


def write(make: Callable[[float], Drawing], name: str, folder: Path, phantom: bool) -> Chart:
    """Draws and writes a chart; one of stand-in data says so in itself, since files get about.

    Args:
        make: From a width in inches to the chart.
        name: Of its files.
        folder: For them.
        phantom: Whether its data are the stand-in.

    Raises:
        DoesNotApply: There is nothing to draw; nothing was written.
    """
    import matplotlib as mpl

    png, svg, narrow = files_of(name, folder)
    with mpl.rc_context(STYLE), uncollected():
        for width, path in ((WIDE, svg), (NARROW, narrow)):
            drawing = make(width)
            box = _laid_out(drawing.figure, phantom)
            if path is svg:
                title, caption, alt = drawing.title, drawing.caption, drawing.alt
                write_atomically(png, partial(drawing.figure.savefig, bbox_inches=box))
            text = io.StringIO()
            drawing.figure.savefig(text, format="svg", bbox_inches=box)
            own = name if path is svg else f"{name}-narrow"
            write_text(path, finished(text.getvalue(), own, alt))
    return Chart(name, title, caption, alt, png, svg, narrow)


def _laid_out(figure: Figure, phantom: bool) -> Any:
    """What of the figure is to be written, in inches: all, and a line above it on stand-in data."""
    from matplotlib.transforms import Bbox

    arrange(figure)
    width, height = figure.get_size_inches()
    if not phantom:
        return Bbox.from_bounds(0, 0, width, height)
    above = 0.26
    style: Any = {"fontsize": SMALL, "color": ORANGE, "weight": "bold", "va": "bottom"}
    figure.text(0.05 / width, 1 + 0.06 / height, STAND_IN, **style)
    return Bbox.from_bounds(0, 0, width, height + above)


# ------------------------------------------------------------------------------------------ layout


def scored(evidence: Evidence) -> Scores:
    """The scores of the main metric.

    Raises:
        DoesNotApply: There are none.
    """
    if evidence.main.grid is None:
        raise DoesNotApply(evidence.main.fault)
    return evidence.main


def panels(
    number: int,
    width: float,
    height: float,
    *,
    least: float,
    most: float = WIDE,
    beside: float = 0.0,
    **shared: Any,
) -> tuple[Figure, list[Axes], float]:
    """A figure of panels that wrap, filled row by row; places that are not needed stay empty.

    Args:
        number: Of panels.
        width: Of the figure at most, inches.
        height: Of a row of panels.
        least: The smallest width of a panel.
        most: The largest.
        beside: What stands left of the panels, such as names.
        shared: Of `Figure.subplots`.

    Returns:
        Figure, panels, and the width of one.
    """
    from matplotlib.figure import Figure

    columns = max(1, min(number, int((width - beside) / least)))
    own = min(most, (width - beside) / columns)
    rows = -(-number // columns)
    # no narrower than what a legend or a label below takes
    size = max(beside + own * columns, NARROW), height * rows
    figure = Figure(figsize=size)
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for ax in axes[number:]:
        ax.remove()
    for ax in axes[max(0, number - columns) : number]:
        ax.tick_params(labelbottom=True)  # the last of each column, also above an empty place
    return figure, list(axes[:number]), own


def legend(figure: Figure, axes: Sequence[Axes], more: Sequence[Any] = ()) -> None:
    """A legend of all panels above them.

    Args:
        figure: Of the panels.
        axes: With labelled artists.
        more: Further ones, with labels.
    """
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    entries |= {handle.get_label(): handle for handle in more}
    width, letter = figure.get_figwidth(), 0.066  # inches
    names = [shortened(name, int((width - 0.55) / letter)) for name in entries]
    needed = 0.55 + letter * max(map(len, names), default=0)
    columns = max(1, min(len(entries), 5, int(width / needed)))
    _grow(figure, 0.17 * -(-len(entries) // columns) + 0.1)
    placed: Any = {"loc": "upper left", "ncols": columns, "fontsize": SMALL}
    placed |= {"bbox_to_anchor": (0, 0, 1, 1), "bbox_transform": figure.transFigure}
    figure.legend(entries.values(), names, **placed)


def label_below(figure: Figure, text: str) -> None:
    """What the horizontal axes of all panels show, in lines that fit."""
    lines = wrapped(text, figure.get_figwidth())
    _grow(figure, 0.16 * (lines.count("\n") + 1) + 0.05)
    figure.text(0.5, 0, lines, fontsize=NORMAL, color=TEXT, ha="center", va="bottom")


def label_beside(figure: Figure, text: str) -> None:
    """What the vertical axes of all panels show; before a legend or a label below is added."""
    lines = wrapped(text, figure.get_figheight())
    style: Any = {"fontsize": NORMAL, "color": TEXT, "rotation": 90, "ha": "left", "va": "center"}
    figure.text(0, 0.5, lines, **style)


def _grow(figure: Figure, inches: float) -> None:
    """Room for what stands beside the panels, so that these keep their height."""
    figure.set_figheight(figure.get_figheight() + inches)


def unit_ticks(*axes: Any) -> None:
    """Ticks of axes that go from 0 to 1, both ends among them."""
    from matplotlib.ticker import FixedFormatter, FixedLocator

    for axis in axes:
        axis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axis.set_major_formatter(FixedFormatter(["0", "", "0.5", "", "1"]))


# ------------------------------------------------------------------------------------------- names


def plain(text: str) -> str:
    """A name as charts show it; matplotlib leaves one that begins with _ out of legends."""
    return (f" {text}" if text.startswith("_") else text).replace("->", " → ")


def wrapped(text: str, inches: float) -> str:
    """A sentence in lines that fit."""
    return "\n".join(textwrap.wrap(text, max(12, int(inches / 0.078))))


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
