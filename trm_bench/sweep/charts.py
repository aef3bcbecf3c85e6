"""Charts of a sweep: the history of all methods, and each method's scores by parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trm_bench.report.drawing import (
    Drawing,
    heading,
    label_below,
    label_beside,
    legend,
    panels,
    plain,
    wrapped,
)
from trm_bench.report.style import BLUE, ORANGE, SOFT, TEXT, WIDE
from trm_bench.report.svg import tag
from trm_bench.runs.records import SweptTrial
from trm_bench.sweep.findings import Finding, float_of
from trm_bench.sweep.space import Dimension

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAILED, DEFAULT, BEST = "failed", "trial 0: the defaults", "best trial"


def history(findings: Sequence[Finding], width: float = WIDE) -> Drawing:
    """Score of each trial and the best so far, a panel a method."""
    from matplotlib.ticker import MaxNLocator

    room = {"least": 1.6 if width < WIDE else 2.2, "beside": 0.3}
    high = 2.6 if len(findings) == 1 else 1.75
    figure, axes, own = panels(len(findings), width, high, sharex=True, sharey=True, **room)
    for ax, finding in zip(axes, findings, strict=True):
        scored = [t for t in finding.trials if t.validation_dice is not None]
        scores = [100 * float_of(t.validation_dice) for t in scored]
        numbers = [t.number for t in scored]
        (dots,) = ax.plot(numbers, scores, "o", color=SOFT, markersize=3, label="trial")
        tag(dots, "", *(f"trial {n}: {y:.2f}" for n, y in zip(numbers, scores, strict=True)))
        best = [100 * float_of(score) for score in finding.best_so_far()]
        every = [t.number for t in finding.trials]
        ax.step(every, best, where="post", color=BLUE, linewidth=1.8, label="best so far")
        failed = [t.number for t in finding.trials if t.validation_dice is None]
        if failed:
            at_bottom = ax.get_xaxis_transform()
            ax.plot(failed, [0.04] * len(failed), "x", color=ORANGE, markersize=4, label=FAILED,
                    transform=at_bottom)  # fmt: skip
        ax.set_title(heading(finding.title, own))
        ax.grid(axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    label_beside(figure, "validation Dice [%]")
    legend(figure, axes)
    label_below(figure, "trial")
    gains = ", ".join(f"{f.title} {f.gain:+.2f}" for f in findings if f.gain is not None)
    return Drawing(
        figure,
        "History",
        "Score of each trial (a point) and the best up to it (the line). Trial 0 has the defaults.",
        f"Validation Dice against the trial for {len(findings)} methods. "
        f"Gain of the best over the defaults in points: {gains or 'none'}.",
    )


def slices(finding: Finding, width: float = WIDE) -> Drawing:
    """Score against the value of each parameter, a panel a parameter."""
    dimensions = finding.dimensions
    room = {"least": 1.6 if width < WIDE else 2.2, "most": 4.2, "beside": 0.3}
    figure, axes, own = panels(len(dimensions), width, 1.9, sharey=True, **room)
    for ax, dimension in zip(axes, dimensions, strict=True):
        trials = [
            t
            for t in finding.trials
            if dimension.name in t.values and t.validation_dice is not None
        ]
        _slice(ax, dimension, trials, finding)
        condition = "".join(f" where {k} is {v}" for k, v in dimension.when.items())
        ax.set_title(wrapped(plain(dimension.name + condition), own))
    label_beside(figure, "validation Dice [%]")
    legend(figure, axes)
    best = finding.best
    values = "" if best is None else ", ".join(f"{k} {v}" for k, v in best.values.items())
    return Drawing(
        figure,
        f"{finding.title}: scores by parameter",
        "Score of each trial against each of its values; dotted: the ends of the range. A sampler "
        "goes where scores are good, so that a value seldom drawn is not thereby a bad one.",
        f"Validation Dice against {len(dimensions)} parameters of {finding.title}; best: {values}.",
    )


def _slice(ax: Axes, dimension: Dimension, trials: Sequence[SweptTrial], finding: Finding) -> None:
    from matplotlib.ticker import LogFormatter

    choices = [str(choice) for choice in dimension.search]
    is_choice = dimension.kind == "choice"
    if is_choice:
        ax.set_xticks(range(len(choices)), choices, rotation=30, ha="right", rotation_mode="anchor")
        ax.set_xlim(-0.5, len(choices) - 0.5)
    else:
        low, high = map(float, dimension.search)
        if dimension.log:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:g}")  # matplotlib's own are formulas
            ax.xaxis.set_minor_formatter(LogFormatter())
            ax.set_xlim(low / 1.5, high * 1.5)
        else:
            ax.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        for end in (low, high):
            ax.axvline(end, color=SOFT, linestyle=":", linewidth=1)
    for trial in trials:
        value = trial.values[dimension.name]
        x = choices.index(str(value)) if is_choice and str(value) in choices else float_of(value)
        looks: Any = {"color": SOFT, "marker": "o", "markersize": 3.2, "label": "trial"}
        if trial.number == 0:
            looks = {"color": TEXT, "marker": "s", "markersize": 5, "label": DEFAULT}
        if trial.number == finding.entry.trial:
            looks = {"color": BLUE, "marker": "D", "markersize": 5.5, "label": BEST}
        top = trial.number in (0, finding.entry.trial)
        y = 100 * float_of(trial.validation_dice)
        (dot,) = ax.plot([x], [y], linestyle="none", zorder=3 if top else 2, clip_on=False, **looks)
        tag(dot, "", f"trial {trial.number}, {dimension.name} {value}: {y:.2f}")
