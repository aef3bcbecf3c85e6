"""Power and detectable gains, against simulations of the suite's own test."""

from __future__ import annotations

import numpy as np
import pytest

from trm_bench.analysis import generalised
from trm_bench.analysis.generalised import MeanSquares
from trm_bench.analysis.intervals import Design, mean_squares
from trm_bench.analysis.power import (
    Spread,
    seeds_needed,
    smallest_gain,
    subjects_needed,
    widths,
)


def drawn(spread: Spread, seeds: int, repetitions: int) -> np.ndarray:
    rng = np.random.default_rng([seeds, repetitions])
    shape = (repetitions, 1, spread.subjects, seeds)
    return (
        spread.subject * rng.normal(size=(*shape[:3], 1))
        + spread.seed * rng.normal(size=(repetitions, 1, 1, seeds))
        + spread.residual * rng.normal(size=shape)
    )


def found(spread: Spread, seeds: int, gain: float, level: float) -> float:
    """How often the interval does not hold 0."""
    several = drawn(spread, seeds, 1500) + gain
    squares = [q for q in map(mean_squares, several) if q]
    a, b, e = (np.array([q[i] for q in squares], float) for i in range(3))
    q = MeanSquares(a, b, e, squares[0].f_a, squares[0].f_b)
    return float((generalised.p_value(several.mean(axis=(1, 2, 3)), q) < 1 - level).mean())


@pytest.mark.parametrize(
    ("spread", "seeds", "level"),
    [
        (Spread(1.5, 0.5, 1.7, 70), 5, 0.9875),
        (Spread(1.0, 1.5, 1.0, 30), 8, 0.95),
        (Spread(2.0, 0.0, 2.0, 12), 3, 0.95),
    ],
)
def test_power_is_that_of_simulated_tables(spread: Spread, seeds: int, level: float) -> None:
    gain = smallest_gain(spread, seeds, level)
    assert found(spread, seeds, gain, level) == pytest.approx(0.8, abs=0.035)
    half_as_much = widths(spread, seeds, level).power(gain / 2)
    assert found(spread, seeds, gain / 2, level) == pytest.approx(half_as_much, abs=0.035)


def test_the_published_powers() -> None:
    """What was found by another simulation: +1 point, 70 subjects, alpha and alpha / 4."""
    for seeds, alone, among in ((3, 0.39, 0.12), (5, 0.79, 0.45), (10, 0.97, 0.89)):
        spread = Spread(1.5, 0.5, 1.7, 70)
        assert widths(spread, seeds, 0.95).power(1.0) == pytest.approx(alone, abs=0.03)
        assert widths(spread, seeds, 0.9875).power(1.0) == pytest.approx(among, abs=0.03)


def test_a_spread_is_found_again() -> None:
    spread = Spread(1.5, 0.8, 1.7, 200)
    estimates = [Spread.of(gain) for gain in drawn(spread, 20, 40)]
    means = np.mean([e[:3] for e in estimates if e], axis=0)
    assert means == pytest.approx(spread[:3], rel=0.07)
    assert estimates[0] is not None and estimates[0].subjects == 200


def test_what_is_not_known() -> None:
    gain = drawn(Spread(1, 1, 1, 9), 2, 1)[0]
    assert Spread.of(gain) is None and Spread.of(np.full((1, 3, 3), np.nan)) is None
    assert np.isnan(smallest_gain(None, 5, 0.95))
    assert np.isnan(smallest_gain(Spread(1, 1, 1, 9), 2, 0.95))
    assert smallest_gain(Spread(0, 0, 0, 9), 5, 0.95) == 0


def test_more_seeds_and_subjects_find_more() -> None:
    spread = Spread(1.5, 0.8, 1.7, 40)
    smallest = [smallest_gain(spread, seeds, 0.95) for seeds in (3, 5, 10, 20)]
    assert smallest == sorted(smallest, reverse=True)
    assert smallest_gain(spread.times(2), 5, 0.95) == pytest.approx(2 * smallest[1], rel=1e-6)
    more = smallest_gain(spread._replace(subjects=200), 5, 0.95)
    assert more < smallest[1]
    inflated = spread._replace(design=Design("resampled", 0.7))
    assert smallest_gain(inflated, 5, 0.95) > smallest[1]


def test_what_it_takes_is_the_least_that_suffices() -> None:
    spread = Spread(1.5, 0.8, 1.7, 40)
    seeds = seeds_needed(1.5, spread, 0.9875, least=5)
    assert seeds is not None and seeds > 5
    assert widths(spread, seeds, 0.9875).power(1.5) >= 0.8
    assert widths(spread, seeds - 1, 0.9875).power(1.5) < 0.8
    assert seeds_needed(20.0, spread, 0.9875, least=5) == 5
    # seeds can do nothing about few subjects, nor subjects about seeds
    assert seeds_needed(0.1, spread, 0.9875, least=5) is None
    assert subjects_needed(0.5, spread, 5, 0.9875) is None
    subjects = subjects_needed(2.5, spread, 5, 0.9875)
    assert subjects is not None
    enough, less = (spread._replace(subjects=n) for n in (subjects, subjects - 1))
    assert widths(enough, 5, 0.9875).power(2.5) >= 0.8 > widths(less, 5, 0.9875).power(2.5)
