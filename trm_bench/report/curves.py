"""Charts that are curves: few-shot, training, and ROC of the risk maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trm_bench.analysis.transferability import CLASSES, source_variables
from trm_bench.analysis.voxels import ALL_VOXELS, FALSE_POSITIVE_RATES, REFERENCE, SCRATCH
from trm_bench.report.drawing import (
    GREY,
    PALE,
    DoesNotApply,
    Drawing,
    heading,
    highlights,
    legend,
    look,
    panels,
    plain,
    scored,
)
from trm_bench.report.evidence import NAMES, Evidence, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# --------------------------------------------------------------------------------------- few-shot


def shots(evidence: Evidence) -> Drawing:
    """Few-shot curves: the metric against the number of target training subjects."""
    pairs = _pairs(evidence)
    scores = scored(evidence)
    figure, axes = panels(len(pairs), 3.3, 2.9, most=3, sharey=True)
    for ax, (pair, places) in zip(axes, pairs.items(), strict=True):
        _few_shot(ax, evidence, scores, places)
        ax.set_title(heading(pair, 3.1))
    legend(figure, axes, len(highlights(evidence)) < len(evidence.methods))
    axes[0].set_ylabel(f"{NAMES[scores.metric]} [{evidence.unit(scores.metric)}]")
    figure.supxlabel("target training subjects", fontsize=9)
    return Drawing(
        figure,
        "Few-shot curves",
        "Mean over test subjects and seeds. Subjects differ more than methods do: intervals stand "
        'at the paired gains, in "Gain against shots".',
        f"Curves of {NAMES[scores.metric]} against the number of target training subjects, for "
        f"{', '.join(pairs)}.",
    )


def _pairs(evidence: Evidence) -> dict[str, list[tuple[int, str]]]:
    """Pair of domains to (shots, transfer), fewest shots first.

    Raises:
        DoesNotApply: No pair comes with several numbers of shots.
    """
    pairs: dict[str, list[tuple[int, str]]] = {}
    for transfer in evidence.transfers:
        if match := re.fullmatch(r"(.+)@(\d+)", transfer):
            pairs.setdefault(match[1], []).append((int(match[2]), transfer))
    if not any(len(places) > 1 for places in pairs.values()):
        raise DoesNotApply("no transfer comes with several numbers of shots")
    return {pair: sorted(places) for pair, places in pairs.items()}


def _few_shot(ax: Axes, evidence: Evidence, scores: Scores, places: list[tuple[int, str]]) -> None:
    """One panel, of transfers that differ in the number of subjects alone."""
    coloured = highlights(evidence)
    for method in sorted(evidence.methods, key=coloured.__contains__):
        means = {n: list(scores.by_subject(transfer, method).values()) for n, transfer in places}
        curve = [(n, np.mean(values)) for n, values in means.items() if values]
        if not curve:
            continue
        x, y = np.array(curve).T
        if method not in coloured:
            ax.plot(x, y, color=PALE, linewidth=0.9, zorder=1)
            continue
        colour, marker, line = look(evidence, method)
        style: Any = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4.5}
        ax.plot(x, y, label=plain(method), zorder=3, **style)
    _shots_axis(ax, places)


def _shots_axis(ax: Axes, places: list[tuple[int, str]]) -> None:
    ax.set_xscale("log")
    ax.set_xticks([n for n, _ in places], [str(n) for n, _ in places])
    ax.minorticks_off()


def gain_by_shots(evidence: Evidence) -> Drawing:
    """The gain over the reference, with its interval, against the number of training subjects."""
    pairs = _pairs(evidence)
    scores = scored(evidence)
    named = (evidence.focus, "trm_prior", "trm_shuffled", SCRATCH)
    transfers = [transfer for places in pairs.values() for _, transfer in places]
    methods = [m for m in dict.fromkeys(named) if any(scores.gain(m, t) for t in transfers)]
    if not methods:
        raise DoesNotApply(f"no gain of {', '.join(named)} over {evidence.reference}")
    figure, axes = panels(len(pairs), 3.3, 2.9, most=3, sharey=True)
    for ax, (pair, places) in zip(axes, pairs.items(), strict=True):
        ax.axhline(0, color=GREY, linewidth=0.9)
        offsets = _offsets(len(methods), [n for n, _ in places])
        for offset, method in zip(offsets, methods, strict=True):
            _gains(ax, evidence, scores, places, method, offset)
        _shots_axis(ax, places)
        ax.set_title(heading(pair, 3.1))
    legend(figure, axes, False)
    unit = evidence.gain_unit(scores.metric)
    axes[0].set_ylabel(f"gain over {evidence.reference} [{unit}]")
    figure.supxlabel("target training subjects", fontsize=9)
    return Drawing(
        figure,
        "Gain against shots",
        f"Paired gain in {NAMES[scores.metric]} over {evidence.reference} with its 95 % interval, "
        "over subjects and seeds; above 0 is better. Marks of one number of subjects stand side "
        "by side.",
        f"Gains of {', '.join(methods)} over {evidence.reference} against the number of target "
        f"training subjects, for {', '.join(pairs)}.",
    )


def _offsets(number: int, shots: Sequence[int]) -> np.ndarray:
    """Factors that set the marks of several methods apart, but not as far as the next shots."""
    nearest = min(np.diff(np.log(shots)), default=np.inf)
    return np.exp(min(0.07, nearest / (number + 1)) * (np.arange(number) - (number - 1) / 2))


def _gains(
    ax: Axes,
    evidence: Evidence,
    scores: Scores,
    places: list[tuple[int, str]],
    method: str,
    offset: float,
) -> None:
    """The gains of one method in one panel; a gain without an interval has no bar."""
    found = [(n, gain) for n, transfer in places if (gain := scores.gain(method, transfer))]
    if not found:
        return
    x = np.array([n * offset for n, _ in found])
    y, low, high = np.array([[g[k] for k in ("gain", "low", "high")] for _, g in found]).T
    colour, marker, line = look(evidence, method)
    style: Any = {"color": colour, "linestyle": line, "linewidth": 1.0, "markersize": 4.5}
    ax.plot(x, y, marker=marker, label=plain(method), zorder=3, **style)
    ax.vlines(x, low, high, color=colour, linewidth=1.6, zorder=2)


# --------------------------------------------------------------------------------------- training

Steps = tuple[np.ndarray, np.ndarray]  # steps, and the value at each


Kind = Literal["loss", "validation", "voxel_share"]
# title, axis and caption of each curve of the records
WORDS: dict[Kind, tuple[str, str, str]] = {
    "loss": (
        "Training loss",
        "training loss",
        "Training loss, mean over seeds. Losses of different methods have different scales: "
        "compare shapes.",
    ),
    "validation": (
        "Validation during training",
        "validation Dice",
        "Mean Dice on the validation subjects during training, mean over seeds.",
    ),
    "voxel_share": (
        "Balance of the loss",
        "voxel-wise share",
        "Share of the voxel-wise term in the gradient, ||g_voxels|| / (||g_voxels|| + ||g_dice||), "
        "norms over all trained weights, mean over seeds. At 1 the Dice term changes nothing; a "
        "weighting that moves this share does more than to weigh voxels.",
    ),
}


def training(evidence: Evidence, kind: Kind = "loss") -> Drawing:
    """Training curves: the mean over seeds of a curve of the records, a panel a transfer."""
    by_cell = _curves(evidence, kind)
    if not by_cell:
        raise DoesNotApply(f"the records hold no {WORDS[kind][1]}")
    transfers = [t for t in evidence.transfers if any(key[0] == t for key in by_cell)]
    figure, axes = panels(len(transfers), 3.0, 2.4, sharey=True)
    coloured = highlights(evidence)
    for ax, transfer in zip(axes, transfers, strict=True):
        for method in sorted(evidence.methods, key=coloured.__contains__):
            curve = by_cell.get((transfer, method))
            if curve is None:
                continue
            if method in coloured:
                colour, _, line = look(evidence, method)
                ax.plot(
                    *curve,
                    color=colour,
                    linestyle=line,
                    linewidth=1.5,
                    label=plain(method),
                    zorder=3,
                )
            else:
                ax.plot(*curve, color=PALE, linewidth=0.9, zorder=1)
        ax.set_title(heading(transfer, 2.8))
        if kind == "loss" and all((y > 0).all() for _, y in by_cell.values()):
            _log(ax)
    legend(figure, axes, any(m not in coloured for _, m in by_cell))
    title, axis, caption = WORDS[kind]
    axes[0].set_ylabel(axis)
    figure.supxlabel("step", fontsize=9)
    methods = len({m for _, m in by_cell})
    alt = f"{title} against the step for {methods} methods in {len(transfers)} transfers."
    return Drawing(figure, title, caption, alt)


def _log(ax: Axes) -> None:
    from matplotlib.ticker import LogLocator

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")


def _curves(evidence: Evidence, kind: str) -> dict[tuple[str, str], Steps]:
    """(transfer, method) to the mean over the seeds that have a curve of the same steps."""
    several: dict[tuple[str, str], list[np.ndarray]] = {}
    for cell, record in evidence.results.finished():
        curve = np.array(record.curves.get(kind, []), float)
        if curve.ndim == 2 and len(curve) and np.isfinite(curve).all():
            several.setdefault((cell.transfer, cell.method), []).append(curve)
    means = {}
    for key, curves in several.items():
        steps = curves[0][:, 0]
        alike = [c[:, 1] for c in curves if np.array_equal(c[:, 0], steps)]
        means[key] = steps, np.mean(alike, axis=0)
    return means


# ------------------------------------------------------------------------------------ voxel level


def lost_voxels(evidence: Evidence) -> Drawing:
    """ROC curves of the risk maps: do they find the voxels that the reference lost?"""
    curves: dict[str, dict[str, list[np.ndarray]]] = {}
    for audit in evidence.audits:
        for name, curve in audit.roc.items():
            by_map = curves.setdefault(audit.transfer, {})
            by_map.setdefault(name, []).append(np.array(curve))
    if not curves:
        known = source_variables(evidence.results, evidence.focus).values()
        if others := {m.variable for m in known} - {CLASSES}:
            of = " or of a ".join(sorted(others))
            raise DoesNotApply(f"a map of {of} cannot be made again from the records")
        raise DoesNotApply("needs runs of scratch, finetune and trm, with their predictions")
    overall = evidence.findings[evidence.findings["class"] == ALL_VOXELS]
    figure, axes = panels(len(curves), 2.75, 2.9, sharex=True, sharey=True)
    listed = []
    for ax, (transfer, by_map) in zip(axes, curves.items(), strict=True):
        areas = overall[overall["transfer"] == transfer].set_index("map")["auroc"]
        ax.plot([0, 1], [0, 1], color=PALE, linewidth=1)
        for name, several in by_map.items():
            colour, _, line = look(evidence, name)
            mean = np.mean(several, axis=0)
            style: Any = {"color": colour, "linestyle": line, "linewidth": 1.6}
            ax.plot(FALSE_POSITIVE_RATES, mean, label=plain(name), **style)
            listed.append(f"{transfer} {name} {areas[name]:.3f}")
        ax.set_title(
            "\n".join([heading(transfer, 2.5), *(f"{name} {areas[name]:.3f}" for name in by_map)])
        )
        ax.set_aspect("equal")
    legend(figure, axes, False)
    axes[0].set_ylabel("share of the lost voxels found")
    figure.supxlabel("share of the other voxels marked", fontsize=9)
    return Drawing(
        figure,
        "Does the map find the lost voxels?",
        f"ROC of each risk map against the voxels that scratch has right and {REFERENCE} wrong, "
        "over all voxels of a subject, mean over subjects and seeds; area under the curve in the "
        "title. Diagonal: chance.",
        f"ROC curves; areas: {'; '.join(listed)}.",
    )
