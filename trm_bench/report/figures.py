"""Pictures of test subjects, drawn from the slices that runs keep.

Of each transfer, under the first seed: the risk map beside what transfer did (of the methods that
make a map), and the errors of every method. Subjects stand side by side, so that the pictures can
be read on a narrow page too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trm_bench.analysis.transferability import CLASSES, source_variables
from trm_bench.analysis.voxels import SCRATCH, lost
from trm_bench.errors import Damaged
from trm_bench.files import write_atomically
from trm_bench.report.drawing import STAND_IN, Chart, plain, shortened, wrapped
from trm_bench.report.evidence import Evidence
from trm_bench.report.style import NORMAL, ORANGE, SMALL, STYLE
from trm_bench.runs.arrays import read_slices
from trm_bench.runs.folders import slug
from trm_bench.runs.store import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# One colour, one meaning: no map below has any of them, and grey tells them apart.
MISSED, ADDED, OTHER = "#d55e00", "#56b4e9", "#f0e442"  # errors
LOST, WON = "#d55e00", "#56b4e9"  # by transfer, against training from scratch
MOST_TILES = 24  # pictures of one subject under one method, in a figure
ACROSS, DPI = 4.8, 170  # inches: between a page and a telephone, since one file serves both
CROWDED = 0.12  # of a label's pixels that lie on an edge: from there outlines are drawn thin
FEWEST_VOXELS = 24  # along a side of a picture, so that there is something around
MAP_TEST = (
    " A map that knows where transfer harms is bright where voxels are lost, and dark where they "
    "are won."
)
# what is shown of the source, by LEEP's source variable
SOURCES = {
    CLASSES: "source prediction",
    "clusters": "likeliest cluster",
    "probe": "probe's prediction",
}

Slice = dict[str, np.ndarray]  # name to array, as runs keep them
Slices = dict[str, dict[str, Slice]]  # method to subject to slice
Paint = Callable[["Axes", str], None]  # what is painted on the image of a subject


def draw(evidence: Evidence) -> list[Chart]:
    """Draws the pictures of every transfer that has any into the folder's figures."""
    import matplotlib as mpl

    results, pictures = evidence.results, []
    for transfer in evidence.transfers:
        seed, slices = _kept(evidence, transfer)
        if not slices:
            continue
        about = f"{plain(transfer)}, seed {seed}"
        with mpl.rc_context(STYLE | {"figure.facecolor": "white"}):
            if mapped := _with_map(evidence, slices):
                of_source = shown_of_source(results, transfer, mapped)
                pictures.append(_risk(evidence, transfer, about, slices, mapped, of_source))
            pictures.append(_predictions(evidence, transfer, about, slices))
    return pictures


def shown_of_source(results: Results, transfer: str, method: str) -> str:
    """What the pictures of a transfer show of its source."""
    known = source_variables(results, method)
    variables = [m.variable for (name, _), m in known.items() if name == transfer]
    return SOURCES.get(variables[0] if variables else CLASSES, SOURCES[CLASSES])


def _kept(evidence: Evidence, transfer: str) -> tuple[int, Slices]:
    """The slices of a transfer under the first seed that has some, cut to what there is to see."""
    results = evidence.results
    by_seed: dict[int, Slices] = {}
    for cell, record in results.finished():
        if cell.transfer == transfer and record.slices:
            # gone or damaged: `verify` says so, and a picture is nothing that a report needs
            with contextlib.suppress(OSError, Damaged):
                found = read_slices(results.folder.slices(cell.run), record.slices)
                by_seed.setdefault(cell.seed, {})[cell.method] = found
    if not by_seed:
        return 0, {}
    seed = min(by_seed)
    kept = {m: by_seed[seed][m] for m in evidence.methods if m in by_seed[seed]}
    subjects = [s for s in next(iter(kept.values())) if all(s in own for own in kept.values())]
    boxes = {s: _around([own[s] for own in kept.values()]) for s in subjects}
    return seed, {
        method: {s: {name: a[boxes[s]] for name, a in own[s].items()} for s in subjects}
        for method, own in kept.items()
    }


