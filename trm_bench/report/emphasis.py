"""The gamma curve: does it pay to weigh voxels by their risk within a class, and in which way?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trm_bench.analysis.gamma import OF_ORACLE, OF_PRIOR
from trm_bench.analysis.table import OVERALL
from trm_bench.report import words
from trm_bench.report.drawing import (
    DoesNotApply,
    Drawing,
    heading,
    label_below,
    label_beside,
    legend,
    panels,
    plain,
    signed,
)
from trm_bench.report.evidence import NAMES, Evidence
from trm_bench.report.style import BLUE, COLOURS, SOFT, WIDE
from trm_bench.report.svg import tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES = (BLUE, *(colour for colour in COLOURS if colour != SOFT))
MARKERS = ("o", "^", "s", "D", "v", "P")
BAND = 0.14  # opacity: several lie over each other


def chart(evidence: Evidence, width: float = WIDE) -> Drawing:
    """Gain over the reference against gamma, a panel a transfer and a line a map."""
    rows = evidence.gamma
    if rows.empty:
        raise DoesNotApply("no two methods of trm_decomposed or trm_oracle differ in gamma alone")
    present = set(rows["transfer"])
    places = [t for t in evidence.transfers if t in present]
    if OVERALL in present and len(places) > 1:
        places.append(OVERALL)
    curves = [c for c in dict.fromkeys(rows["curve"]) if not c.startswith(OF_PRIOR)]
    looks = {c: (SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]) for i, c in enumerate(curves)}
    room = {"least": 1.65 if width < WIDE else 2.2, "most": 5.0, "beside": 0.3}
    figure, axes, own = panels(len(places), width, 2.3, sharex=True, sharey=True, **room)
    for ax, place in zip(axes, places, strict=True):
        ax.axhline(0, color=SOFT, linewidth=0.9)
        here = rows[rows["transfer"] == place]
        for name, look in looks.items():
            _curve(ax, name, here[here["curve"] == name], *look)
        _prior(ax, here[~here["curve"].isin(curves)])
        ax.set_title(heading(words.ALL_TRANSFERS if place == OVERALL else place, own))
        ax.locator_params(axis="x", nbins=5)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(axis="y")
    unit = evidence.gain_unit(evidence.main.metric)
    label_beside(figure, f"gain over {evidence.reference} [{unit}]")
    legend(figure, axes)
    label_below(figure, "gamma: below 0 easy voxels of a class weigh more, above 0 hard ones")
    return Drawing(figure, "Gain against gamma", _caption(evidence, curves), _alt(rows, places[-1]))


def _curve(ax: Axes, name: str, part: pd.DataFrame, colour: str, marker: str) -> None:
    """Gains and intervals of one map; one without neighbours has a bar instead of a band."""
    if part.empty:
        return
    x, y, low, high = part[["gamma", "gain", "low", "high"]].to_numpy(float).T
    style: Any = {"color": colour, "label": plain(name)}
    (line,) = ax.plot(x, y, marker=marker, markersize=4.5, linewidth=1.6, zorder=3, **style)
    said = zip(part["method"], y, low, high, strict=True)
    tag(
        line,
        list(part["method"]),
        *(f"{m}: {signed(g)} {words.interval(a, b)}" for m, g, a, b in said),
    )
    if len(x) > 1:
        ax.fill_between(x, low, high, color=colour, alpha=BAND, linewidth=0, zorder=2)
    elif np.isfinite(low[0]):
        ax.vlines(x, low, high, color=colour, linewidth=1.4, zorder=2)


def _prior(ax: Axes, part: pd.DataFrame) -> None:
    """What the class term alone gains, across the panel."""
    for row in part.to_dict("records"):
        label = plain(f"{row['method']}: class term alone")
        style: Any = {"color": SOFT, "linestyle": "--", "linewidth": 1.4, "zorder": 2.5}
        line = ax.axhline(row["gain"], label=label, **style)
        ends = words.interval(row["low"], row["high"])
        tag(line, row["method"], f"{row['method']}: {signed(row['gain'])} {ends}")


def _caption(evidence: Evidence, curves: list[str]) -> str:
    oracle = any(curve.startswith(OF_ORACLE) for curve in curves)
    return (
        f"Does it pay to weigh voxels by their risk within a class, and in which direction? Paired "
        f"gain in {NAMES[evidence.main.metric]} over {evidence.reference} with its 95 % interval "
        "(band), a line a map. At gamma = 0 the class alone decides the weight. A line that rises "
        "to the right says that emphasis on hard voxels pays, the paper's direction; to the left, "
        "emphasis on those that transfer; a flat one, that the map adds nothing to the class term. "
        "Two gammas of one line are not compared by their bands: declare that comparison."
        + (
            " The oracle's map is of the voxels that transfer did lose, in training subjects: an "
            "upper bound for this way of weighing, for analysis alone. Where it gains nothing, "
            "another map is unlikely to."
            if oracle
            else ""
        )
    )


def _alt(rows: pd.DataFrame, place: str) -> str:
    """The curves of the last panel in words."""
    listed = []
    for name, part in rows[rows["transfer"] == place].groupby("curve", sort=False):
        values = zip(part["gamma"], part["gain"], strict=True)
        listed.append(f"{name} {', '.join(f'{signed(y)} at {x:g}' for x, y in values)}")
    where = words.ALL_TRANSFERS if place == OVERALL else plain(place)
    return f"Gain against gamma, {where}: {'; '.join(listed)}."
