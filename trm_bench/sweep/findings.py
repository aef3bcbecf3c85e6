"""What the trials of a method say: history, values at the edge of their range, importances.

Computed from tuned.yaml and trials.json alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import SweptTrial, Tuned, TunedMethod
from trm_bench.runs.store import read_trials, read_tuned
from trm_bench.sweep.space import Dimension, dimensions_of
from trm_bench.sweep.studies import frozen, quiet

EDGE = 0.05  # share of a range, on its own scale, that counts as its edge
ENOUGH = 60  # finished trials from which more than the first importance is said
FEWEST = 8  # finished trials below which no importance is said
TREES_SEED = 0


@dataclass(frozen=True)
class Finding:
    """A method's part of a sweep, or that of a method in one transfer.

    Attributes:
        entry: Of tuned.yaml.
        trials: In the order of their numbers.
        seconds: Of all runs, each once.
    """

    entry: TunedMethod
    trials: tuple[SweptTrial, ...]
    seconds: float

    @property
    def title(self) -> str:
        """Method, and transfer where each has its own values."""
        return self.entry.title

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What was searched."""
        return dimensions_of(self.entry.space)

    @property
    def best(self) -> SweptTrial | None:
        """The trial whose values were taken."""
        return None if self.entry.trial is None else self.trials[self.entry.trial]

    @property
    def gain(self) -> float | None:
        """Validation Dice of the best trial over that of the defaults, in points."""
        tuned, default = self.entry.validation_dice, self.entry.default_validation_dice
        return None if tuned is None or default is None else 100 * (tuned - default)

    def best_so_far(self) -> list[float | None]:
        """The best score up to each trial."""
        best: list[float | None] = []
        for trial in self.trials:
            scores = [s for s in (*best[-1:], trial.validation_dice) if s is not None]
            best.append(max(scores, default=None))
        return best

    def edges(self) -> list[str]:
        """A line on each best value that lies at an end of its range."""
        lines = []
        for dimension in self.dimensions:
            value = self.entry.values.get(dimension.name)
            end = None if value is None else _edge(dimension, float_of(value))
            if end:
                lines.append(
                    f"{dimension.name} {float_of(value):.3g} lies at the {end} end of its range "
                    f"({dimension}): a wider one may hold a better value, where there can be one"
                )
        return lines

    def importances(self) -> tuple[dict[str, float], str]:
        """fANOVA: the share of the score's variance that each parameter explains alone.

        Hutter, Hoos & Leyton-Brown, ICML 2014, in Optuna's implementation; a random forest with a
        fixed seed. Parameters that not every trial has are not judged.

        Returns:
            Parameter to importance, summing to 1, and what must be known with it. The first alone
            below ENOUGH finished trials, none below FEWEST.
        """
        import optuna

        with quiet():
            study = optuna.create_study(direction="maximize")
            for trial in self.trials:
                state = "COMPLETE" if trial.validation_dice is not None else "FAIL"
                made = frozen(self.dimensions, trial.values, state, trial.validation_dice)
                if made is not None:
                    study.add_trial(made)
            scores = [t.value for t in study.trials if t.value is not None]
            if len(scores) < FEWEST:
                return {}, f"{len(scores)} finished trials say nothing of importance"
            if max(scores) == min(scores):
                return {}, "all trials have the same score"
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=TREES_SEED)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        if not found:
            return {}, "no parameter was drawn in every trial"
        left_out = [d.name for d in self.dimensions if d.name not in found]
        note = f"not judged, since some trials lack them: {', '.join(left_out)}" if left_out else ""
        first = dict(list(found.items())[: None if len(scores) >= ENOUGH else 1])
        return {name: float(value) for name, value in first.items()}, note


def _edge(dimension: Dimension, value: float) -> str:
    """`lower` or `upper` where a value lies at that end of a range, "" elsewhere."""
    if dimension.kind == "choice":
        return ""
    low, high = map(float, dimension.search)
    if dimension.log:
        low, high, value = math.log(low), math.log(high), math.log(value) if value > 0 else -1e9
    place = (value - low) / (high - low)
    return "lower" if place <= EDGE else "upper" if place >= 1 - EDGE else ""


def float_of(value: Any) -> float:
    """A number as a float; NaN for what is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else math.nan


def read_findings(folder: ProtocolFolder) -> tuple[Tuned, list[Finding]]:
    """What a sweep left, in the order of tuned.yaml; methods without trials.json are left out.

    Raises:
        UserError: There is no tuned.yaml that can be read.
    """
    tuned = read_tuned(folder.tuned)
    swept = {(s.method, s.transfer): s for s in read_trials(folder).methods}
    findings = [
        Finding(m, s.trials, s.seconds)
        for m in tuned.methods
        if (s := swept.get((m.method, m.transfer))) is not None
    ]
    return tuned, findings
