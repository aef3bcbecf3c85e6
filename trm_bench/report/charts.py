"""Charts of the evidence, each as PNG and SVG; drawn so that shape and order tell as much as colour does.

A chart that does not apply is not drawn, and says in one line why not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trm_bench import negative_transfer, statistics
from trm_bench.files import write_atomically
from trm_bench.report.evidence import GAIN_UNITS, NAMES, OVERALL, UNITS, Evidence, Scores
from trm_bench.verdict import CONTROLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"  # Okabe and Ito
DARK, GREY, PALE = "#222222", "#767676", "#c8c8c8"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "xtick.color": DARK,
    "ytick.color": DARK,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "trm-bench",  # the same numbers give the same file
}


@dataclass(frozen=True)
class Chart:
    """A drawn chart: its files, its title, and what it shows for who reads or cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    png: Path
    svg: Path


@dataclass(frozen=True)
class Drawing:
    """A chart before it is written."""

    figure: Figure
    title: str
    caption: str
    alt: str


class DoesNotApply(Exception):
    """Why a chart cannot be drawn from this evidence."""


def draw(evidence: Evidence) -> tuple[list[Chart], list[str]]:
    """Draws every chart that applies into the folder's `figures`.

    Returns:
        The charts, and a line for each one that does not apply.
    """
    import matplotlib as mpl

    drawn, absent = [], []
    for name, make in CHARTS.items():
        png, svg = (evidence.results.folder / "figures" / f"{name}.{suffix}" for suffix in ("png", "svg"))
        try:
            with mpl.rc_context(STYLE):
                made = make(evidence)
                if evidence.phantom:
                    _mark_as_phantom(made.figure)
                made.figure.draw_without_rendering()
                made.figure.set_layout_engine("none")  # it has done its work, which takes as long as drawing does
                write_atomically(png, made.figure.savefig)
                write_atomically(svg, partial(made.figure.savefig, metadata={"Date": None}))
        except DoesNotApply as reason:
            png.unlink(missing_ok=True)
            svg.unlink(missing_ok=True)
            absent.append(f"{name.replace('_', ' ')}: {reason}")
            continue
        drawn.append(Chart(name, made.title, made.caption, made.alt, png, svg))
    return drawn, absent


def _mark_as_phantom(figure: Figure) -> None:
    text = "phantom: stand-in data, no evidence on the paper"
    figure.suptitle(text, x=0.01, ha="left", fontsize=8.5, color=ORANGE, weight="bold")


