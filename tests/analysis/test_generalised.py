"""The generalised p-value and its interval, against integrals and limits known otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from trm_bench.analysis import generalised
from trm_bench.analysis.generalised import MeanSquares, alike, half_width, p_value

PARTS = st.floats(0, 5).map(lambda x: round(x, 3))
SQUARES = st.builds(
    MeanSquares, PARTS, PARTS, PARTS, st.integers(1, 140), st.integers(2, 20), st.floats(1, 9)
)


def by_integration(mean: float, q: MeanSquares) -> float:
    """p by adaptive quadrature over the two chi-squared densities."""

    def inner(u_b: float, u_a: float) -> float:
        between = max(q.b * q.f_b / u_b - q.e, 0.0)
        variance = q.a * q.f_a / u_a + q.inflation * between
        tail = 2 * stats.norm.sf(abs(mean) / np.sqrt(variance))
        return float(tail * stats.chi2.pdf(u_a, q.f_a) * stats.chi2.pdf(u_b, q.f_b))

    ends_a, ends_b = (stats.chi2.ppf([1e-9, 1 - 1e-9], f) for f in (q.f_a, q.f_b))
    value, _ = integrate.dblquad(inner, *ends_a, *ends_b, epsabs=1e-5, epsrel=1e-5)
    return float(value)


@pytest.mark.parametrize(
    ("mean", "squares"),
    [
        (2.5, MeanSquares(1.0, 0.5, 0.2, 9, 4)),
        (3.0, MeanSquares(0.3, 1.2, 0.0, 30, 5)),
        (2.0, MeanSquares(0.5, 0.4, 0.3, 20, 9, inflation=4.0)),
    ],
)
def test_p_is_the_integral_over_both_distributions(mean: float, squares: MeanSquares) -> None:
    assert float(p_value(mean, squares)) == pytest.approx(by_integration(mean, squares), rel=2e-3)


@pytest.mark.parametrize("freedom", [2, 4, 9, 69])
@pytest.mark.parametrize("level", [0.95, 0.9875, 0.997])
def test_where_one_effect_is_all_it_is_students_t(freedom: int, level: float) -> None:
    t = stats.t.ppf((1 + level) / 2, freedom)
    subjects = MeanSquares(4.0, 0.0, 0.0, freedom, 2)
    seeds = MeanSquares(0.0, 4.0, 0.0, 2, freedom)
    for squares in (subjects, seeds):
        assert float(half_width(squares, level)) == pytest.approx(2 * t, rel=1e-3)
        assert float(p_value(2 * t, squares)) == pytest.approx(1 - level, rel=2e-3)


@settings(max_examples=60, deadline=None)
@given(SQUARES, st.sampled_from([0.9, 0.95, 0.9875, 0.997]))
def test_interval_and_p_agree(squares: MeanSquares, level: float) -> None:
    half = float(half_width(squares, level))
    if not half:
        assert squares.a == 0 and float(squares.variance) == 0
        return
    assert float(p_value(half, squares)) == pytest.approx(1 - level, rel=1e-6)
    assert float(p_value(1.001 * half, squares)) < 1 - level < float(p_value(0.999 * half, squares))


@settings(max_examples=60, deadline=None)
@given(SQUARES, st.floats(0.01, 9))
def test_more_doubt_never_gives_a_smaller_p(squares: MeanSquares, mean: float) -> None:
    p = float(p_value(mean, squares))
    assert 0 <= p <= 1
    for change in (
        {"a": squares.a + 1},
        {"b": squares.b + 1},
        {"e": squares.e / 2},  # E = 0 is the most careful
        {"inflation": squares.inflation + 1},
    ):
        assert float(p_value(mean, squares._replace(**change))) >= p - 1e-9
    assert float(p_value(-mean, squares)) == p


def test_nothing_that_varies() -> None:
    none = MeanSquares(0.0, 0.0, 0.0, 5, 3)
    assert float(p_value(0.0, none)) == 1 and float(p_value(0.1, none)) == 0
    assert float(half_width(none, 0.95)) == 0


def test_arrays_are_their_elements() -> None:
    a, b, e = np.random.default_rng(0).random((3, 7))
    half = half_width(MeanSquares(a, b, e, 9, 4), 0.95)
    p = p_value(np.arange(7.0), MeanSquares(a, b, e, 9, 4))
    for i in range(7):
        one = MeanSquares(a[i], b[i], e[i], 9, 4)
        assert half[i] == pytest.approx(float(half_width(one, 0.95)), rel=1e-9)
        assert p[i] == pytest.approx(float(p_value(float(i), one)))


def test_many_at_once_are_each_alone() -> None:
    """More than fit in one go, of several degrees of freedom, and some that do not vary."""
    rng = np.random.default_rng(1)
    several = [
        MeanSquares(*np.exp(3 * rng.normal(size=3)) * (i % 7 > 0), int(f_a), int(f_b), inflation)
        for i, f_a, f_b, inflation in zip(
            range(3 * generalised.AT_ONCE),
            rng.choice([1, 9, 99], 3 * generalised.AT_ONCE),
            rng.choice([2, 4], 3 * generalised.AT_ONCE),
            rng.choice([1.0, 2.5], 3 * generalised.AT_ONCE),
            strict=True,
        )
    ]
    seen = []
    for at, squares in alike(several):
        halves, p = half_width(squares, 0.95), p_value(np.ones(len(at)), squares)
        for i, half, own in zip(at, halves, p, strict=True):
            assert half == pytest.approx(float(half_width(several[i], 0.95)), rel=1e-12)
            assert own == pytest.approx(float(p_value(1.0, several[i])), rel=1e-12)
        seen += at
    assert sorted(seen) == list(range(len(several)))


@pytest.mark.parametrize("freedom", [(1, 2), (9, 4), (99, 4), (99, 9)])
def test_a_half_width_solves_its_equation(freedom: tuple[int, int]) -> None:
    """However few nodes it was begun with, to the last digits of the p-value of all of them."""
    a, b, e = np.exp(np.random.default_rng(2).normal(size=(3, 50)))
    squares = MeanSquares(a, b, e, *freedom)
    for level in (0.95, 0.99):
        assert p_value(half_width(squares, level), squares) == pytest.approx(1 - level, rel=1e-10)


@pytest.mark.parametrize("freedom", [(1, 2), (9, 4), (40, 2), (140, 19)])
def test_what_is_planned_with_is_a_half_width_to_a_hundred_thousandth(
    freedom: tuple[int, int],
) -> None:
    """Also where fewer nodes are far off: few subjects, high levels, seeds that hardly matter."""
    a, b, e = np.exp(np.random.default_rng(3).normal(0, 1.5, size=(3, 100)))
    squares = MeanSquares(a, b, e, *freedom)
    for level in (0.95, 0.997):
        roughly = half_width(squares, level, generalised.ROUGHLY)
        assert roughly == pytest.approx(half_width(squares, level), rel=1e-5)
