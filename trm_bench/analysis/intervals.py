"""How sure a mean gain is: intervals over subjects and seeds, the seeds' spread, what a test finds.

Every subject is tested under every seed, and a subject (by its id) and a seed come back in several
transfers, so both are resampled crossed, each with all that belongs to it, over all transfers at
once: Owen's pigeonhole bootstrap (2007, doi:10.1214/07-AOAS122). Its percentiles alone cover far
too little with three seeds (75-85 % where seeds matter) and too much where only residual noise
does. So the percentiles give the interval's shape and its width is set as follows (the "expanded
percentile interval" of Hesterberg 2015, doi:10.1080/00031305.2015.1089789, here with two crossed
factors). With A, B and E the mean squares of subjects, seeds and residual of the mean over
transfers, divided by the number of (subject, seed) cells,

    V = A + max(B - E, 0)                                variance, two-way random effects
    S = t(f) sqrt(V),  f = V^2 / (A^2/fA + B^2/fB + E^2/fE)
                                                         Satterthwaite 1946, doi:10.2307/3002019
    C = sqrt(t(fA)^2 A + t(fB)^2 max(B - E, 0))          Banerjee 1960, Sankhya 22:357
    half-width = max(S, (S + C) / 2)

with f >= 1, and S = t(fA) sqrt(A) where B <= E. S alone covers 92 % where the seeds carry most of
the variance, the conservative C alone 91-98 %; the half-width above covers 92.7-97 % for 20
subjects and more with 3 to 5 seeds, whatever the shares of the variances
(tests/analysis/test_statistics.py). With two seeds it is 87-98 %; with one seed the interval holds
for that seed alone. Transfers are taken as given, not as a sample of transfers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from trm_bench.analysis.table import OVERALL, Pairs, default_pairs, grid, mean_over

Values = NDArray[np.float64]


class Bootstrap(NamedTuple):
    """How intervals are made.

    Attributes:
        level: Coverage of each interval on its own, with no correction for their number.
        resamples: Bootstrap replicates.
        seed: Of the random generator.
    """

    level: float = 0.95
    resamples: int = 10_000
    seed: int = 0


BOOTSTRAP = Bootstrap()


def bootstrap_gain(
    table: pd.DataFrame,
    metric: str = "dice",
    pairs: Pairs | None = None,
    reference: str = "finetune",
    focus: str = "trm",
    *,
    how: Bootstrap = BOOTSTRAP,
    relative: bool = True,
) -> pd.DataFrame:
    """Mean gains of methods over others, with confidence intervals; see the module.

    Args:
        table: The long table of one protocol.
        metric: Which metric.
        pairs: (method, versus) pairs; by default those of `default_pairs`.
        reference: The method that all are compared with.
        focus: The method that is compared with all.
        how: Coverage, replicates and seed of the bootstrap.
        relative: Whether the relative gain is wanted, which takes as long again; NaN if not.

    Returns:
        For each pair the rows of `mean_gains`, after the columns transfer, method and versus.

    Raises:
        UserError: See `grid`; or a pair names a method without values.
    """
    g = grid(table, metric)
    pairs = default_pairs(g.methods, reference, focus) if pairs is None else list(pairs)
    parts = []
    for method, versus in pairs:
        base = g.of(versus) if relative else None
        rows = mean_gains(g.gain(method, versus), g.transfers, g.cells, base, how=how)
        rows.insert(1, "method", method)
        rows.insert(2, "versus", versus)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def mean_gains(
    gain: Values,
    transfers: Sequence[str],
    cells: NDArray[np.bool_],
    base: Values | None = None,
    *,
    how: Bootstrap = BOOTSTRAP,
) -> pd.DataFrame:
    """The mean gain in each transfer and over all, with confidence intervals; see the module.

    The relative gain is the ratio mean gain / mean of the other method; its interval is that of
    the ratio's linear approximation, so that the uncertainty of the denominator is in it.

    Args:
        gain: (transfer, subject, seed), NaN where missing.
        transfers: Names along the first axis.
        cells: Which (subject, seed) cells there are to use, same shape.
        base: What the gain is over, same shape and units; without it, relative gains are NaN.
        how: Coverage, replicates and seed of the bootstrap.

    Returns:
        One row for each transfer, and one with transfer = "mean" over all transfers that have
        values (n_transfers), each with the same weight. gain, low, high, standard_error: in the
        units of `gain`, positive = better. relative, relative_low, relative_high: %. n_subjects
        (distinct), n_seeds, left_out: cells not used. Low and high are NaN with fewer than two
        subjects in a transfer.
    """
    there = np.isfinite(gain)
    with_values = np.flatnonzero(np.any(there, axis=(1, 2)))
    places = [(name, with_values[with_values == t], cells[[t]]) for t, name in enumerate(transfers)]
    rows: list[dict[str, Any]] = []
    for name, index, among in [*places, (OVERALL, with_values, cells)]:
        used = there[index]
        subjects, seeds = np.any(used, axis=(0, 2)), np.any(used, axis=(0, 1))
        keep = np.ix_(range(len(index)), subjects, seeds)
        of_versus = None if base is None else np.where(used, base[index], np.nan)[keep]
        rows.append(
            {
                "transfer": name,
                **_mean_gain(gain[index][keep], of_versus, how),
                "n_transfers": len(index),
                "n_subjects": int(subjects.sum()),
                "n_seeds": int(seeds.sum()),
                "left_out": int(among.sum() - used.sum()),
            }
        )
    return pd.DataFrame(rows)


def _mean_gain(gain: Values, base: Values | None, how: Bootstrap) -> dict[str, float]:
    """The numbers of one row; every cell of a transfer, and every transfer, weighs the same."""
    names = ["gain", "low", "high", "standard_error", "relative", "relative_low", "relative_high"]
    if not gain.size:
        return dict.fromkeys(names, np.nan)
    mean = float(mean_over(gain, (1, 2)).mean())
    of_versus = 0.0 if base is None else float(mean_over(base, (1, 2)).mean())
    below, above, error = _interval(gain, how)
    ratio = rel_below = rel_above = np.nan
    if base is not None and of_versus:
        ratio = 100 * mean / of_versus
        rel_below, rel_above, _ = _interval((100 * gain - ratio * base) / of_versus, how)
    row = [mean, mean + below, mean + above, error, ratio, ratio + rel_below, ratio + rel_above]
    return dict(zip(names, row, strict=True))


def _interval(values: Values, how: Bootstrap) -> tuple[float, float, float]:
    """Ends of the interval, relative to the mean over transfers, and the standard error.

    Args:
        values: (transfer, subject, seed), NaN where missing.
        how: Coverage, replicates and seed of the bootstrap.
    """
    from scipy import special

    there = np.isfinite(values)
    if np.any(there, axis=2).sum(axis=1).min() < 2:
        return np.nan, np.nan, np.nan  # one subject does not tell how subjects differ
    score = _scores(values, there)
    half, variance = _half_width(score, _blocks(there), how.level)
    # A replicate counts subject i and seed j as often as both are drawn, so that all replicates
    # are one product of the two tables of counts with the scores.
    of_subjects, of_seeds = _draws(*score.shape, how.resamples, how.seed)
    replicates = ((of_subjects @ score) * of_seeds).sum(axis=1)
    spread = replicates.std()
    if spread == 0:
        return 0.0, 0.0, 0.0
    upper = (1 + how.level) / 2
    low, high = np.quantile(replicates, [1 - upper, upper])
    # The shape is that of the replicates; stretched so that normal ones would get the half-width.
    scale = half / (special.ndtri(upper) * spread)
    return float(low * scale), float(high * scale), float(np.sqrt(variance))


def _scores(values: Values, there: NDArray[np.bool_]) -> Values:
    """What each (subject, seed) adds to the error of the mean over transfers; its sum is 0.

    A transfer's cells are centred on the transfer's mean, since transfers are taken as given, and
    divided by their number, since each transfer weighs the same however many cells it has.
    """
    count = there.sum(axis=(1, 2), keepdims=True)
    centred = np.where(there, values, 0.0)
    centred = np.where(there, values - centred.sum(axis=(1, 2), keepdims=True) / count, 0.0)
    scores: Values = (centred / (count * len(values))).sum(axis=0)
    return scores


def _blocks(there: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The block of each subject, numbered from 0: transfers that share a subject form a block.

    Subjects of different blocks differ in their means by the transfer, not by chance, and only
    within a block can they be compared.
    """
    from scipy.sparse.csgraph import connected_components

    in_transfer = np.any(there, axis=2)
    shared = in_transfer.astype(int) @ in_transfer.T.astype(int)
    _, of_transfer = connected_components(shared, directed=False)
    return np.asarray(of_transfer[in_transfer.argmax(axis=0)])