def _around(several: Sequence[Slice]) -> tuple[slice, slice]:
    """A square around all that is labelled or predicted, half as large again; all without any."""
    marked = np.any([(s["label"] > 0) | (s["prediction"] > 0) for s in several], axis=0)
    shape, places = marked.shape, np.argwhere(marked)
    if not len(places):
        return slice(0, shape[0]), slice(0, shape[1])
    low, high = places.min(axis=0), places.max(axis=0) + 1
    side = max(FEWEST_VOXELS, int(1.5 * (high - low).max()))
    starts = np.clip((low + high - side) // 2, 0, np.maximum(np.array(shape) - side, 0))
    x, y = (slice(int(start), int(start) + side) for start in starts)
    return x, y


def _with_map(evidence: Evidence, slices: Slices) -> str:
    """The method whose risk map is shown: the focus, or the first that made one; "" without."""
    made = [
        m for m, own in slices.items() if all("risk" in s and "source" in s for s in own.values())
    ]
    return evidence.focus if evidence.focus in made else next(iter(made), "")


# ----------------------------------------------------------------------------------------- figures


def _risk(
    evidence: Evidence, transfer: str, about: str, slices: Slices, mapped: str, of_source: str
) -> Chart:
    """A row each: image, source, risk map, what transfer did, errors of reference and method."""
    ours, reference = slices[mapped], evidence.reference
    highest = max(float(s["risk"].max()) for s in ours.values()) or 1.0
    classes = max(int(max(s["label"].max(), s["source"].max())) for s in ours.values())
    rows: dict[str, Paint] = {
        "image and label": lambda ax, subject: None,
        of_source: lambda ax, subject: _areas(ax, ours[subject]["source"], classes),
        f"risk map of {mapped}": lambda ax, subject: _map(ax, ours[subject]["risk"], highest),
    }
    key = {}
    if SCRATCH in slices and reference in slices:
        rows[f"{reference} against {SCRATCH}"] = lambda ax, subject: _outcome(
            ax, slices[SCRATCH][subject], slices[reference][subject]
        )
        key = {f"lost: right from {SCRATCH}, wrong with {reference}": LOST, "won: the reverse": WON}
    figure, axes = _tiles(list(rows), ours)
    for row, paint in zip(axes, rows.values(), strict=True):
        for ax, subject in zip(row, ours, strict=True):
            _panel(ax, ours[subject], paint, subject)
    image = next(c for c in axes[2][-1].images if c.get_cmap().name == "risk")
    bar: Any = {"location": "bottom", "shrink": 0.6, "aspect": 30}  # below all: no row is shifted
    figure.set_figheight(figure.get_figheight() + 0.8)
    figure.colorbar(image, ax=axes, label="transfer risk R", **bar)
    path = evidence.results.folder.figures / f"risk_{slug(transfer)}.png"
    _write(figure, path, about, key, evidence.phantom)
    compared = f", and the voxels that {reference} lost and won against {SCRATCH}" if key else ""
    return Chart(
        path.stem,
        f"Transfer risk map, {transfer}",
        f"Test subjects side by side: image with its label (outline), "
        f"{of_source.replace('source prediction', 'prediction of the source network')}, risk map "
        f"of {mapped} (the brighter, the higher the risk){compared}."
        + (MAP_TEST if compared else ""),
        f"Slices of test subjects of {transfer}: image, {of_source}, risk map{compared}",
        path,
    )


def _predictions(evidence: Evidence, transfer: str, about: str, slices: Slices) -> Chart:
    """What each method has wrong: a row a method, a column a subject; or one subject of many."""
    first = next(iter(slices.values()))
    subjects = list(first)
    many = len(slices) * len(subjects) > MOST_TILES
    key = {"missed": MISSED, "added": ADDED, "another class": OTHER}
    if all(int(s["label"].max()) < 2 for s in first.values()):
        del key["another class"]
    if many:
        figure, axes = _one_subject(list(slices))
        tiles = [(ax, m, subjects[0]) for ax, m in zip(axes, slices, strict=True)]
        about += f", {subjects[0]}"
    else:
        figure, grid = _tiles(list(slices), subjects)
        tiles = [
            (ax, method, subject)
            for row, method in zip(grid, slices, strict=True)
            for ax, subject in zip(row, subjects, strict=True)
        ]
    for ax, method, subject in tiles:
        _panel(ax, slices[method][subject], _errors, slices[method][subject])
    path = evidence.results.folder.figures / f"predictions_{slug(transfer)}.png"
    _write(figure, path, about, key, evidence.phantom)
    return Chart(
        path.stem,
        f"Errors of each method, {transfer}",
        "Test subjects of the first seed, with their label (outline). Missed: voxels of a "
        "structure that the method takes for background; added: background that it takes for a "
        "structure" + ("; another class: one structure for another." if len(key) > 2 else "."),
        f"Slices of test subjects of {transfer} with the errors of {', '.join(slices)}",
        path,
    )


def _tiles(rows: Sequence[str], subjects: Mapping[str, Any] | Sequence[str]) -> tuple[Figure, Any]:
    """A figure of a column a subject."""
    from matplotlib.figure import Figure

    across = max(len(subjects), 2)
    side = (ACROSS - 0.5) / across
    figure = Figure(figsize=(ACROSS, 0.95 * side * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots(len(rows), len(subjects), squeeze=False)
    for ax, name in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(wrapped(plain(name), side), fontsize=SMALL)
    for ax, subject in zip(axes[0], subjects, strict=True):
        ax.set_title(shortened(subject, int(side / 0.075)), fontsize=SMALL, loc="center")
    return figure, axes


def _one_subject(methods: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure of one panel a method, three in a row."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(methods) / 3)
    figure = Figure(figsize=(ACROSS, 1.75 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for ax in axes[len(methods) :]:
        ax.remove()
    for ax, method in zip(axes, methods, strict=False):
        ax.set_title(shortened(plain(method), 22), loc="left")
    return figure, list(axes[: len(methods)])


def _write(figure: Figure, path: Path, about: str, key: Mapping[str, str], phantom: bool) -> None:
    from matplotlib.patches import Patch

    title: Any = {"t": f"{about}\n{STAND_IN}", "color": ORANGE} if phantom else {"t": about}
    figure.suptitle(fontsize=NORMAL, x=0.01, ha="left", **title)
    if key:
        patches = [Patch(color=colour, label=label) for label, colour in key.items()]
        figure.legend(
            handles=patches,
            loc="outside lower left",
            ncols=len(patches) if max(map(len, key)) < 30 else 1,
        )
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=DPI))


# ------------------------------------------------------------------------------------------ panels


def _panel(ax: Axes, shown: Slice, paint: Callable[[Axes, Any], None], what: Any) -> None:
    """An image, what is painted on it, and the outline of its label."""
    from matplotlib.patheffects import withStroke

    ax.imshow(_turn(shown["image"]), cmap="gray")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    paint(ax, what)
    label = shown["label"]
    width = 0.9 if _edges(label) < CROWDED else 0.4
    for k in np.unique(label[label > 0]):
        lines = ax.contour(_turn(label == k), levels=[0.5], colors=["white"], linewidths=width)
        lines.set_path_effects([withStroke(linewidth=2.2 * width, foreground="black")])


def _edges(label: np.ndarray) -> float:
    """The share of pixels whose neighbour has another class."""
    return float((np.diff(label.astype(int), axis=0) != 0).mean())


def _errors(ax: Axes, shown: Slice) -> None:
    label, predicted = shown["label"], shown["prediction"]
    wrong = label != predicted
    _mark(ax, wrong & (predicted == 0), MISSED)
    _mark(ax, wrong & (label == 0), ADDED)
    _mark(ax, wrong & (label > 0) & (predicted > 0), OTHER)


def _outcome(ax: Axes, before: Slice, after: Slice) -> None:
    label = before["label"]
    _mark(ax, lost(label, before["prediction"], after["prediction"]), LOST)
    _mark(ax, lost(label, after["prediction"], before["prediction"]), WON)


def _mark(ax: Axes, where: np.ndarray, colour: str) -> None:
    from matplotlib.colors import ListedColormap

    marked = np.ma.masked_equal(_turn(where.astype(np.uint8)), 0)
    ax.imshow(marked, cmap=ListedColormap([colour]), alpha=0.9, interpolation="nearest")


def _map(ax: Axes, risk: np.ndarray, highest: float) -> None:
    ax.imshow(_turn(risk), cmap=_risk_colours(), vmin=0, vmax=highest, alpha=0.9)


def _risk_colours() -> Colormap:
    """From black over violet to white: none of the colours that mark voxels."""
    from matplotlib.colors import LinearSegmentedColormap

    steps = ["#08060f", "#35196b", "#7b2a93", "#c04fb0", "#eda3d8", "#ffffff"]
    return LinearSegmentedColormap.from_list("risk", steps)


def _areas(ax: Axes, classes: np.ndarray, highest: int) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    greens = LinearSegmentedColormap.from_list("classes", ["#0b3d2e", "#7fdcb0"])
    areas = np.ma.masked_equal(_turn(classes), 0)
    ax.imshow(areas, cmap=greens, vmin=1, vmax=max(highest, 2), alpha=0.6, interpolation="nearest")


def _turn(image: np.ndarray) -> np.ndarray:
    """Array axes (x to the right of the subject, y to the front) as radiologists look at them."""
    return np.rot90(image)
