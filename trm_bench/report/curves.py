"""Charts that are curves: few-shot, training, and ROC of the risk maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trm_bench.analysis.transferability import CLASSES, source_variables
from trm_bench.analysis.voxels import ALL_VOXELS, FALSE_POSITIVE_RATES, REFERENCE, SCRATCH
from trm_bench.report.drawing import (
    DoesNotApply,
    Drawing,
    heading,
    label_below,
    label_beside,
    legend,
    panels,
    plain,
    scored,
    signed,
    unit_ticks,
)
from trm_bench.report.evidence import NAMES, Evidence, Scores
from trm_bench.report.style import LINE, SMALL, SOFT, TEXT, WIDE, look
from trm_bench.report.svg import tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SIDE_BY_SIDE = 7  # methods whose intervals can be told apart in one panel


# --------------------------------------------------------------------------------------- few-shot


def shots(evidence: Evidence, width: float = WIDE) -> Drawing:
    """Few-shot curves: the metric against the number of target training subjects."""
    pairs = _pairs(evidence)
    scores = scored(evidence)
    room = {"least": 1.6 if width < WIDE else 2.2, "most": 4.6, "beside": 0.3}
    figure, axes, own = panels(len(pairs), width, 2.2, sharey=True, **room)
    for ax, (pair, places) in zip(axes, pairs.items(), strict=True):
        _few_shot(ax, evidence, scores, places)
        ax.set_title(heading(pair, own))
    label_beside(figure, f"{NAMES[scores.metric]} [{evidence.unit(scores.metric)}]")
    legend(figure, axes)
    label_below(figure, "target training subjects")
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
    for method in evidence.methods:
        means = {n: list(scores.by_subject(transfer, method).values()) for n, transfer in places}
        curve = [(n, np.mean(values)) for n, values in means.items() if values]
        if curve:
            x, y = np.array(curve).T
            said = [f"{method}, {n} subjects: {mean:.2f}" for n, mean in curve]
            _line(ax, evidence, method, x, y, said, marked=True)
    _shots_axis(ax, places)


def _line(
    ax: Axes,
    evidence: Evidence,
    method: str,
    x: Any,
    y: Any,
    said: Sequence[str],
    marked: bool = False,
) -> None:
    """The curve of a method, in its look."""
    colour, marker, line, thick = look(evidence, method)
    style: Any = {"color": colour, "linestyle": line, "linewidth": thick, "label": plain(method)}
    style["zorder"] = 2 + thick  # those with a role on top
    if marked:
        style |= {"marker": marker, "markersize": 4.5}
    (drawn,) = ax.plot(x, y, **style)
    tag(drawn, method, *said)


def _shots_axis(ax: Axes, places: list[tuple[int, str]]) -> None:
    ax.set_xscale("log")
    ax.set_xticks([n for n, _ in places], [str(n) for n, _ in places])
    ax.minorticks_off()
    ax.grid(axis="y")


def gain_by_shots(evidence: Evidence, width: float = WIDE) -> Drawing:
    """The gain over the reference, with its interval, against the number of training subjects."""
    pairs = _pairs(evidence)
    scores = scored(evidence)
    transfers = [transfer for places in pairs.values() for _, transfer in places]
    gained = {m: [g for t in transfers if (g := scores.gain(m, t))] for m in evidence.methods}
    known = [m for m in evidence.methods if gained[m]]
    if not known:
        raise DoesNotApply(f"no gain of a method over {evidence.reference}")
    means = {m: float(np.mean([g["gain"] for g in gained[m]])) for m in known}
    # those with a role first, then the best: more cannot be told apart
    first = sorted(known, key=lambda m: (-look(evidence, m).width, -means[m]))[:MOST_SIDE_BY_SIDE]
    methods = [m for m in known if m in first]
    room = {"least": 1.6 if width < WIDE else 2.2, "most": 4.6, "beside": 0.3}
    figure, axes, own = panels(len(pairs), width, 2.4, sharey=True, **room)
    for ax, (pair, places) in zip(axes, pairs.items(), strict=True):
        ax.axhline(0, color=SOFT, linewidth=0.9)
        offsets = _offsets(len(methods), [n for n, _ in places])
        for offset, method in zip(offsets, methods, strict=True):
            _gains(ax, evidence, scores, places, method, offset)
        _shots_axis(ax, places)
        ax.set_title(heading(pair, own))
    unit = evidence.gain_unit(scores.metric)
    label_beside(figure, f"gain over {evidence.reference} [{unit}]")
    legend(figure, axes)
    label_below(figure, "target training subjects")
    left = len(known) - len(methods)
    return Drawing(
        figure,
        "Gain against shots",
        f"Paired gain in {NAMES[scores.metric]} over {evidence.reference} with its 95 % interval, "
        "over subjects and seeds; above 0 is better. Marks of one number of subjects stand side "
        "by side."
        + (f" {left} methods with smaller gains stand in the tables alone." if left else ""),
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
    said = [
        f"{method}, {n} subjects: {signed(g['gain'])} [{signed(g['low'])}, {signed(g['high'])}]"
        for n, g in found
    ]
    _line(ax, evidence, method, x, y, said, marked=True)
    bars = ax.vlines(x, low, high, color=look(evidence, method).colour, linewidth=1.8, zorder=2)
    tag(bars, method, method)


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


def training(evidence: Evidence, width: float = WIDE, kind: Kind = "loss") -> Drawing:
    """Training curves: the mean over seeds of a curve of the records, a panel a transfer."""
    by_cell = _curves(evidence, kind)
    if not by_cell:
        raise DoesNotApply(f"the records hold no {WORDS[kind][1]}")
    transfers = [t for t in evidence.transfers if any(key[0] == t for key in by_cell)]
    room = {"least": 1.6 if width < WIDE else 2.2, "beside": 0.3}
    high = 2.6 if len(transfers) == 1 else 1.75
    figure, axes, own = panels(len(transfers), width, high, sharey=True, **room)
    for ax, transfer in zip(axes, transfers, strict=True):
        for method in evidence.methods:
            if curve := by_cell.get((transfer, method)):
                _line(ax, evidence, method, *curve, [f"{method}: {curve[1][-1]:.3g} at the end"])
        ax.set_title(heading(transfer, own))
        ax.grid(axis="y")
        ax.locator_params(axis="x", nbins=4)
        if kind == "loss" and all((y > 0).all() for _, y in by_cell.values()):
            _log(ax)
    if kind == "voxel_share":
        axes[0].set_ylim(0, 1)
        unit_ticks(*(ax.yaxis for ax in axes))
    title, axis, caption = WORDS[kind]
    label_beside(figure, axis)
    legend(figure, axes)
    label_below(figure, "step")
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


def lost_voxels(evidence: Evidence, width: float = WIDE) -> Drawing:
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
    room = {"least": 1.65 if width < WIDE else 2.3, "most": 3.6, "beside": 0.3}
    narrow = len(curves) < 3 and width < WIDE
    room |= {"least": width - 0.3} if narrow else {}
    columns = max(1, min(len(curves), int((width - 0.3) / room["least"])))
    high = min(room["most"], (width - 0.3) / columns) + 0.1  # panels are squares
    figure, axes, own = panels(len(curves), width, high, sharex=True, sharey=True, **room)
    listed = []
    for ax, (transfer, by_map) in zip(axes, curves.items(), strict=True):
        areas = overall[overall["transfer"] == transfer].set_index("map")["auroc"]
        ax.plot([0, 1], [0, 1], color=LINE, linewidth=1.2, zorder=1, label="chance")
        for i, (name, several) in enumerate(by_map.items()):
            area = f"{name} {areas[name]:.3f}"
            mean = np.mean(several, axis=0)
            _line(ax, evidence, name, FALSE_POSITIVE_RATES, mean, [f"{transfer}, area {area}"])
            text = ax.text(0.98, 0.04 + 0.095 * (len(by_map) - 1 - i), area, ha="right")
            text.set(fontsize=SMALL, color=TEXT)
            tag(text, name, f"area of {area}")
            listed.append(f"{transfer} {area}")
        ax.set_title(heading(transfer, own))
        ax.set(aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        unit_ticks(ax.xaxis, ax.yaxis)
        ax.grid()
    label_beside(figure, "share of the lost voxels found")
    legend(figure, axes)
    label_below(figure, "share of the other voxels marked")
    return Drawing(
        figure,
        "Does the map find the lost voxels?",
        f"ROC of each risk map against the voxels that {SCRATCH} has right and {REFERENCE} wrong, "
        "over all voxels of a subject, mean over subjects and seeds. Numbers: area under the "
        "curve; 1 finds all, 0.5 is chance.",
        f"ROC curves; areas: {'; '.join(listed)}.",
    )
