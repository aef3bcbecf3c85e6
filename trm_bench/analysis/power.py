"""What a benchmark could find: power, the smallest detectable gain, and the seeds that it takes.

For the test of `generalised`, from the variances of subjects, seeds and residual, so that the noise
of seeds counts. Given the mean squares A and B, the interval has the half-width h(A, B), and a gain
delta is found with the probability Phi((delta - h) / sd) + Phi((-delta - h) / sd), sd^2 the true
variance of the mean; A and B are averaged over their chi-squared distributions, E is taken at its
expectation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trm_bench.analysis import generalised
from trm_bench.analysis.generalised import MeanSquares
from trm_bench.analysis.intervals import FIXED, MIN_SEEDS, Design, mean_squares, trimmed

Values = NDArray[np.float64]

POWER = 0.8
NODES = (6, 24)  # of the distributions of A and of B
MOST_SEEDS = 200  # looked for
MOST_SUBJECTS = 2000


class Spread(NamedTuple):
    """How the gains of a method over another vary.

    Attributes:
        subject: Standard deviation between subjects, in points, as the next two.
        seed: Between seeds.
        residual: Of a subject under a seed.
        subjects: In the test set; of all test sets together where a split is drawn for each seed.
        design: Of the splits.
    """

    subject: float
    seed: float
    residual: float
    subjects: int
    design: Design = FIXED

    @classmethod
    def of(cls, gain: Values, design: Design = FIXED) -> Spread | None:
        """Estimated from gains (transfer, subject, seed), NaN where missing, by mean squares.

        Over several transfers it is the spread of the mean over transfers. Where a split is drawn
        for each seed, subjects and residual cannot be told apart, and all of it counts as the
        subjects'.

        Returns:
            None where it cannot be known; see `intervals.mean_squares`.
        """
        gain = trimmed(gain)
        squares = mean_squares(gain, design) if gain.size else None
        if squares is None:
            return None
        _, n, m = gain.shape
        a, b, e = (float(np.asarray(x)) for x in squares[:3])
        seed = max(b - e, 0.0) * m
        if design.name == "resampled":
            return cls(np.sqrt(a * n), np.sqrt(seed), 0.0, n, design)
        return cls(np.sqrt(max(a - e, 0.0) * n), np.sqrt(seed), np.sqrt(e * n * m), n, design)

    def times(self, factor: float) -> Spread:
        """All standard deviations, times a factor."""
        scaled = {k: factor * getattr(self, k) for k in ("subject", "seed", "residual")}
        return self._replace(**scaled)

    def expected(self, seeds: int) -> MeanSquares:
        """The mean squares to be expected with so many seeds."""
        n, m = self.subjects, seeds
        e = self.residual**2 / (n * m)
        a, b = self.subject**2 / n + e, self.seed**2 / m + e
        inflation = 1 + m * self.design.ratio if self.design.name == "resampled" else 1.0
        return MeanSquares(a, b, e, n - 1, m - 1, inflation)


class Widths(NamedTuple):
    """The half-widths that may come out.

    Attributes:
        half: Half-widths.
        weights: Their probabilities.
        deviation: True standard deviation of the mean.
    """

    half: Values
    weights: Values
    deviation: float

    def beyond(self, distance: Values | float) -> float:
        """The probability that the mean exceeds its truth by more than a distance, one a width."""
        from scipy import special

        if self.deviation == 0:
            return float(self.weights @ np.where(np.asarray(distance) < 0, 1.0, 0.0))
        return float(self.weights @ special.ndtr(-np.asarray(distance) / self.deviation))

    def power(self, gain: float) -> float:
        """The probability that an interval does not hold 0."""
        return self.beyond(self.half - gain) + self.beyond(self.half + gain)


def widths(spread: Spread, seeds: int, level: float) -> Widths:
    """The half-widths that intervals of a level may have.

    Args:
        spread: Of the gains.
        seeds: Number of them, `intervals.MIN_SEEDS` or more.
        level: Coverage.
    """
    expected = spread.expected(seeds)
    quantiles = (
        generalised.quantiles(f, nodes)
        for f, nodes in zip((expected.f_a, expected.f_b), NODES, strict=True)
    )
    (over_a, weight_a), (over_b, weight_b) = quantiles
    a, b = np.meshgrid(expected.a / over_a, expected.b / over_b, indexing="ij")
    e = np.full(a.size, expected.e)
    squares = expected._replace(a=a.ravel(), b=b.ravel(), e=e)
    half = generalised.half_width(squares, level, generalised.ROUGHLY)
    deviation = float(np.sqrt(expected.variance))
    return Widths(half, np.outer(weight_a, weight_b).ravel(), deviation)


def smallest_gain(spread: Spread | None, seeds: int, level: float, power: float = POWER) -> float:
    """The smallest gain that is found with a probability, in points; NaN where it is not known.

    Args:
        spread: Of the gains.
        seeds: Number of them.
        level: Coverage of the interval that must not hold 0.
        power: The probability.
    """
    from scipy.optimize import brentq

    if spread is None or seeds < MIN_SEEDS:
        return np.nan
    known = widths(spread, seeds, level)
    if known.deviation == 0:
        return 0.0
    top = 2 * float(known.half.max()) + 10 * known.deviation
    return float(brentq(lambda gain: known.power(gain) - power, 0.0, top))


def seeds_needed(
    gain: float, spread: Spread, level: float, least: int, power: float = POWER
) -> int | None:
    """The smallest number of seeds with which a gain is found; None beyond `MOST_SEEDS`.

    Args:
        gain: In points.
        spread: Of the gains.
        level: Coverage of the interval that must not hold 0.
        least: Seeds from which on anything is said.
        power: The probability.
    """
    return _least(
        lambda seeds: widths(spread, seeds, level).power(gain) >= power, least, MOST_SEEDS
    )


def subjects_needed(
    gain: float, spread: Spread, seeds: int, level: float, power: float = POWER
) -> int | None:
    """The smallest number of test subjects with which a gain is found; None where none suffices.

    Args:
        gain: In points.
        spread: Of the gains.
        seeds: Number of them.
        level: Coverage of the interval that must not hold 0.
        power: The probability.
    """

    def found(subjects: int) -> bool:
        return widths(spread._replace(subjects=subjects), seeds, level).power(gain) >= power

    return _least(found, 2, MOST_SUBJECTS)


def _least(found: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number from `low` on with which it is found, as it is with all larger ones."""
    if not found(high):
        return None
    low -= 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high