def _half_width(score: Values, block: NDArray[np.int64], level: float) -> tuple[float, float]:
    """Half-width of the interval and variance of the mean; the names are those of the module.

    Args:
        score: From `_scores`, (subject, seed).
        block: From `_blocks`.
        level: Coverage.
    """
    from scipy import special

    n, m = score.shape
    blocks = int(block.max()) + 1
    f_a, f_b = n - blocks, m - 1  # each block has its own mean, which costs a degree of freedom
    rows, columns = score.sum(axis=1), score.sum(axis=0)
    a = (rows**2).sum() * n / f_a
    upper = (1 + level) / 2
    t_a, t_b = special.stdtrit([f_a, max(f_b, 1)], upper)
    only_subjects = t_a * np.sqrt(a), a
    if not f_b:
        return only_subjects
    one_hot = (block[:, None] == np.arange(blocks)).astype(float)
    by_block = one_hot.T @ score / one_hot.sum(axis=0)[:, None]
    b = (columns**2).sum() * m / f_b
    e = ((score - rows[:, None] / m - by_block[block]) ** 2).sum() * n * m / (f_a * f_b)
    if b <= e:  # the seeds differ by no more than the residual does
        return only_subjects
    variance = a + b - e
    f = variance**2 / (a**2 / f_a + b**2 / f_b + e**2 / (f_a * f_b))
    satterthwaite = special.stdtrit(max(f, 1), upper) * np.sqrt(variance)
    conservative = np.sqrt(t_a**2 * a + t_b**2 * (b - e))
    return max(satterthwaite, (satterthwaite + conservative) / 2), variance


