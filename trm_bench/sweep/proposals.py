"""Optuna as a pure function of what earlier trials gave: nothing of it is stored.

For a trial, a new study in memory is filled with the trials of earlier batches in their order, and
with its own batch mates as running; the sampler is seeded from the trial's own names. So a
proposal does not depend on when, where and how often a sweep was interrupted.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trm_bench.sweep.space import Dimension, Space

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna.distributions import BaseDistribution
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

    with _quiet():
        study = optuna.create_study(direction="maximize", sampler=_sampler(sampler, seed))
        for trial in earlier:
            _enter(study, space, trial.values, "FAIL" if trial.score is None else "COMPLETE", trial)
        for values in mates:
            _enter(study, space, values, "RUNNING")
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


def _enter(
    study: Any, space: Space, values: Mapping[str, Any], state: str, trial: Trial | None = None
) -> None:
    """Adds a trial; defaults outside their range are nothing that a sampler could take."""
    import optuna

    dimensions = [d for d in space.dimensions if d.name in values]
    if not all(d.holds(values[d.name]) for d in dimensions):
        return
    frozen: FrozenTrial = optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        value=None if trial is None else trial.score,
        params={d.name: _encoded(d, values[d.name]) for d in dimensions},
        distributions={d.name: _distribution(d) for d in dimensions},
    )
    study.add_trial(frozen)


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if dimension.kind == "choice":
        return CategoricalDistribution([_encoded(dimension, x) for x in dimension.search])
    low, high = dimension.search
    if dimension.kind == "int":
        return IntDistribution(int(low), int(high), log=dimension.log)
    return FloatDistribution(float(low), float(high), log=dimension.log)


def _encoded(dimension: Dimension, value: Any) -> Any:
    """A choice as JSON text, since Optuna compares choices and takes no lists."""
    return json.dumps(value, sort_keys=True) if dimension.kind == "choice" else value


def _suggest(trial: Any, dimension: Dimension) -> Any:
    name, search = dimension.name, dimension.search
    if dimension.kind == "choice":
        return json.loads(trial.suggest_categorical(name, [_encoded(dimension, x) for x in search]))
    suggest = trial.suggest_int if dimension.kind == "int" else trial.suggest_float
    return suggest(name, *search, log=dimension.log)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's log lines, and its warnings that groups are experimental."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
