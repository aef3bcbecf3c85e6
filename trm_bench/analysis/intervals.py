"""How sure a mean gain is: over subjects, over seeds and, where a design says so, over splits.

A subject (by its id) and a seed come back in several transfers, so both are crossed, each with all
that belongs to it, over all transfers at once. Every cell (transfer, subject, seed) enters by its
score: its deviation from its transfer's mean, divided by the number of cells of the transfer and by
the number of transfers, since each transfer weighs the same and transfers are taken as given. With
the scores added up over transfers to s_ij, n subjects and m seeds,

    A = n / f_A sum_i (sum_j s_ij)^2        B = m / f_B sum_j (sum_i s_ij)^2

and E, the residual mean square of the additive model (subject + seed), are what
`generalised` makes an interval and a p-value of. Below `MIN_SEEDS` seeds there is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trm_bench.analysis import generalised
from trm_bench.analysis.generalised import MeanSquares, alike
from trm_bench.analysis.table import OVERALL, Grid, Pairs, default_pairs, grid, mean_over

Values = NDArray[np.float64]

LEVEL = 0.95
MIN_SEEDS = 3  # below, two numbers or one say nothing of what another seed would give
FARTHEST = 100.0  # a ratio beyond it is no end of an interval
NAMES = ["gain", "low", "high", "p", "standard_error", "relative", "relative_low", "relative_high"]


class Design(NamedTuple):
    """What changes with the seed, and so what an interval over seeds is about.

    `fixed`: initial weights and patches, on one split. `disjoint`: the target training set too,
    without a subject in common. `resampled`: the whole split. Splits that are drawn from the same
    patients overlap, so that m seeds resemble each other more than other patients would make them.
    What seeds add to the variance is then inflated by 1 + m ratio, and E is the sum of all s_ij^2,
    since each seed has other test subjects.

    Attributes:
        name: Which.
        ratio: Of `resampled`; see `overlap`.
    """

    name: Literal["fixed", "disjoint", "resampled"] = "fixed"
    ratio: float = 0.0


def overlap(source: int, train: int, test: int, patients: int) -> float:
    """The ratio of a resampled design.

    The larger of n_test / n_train, n_train all that a run learns from (Nadeau and Bengio 2003,
    doi:10.1023/A:1024068626366), and f / (1 - f), f the larger part of all patients that one of
    source and target training set holds: so many members, on average, do two draws of it share, and
    so much can seeds correlate that act through it.

    Args:
        source: Patients that the source network learns from.
        train: Patients that a method learns from.
        test: Test patients.
        patients: All patients of the split.
    """
    share = max(source, train) / patients
    return max(test / (source + train), share / (1 - share))


FIXED = Design()


def gains(
    table: pd.DataFrame | Grid,
    metric: str = "dice",
    pairs: Pairs | None = None,
    reference: str = "finetune",
    focus: str = "trm",
    *,
    design: Design = FIXED,
    level: float = LEVEL,
    relative: bool = True,
    each: bool = True,
) -> pd.DataFrame:
    """Mean gains of methods over others, with p-values and intervals; see the module.

    Args:
        table: The long table of one protocol, or its `grid`.
        metric: Which metric, of a long table.
        pairs: (method, versus) pairs; by default those of `default_pairs`.
        reference: The method that all are compared with.
        focus: The method that is compared with all.
        design: Of the splits.
        level: Coverage of each interval on its own.
        relative: Whether the relative gain is wanted, which takes longer; NaN if not.
        each: Whether rows of single transfers are wanted, or of all of them alone.

    Returns:
        For each pair the rows of `mean_gains`, after the columns transfer, method and versus.

    Raises:
        UserError: See `grid`; or a pair names a method without values.
    """
    g = table if isinstance(table, Grid) else grid(table, metric)
    pairs = default_pairs(g.methods, reference, focus) if pairs is None else list(pairs)
    if not pairs:
        return pd.DataFrame()
    rows = several_mean_gains(
        [g.gain(method, versus) for method, versus in pairs],
        g.transfers,
        g.cells,
        [g.of(versus) for _, versus in pairs] if relative else None,
        design=design,
        level=level,
        each=each,
    )
    methods, others = np.repeat(pairs, len(rows) // len(pairs), axis=0).T
    rows.insert(1, "method", methods)
    rows.insert(2, "versus", others)
    return rows


def mean_gains(
    gain: Values,
    transfers: Sequence[str],
    cells: NDArray[np.bool_],
    base: Values | None = None,
    *,
    design: Design = FIXED,
    level: float = LEVEL,
) -> pd.DataFrame:
    """The mean gain in each transfer and over all, with p-values and intervals; see the module.

    The relative gain is the ratio mean gain / mean of the other method. Its interval, over all
    transfers alone, holds the ratios r for which the mean of gain - r * other is not told from 0
    (Fieller 1954), so that it holds 0 exactly where the interval of the gain does.

    Args:
        gain: (transfer, subject, seed), NaN where missing.
        transfers: Names along the first axis.
        cells: Which (subject, seed) cells there are to use, same shape.
        base: What the gain is over, same shape and units; without it, relative gains are NaN.
        design: Of the splits.
        level: Coverage.

    Returns:
        One row for each transfer, and one with transfer = "mean" over all transfers that have
        values (n_transfers), each with the same weight. gain, low, high, standard_error: in the
        units of `gain`, positive = better. p: two-sided. relative, relative_low, relative_high: %.
        n_subjects (distinct), n_seeds, left_out: cells not used. What is of the interval is NaN
        with fewer than two subjects in a transfer, or fewer than `MIN_SEEDS` seeds.
    """
    bases = None if base is None else [base]
    return several_mean_gains([gain], transfers, cells, bases, design=design, level=level)


def several_mean_gains(
    gains: Sequence[Values],
    transfers: Sequence[str],
    cells: NDArray[np.bool_],
    bases: Sequence[Values] | None = None,
    *,
    design: Design = FIXED,
    level: float = LEVEL,
    each: bool = True,
) -> pd.DataFrame:
    """The rows of `mean_gains` for each of several gains, at a fraction of the cost.

    Args:
        gains: Each (transfer, subject, seed), NaN where missing.
        transfers: Names along the first axis.
        cells: Which (subject, seed) cells there are to use, same shape.
        bases: What each gain is over.
        design: Of the splits.
        level: Coverage.
        each: Whether rows of single transfers are wanted, or of all of them alone.
    """
    means: list[_Mean] = []
    rows: list[dict[str, Any]] = []
    for i, gain in enumerate(gains):
        there = np.isfinite(gain)
        base = None if bases is None else np.where(there, bases[i], np.nan)
        with_values = np.flatnonzero(np.any(there, axis=(1, 2)))
        of_one = [with_values[with_values == t] for t in range(len(transfers))]
        among = [*cells.sum(axis=(1, 2)), cells.sum()]
        places = [*zip([*transfers, OVERALL], [*of_one, with_values], among, strict=True)]
        for name, index, number in places if each else places[-1:]:
            used = there[index]
            subjects, seeds = np.any(used, axis=(0, 2)), np.any(used, axis=(0, 1))
            keep = np.ix_(index, subjects, seeds)
            own = None if base is None else base[keep]
            means.append(_Mean.of(gain[keep], own, design, name == OVERALL))
            rows.append(
                {
                    "n_transfers": len(index),
                    "n_subjects": int(subjects.sum()),
                    "n_seeds": int(seeds.sum()),
                    "left_out": int(number - used.sum()),
                }
            )
    names = [*(transfers if each else ()), OVERALL] * len(gains)
    numbers = _with_intervals(means, design, level)
    return pd.DataFrame(
        {"transfer": name} | number | row
        for name, number, row in zip(names, numbers, rows, strict=True)
    )


class _Mean(NamedTuple):
    """A mean gain; every cell of a transfer, and every transfer, weighs the same.

    Attributes:
        gain: (transfer, subject, seed), without what has no values at all.
        base: What the gain is over, likewise.
        mean: Of the gain, NaN without values.
        of_base: Mean of `base`, 0 without it.
        squares: Of the gain; None without an interval.
        is_overall: Whether the relative gain has an interval.
    """

    gain: Values
    base: Values | None
    mean: float
    of_base: float
    squares: MeanSquares | None
    is_overall: bool

    @classmethod
    def of(cls, gain: Values, base: Values | None, design: Design, is_overall: bool) -> _Mean:
        if not gain.size:
            return cls(gain, base, np.nan, 0.0, None, is_overall)
        of_base = 0.0 if base is None else float(mean_over(base, (1, 2)).mean())
        mean = float(mean_over(gain, (1, 2)).mean())
        return cls(gain, base, mean, of_base, mean_squares(gain, design), is_overall)


def _with_intervals(means: Sequence[_Mean], design: Design, level: float) -> list[dict[str, float]]:
    """The numbers `NAMES` of each mean."""
    numbers = [dict.fromkeys(NAMES, np.nan) | {"gain": m.mean} for m in means]
    known = [(m, row) for m, row in zip(means, numbers, strict=True) if m.squares]
    for at, squares in alike([m.squares for m, _ in known if m.squares]):
        halves = generalised.half_width(squares, level)
        p_values = generalised.p_value([known[i][0].mean for i in at], squares)
        errors = np.sqrt(squares.variance)
        for i, half, p, error in zip(at, halves, p_values, errors, strict=True):
            m, row = known[i]
            row |= {"low": m.mean - float(half), "high": m.mean + float(half)}
            row |= {"p": float(p), "standard_error": float(error)}
    for m, row in zip(means, numbers, strict=True):
        if m.of_base:
            row["relative"] = 100 * m.mean / m.of_base
    over = [(m, row) for m, row in known if m.is_overall and m.of_base > 0]
    for side, name in ((-1, "relative_low"), (1, "relative_high")):
        ends = _ratios([m for m, _ in over], side, design, level)
        for (_, row), end in zip(over, ends, strict=True):
            row[name] = 100 * end
    return numbers


def _ratios(means: Sequence[_Mean], side: int, design: Design, level: float) -> Values:
    """The ends of Fieller's intervals on one side; NaN where there is none.

    Each is where r = (mean gain + side * h(r)) / mean base, h(r) the half-width for
    gain - r * base. Where there is none, the other method's mean is not clearly above 0.
    """
    ratios = np.array([m.mean / m.of_base for m in means])
    found = np.full(len(means), np.nan)
    open_ = list(range(len(means)))
    for _ in range(50):
        open_ = [i for i in open_ if abs(ratios[i]) < FARTHEST]
        squares = [_squares_at(means[i], ratios[i], design) for i in open_]
        for at, several in alike(squares):
            places = [open_[k] for k in at]
            middle, of_base = np.array([(means[i].mean, means[i].of_base) for i in places]).T
            ends = (middle + side * generalised.half_width(several, level)) / of_base
            near = np.abs(ends - ratios[places]) <= 1e-7 * (1 + np.abs(ends))
            found[places] = np.where(near, ends, np.nan)
            ratios[places] = ends
        open_ = [i for i in open_ if np.isnan(found[i])]
        if not open_:
            break
    return found


def _squares_at(m: _Mean, ratio: float, design: Design) -> MeanSquares:
    """Mean squares of gain - ratio * base."""
    assert m.base is not None
    squares = mean_squares(m.gain - ratio * m.base, design)
    assert squares is not None
    return squares


def trimmed(values: Values) -> Values:
    """Gains (transfer, subject, seed) without what has no values at all, along each axis."""
    there = np.isfinite(values)
    axes = (1, 2), (0, 2), (0, 1)
    return values[np.ix_(*(np.any(there, axis=axis) for axis in axes))]


def mean_squares(values: Values, design: Design = FIXED) -> MeanSquares | None:
    """A, B and E of the mean over transfers; see the module.

    Args:
        values: (transfer, subject, seed), NaN where missing; no subject and no seed without values.
        design: Of the splits.

    Returns:
        None with fewer than two subjects in a transfer, or fewer than `MIN_SEEDS` seeds.
    """
    there = np.isfinite(values)
    if np.any(there, axis=2).sum(axis=1).min() < 2 or values.shape[2] < MIN_SEEDS:
        return None
    score, block = _scores(values, there), _blocks(there)
    n, m = score.shape
    f_a, f_b = n - int(block.max()) - 1, m - 1  # each block has a mean of its own
    a = (score.sum(axis=1) ** 2).sum() * n / f_a
    b = (score.sum(axis=0) ** 2).sum() * m / f_b
    if design.name == "resampled":
        return MeanSquares(a, b, (score**2).sum(), f_a, f_b, 1 + m * design.ratio)
    # a cell is whole where all transfers that have its subject have it under its seed
    whole = np.all(there | ~np.any(there, axis=2, keepdims=True), axis=0)
    return MeanSquares(a, b, _residual(score, whole, block), f_a, f_b)


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
    in_transfer = np.any(there, axis=2)
    if np.any(np.all(in_transfer, axis=0)):  # a subject that all have: one block, and no search
        return np.zeros(there.shape[1], np.int64)
    from scipy.sparse.csgraph import connected_components

    shared = in_transfer.astype(int) @ in_transfer.T.astype(int)
    _, of_transfer = connected_components(shared, directed=False)
    return np.asarray(of_transfer[in_transfer.argmax(axis=0)])


def _residual(score: Values, whole: NDArray[np.bool_], block: NDArray[np.int64]) -> float:
    """E, from whole cells: what the sum of a subject's and its block's seed's effect leaves.

    Args:
        score: From `_scores`.
        whole: The cells to use, (subject, seed).
        block: From `_blocks`.
    """
    use = whole.sum(axis=1) > 1  # a subject's only cell has no residual
    score, whole, block = score[use], whole[use], block[use]
    of_block = (block[:, None] == np.unique(block)).astype(float)
    count, of_seed = whole.sum(axis=1, keepdims=True), of_block.T @ whole
    freedom = whole.sum() - len(score) - (of_seed > 0).sum() + of_block.shape[1]
    if freedom <= 0:
        return 0.0
    rest = np.where(whole, score, 0.0)
    for _ in range(1 if whole.all() else 50):  # exact at once where nothing is missing
        rest = np.where(whole, rest - rest.sum(axis=1, keepdims=True) / count, 0.0)
        seeds = of_block.T @ rest / np.maximum(of_seed, 1)
        rest = np.where(whole, rest - of_block @ seeds, 0.0)
    return float((rest**2).sum() * whole.sum() / freedom)


def above_zero(low: pd.Series) -> pd.Series:
    """Whether an interval lies above 0; None where there is no interval."""
    return (low > 0).astype(object).where(low.notna(), None)


def over_transfers(gain: Values) -> tuple[float, float]:
    """The 95 % interval of the mean gain where transfers are a sample of transfers.

    Student's t with T - 1 degrees of freedom over the transfers' means, which holds whatever makes
    them differ. NaN with fewer than three transfers.

    Args:
        gain: (transfer, subject, seed), NaN where missing.
    """
    from scipy import stats

    means = mean_over(gain, (1, 2))
    means = means[np.isfinite(means)]
    if len(means) < MIN_SEEDS:
        return np.nan, np.nan
    half = stats.t.ppf((1 + LEVEL) / 2, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    return float(means.mean() - half), float(means.mean() + half)


def seed_spread(table: pd.DataFrame | Grid, metric: str = "dice") -> pd.DataFrame:
    """Standard deviation over seeds (n - 1) of the mean over subjects: what another run changes.

    It is not the spread of subjects and not a standard error. Only subjects that a method has
    under all its seeds count, so that the spread is not one of subjects.

    Args:
        table: The long table of one protocol, or its `grid`.
        metric: Which metric, of a long table.

    Returns:
        One row for each method and transfer, and with transfer = "mean" for the mean over
        transfers (seeds and transfers complete): mean, sd (NaN with one seed; both in the metric's
        units), n_seeds, n_subjects, left_out (subjects not under all seeds).
    """
    g = table if isinstance(table, Grid) else grid(table, metric)
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
