"""All charts of the evidence, and the transfer matrix.

A chart that does not apply is not drawn, and says in one line why not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trm_bench.analysis.voxels import SCRATCH
from trm_bench.report import curves, emphasis, forests, transferability
from trm_bench.report.drawing import (
    Chart,
    DoesNotApply,
    Drawing,
    files_of,
    panels,
    plain,
    scored,
    shortened,
    signed,
    wrapped,
    write,
)
from trm_bench.report.evidence import Evidence, Scores
from trm_bench.report.marks import is_clear
from trm_bench.report.style import BACK, SMALL, SOFT, WIDE
from trm_bench.report.svg import tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize


def draw(evidence: Evidence) -> tuple[list[Chart], list[str]]:
    """Draws every chart that applies into the folder's figures.

    Returns:
        The charts, and a line for each one that does not apply.
    """
    charts, absent, folder = [], [], evidence.results.folder.figures
    for name, make in CHARTS.items():
        try:
            charts.append(write(partial(make, evidence), name, folder, evidence.phantom))
        except DoesNotApply as reason:
            for path in files_of(name, folder):
                path.unlink(missing_ok=True)
            absent.append(f"{name.replace('_', ' ')}: {reason}")
    return charts, absent


# ----------------------------------------------------------------------------------------- matrix


class _Map(NamedTuple):
    """Gains by source and target, NaN where there is none, and whether the interval lacks 0."""

    title: str
    values: np.ndarray
    clear: np.ndarray


LONG_NAME = 9  # characters, from which on names below a map are slanted
LONGEST_NAME = 22  # characters that are shown of one


def matrix(evidence: Evidence, width: float = WIDE) -> Drawing:
    """Heat maps of source by target: what transfer brings, and what the focus adds to it."""
    from matplotlib.colors import TwoSlopeNorm

    scores = scored(evidence)
    sources, targets, maps = _maps(evidence, scores)
    most = max(np.nanmax(np.abs(m.values)) for m in maps) or 1.0
    names = [shortened(n, LONGEST_NAME) for n in (*sources, *targets)]
    longest = max(map(len, names)) * 0.07  # inches
    slanted = max(map(len, names)) > LONG_NAME
    cell = 0.62 if slanted else 0.55
    least = min(width, longest + cell * len(targets) + 0.4)
    height = 0.4 * len(sources) + 0.95 + (0.6 * longest if slanted else 0)
    figure, axes, own = panels(len(maps), width, height, least=least)
    for ax, shown in zip(axes, maps, strict=True):
        _cells(ax, shown, (sources, targets), TwoSlopeNorm(0, -most, most))
        turned: Any = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        ax.set_xticks(range(len(targets)), names[len(sources) :], **turned)
        ax.set_yticks(range(len(sources)), names[: len(sources)])
        ax.set(xlim=(-0.5, len(targets) - 0.5), ylim=(len(sources) - 0.5, -0.5))
        ax.set_title(wrapped(f"{shown.title} [{evidence.gain_unit(scores.metric)}]", own))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("target")
        ax.set_ylabel("source")
    return Drawing(
        figure,
        "Transfer matrix",
        "Gains by source (row) and target (column). Violet: better; orange: worse; the darker, "
        f"the more. Orange under {evidence.reference} over scratch is negative transfer. An "
        "asterisk marks a 95 % interval that does not hold 0.",
        "Heat maps of gains by source and target: "
        f"{'; '.join(_in_words(sources, targets, shown) for shown in maps)}.",
    )


def _cells(ax: Axes, shown: _Map, names: tuple[list[str], list[str]], norm: Normalize) -> None:
    """A coloured cell with its number for each pair that has one."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    for (i, j), value in np.ndenumerate(shown.values):
        if not np.isfinite(value):
            ax.text(j, i, "-", ha="center", va="center", color=SOFT)
            continue
        clear, colour = shown.clear[i, j], colormaps["PuOr"](norm(value))
        cell = Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=colour, edgecolor=BACK, linewidth=1.5)
        dark = np.dot(colour[:3], (0.3, 0.59, 0.11)) < 0.5
        text = ax.text(j, i, signed(value) + ("\u2009*" if clear else ""), fontsize=SMALL)
        text.set(ha="center", va="center", color="#fffffe" if dark else "#000000")
        text.set_fontweight("bold" if clear else "normal")
        title = f"{plain(names[0][i])} → {plain(names[1][j])}: {shown.title} {signed(value)}"
        for artist in (ax.add_patch(cell), text):
            tag(artist, "", title)


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
                shown.values[place], shown.clear[place] = (
                    sign * gain["gain"],
                    is_clear(gain["low"], gain["high"]),
                )
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


CHARTS: dict[str, Callable[[Evidence, float], Drawing]] = {
    "gains": forests.gains,
    "gains_by_transfer": forests.gains_by_transfer,
    "subjects": forests.subjects,
    "ranks": forests.ranks,
    "shots": curves.shots,
    "gain_by_shots": curves.gain_by_shots,
    "transfer_matrix": matrix,
    "gamma": emphasis.chart,
    "roc_of_lost_voxels": curves.lost_voxels,
    "transferability": transferability.chart,
    "training_loss": curves.training,
    "training_validation": partial(curves.training, kind="validation"),
    "balance_of_the_loss": partial(curves.training, kind="voxel_share"),
}
