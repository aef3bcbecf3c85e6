"""Pictures, drawn from what runs leave."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trm_bench.analysis.transferability import CLASSES, source_variables
from trm_bench.analysis.voxels import REFERENCE, SCRATCH, lost
from trm_bench.errors import Damaged
from trm_bench.files import write_atomically
from trm_bench.runs.arrays import read_slices
from trm_bench.runs.folders import slug
from trm_bench.runs.store import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RISK_METHOD = "trm"
# dark and light, so that grey shows which is which
WRONG, LOST, WON = "#d55e00", "#d55e00", "#f0e442"
SOURCE, RISK, ACTUAL, ERRORS = "source", "risk map", "actual transfer", "errors of "
# what is shown of the source, by LEEP's source variable
SOURCES = {
    CLASSES: "source prediction",
    "clusters": "likeliest cluster",
    "probe": "probe's prediction",
}

Slices = dict[str, dict[str, np.ndarray]]  # subject to name to slice, as runs keep them


def risk_overlays(results: Results) -> dict[str, Path]:
    """Per transfer, one PNG, a row per test subject: image with label, risk map, errors.

    The voxels of actual negative transfer (right from scratch, wrong after plain fine-tuning)
    stand beside the risk map that should find them, then the errors of `finetune` and of `trm`.
    Drawn for the first seed, from the slices that the runs kept; transfers without a finished
    `trm` run have none.

    Returns:
        Transfer to picture.
    """
    from matplotlib import rc_context

    pictures = {}
    runs = {(c.transfer, c.method, c.seed): c.run for c, _ in results.finished()}
    for transfer in dict.fromkeys(c.transfer for c in results.cells):
        seeds = sorted(s for t, m, s in runs if t == transfer and m == RISK_METHOD)
        if not seeds:
            continue
        slices: dict[str, Slices] = {}
        for method in (SCRATCH, REFERENCE, RISK_METHOD):
            run = runs.get((transfer, method, seeds[0]))
            if run and (digest := results.records[run].slices):
                # gone or damaged: `verify` says so, and a picture is nothing that a report needs
                with contextlib.suppress(OSError, Damaged):
                    slices[method] = read_slices(results.folder.slices(run), digest)
        # a method may keep slices without a map
        if "risk" in next(iter(slices.get(RISK_METHOD, {"": {}}).values())):
            path = results.folder.figures / f"risk_{slug(transfer)}.png"
            title = f"{transfer}, seed {seeds[0]}"
            title += "  (phantom: stand-in data)" if results.plan.data == "phantom" else ""
            with rc_context({"text.parse_math": False}):  # a $ in a name begins no formula
                _draw_risk(slices, shown_of_source(results, transfer), title, path)
            pictures[transfer] = path
    return pictures


def shown_of_source(results: Results, transfer: str) -> str:
    """What the pictures of a transfer show of its source."""
    known = source_variables(results, RISK_METHOD)
    variables = [m.variable for (name, _), m in known.items() if name == transfer]
    return SOURCES.get(variables[0] if variables else CLASSES, SOURCES[CLASSES])


def _draw_risk(slices: dict[str, Slices], of_source: str, title: str, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ours = slices[RISK_METHOD]
    compared = SCRATCH in slices and REFERENCE in slices
    columns = ["image and label", SOURCE, RISK, *([ACTUAL] if compared else [])]
    columns += [f"{ERRORS}{m}" for m in (REFERENCE, RISK_METHOD) if m in slices]
    size = (2.3 * len(columns) + 0.6, 2.5 * len(ours) + 1.0)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(len(ours), len(columns), squeeze=False)
    highest = max(float(s["risk"].max()) for s in ours.values()) or 1.0
    for row, subject in zip(axes, ours, strict=True):
        for ax, column in zip(row, columns, strict=True):
            _panel(ax, column, slices, subject, highest)
        row[0].set_ylabel(subject, fontsize=7)
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(of_source if column == SOURCE else column, fontsize=9)
    below = axes[:, columns.index(RISK)]
    figure.colorbar(
        below[-1].images[-1],  # the map, which lies on the image
        ax=list(below),
        location="bottom",
        shrink=0.9,
        label="transfer risk R",
        aspect=14,
    )
    wrong = "wrong; in actual transfer: lost (right from scratch, wrong fine-tuned)"
    entries = [Patch(color=WRONG, label=wrong)]
    if compared:
        entries.append(Patch(color=WON, label="won (wrong from scratch, right fine-tuned)"))
    figure.legend(
        handles=entries,
        loc="outside lower right",
        ncols=len(entries),
        fontsize=8,
        frameon=False,
    )
    figure.suptitle(title, fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary))


def _panel(ax: Axes, column: str, slices: dict[str, Slices], subject: str, highest: float) -> None:
    """One subject in one column; `highest` is the largest risk of all subjects."""
    maps = slices[RISK_METHOD][subject]
    label = maps["label"]
    ax.imshow(_turn(maps["image"]), cmap="gray")
    ax.set_xticks([])
    ax.set_yticks([])
    if column == RISK:
        ax.imshow(_turn(maps["risk"]), cmap="magma", vmin=0, vmax=highest, alpha=0.85)
    elif column == SOURCE:
        _areas(ax, maps["source"], int(max(label.max(), maps["source"].max(), 1)))
    elif column == ACTUAL:
        before, after = (slices[m][subject]["prediction"] for m in (SCRATCH, REFERENCE))
        _mark(ax, lost(label, before, after), LOST)
        _mark(ax, lost(label, after, before), WON)
    elif column.startswith(ERRORS):
        predicted = slices[column.removeprefix(ERRORS)][subject]["prediction"]
        _mark(ax, predicted != label, WRONG)
    _outline(ax, label)


def _mark(ax: Axes, where: np.ndarray, colour: str) -> None:
    from matplotlib.colors import ListedColormap

    marked = np.ma.masked_equal(_turn(where.astype(np.uint8)), 0)
    ax.imshow(marked, cmap=ListedColormap([colour]), alpha=0.85, interpolation="nearest")


def _turn(image: np.ndarray) -> np.ndarray:
    """Array axes (x to the right of the subject, y to the front) as radiologists look at them."""
    return np.rot90(image)


def _areas(ax: Axes, classes: np.ndarray, highest: int) -> None:
    from matplotlib import colormaps

    areas = np.ma.masked_equal(_turn(classes), 0)
    ax.imshow(
        areas, cmap=colormaps["viridis"], vmin=0, vmax=highest, alpha=0.55, interpolation="nearest"
    )


def _outline(ax: Axes, label: np.ndarray) -> None:
    for k in np.unique(label[label > 0]):
        ax.contour(_turn(label == k), levels=[0.5], colors=["#00d5ff"], linewidths=0.9)
