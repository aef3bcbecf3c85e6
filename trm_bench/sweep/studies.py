"""Trials as Optuna's: its distributions, its values, its finished or running trials."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trm_bench.sweep.space import Dimension

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def frozen(
    dimensions: Sequence[Dimension],
    values: Mapping[str, Any],
    state: str,
    score: float | None = None,
    **attributes: Any,
) -> FrozenTrial | None:
    """A trial as Optuna's; None where a value, such as a default, lies outside of its range.

    Args:
        dimensions: Of the space.
        values: Of those dimensions that mattered.
        state: `COMPLETE`, `FAIL` or `RUNNING`.
        score: Of a complete one.
        attributes: User attributes.
    """
    import optuna

    own = [d for d in dimensions if d.name in values]
    if not all(d.holds(values[d.name]) for d in own):
        return None
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        value=score,
        params={d.name: encoded(d, values[d.name]) for d in own},
        distributions={d.name: distribution(d) for d in own},
        user_attrs=attributes,
    )


def distribution(dimension: Dimension) -> BaseDistribution:
    """What Optuna calls a dimension."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if dimension.kind == "choice":
        return CategoricalDistribution([encoded(dimension, x) for x in dimension.search])
    low, high = dimension.search
    if dimension.kind == "int":
        return IntDistribution(int(low), int(high), log=dimension.log)
    return FloatDistribution(float(low), float(high), log=dimension.log)


def encoded(dimension: Dimension, value: Any) -> Any:
    """A value as Optuna takes it: a choice as JSON text, since it takes no lists."""
    return json.dumps(value, sort_keys=True) if dimension.kind == "choice" else value


@contextmanager
def quiet() -> Iterator[None]:
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