def _panels(number: int, width: float, height: float, most: int = 4, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of panels, filled row by row; places that are not needed stay empty."""
    from matplotlib.figure import Figure

    columns = min(number, most)
    rows = -(-number // columns)
    figure = Figure(figsize=(max(width * columns, 4.2), height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for ax in axes[number:]:
        ax.remove()
    for ax in axes[max(0, number - columns) : number]:  # the last of each column, also above an empty place
        ax.tick_params(labelbottom=True)
    return figure, list(axes[:number])


def _colour(evidence: Evidence, method: str) -> tuple[str, str, str]:
    """Colour, marker and line of a method: the focus, its controls and the references stand out."""
    fixed = {
        evidence.focus: (BLUE, "D", "-"),
        evidence.reference: (DARK, "o", "-"),
        "scratch": (ORANGE, "X", "--"),
        "trm_prior": (GREEN, "s", "-."),
        "trm_uniform": (PINK, "^", ":"),
        "trm_shuffled": (SKY, "v", "--"),
    }
    return fixed.get(method, (GREY, "o", "-"))


def _highlights(evidence: Evidence) -> list[str]:
    """Methods that are drawn in colour; all where there are few."""
    named = ("scratch", evidence.reference, evidence.focus, *CONTROLS)
    return [m for m in evidence.methods if m in named]


def _safe(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$").replace("->", " → ")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


# ---------------------------------------------------------------------------------------------------------- gains


def gains(evidence: Evidence) -> Drawing:
    """Forest plot: the gain of each method over the reference, over all transfers and in each."""
    scores = _scored(evidence)
    if scores.gains.empty:
        raise DoesNotApply(f"no '{evidence.reference}' beside another method with numbers")
    methods = [m for m in evidence.methods if m != evidence.reference and scores.gain(m)]
    several = len(evidence.transfers) > 1
    places = [*([OVERALL] if several else []), *evidence.transfers]
    figure, axes = _panels(len(places), 3.0, 0.235 * len(methods) + 0.75, sharex=True, sharey=True)
    for ax, place in zip(axes, places, strict=True):
        ax.axvline(0, color=GREY, linewidth=0.9)
        for y, method in enumerate(methods):
            found = scores.gain(method, place)
            if found is None:
                ax.text(0, y, " no numbers", fontsize=7, color=GREY, va="center")
                continue
            colour, marker, _ = _colour(evidence, method)
            clear = found["low"] > 0 or found["high"] < 0
            ax.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
            face = colour if clear else "white"
            ax.plot(found["gain"], y, marker=marker, markersize=5, markeredgecolor=colour, markerfacecolor=face)
        ax.set_title(
            "mean over transfers" if place == OVERALL else _safe(place), weight="bold" if place == OVERALL else "normal"
        )
        ax.grid(axis="x", color="#e4e4e4", linewidth=0.6)
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    unit = GAIN_UNITS[scores.metric]
    figure.supxlabel(f"gain in {NAMES[scores.metric]} over {evidence.reference} [{unit}], 95 % interval", fontsize=9)
    overall = {m: scores.gain(m) for m in methods}
    listed = ", ".join(f"{m} {_signed(g['gain'])}" for m, g in overall.items() if g)
    return Drawing(
        figure,
        f"Gain over {evidence.reference}",
        f"Gain of each method over {evidence.reference} with its 95 % bootstrap interval. Right of zero is better; "
        "a filled mark has an interval that does not hold 0.",
        f"Forest plot of gains in {unit}. Mean over transfers: {listed}.",
    )


def _scored(evidence: Evidence) -> Scores:
    if evidence.main.grid is None:
        raise DoesNotApply(evidence.main.fault)
    return evidence.main


# --------------------------------------------------------------------------------------------------------- subjects


def subjects(evidence: Evidence) -> Drawing:
    """Paired slopes: each test subject under the reference and under the focus."""
    scores = _scored(evidence)
    missing = [m for m in (evidence.reference, evidence.focus) if m not in (scores.grid.methods if scores.grid else ())]
    if missing:
        raise DoesNotApply(f"no numbers of {' and '.join(missing)}")
    pairs = {}
    for transfer in evidence.transfers:
        left, right = (scores.by_subject(transfer, m) for m in (evidence.reference, evidence.focus))
        both = [s for s in left if s in right]
        if both:
            pairs[transfer] = np.array([[left[s], right[s]] for s in both])
    if not pairs:
        raise DoesNotApply(f"no subject has both {evidence.reference} and {evidence.focus}")
    sign = 1 if statistics.HIGHER_IS_BETTER[scores.metric] else -1
    figure, axes = _panels(len(pairs), 2.35, 2.7, most=6, sharey=True)
    counts = []
    for ax, (transfer, values) in zip(axes, pairs.items(), strict=True):
        change = sign * np.diff(values, axis=1)[:, 0]
        alpha = 0.85 if len(values) < 25 else 0.5
        for group, colour, line in ((change >= 0, BLUE, "-"), (change < 0, ORANGE, (0, (3, 1.5)))):
            ax.plot([0, 1], values[group].T, color=colour, linestyle=line, linewidth=0.9, alpha=alpha)
        ax.plot([0, 1], values.mean(axis=0), color="black", linewidth=2.6, marker="o", markersize=5)
        better, worse = int((change > 0).sum()), int((change < 0).sum())
        counts.append(f"{transfer}: {better} better, {worse} worse of {len(values)}")
        ax.set_title(f"{_safe(transfer)}\n{better} better, {worse} worse")
        ax.set_xticks([0, 1], [evidence.reference, evidence.focus])
        ax.set_xlim(-0.25, 1.25)
    axes[0].set_ylabel(f"{NAMES[scores.metric]} [{UNITS[scores.metric]}]")
    return Drawing(
        figure,
        f"Each subject: {evidence.reference} and {evidence.focus}",
        f"One line a test subject (mean over seeds). Solid blue: {evidence.focus} is better or equal; dashed orange: "
        "worse; thick black: mean.",
        f"Paired slopes of each test subject. {'; '.join(counts)}.",
    )


# ------------------------------------------------------------------------------------------------------------- ranks


def ranks(evidence: Evidence) -> Drawing:
    """Critical-difference diagram (Demsar 2006) of mean ranks over transfers."""
    from matplotlib.figure import Figure

    scores = _scored(evidence)
    rows = evidence.long[evidence.long.metric == scores.metric]
    found, note = statistics.friedman(rows, scores.metric)
    if found is None:
        raise DoesNotApply(f"Friedman's test {note}")
    order, k = found.ranks, len(found.ranks)
    half = -(-k // 2)
    bars = _cliques(order.to_numpy(), found.critical_difference)
    top = 0.42 + 0.13 * len(bars)  # of the first label below the axis
    height = 1.15 + top + 0.24 * half
    figure = Figure(figsize=(8.2, height * 0.95), layout="constrained")
    ax = figure.subplots()
    ax.set_axis_off()
    margin = 0.42 * (k - 1)
    ax.set_xlim(1 - margin, k + margin)
    ax.set_ylim(-(top + 0.24 * half), 1.15)
    ax.plot([1, k], [0, 0], color=DARK, linewidth=1.2)
    for tick in range(1, k + 1):
        ax.plot([tick, tick], [0, 0.09], color=DARK, linewidth=1.2)
        ax.text(tick, 0.14, str(tick), ha="center", va="bottom", fontsize=8.5)
    ax.text((1 + k) / 2, 0.42, "mean rank over transfers (1 is best)", ha="center", va="bottom")
    width = min(found.critical_difference, k - 1)
    ax.plot([1, 1 + width], [0.82, 0.82], color=DARK, linewidth=1.6, marker="|", markersize=8)
    ax.text(1, 0.92, f"critical difference {found.critical_difference:.2f}", va="bottom", fontsize=8.5)
    for i, (low, high) in enumerate(bars):
        y = -0.14 - 0.13 * i
        ax.plot([low - 0.04, high + 0.04], [y, y], color=BLUE, linewidth=3.6, solid_capstyle="round")
    for i, (method, rank) in enumerate(order.items()):
        left = i < half
        y = -top - 0.24 * (i if left else k - 1 - i)
        edge = 1 - 0.06 * margin if left else k + 0.06 * margin
        ax.plot([rank, rank, edge], [0, y, y], color=GREY, linewidth=0.8, zorder=0)
        text = f"{method}  {rank:.2f}" if left else f"{rank:.2f}  {method}"
        weight = "bold" if method == evidence.focus else "normal"
        place = edge - 0.02 * margin if left else edge + 0.02 * margin
        ax.text(place, y, text, ha="right" if left else "left", va="center", weight=weight)
    caption = (
        f"Friedman's test over {found.n_transfers} transfers: p = {found.p:.3g}. Methods joined by a bar differ by "
        "less than Nemenyi's critical difference (5 %). Transfers that share subjects are not independent: read it "
        "as a description."
    )
    listed = ", ".join(f"{m} {r:.2f}" for m, r in order.items())
    return Drawing(
        figure,
        "Ranks over transfers",
        f"{caption} {note[:1].upper() + note[1:] + '.' if note else ''}".strip(),
        f"Critical-difference diagram. Mean ranks: {listed}; critical difference {found.critical_difference:.2f}.",
    )


def _cliques(ranks: np.ndarray, distance: float) -> list[tuple[float, float]]:
    """The widest groups of neighbouring ranks that lie within the distance, as (lowest, highest) rank."""
    found: list[tuple[float, float]] = []
    last = -1
    for i in range(len(ranks)):
        j = int(np.flatnonzero(ranks - ranks[i] <= distance).max())
        if j > i and j > last:
            found.append((float(ranks[i]), float(ranks[j])))
            last = j
    return found


# ---------------------------------------------------------------------------------------------------------- few-shot


def shots(evidence: Evidence) -> Drawing:
    """Few-shot curves: the metric against the number of target training subjects."""
    from scipy import stats

    pairs: dict[str, list[tuple[int, str]]] = {}
    for transfer in evidence.transfers:
        if match := re.fullmatch(r"(.+)@(\d+)", transfer):
            pairs.setdefault(match[1], []).append((int(match[2]), transfer))
    if not any(len(found) > 1 for found in pairs.values()):
        raise DoesNotApply("no transfer comes with several numbers of shots")
    scores = _scored(evidence)
    figure, axes = _panels(len(pairs), 3.3, 2.9, most=3, sharey=True)
    shown = _highlights(evidence)
    for ax, (pair, places) in zip(axes, pairs.items(), strict=True):
        places = sorted(places)
        for method in sorted(evidence.methods, key=shown.__contains__):
            curve = []
            for n, transfer in places:
                values = np.array(list(scores.by_subject(transfer, method).values()))
                if len(values):
                    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
                    curve.append((n, values.mean(), stats.t.ppf(0.975, max(len(values) - 1, 1)) * error))
            if not curve:
                continue
            x, y, band = np.array(curve).T
            if method not in shown:
                ax.plot(x, y, color=PALE, linewidth=0.9, zorder=1)
                continue
            colour, marker, line = _colour(evidence, method)
            ax.plot(x, y, color=colour, marker=marker, linestyle=line, markersize=4.5, label=method, zorder=3)
            if method in (evidence.focus, evidence.reference):
                ax.fill_between(x, y - band, y + band, color=colour, alpha=0.14, linewidth=0, zorder=2)
        ax.set_title(_safe(pair))
        ax.set_xscale("log")
        ax.set_xticks([n for n, _ in places], [str(n) for n, _ in places])
        ax.minorticks_off()
    _legend(figure, axes, len(shown) < len(evidence.methods))
    axes[0].set_ylabel(f"{NAMES[scores.metric]} [{UNITS[scores.metric]}]")
    figure.supxlabel("target training subjects", fontsize=9)
    return Drawing(
        figure,
        "Few-shot curves",
        f"Mean over test subjects and seeds. Bands ({evidence.reference}, {evidence.focus}): 95 % interval of the mean "
        "over subjects, each method on its own; the paired gains above are the sharper comparison.",
        f"Curves of {NAMES[scores.metric]} against the number of target training subjects, for {', '.join(pairs)}.",
    )


def _legend(figure: Figure, axes: list[Axes], others: bool) -> None:
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if others:
        entries["other methods"] = Line2D([], [], color=PALE, linewidth=1.2)
    columns = min(len(entries), 4, int(figure.get_figwidth() / 1.35))
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns, fontsize=8.5)


# ------------------------------------------------------------------------------------------------------------ matrix


def matrix(evidence: Evidence) -> Drawing:
    """Heat maps of source by target: what transfer brings, and what the focus adds to it."""
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    scores = _scored(evidence)
    pairs = [re.fullmatch(r"([^@]+)->([^@]+)", t) for t in evidence.transfers]
    if evidence.results.plan["protocol"]["transfers"]["kind"] != "cross_modality" or not all(pairs):
        raise DoesNotApply("only for cross-modality transfers without shots")
    names = list(dict.fromkeys(name for match in pairs if match for name in match.groups()))
    if len(names) < 3:
        raise DoesNotApply(f"needs 3 domains, has {len(names)}")
    kinds = [
        (f"{evidence.reference} over scratch", "scratch", -1),
        (f"{evidence.focus} over {evidence.reference}", evidence.focus, 1),
    ]
    maps = []
    for title, method, sign in kinds:
        values, clear = np.full((len(names), len(names)), np.nan), np.zeros((len(names), len(names)), bool)
        for match in pairs:
            if match and (found := scores.gain(method, match[0])):
                place = names.index(match[1]), names.index(match[2])
                values[place], clear[place] = sign * found["gain"], found["low"] > 0 or found["high"] < 0
        if np.isfinite(values).any():
            maps.append((title, values, clear))
    if not maps:
        raise DoesNotApply(f"no gains of {evidence.focus} or over scratch")
    figure = Figure(figsize=((0.95 * len(names) + 1.1) * len(maps) + 1.0, 0.72 * len(names) + 1.3))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    most = max(np.nanmax(np.abs(values)) for _, values, _ in maps) or 1.0
    for ax, (title, values, clear) in zip(axes, maps, strict=True):
        image = ax.imshow(values, cmap="PuOr", norm=TwoSlopeNorm(0, -most, most), aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                text = _signed(value) + ("\u2009*" if clear[i, j] else "")
                colour = "white" if np.dot(image.cmap(image.norm(value))[:3], (0.3, 0.59, 0.11)) < 0.5 else "black"
                weight = "bold" if clear[i, j] else "normal"
                ax.text(j, i, text, ha="center", va="center", fontsize=9, color=colour, weight=weight)
        ax.set_xticks(range(len(names)), names)
        ax.set_yticks(range(len(names)), names)
        ax.set_xlabel("target")
        ax.set_title(title)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("source")
    figure.colorbar(image, ax=list(axes), label=f"gain [{GAIN_UNITS[scores.metric]}]", shrink=0.85)
    return Drawing(
        figure,
        "Transfer matrix",
        "Gains by source (row) and target (column); below 0 on the left is negative transfer. An asterisk marks a 95 % "
        "interval that does not hold 0.",
        "Heat maps of gains by source and target: " + "; ".join(_in_words(names, *found[:2]) for found in maps) + ".",
    )


def _in_words(names: list[str], title: str, values: np.ndarray) -> str:
    lowest, highest = (np.unravel_index(at, values.shape) for at in (np.nanargmin(values), np.nanargmax(values)))

    def text(at: Any) -> str:
        return f"{names[at[0]]} to {names[at[1]]} {_signed(values[at])}"

    return f"{title}, from {text(lowest)} up to {text(highest)}"


# ---------------------------------------------------------------------------------------------------------- training


def training(evidence: Evidence, kind: str = "loss") -> Drawing:
    """Training curves: the mean over seeds of a curve of the records, a panel a transfer."""
    from matplotlib.ticker import LogLocator

    curves = dict(_curves(evidence, kind))
    if not curves:
        raise DoesNotApply(f"the records hold no {kind} curves")
    transfers = [t for t in evidence.transfers if any(key[0] == t for key in curves)]
    figure, axes = _panels(len(transfers), 3.0, 2.4, sharey=True)
    shown = _highlights(evidence)
    for ax, transfer in zip(axes, transfers, strict=True):
        for method in sorted(evidence.methods, key=shown.__contains__):
            found = curves.get((transfer, method))
            if found is None:
                continue
            if method in shown:
                colour, _, line = _colour(evidence, method)
                ax.plot(*found, color=colour, linestyle=line, linewidth=1.5, label=method, zorder=3)
            else:
                ax.plot(*found, color=PALE, linewidth=0.9, zorder=1)
        ax.set_title(_safe(transfer))
        if kind == "loss" and all((y > 0).all() for _, y in curves.values()):
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
    _legend(figure, axes, any(m not in shown for _, m in curves))
    axes[0].set_ylabel("training loss" if kind == "loss" else "validation Dice")
    figure.supxlabel("step", fontsize=9)
    caption = {
        "loss": "Training loss, mean over seeds. Losses of different methods have different scales: compare shapes.",
        "validation": "Mean Dice on the validation subjects during training, mean over seeds.",
    }[kind]
    title = {"loss": "Training loss", "validation": "Validation during training"}[kind]
    alt = f"{title} against the step for {len({m for _, m in curves})} methods in {len(transfers)} transfers."
    return Drawing(figure, title, caption, alt)


def _curves(evidence: Evidence, kind: str) -> Iterator[tuple[tuple[str, str], tuple[np.ndarray, np.ndarray]]]:
    """(transfer, method) with steps and mean over the seeds that have a curve of the same steps."""
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for cell, record in evidence.results.finished():
        curve = np.array(record.get("curves", {}).get(kind) or [], float)
        if curve.ndim == 2 and len(curve) and np.isfinite(curve).all():
            found.setdefault((cell["transfer"], cell["method"]), []).append(curve)
    for key, several in found.items():
        alike = [c for c in several if np.array_equal(c[:, 0], several[0][:, 0])]
        yield key, (several[0][:, 0], np.mean([c[:, 1] for c in alike], axis=0))


# -------------------------------------------------------------------------------------------------------- voxel level


def found_voxels(evidence: Evidence) -> Drawing:
    """ROC curves of the risk maps: do they find the voxels that the reference lost?"""
    curves: dict[str, dict[str, list[np.ndarray]]] = {}
    for audit in evidence.audits:
        for name, curve in audit["roc"].items():
            curves.setdefault(audit["transfer"], {}).setdefault(name, []).append(np.array(curve))
    if not curves:
        raise DoesNotApply("needs runs of scratch, finetune and trm, with their predictions")
    areas = evidence.findings[evidence.findings["class"] == negative_transfer.ALL_VOXELS]
    figure, axes = _panels(len(curves), 2.75, 2.9, sharex=True, sharey=True)
    listed = []
    for ax, (transfer, by_map) in zip(axes, curves.items(), strict=True):
        ax.plot([0, 1], [0, 1], color=PALE, linewidth=1)
        for name, several in by_map.items():
            area = float(areas[(areas["transfer"] == transfer) & (areas["map"] == name)]["auroc"].iloc[0])
            colour, _, line = _colour(evidence, name)
            mean = np.mean(several, axis=0)
            ax.plot(
                negative_transfer.FALSE_POSITIVE_RATES, mean, color=colour, linestyle=line, linewidth=1.6, label=name
            )
            listed.append(f"{transfer} {name} {area:.3f}")
        shown = areas[areas["transfer"] == transfer].set_index("map")["auroc"]
        ax.set_title("\n".join([_safe(transfer), *(f"{name} {shown[name]:.3f}" for name in by_map)]))
        ax.set_aspect("equal")
    _legend(figure, axes, False)
    axes[0].set_ylabel("share of the lost voxels found")
    figure.supxlabel("share of the other voxels marked", fontsize=9)
    return Drawing(
        figure,
        "Does the map find the lost voxels?",
        f"ROC of each risk map against the voxels that scratch has right and {negative_transfer.REFERENCE} wrong, over "
        "all voxels of a subject, mean over subjects and seeds; area under the curve in the title. Diagonal: chance.",
        f"ROC curves; areas: {'; '.join(listed)}.",
    )


CHARTS: dict[str, Callable[[Evidence], Drawing]] = {
    "gains": gains,
    "subjects": subjects,
    "ranks": ranks,
    "shots": shots,
    "transfer_matrix": matrix,
    "roc_of_lost_voxels": found_voxels,
    "training_loss": training,
    "training_validation": partial(training, kind="validation"),
}
