"""A generalised p-value for a mean over subjects and seeds, and the interval that agrees with it.

A gain d_ij of subject i under seed j has random effects of both and a residual. With A, B and E the
mean squares of subjects, seeds and residual of the mean, each divided by the number of cells, and
n subjects and m seeds, the variance A + max(B - E, 0) is known badly where seeds are few. So it is
replaced by its generalised pivot (Weerahandi 1993, doi:10.1080/01621459.1993.10476355), in which
each mean square has the distribution that its degrees of freedom give it:

    V* = A f_A / U_A + c max(B f_B / U_B - E, 0),   U_A ~ chi2(f_A), U_B ~ chi2(f_B)
    p  = E[2 Phi(-|mean| / sqrt V*)];   the half-width h solves E[2 Phi(-h / sqrt V*)] = 1 - level

with f_A = n - 1, f_B = m - 1 and c = 1 (c > 1: `intervals.Design`). It tends to Student's t with
m - 1 degrees of freedom where seeds dominate and to n - 1 where subjects do, without a switch. E is
taken as known; 0 is always careful. The expectations are Gauss-Legendre sums over quantiles of U_A
and U_B. docs/statistics.md says what it holds, beside the alternatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
Numbers = Values | float

NODES = (16, 96)  # of the quantiles of U_A and of U_B
FEWER = (6, 24)  # of them, to come near a half-width at a tenth of the cost
ENOUGH = 5e-7  # relative step towards a half-width, after which its square is left
ROUGHLY = 1e-3  # the same for what is only planned with
MOST = 60  # such steps
AT_ONCE = 16  # means, so that the numbers at all their nodes stay in the processor's cache


class MeanSquares(NamedTuple):
    """What is known of the variance of a mean; the names are those of the module.

    Attributes:
        a: A, of subjects; a number, or an array of them, as the next two.
        b: B, of seeds.
        e: E, of the residual.
        f_a: Degrees of freedom of A.
        f_b: Of B.
        inflation: c, on what seeds add.
    """

    a: Numbers
    b: Numbers
    e: Numbers
    f_a: int
    f_b: int
    inflation: float = 1.0

    @property
    def variance(self) -> Values:
        """A + c max(B - E, 0)."""
        a, b, e = (np.asarray(x, float) for x in self[:3])
        return np.asarray(a + self.inflation * np.maximum(b - e, 0.0))


def p_value(mean: ArrayLike, squares: MeanSquares) -> Values:
    """Two-sided p-value of the mean being 0; 1 where mean and variance are 0.

    Args:
        mean: A number or an array.
        squares: Of the same shape.
    """
    size = np.abs(np.asarray(mean, float))
    p = np.empty(size.size)
    for part, some in _parts(squares, size.shape):
        deviations, weights = _deviations(some, NODES)
        own = size.reshape(-1)[part, None]
        z = np.divide(own, deviations, out=np.zeros(deviations.shape), where=deviations > 0)
        certain = (deviations <= 0) & (own > 0)
        # exactly 1 for a mean of 0, whose weights would add up to it but for the last digit
        p[part] = np.where(own[:, 0] == 0, 1.0, np.where(certain, 0.0, _tail(z)) @ weights)
    return p.reshape(size.shape)


def half_width(squares: MeanSquares, level: float, enough: float = ENOUGH) -> Values:
    """Half-width of the interval of a level; 0 where the variance is 0.

    Args:
        squares: Numbers or arrays.
        level: Coverage.
        enough: `ENOUGH` or `ROUGHLY`.
    """
    from scipy import special

    variance = squares.variance
    half = -special.ndtri((1 - level) / 2) * np.sqrt(variance).reshape(-1)
    for part, some in _parts(squares, variance.shape):
        for nodes in (FEWER, NODES):
            half[part] = _solved(half[part], some, nodes, level, enough)
    return half.reshape(variance.shape)


def _solved(
    half: Values, squares: MeanSquares, nodes: tuple[int, int], level: float, enough: float
) -> Values:
    """Half-widths from near ones, by Newton's steps.

    In logarithms, in which both a normal and a heavy tail are nearly straight.
    """
    from scipy import special

    deviations, weights = _deviations(squares, nodes)
    with np.errstate(divide="ignore"):
        # of no deviation a number so large that its tail is 0, and 0 times it is
        scale = np.minimum(1 / (np.sqrt(2) * deviations), 1e200)
    open_ = half > 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(MOST):
            z = half[:, None] * scale
            bell = np.exp(-z * z)
            tail = (special.erfcx(z) * bell) @ weights
            slope = -2 / np.sqrt(np.pi) * ((z * bell) @ weights)
            step = np.clip((np.log(1 - level) - np.log(tail)) * tail / slope, -1.0, 1.0)
            half = np.where(open_, half * np.exp(step), 0.0)
            if not np.any(np.abs(step) > enough, where=open_):
                break
    return half


def alike(several: Sequence[MeanSquares]) -> Iterator[tuple[list[int], MeanSquares]]:
    """Those that share degrees of freedom and inflation as one of arrays, with their places.

    So that many p-values and half-widths cost one call.

    Args:
        several: Of numbers.
    """
    places: dict[tuple[int, int, float], list[int]] = {}
    for i, squares in enumerate(several):
        places.setdefault(squares[3:], []).append(i)
    for shared, at in places.items():
        a, b, e = np.array([several[i][:3] for i in at], float).T
        yield at, MeanSquares(a, b, e, *shared)


def _tail(z: Values) -> Values:
    """2 Phi(-z)."""
    from scipy import special

    return np.asarray(special.erfc(z / np.sqrt(2)))


def _parts(squares: MeanSquares, shape: tuple[int, ...]) -> Iterator[tuple[slice, MeanSquares]]:
    """Mean squares of a shape, so many `AT_ONCE`, each in an array of one axis."""
    flat = [np.broadcast_to(np.asarray(x, float), shape).reshape(-1) for x in squares[:3]]
    for start in range(0, flat[0].size, AT_ONCE):
        part = slice(start, start + AT_ONCE)
        a, b, e = (x[part] for x in flat)
        yield part, squares._replace(a=a, b=b, e=e)


def _deviations(squares: MeanSquares, nodes: tuple[int, int]) -> tuple[Values, Values]:
    """sqrt V* at each pair of nodes, along a second axis, and the weights of the pairs."""
    (of_a, weight_a), (of_b, weight_b) = (
        quantiles(f, number) for f, number in zip(squares[3:5], nodes, strict=True)
    )
    a, b, e = (np.asarray(x, float)[:, None] for x in squares[:3])
    seeds = squares.inflation * np.maximum(b * of_b - e, 0.0)
    total = (a * of_a)[:, :, None] + seeds[:, None, :]
    return np.sqrt(total).reshape(len(total), -1), np.outer(weight_a, weight_b).ravel()


@lru_cache(maxsize=64)
def quantiles(freedom: int, nodes: int) -> tuple[Values, Values]:
    """f / U at the nodes of a rule over the quantiles of U, and their weights.

    A Gauss-Legendre rule in t, with the quantile t^2 (3 - 2 t): its nodes crowd at both ends, where
    the tails of a p-value come from.
    """
    from scipy import stats

    x, weights = np.polynomial.legendre.leggauss(nodes)
    t = (x + 1) / 2
    return freedom / stats.chi2.ppf(t**2 * (3 - 2 * t), freedom), weights * 3 * t * (1 - t)
