"""Optuna as a pure function of what earlier trials gave: nothing of it is stored.

For a trial, a new study in memory is filled with the trials of earlier batches in their order, and
with its own batch mates as running; the sampler is seeded from the trial's own names. So a
proposal does not depend on when, where and how often a sweep was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trm_bench.sweep.space import Dimension, Space
from trm_bench.sweep.studies import encoded, frozen, quiet

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

Values = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A trial that has been trained.

    Attributes:
        number: From 0.
        values: Of the dimensions that mattered.
        score: Mean validation Dice of its runs; None where one of them failed or diverged.
        runs: Ids of its runs.
    """

    number: int
    values: Mapping[str, Any]
    score: float | None
    runs: tuple[str, ...] = ()


def propose(
    space: Space,
    earlier: Sequence[Trial],
    mates: Sequence[Mapping[str, Any]],
    sampler: Literal["tpe", "random"],
    seed: int,
) -> Values:
    """The values of a trial.

    Args:
        space: Of the method.
        earlier: Trials of earlier batches, in the order of their numbers.
        mates: Values of the trials before it in its own batch.
        sampler: Which.
        seed: Of this one trial.
    """
    if not earlier and not mates:
        return space.default()
    import optuna

    with quiet():
        study = optuna.create_study(direction="maximize", sampler=_sampler(sampler, seed))
        for trial in earlier:
            state = "FAIL" if trial.score is None else "COMPLETE"
            _enter(study, frozen(space.dimensions, trial.values, state, trial.score))
        for values in mates:
            _enter(study, frozen(space.dimensions, values, "RUNNING"))
        asked = study.ask()
        own: Values = {}
        for dimension in space.dimensions:
            if space.matters(dimension, own):
                own[dimension.name] = _suggest(asked, dimension)
    return own


def _sampler(name: str, seed: int) -> BaseSampler:
    import optuna

    small = seed % 2**32  # what numpy's generator takes
    if name == "random":
        return optuna.samplers.RandomSampler(seed=small)
    # groups: parameters that only matter under another's value are modelled where they do
    return optuna.samplers.TPESampler(seed=small, multivariate=True, group=True, constant_liar=True)


def _enter(study: Study, trial: FrozenTrial | None) -> None:
    """Adds a trial; defaults outside their range are nothing that a sampler could take."""
    if trial is not None:
        study.add_trial(trial)


def _suggest(trial: Any, dimension: Dimension) -> Any:
    name, search = dimension.name, dimension.search
    if dimension.kind == "choice":
        return json.loads(trial.suggest_categorical(name, [encoded(dimension, x) for x in search]))
    suggest = trial.suggest_int if dimension.kind == "int" else trial.suggest_float
    return suggest(name, *search, log=dimension.log)
