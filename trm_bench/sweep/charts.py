"""Charts of a sweep: the history of all methods, and each method's scores by parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trm_bench.report.drawing import (
    BLUE,
    DARK,
    GREY,
    ORANGE,
    PALE,
    Drawing,
    legend,
    panels,
    plain,
)
from trm_bench.runs.records import SweptTrial
from trm_bench.sweep.findings import Finding, float_of
from trm_bench.sweep.space import Dimension

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAILED, DEFAULT, BEST = "failed", "trial 0: the defaults", "best trial"


def history(findings: Sequence[Finding]) -> Drawing:
    """Score of each trial and the best so far, a panel a method."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = panels(len(findings), 2.3, 1.75, sharex=True, sharey=True)
    for ax, finding in zip(axes, findings, strict=True):
        scored = [t for t in finding.trials if t.validation_dice is not None]
        ax.plot(
            [t.number for t in scored],
            [100 * float_of(t.validation_dice) for t in scored],
            "o",
            color=GREY,
            markersize=2.8,
            label="trial",
        )
        best = [100 * float_of(score) for score in finding.best_so_far()]
        numbers = [t.number for t in finding.trials]
        ax.step(numbers, best, where="post", color=BLUE, linewidth=1.4, label="best so far")
        failed = [t.number for t in finding.trials if t.validation_dice is None]
        if failed:
            at_bottom = ax.get_xaxis_transform()
            ax.plot(failed, [0.04] * len(failed), "x", color=ORANGE, markersize=4, label=FAILED,
                    transform=at_bottom)  # fmt: skip
        ax.set_title(plain(finding.title), fontsize=8.5)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    legend(figure, axes, others=False)
    figure.supylabel("validation Dice [%]", fontsize=9)
    figure.supxlabel("trial", fontsize=9)
    gains = ", ".join(f"{f.title} {f.gain:+.2f}" for f in findings if f.gain is not None)
    return Drawing(
        figure,
        "History",
        "Score of each trial (a point) and the best up to it (the line). Trial 0 has the defaults.",
        f"Validation Dice against the trial for {len(findings)} methods. "
        f"Gain of the best over the defaults in points: {gains or 'none'}.",
    )


def slices(finding: Finding) -> Drawing:
    """Score against the value of each parameter, a panel a parameter."""
    dimensions = finding.dimensions
    figure, axes = panels(len(dimensions), 2.3, 1.9, sharey=True)
    for ax, dimension in zip(axes, dimensions, strict=True):
        own = [
            t
            for t in finding.trials
            if dimension.name in t.values and t.validation_dice is not None
        ]
        _slice(ax, dimension, own, finding)
        condition = "".join(f"\nwhere {k} is {v}" for k, v in dimension.when.items())
        ax.set_title(plain(dimension.name + condition), fontsize=8.5)
    legend(figure, axes, others=False)
    figure.supylabel("validation Dice [%]", fontsize=9)
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
        ax.set_xticks(range(len(choices)), choices, rotation=30, ha="right", fontsize=7.5)
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
            ax.axvline(end, color=PALE, linestyle=":", linewidth=1)
    for trial in trials:
        value = trial.values[dimension.name]
        x = choices.index(str(value)) if is_choice and str(value) in choices else float_of(value)
        looks = {"color": GREY, "marker": "o", "markersize": 3.2, "label": "trial"}
        if trial.number == 0:
            looks = {"color": DARK, "marker": "s", "markersize": 5, "label": DEFAULT}
        if trial.number == finding.entry.trial:
            looks = {"color": BLUE, "marker": "D", "markersize": 5.5, "label": BEST}
        top = trial.number in (0, finding.entry.trial)
        y = 100 * float_of(trial.validation_dice)
        ax.plot([x], [y], linestyle="none", zorder=3 if top else 2, clip_on=False, **looks)  # type: ignore[arg-type]
