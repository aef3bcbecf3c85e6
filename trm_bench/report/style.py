"""The one style sheet of all charts: sizes, colours, and how a method looks in every one of them.

Every colour stands out from light and from dark ground (3 to 1, WCAG 2.2, 1.4.11), so that a series
is the same in both; the neutral ones (`NEUTRALS`) follow the page. Marker and dash tell as much as
colour does, and colours that are hard to tell apart without red or green differ in these.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trm_bench.analysis.voxels import SCRATCH
from trm_bench.report.evidence import Evidence

WIDE, NARROW = 7.2, 3.7  # inches: some 690 px for a page, and 355 px for a telephone
SMALL, NORMAL = 8, 9  # points

BLUE, ORANGE = "#0072b2", "#d55e00"
GREEN, PINK, VIOLET, OCHRE = "#009470", "#c46a9c", "#7570d8", "#9a7400"
# of the page's light theme; by the names that the page's style sheet gives them
TEXT, SOFT, LINE, BACK = "#1b1f24", "#57606a", "#d5dae0", "#ffffff"
NEUTRALS = {TEXT: "text", SOFT: "soft", LINE: "line", BACK: "back"}

STYLE: dict[Any, Any] = {
    "font.size": NORMAL,
    "text.color": TEXT,
    "text.parse_math": False,  # a name with $ in it is no formula
    "figure.facecolor": BACK,
    "axes.facecolor": BACK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": TEXT,
    "axes.labelsize": NORMAL,
    "axes.titlesize": NORMAL,
    "axes.titlecolor": TEXT,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.titley": 1.0,  # else it is looked for anew in every drawing
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 2.4,  # so that dashes show
    "path.simplify_threshold": 0.5,  # pixels
    "savefig.dpi": 160,
    "svg.fonttype": "none",  # text stays text: to be read aloud, found and copied
    "svg.hashsalt": "trm-bench",  # the same numbers give the same file
}


class Look(NamedTuple):
    """How a method is drawn, in every chart."""

    colour: str
    marker: str
    line: Any
    width: float


COLOURS = (GREEN, PINK, VIOLET, SOFT, OCHRE)
MARKERS = ("s", "^", "v", "P", "p", "<", ">", "h", "d", "*")
LINES = ("-.", ":", "--", (0, (7, 2)), (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))


def look(evidence: Evidence, method: str) -> Look:
    """The look of a method: three roles have their own, all others by their place in the list."""
    roles = {
        evidence.reference: Look(TEXT, "o", "-", 1.8),
        evidence.focus: Look(BLUE, "D", "-", 2.2),
        SCRATCH: Look(ORANGE, "X", "--", 1.8),
    }
    if method in roles:
        return roles[method]
    others = [m for m in evidence.methods if m not in roles]
    place = others.index(method) if method in others else len(others)
    row, column = divmod(place, len(COLOURS))  # methods of one colour differ in marker and line
    return Look(
        COLOURS[column],
        MARKERS[(column + row) % len(MARKERS)],
        LINES[(column + row) % len(LINES)],
        1.2,
    )