@lru_cache(maxsize=16)
def _draws(n: int, m: int, resamples: int, seed: int) -> tuple[Values, Values]:
    """How often each of n subjects and of m seeds is drawn, (resample, n) and (resample, m).

    They depend on the numbers of both alone, so that an interval depends on no other one.
    """
    rng = np.random.default_rng([seed, n, m])
    subjects, seeds = (
        rng.multinomial(k, np.full(k, 1 / k), resamples).astype(float) for k in (n, m)
    )
    return subjects, seeds


def seed_spread(table: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """Standard deviation over seeds (n - 1) of the mean over subjects: what another run changes.

    It is not the spread of subjects and not a standard error. Only subjects that a method has
    under all its seeds count, so that the spread is not one of subjects.

    Returns:
        One row for each method and transfer, and with transfer = "mean" for the mean over
        transfers (seeds and transfers complete): mean, sd (NaN with one seed; both in the metric's
        units), n_seeds, n_subjects, left_out (subjects not under all seeds).
    """
    g = grid(table, metric)
    rows: list[dict[str, Any]] = []
    for method in g.methods:
        there = np.isfinite(g.of(method))
        seeds = np.any(there, axis=1)  # (transfer, seed)
        # (transfer, subject): under every seed that the method has in the transfer
        whole = np.all(there | ~seeds[:, None], axis=2) & np.any(there, axis=2)
        means = np.full(seeds.shape, np.nan)
        for t, transfer in enumerate(g.transfers):
            if whole[t].any():
                means[t, seeds[t]] = g.of(method)[t][whole[t]][:, seeds[t]].mean(axis=0)
            left_out = int((np.any(there[t], axis=1) & ~whole[t]).sum())
            rows.append(_spread(transfer, method, means[t], int(whole[t].sum()), left_out))
        somewhere = np.any(whole, axis=0)
        left_out = int((np.any(there, axis=(0, 2)) & ~somewhere).sum())
        rows.append(_spread(OVERALL, method, means.mean(axis=0), int(somewhere.sum()), left_out))
    return pd.DataFrame(rows)


def _spread(
    transfer: str, method: str, means: Values, n_subjects: int, left_out: int
) -> dict[str, Any]:
    means = means[np.isfinite(means)]
    return {
        "transfer": transfer,
        "method": method,
        "mean": means.mean() if len(means) else np.nan,
        "sd": means.std(ddof=1) if len(means) > 1 else np.nan,
        "n_seeds": len(means),
        "n_subjects": n_subjects,
        "left_out": left_out,
    }


def smallest_detectable_gain(
    differences: ArrayLike, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest mean gain that a two-sided Wilcoxon test with these subjects would find.

    The paired t-test's power (statsmodels TTestPower) with the differences' standard deviation,
    for n * 3/pi subjects in place of n: 3/pi is the asymptotic relative efficiency of the
    signed-rank test for normal differences (Hodges and Lehmann 1956, doi:10.1214/aoms/1177728261).
    For a family of k tests give alpha / k.

    Args:
        differences: One a subject.
        power: Probability of finding it.
        alpha: Two-sided level.

    Returns:
        The gain in the differences' units; NaN for fewer than 3 subjects, 0 where the differences
        do not vary.
    """
    from statsmodels.stats.power import TTestPower

    d = np.asarray(differences, float)
    if len(d) < 3:
        return float("nan")
    nobs = len(d) * 3 / np.pi
    effect = TTestPower().solve_power(nobs=nobs, alpha=alpha, power=power, alternative="two-sided")
    return float(np.squeeze(effect) * d.std(ddof=1))
