"""Pictures, drawn from what runs leave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trm_bench.files import write_atomically
from trm_bench.negative_transfer import REFERENCE, SCRATCH, lost
from trm_bench.results import Results, slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

RISK_METHOD = "trm"
WRONG, LOST, WON = "#d55e00", "#d55e00", "#f0e442"  # dark and light, so that grey shows which is which


def risk_overlays(results: Results) -> list[Path]:
    """Per transfer, one PNG, a row per test subject: image with label, source prediction, risk map, errors.

    The voxels of actual negative transfer (right from scratch, wrong after plain fine-tuning) stand beside the risk map
    that should find them, then the errors of `finetune` and of `trm`. Drawn for the first seed, from the slices that
    the runs kept; transfers without a finished `trm` run have none.
    """
    written = []
    by_cell = {(c["transfer"], c["method"], c["seed"]): c["run"] for c, _ in results.finished()}
    for transfer in dict.fromkeys(c["transfer"] for c in results.cells):
        seeds = sorted(s for t, m, s in by_cell if t == transfer and m == RISK_METHOD)
        if not seeds:
            continue
        slices = {}
        for method in (SCRATCH, REFERENCE, RISK_METHOD):
            run = by_cell.get((transfer, method, seeds[0]))
            path = results.folder / "slices" / f"{run}.safetensors"
            if run and path.is_file():
                slices[method] = _load(path)
        if "risk" not in next(iter(slices.get(RISK_METHOD, {"": {}}).values())):
            continue
        path = results.folder / "figures" / f"risk_{slug(transfer)}.png"
        _draw_risk(slices, f"{transfer}, seed {seeds[0]}", results.plan["data"] == "phantom", path)
        written.append(path)
    return written


def _load(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Subject to name to slice."""
    from safetensors.numpy import load_file

    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in load_file(path).items():
        subject, _, name = key.rpartition("/")
        found.setdefault(subject, {})[name] = value.astype(np.float32)
    return found


def _draw_risk(slices: dict[str, dict[str, dict[str, np.ndarray]]], title: str, phantom: bool, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ours = slices[RISK_METHOD]
    compared = SCRATCH in slices and REFERENCE in slices
    columns = ["image and label", "source prediction", "risk map", *(["actual transfer"] if compared else [])]
    columns += [f"errors of {m}" for m in (REFERENCE, RISK_METHOD) if m in slices]
    figure = Figure(figsize=(2.3 * len(columns) + 0.6, 2.5 * len(ours) + 1.0), dpi=110, layout="constrained")
    axes = figure.subplots(len(ours), len(columns), squeeze=False)
    highest = max(float(s["risk"].max()) for s in ours.values()) or 1.0
    shown: AxesImage | None = None
    for row, (subject, maps) in zip(axes, ours.items(), strict=True):
        label = maps["label"]
        classes = int(max(label.max(), maps["source"].max(), 1))
        for ax, column in zip(row, columns, strict=True):
            ax.imshow(_turn(maps["image"]), cmap="gray")
            ax.set_xticks([])
            ax.set_yticks([])
            if column == "risk map":
                shown = ax.imshow(_turn(maps["risk"]), cmap="magma", vmin=0, vmax=highest, alpha=0.85)
            elif column == "source prediction":
                _areas(ax, maps["source"], classes)
            elif column == "actual transfer":
                before, after = (slices[m][subject]["prediction"] for m in (SCRATCH, REFERENCE))
                _mark(ax, lost(label, before, after), LOST)
                _mark(ax, lost(label, after, before), WON)
            elif column.startswith("errors of "):
                _mark(ax, slices[column.removeprefix("errors of ")][subject]["prediction"] != label, WRONG)
            _outline(ax, label)
        row[0].set_ylabel(subject, fontsize=7)
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(column, fontsize=9)
    assert shown is not None
    at = columns.index("risk map")
    figure.colorbar(shown, ax=list(axes[:, at]), location="bottom", shrink=0.9, label="transfer risk R", aspect=14)
    entries = [Patch(color=WRONG, label="wrong; in actual transfer: lost (right from scratch, wrong fine-tuned)")]
    if compared:
        entries.append(Patch(color=WON, label="won (wrong from scratch, right fine-tuned)"))
    figure.legend(handles=entries, loc="outside lower right", ncols=len(entries), fontsize=8, frameon=False)
    figure.suptitle(f"{title}{'  (phantom: stand-in data)' if phantom else ''}", fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary))


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
    ax.imshow(areas, cmap=colormaps["viridis"], vmin=0, vmax=highest, alpha=0.55, interpolation="nearest")


def _outline(ax: Axes, label: np.ndarray) -> None:
    for k in np.unique(label[label > 0]):
        ax.contour(_turn(label == k), levels=[0.5], colors=["#00d5ff"], linewidths=0.9)
