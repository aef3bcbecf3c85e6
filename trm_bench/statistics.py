"""Which differences between methods are more than chance: checks, paired tests, intervals.

Everything here reads one long table with the columns `protocol, transfer, method, seed, subject, class, metric, value`
(and, where known, `data`: "phantom" or "real"). `class` names a scored region. The unit is the test subject: a value
is averaged over classes, then over seeds, and methods are compared within a subject. A gain is positive where the
method is better, whatever the metric. One call treats one protocol.

Nothing is averaged away. `check` names every fault. Duplicated rows, and phantom data beside real data, stop a test;
a subject without a finite value for *every* class of its transfer counts as missing under that seed. Comparisons use
the (subject, seed) cells that both methods have, and `left_out` says how many cells of the transfer they do not use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from trm_bench.errors import UserError, nearest

KEYS = ["protocol", "transfer", "method", "seed", "subject", "class", "metric"]
HIGHER_IS_BETTER = {"dice": True, "surface_dice": True, "hd95": False, "auroc": True, "share": True}
OVERALL = "mean"  # the row over all transfers, each with the same weight, as in the tables' last column

Pairs = Sequence[tuple[str, str]]


# ---------------------------------------------------------------------------------------------------------- integrity


def check(table: pd.DataFrame) -> list[str]:
    """Lists everything that is wrong with a table, one sentence a fault; an empty list means that it is complete.

    Looked for: absent columns, rows without a key, duplicated rows, phantom mixed with real data, values that are not
    finite, and missing values: within a transfer each method should have each subject with each class under each
    seed of the protocol.
    """
    absent = [column for column in [*KEYS, "value"] if column not in table]
    if absent:
        return [f"the table has no column {', '.join(absent)}"]
    problems = _blocking(table)
    bad = table[~np.isfinite(table["value"].to_numpy(float))]
    if len(bad):
        problems.append(f"{_count(len(bad), 'value')} not finite, for instance {_row(bad)}")
    for protocol, rows in table.dropna(subset=KEYS).groupby("protocol"):
        methods, seeds = sorted(rows["method"].unique()), sorted(rows["seed"].unique())
        for transfer, part in rows.groupby("transfer"):
            subjects = sorted(part["subject"].unique())
            for metric in sorted(rows["metric"].unique()):
                cells = part[part["metric"] == metric]
                classes = sorted(cells["class"].unique())
                given = np.zeros((len(methods), len(seeds), len(subjects), len(classes)), bool)
                axes = (("method", methods), ("seed", seeds), ("subject", subjects), ("class", classes))
                given[tuple(pd.Index(names).get_indexer(cells[key]) for key, names in axes)] = True
                problems += [
                    f"{protocol}, {transfer}, {metric}: {method} lacks {_missing(~has, seeds, subjects, classes)}"
                    for method, has in zip(methods, given, strict=True)
                    if not has.all() or not classes
                ]
    return problems


def _blocking(table: pd.DataFrame) -> list[str]:
    """The faults that no test can be run on."""
    problems = []
    unnamed = table[table[KEYS].isna().any(axis=1)]
    if len(unnamed):
        problems.append(
            f"{_count(len(unnamed), 'row')} without {' or '.join(k for k in KEYS if unnamed[k].isna().any())}"
        )
    twice = table[table.duplicated(KEYS)]
    if len(twice):
        problems.append(f"{_count(len(twice), 'row')} given more than once, for instance {_row(twice)}")
    if "data" in table:
        kinds = sorted(table["data"].astype(object).where(table["data"].notna(), "not stated").astype(str).unique())
        if len(kinds) > 1:
            problems.append(f"data of different kinds in one table: {', '.join(kinds)}")
    return problems


def _count(number: int, noun: str) -> str:
    return f"{number} {noun} is" if number == 1 else f"{number} {noun}s are"


def _row(rows: pd.DataFrame) -> str:
    return ", ".join(f"{key} {rows.iloc[0][key]}" for key in KEYS)


def _missing(lacks: NDArray[np.bool_], seeds: list[Any], subjects: list[Any], classes: list[Any]) -> str:
    """Says which values of one method are missing (an array over seeds, subjects, classes): whole seeds first."""
    if lacks.all():
        return "every value"
    no_seed, no_subject = np.all(lacks, axis=(1, 2)), np.all(lacks, axis=(0, 2))
    rest = lacks & ~no_seed[:, None, None] & ~no_subject[None, :, None]
    parts = [f"seed {seeds[i]}" for i in np.flatnonzero(no_seed)]
    parts += [f"subject {subjects[i]}" for i in np.flatnonzero(no_subject)[:5]]
    parts += [f"{no_subject.sum() - 5} more subjects"] if no_subject.sum() > 5 else []
    if rest.any():
        i, j, k = np.argwhere(rest)[0]
        parts.append(f"{rest.sum()} single values, for instance seed {seeds[i]}, subject {subjects[j]}, {classes[k]}")
    return f"{lacks.sum()} of {lacks.size} values: {'; '.join(parts)}"


class Grid(NamedTuple):
    """One metric of one protocol as an array, sorted by name, so that the order of a table's rows cannot matter.

    values: (method, transfer, subject, seed), mean over classes, NaN where missing.
    cells: (transfer, subject, seed), true where any method has any row.
    """

    metric: str
    methods: list[str]
    transfers: list[str]
    subjects: list[str]
    seeds: list[Any]
    values: NDArray[np.float64]
    cells: NDArray[np.bool_]

    def of(self, method: str) -> NDArray[np.float64]:
        """Values of a method, (transfer, subject, seed).

        Raises:
            UserError: The table has no such method.
        """
        if method not in self.methods:
            raise UserError(f"no values of method '{method}' in the table", fix=nearest(method, self.methods))
        return self.values[self.methods.index(method)]

    def gain(self, method: str, versus: str) -> NDArray[np.float64]:
        """How much better `method` is than `versus`, (transfer, subject, seed), NaN where either is missing."""
        return (self.of(method) - self.of(versus)) * (1 if HIGHER_IS_BETTER[self.metric] else -1)


def grid(table: pd.DataFrame, metric: str = "dice") -> Grid:
    """Arranges one metric of a table for the tests.

    Raises:
        UserError: A column is absent, the metric is unknown or has no rows, several protocols are in the table, a row
            is duplicated or unnamed, or phantom data lies beside real data.
    """
    absent = [column for column in [*KEYS, "value"] if column not in table]
    if absent:
        raise UserError(f"the table has no column {', '.join(absent)}")
    if metric not in HIGHER_IS_BETTER:
        raise UserError(f"unknown metric '{metric}'", fix=nearest(metric, list(HIGHER_IS_BETTER)))
    rows = table[table["metric"] == metric]
    if rows.empty:
        raise UserError(
            f"the table has no values of metric '{metric}'", fix=f"it has {sorted(table['metric'].unique())}"
        )
    faults = _blocking(table)
    if faults:
        raise UserError("; ".join(faults), fix="no test is run on such a table; mend the records first")
    if rows["protocol"].nunique() > 1:
        raise UserError(
            f"several protocols in one test: {sorted(rows['protocol'].unique())}", fix="test them one by one"
        )
    if OVERALL in set(rows["transfer"]):
        raise UserError(f"a transfer is named '{OVERALL}', as is the row over all transfers", fix="rename the transfer")

    axes = ["method", "transfer", "subject", "seed", "class"]
    codes, names = zip(*(pd.factorize(rows[axis], sort=True) for axis in axes), strict=True)
    full = np.full([len(n) for n in names], np.nan)
    full[codes] = rows["value"].to_numpy(float)
    full[~np.isfinite(full)] = np.nan
    given = np.zeros(full.shape, bool)
    given[codes] = True
    used = np.any(given, axis=(0, 2, 3))  # which classes a transfer has
    total = np.where(used[None, :, None, None, :], full, 0.0).sum(axis=-1)
    methods, transfers, subjects, seeds, _ = (list(n) for n in names)
    values = total / used.sum(axis=-1)[None, :, None, None]
    return Grid(metric, methods, transfers, subjects, seeds, values, np.any(given, axis=(0, 4)))


def default_pairs(methods: Iterable[str], reference: str = "finetune", focus: str = "trm") -> list[tuple[str, str]]:
    """The family of comparisons: each method against `reference`, and `focus` against each."""
    methods = sorted(methods)
    pairs = [(method, reference) for method in methods if method != reference and reference in methods]
    return pairs + [(focus, m) for m in methods if m not in (focus, reference) and focus in methods]


def subject_values(table: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """One value for each transfer, method and subject: mean over classes, then over the seeds that are there.

    Returns:
        Columns transfer, method, subject, value, n_seeds (over how many seeds the mean goes).
    """
    g = grid(table, metric)
    n_seeds = np.isfinite(g.values).sum(axis=-1)
    at = np.argwhere(n_seeds.transpose(1, 0, 2) > 0)  # transfer, method, subject
    here = (at[:, 1], at[:, 0], at[:, 2])
    columns = {
        "transfer": np.array(g.transfers, object)[at[:, 0]],
        "method": np.array(g.methods, object)[at[:, 1]],
        "subject": np.array(g.subjects, object)[at[:, 2]],
        "value": np.nansum(g.values, axis=-1)[here] / n_seeds[here],
        "n_seeds": n_seeds[here],
    }
    return pd.DataFrame(columns)


# --------------------------------------------------------------------------------------------------------------- tests


class SignedRank(NamedTuple):
    """What `signed_rank` finds. `method` is how p was computed: exact, permutation, asymptotic, or "all zero"."""

    n: int
    zeros: int
    p: float
    rank_biserial: float
    superiority: float
    method: str


def signed_rank(differences: ArrayLike) -> SignedRank:
    """Two-sided Wilcoxon signed-rank test of paired differences, with two effect sizes.

    Zeros are ranked with the rest and then dropped from both sums (Pratt 1959, doi:10.1080/01621459.1959.10501526),
    so that many unchanged subjects weaken the evidence; where all differences are zero, p = 1. The p-value is exact
    for up to 50 subjects without zeros and ties, from all 2^n changes of sign for up to 13 subjects with them, and
    from the normal approximation, corrected for ties, otherwise.

    Effect sizes, with R+ and R- the sums of the ranks of positive and of negative differences:

        matched-pairs rank-biserial r = (R+ - R-) / (n (n + 1) / 2)     (Kerby 2014, doi:10.2466/11.IT.3.1)
        probability of superiority    = (number > 0 + 0.5 * number = 0) / n

    Args:
        differences: One a subject, in the metric's units, positive = better. Differences below 1e-12 are taken as
            rounding errors of equal values.

    Raises:
        ValueError: A difference is not finite.
    """
    from scipy import stats

    d = np.round(np.asarray(differences, float), 12)
    if not np.isfinite(d).all():
        raise ValueError("differences must be finite")
    n, zeros = len(d), int((d == 0).sum())
    if n == 0:
        return SignedRank(0, 0, np.nan, np.nan, np.nan, "no subjects")
    superiority = ((d > 0).sum() + 0.5 * zeros) / n
    if zeros == n:
        return SignedRank(n, zeros, 1.0, 0.0, superiority, "all zero")
    ranks = stats.rankdata(np.abs(d))
    rank_biserial = (ranks[d > 0].sum() - ranks[d < 0].sum()) / (n * (n + 1) / 2)
    tied = zeros > 0 or len(np.unique(np.abs(d))) < n
    if tied and n <= 13:
        # scipy's wilcoxon has this test as well, in a Python loop that takes two seconds for 13 subjects
        how = "permutation"
        every = {"permutation_type": "samples", "vectorized": True, "n_resamples": 2**13}
        p = stats.permutation_test((d,), lambda x, axis: (np.sign(x) * ranks).sum(axis=axis), **every).pvalue
    else:
        how = "asymptotic" if tied or n > 50 else "exact"
        p = stats.wilcoxon(d, zero_method="pratt", correction=False, alternative="two-sided", method=how).pvalue
    return SignedRank(n, zeros, min(float(p), 1.0), float(rank_biserial), float(superiority), how)


def compare(
    table: pd.DataFrame,
    metric: str = "dice",
    pairs: Pairs | None = None,
    reference: str = "finetune",
    focus: str = "trm",
) -> pd.DataFrame:
    """Tests each pair of methods within each transfer; Holm's correction goes over all rows returned.

    Args:
        table: The long table of one protocol.
        metric: Which metric.
        pairs: (method, versus) pairs; by default each method against `reference`, and `focus` against each.
        reference: The method that all are compared with.
        focus: The method that is compared with all.

    Returns:
        One row for each transfer and pair: n_subjects, n_seeds; mean_gain and median_gain over subjects (metric's
        units, positive = `method` is better); relative_gain (%, mean gain over the mean of `versus`); p (Wilcoxon, see
        `signed_rank`), p_holm (Holm 1979, family-wise over the rows here), test (how p was computed), rank_biserial,
        superiority, zeros (subjects without any difference), left_out ((subject, seed) cells not used).

    Raises:
        UserError: See `grid`; or a pair names a method without values; or there is nothing to compare.
    """
    from statsmodels.stats.multitest import multipletests

    g = grid(table, metric)
    pairs = default_pairs(g.methods, reference, focus) if pairs is None else list(pairs)
    if not pairs:
        raise UserError(f"nothing to compare: no '{reference}' and no '{focus}' beside another method in the table")
    rows = []
    for t, transfer in enumerate(g.transfers):
        for method, versus in pairs:
            gain, base = g.gain(method, versus)[t], g.of(versus)[t]
            both = np.isfinite(gain)
            seeds = both.sum(axis=1)
            per_subject = np.where(both, gain, 0).sum(axis=1)[seeds > 0] / seeds[seeds > 0]
            of_versus = np.where(both, base, 0).sum(axis=1)[seeds > 0] / seeds[seeds > 0]
            test = signed_rank(per_subject)
            mean, level = (per_subject.mean(), of_versus.mean()) if test.n else (np.nan, np.nan)
            rows.append(
                {
                    "transfer": transfer,
                    "method": method,
                    "versus": versus,
                    "n_subjects": test.n,
                    "n_seeds": int(np.any(both, axis=0).sum()),
                    "mean_gain": mean,
                    "median_gain": np.median(per_subject) if test.n else np.nan,
                    "relative_gain": 100 * mean / level if level else np.nan,
                    "p": test.p,
                    "p_holm": np.nan,
                    "test": test.method,
                    "rank_biserial": test.rank_biserial,
                    "superiority": test.superiority,
                    "zeros": test.zeros,
                    "left_out": int(g.cells[t].sum() - both.sum()),
                }
            )
    out = pd.DataFrame(rows)
    tested = out["p"].notna().to_numpy()
    if tested.any():
        out.loc[tested, "p_holm"] = multipletests(out.loc[tested, "p"].to_numpy(), method="holm")[1]
    return out


# ----------------------------------------------------------------------------------------------------------- intervals


def bootstrap_gain(
    table: pd.DataFrame,
    metric: str = "dice",
    pairs: Pairs | None = None,
    reference: str = "finetune",
    focus: str = "trm",
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    relative: bool = True,
) -> pd.DataFrame:
    """Confidence intervals of mean gains by a bootstrap that resamples subjects and seeds.

    Every subject is tested under every seed, and a subject (by its id) and a seed come back in several transfers, so
    both are resampled crossed, each with all that belongs to it, over all transfers at once: Owen's pigeonhole
    bootstrap (2007, doi:10.1214/07-AOAS122). Its percentiles alone cover far too little with three seeds (75-85 %
    where seeds matter) and too much where only residual noise does. So the percentiles give the interval's shape and
    its width is set as follows (the "expanded percentile interval" of Hesterberg 2015,
    doi:10.1080/00031305.2015.1089789, here with two crossed factors). With A, B and E the mean squares of subjects,
    seeds and residual of the mean over transfers, divided by the number of (subject, seed) cells,

        V = A + max(B - E, 0)                                   variance of the mean gain, two-way random effects
        S = t(f) sqrt(V),  f = V^2 / (A^2/fA + B^2/fB + E^2/fE)       Satterthwaite 1946, doi:10.2307/3002019; f >= 1
        C = sqrt(t(fA)^2 A + t(fB)^2 max(B - E, 0))              conservative: Banerjee 1960, Sankhya 22:357
        half-width = max(S, (S + C) / 2)

    and S = t(fA) sqrt(A) where B <= E. S alone covers 92 % where the seeds carry most of the variance, C alone
    91-98 %; the half-width above covers 92.7-97 % for 20 subjects and more with 3 to 5 seeds, whatever the shares of
    the variances (tests/test_statistics.py). With two seeds it is 87-98 %; with one seed the interval holds for that
    seed alone. Transfers are taken as given, not as a sample of transfers.

    The relative gain is the ratio mean gain / mean of `versus`; its interval is that of the ratio's linear
    approximation, so that the uncertainty of the denominator is in it.

    Args:
        table: The long table of one protocol.
        metric: Which metric.
        pairs: (method, versus) pairs; by default each method against `reference`, and `focus` against each.
        reference: The method that all are compared with.
        focus: The method that is compared with all.
        level: Coverage of each interval on its own (no correction for their number).
        resamples: Bootstrap replicates.
        seed: Of the random generator.
        relative: Whether the relative gain is wanted, which takes as long again; NaN if not.

    Returns:
        One row for each pair and transfer, and one with transfer = "mean" over all transfers in which the pair has
        values (n_transfers), each with the same weight. gain, low, high, standard_error: the metric's units, positive =
        better. relative, relative_low, relative_high: %. n_subjects (distinct), n_seeds, left_out: (subject, seed)
        cells not used. Low and high are NaN with fewer than two subjects in a transfer.

    Raises:
        UserError: See `grid`; or a pair names a method without values.
    """
    g = grid(table, metric)
    pairs = default_pairs(g.methods, reference, focus) if pairs is None else list(pairs)
    draws = _Draws(resamples, seed)
    rows = []
    for method, versus in pairs:
        gain, base = g.gain(method, versus), g.of(versus)
        base = np.where(np.isfinite(gain), base, np.nan)
        with_values = [t for t in range(len(g.transfers)) if np.isfinite(gain[t]).any()]
        parts = [(name, [t] if t in with_values else []) for t, name in enumerate(g.transfers)]
        for name, index in [*parts, (OVERALL, with_values)]:
            used = np.isfinite(gain[index])
            among = g.cells if name == OVERALL else g.cells[[g.transfers.index(name)]]
            keep = np.ix_(range(len(index)), np.any(used, axis=(0, 2)), np.any(used, axis=(0, 1)))
            rows.append(
                {
                    "transfer": name,
                    "method": method,
                    "versus": versus,
                    **_gain_row(gain[index][keep], base[index][keep] if relative else None, draws, level),
                    "n_transfers": len(index),
                    "n_subjects": int(np.any(used, axis=(0, 2)).sum()),
                    "n_seeds": int(np.any(used, axis=(0, 1)).sum()),
                    "left_out": int(among.sum() - used.sum()),
                }
            )
    return pd.DataFrame(rows)


class _Draws:
    """How often each subject and each seed is drawn, shared by all pairs; depends on the numbers of both alone."""

    def __init__(self, resamples: int, seed: int) -> None:
        self.resamples, self.seed, self.known = resamples, seed, {}  # type: ignore[var-annotated]

    def __call__(self, n: int, m: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if (n, m) not in self.known:
            rng = np.random.default_rng([self.seed, n, m])
            self.known[n, m] = tuple(
                rng.multinomial(k, np.full(k, 1 / k), self.resamples).astype(float) for k in (n, m)
            )
        return self.known[n, m]


def _gain_row(
    gain: NDArray[np.float64], base: NDArray[np.float64] | None, draws: _Draws, level: float
) -> dict[str, float]:
    names = ["gain", "low", "high", "standard_error", "relative", "relative_low", "relative_high"]
    if not gain.size:
        return dict.fromkeys(names, np.nan)
    mean = float(np.nanmean(gain, axis=(1, 2)).mean())
    of_versus = 0.0 if base is None else float(np.nanmean(base, axis=(1, 2)).mean())
    below, above, error = _interval(gain, draws, level)
    ratio = rel_below = rel_above = np.nan
    if base is not None and of_versus:
        ratio = 100 * mean / of_versus
        rel_below, rel_above, _ = _interval((100 * gain - ratio * base) / of_versus, draws, level)
    row = [mean, mean + below, mean + above, error, ratio, ratio + rel_below, ratio + rel_above]
    return dict(zip(names, row, strict=True))


def _interval(values: NDArray[np.float64], draws: _Draws, level: float) -> tuple[float, float, float]:
    """Lower and upper end, relative to the mean over transfers, and the standard error; see `bootstrap_gain`.

    Args:
        values: (transfer, subject, seed), NaN where missing.
        draws: The bootstrap's draws.
        level: Coverage.
    """
    from scipy import special
    from scipy.sparse.csgraph import connected_components

    there = np.isfinite(values)
    count = there.sum(axis=(1, 2), keepdims=True)
    centred = np.where(there, values, 0.0)
    centred = np.where(there, values - centred.sum(axis=(1, 2), keepdims=True) / count, 0.0)
    score = (centred / (count * len(values))).sum(axis=0)  # (subject, seed): what each cell adds to the mean's error

    # Transfers that share a subject form a block; subjects of different blocks differ in their means by the transfer.
    in_transfer = np.any(there, axis=2)
    shared = in_transfer.astype(int) @ in_transfer.T.astype(int)
    blocks, of_transfer = (1, np.zeros(1, int)) if len(shared) == 1 else connected_components(shared, directed=False)
    block = of_transfer[in_transfer.argmax(axis=0)]
    n, m = score.shape
    f_a, f_b = n - blocks, m - 1
    if in_transfer.sum(axis=1).min() < 2:
        return np.nan, np.nan, np.nan
    rows, columns = score.sum(axis=1), score.sum(axis=0)
    a = (rows**2).sum() * n / f_a
    upper = (1 + level) / 2
    t = special.stdtrit([f_a, max(f_b, 1)], upper)
    variance, half = a, t[0] * np.sqrt(a)
    if f_b:
        one_hot = (block[:, None] == np.arange(blocks)).astype(float)
        by_block = one_hot.T @ score / one_hot.sum(axis=0)[:, None]
        b = (columns**2).sum() * m / f_b
        e = ((score - rows[:, None] / m - by_block[block]) ** 2).sum() * n * m / (f_a * f_b)
        if b > e:
            variance = a + b - e
            f = variance**2 / (a**2 / f_a + b**2 / f_b + e**2 / (f_a * f_b))
            satterthwaite = special.stdtrit(max(f, 1), upper) * np.sqrt(variance)
            conservative = np.sqrt(t[0] ** 2 * a + t[1] ** 2 * (b - e))
            half = max(satterthwaite, (satterthwaite + conservative) / 2)

    of_subjects, of_seeds = draws(n, m)
    replicates = ((of_subjects @ score) * of_seeds).sum(axis=1)
    spread = replicates.std()
    if spread == 0:
        return 0.0, 0.0, 0.0
    low, high = np.quantile(replicates, [1 - upper, upper])
    scale = half / (special.ndtri(upper) * spread)
    return float(low * scale), float(high * scale), float(np.sqrt(variance))


# ------------------------------------------------------------------------------------------------------- over transfers


class Friedman(NamedTuple):
    """Friedman's test with Nemenyi's post-hoc test; rank 1 is the best method."""

    statistic: float
    p: float
    ranks: pd.Series
    nemenyi: pd.DataFrame
    critical_difference: float
    n_transfers: int


def friedman(table: pd.DataFrame, metric: str = "dice", alpha: float = 0.05) -> tuple[Friedman | None, str]:
    """Do methods differ in rank over transfers? Friedman's test, then Nemenyi's for each pair.

    Each transfer gives each method one value, its mean over the subjects and seeds that all methods have there. Methods
    whose mean ranks lie closer than the critical difference are not told apart (Demsar, JMLR 7:1-30, 2006):

        CD = q(1 - alpha; k, inf) / sqrt(2) * sqrt(k (k + 1) / (6 N))       k methods, N transfers, q studentized range

    Transfers that share subjects are not independent, which the test takes them to be: read it as a description.

    Returns:
        The result, or None where the test cannot be run, and a note: why not, or what was left out ("" if nothing).

    Raises:
        UserError: See `grid`.
    """
    import scikit_posthocs
    from scipy import stats

    g = grid(table, metric)
    common = np.all(np.isfinite(g.values), axis=0)  # (transfer, subject, seed)
    use = np.any(common, axis=(1, 2))
    notes = []
    if not use.all():
        names = ", ".join(name for name, used in zip(g.transfers, use, strict=True) if not used)
        notes.append(f"transfers left out, since no subject and seed has all methods: {names}")
    left_out = int(g.cells[use].sum() - common.sum())
    if left_out:
        notes.append(f"{left_out} (subject, seed) cells left out, since not all methods have them")
    if len(g.methods) < 3 or use.sum() < 2:
        notes.insert(0, f"needs 3 methods and 2 transfers, has {len(g.methods)} and {use.sum()}")
        return None, "; ".join(notes)
    means = np.stack([g.values[:, t][:, common[t]].mean(axis=1) for t in np.flatnonzero(use)])  # (transfer, method)
    means = np.round(means, 12) * (-1 if HIGHER_IS_BETTER[metric] else 1)
    ranks = stats.rankdata(means, axis=1).mean(axis=0)
    if np.ptp(means, axis=1).any():
        statistic, p = stats.friedmanchisquare(*means.T)
    else:
        statistic, p = 0.0, 1.0
    count, k = means.shape
    pairwise = scikit_posthocs.posthoc_nemenyi_friedman(means)
    pairwise.index = pairwise.columns = pd.Index(g.methods)
    q = stats.studentized_range.ppf(1 - alpha, k, np.inf)
    distance = float(q / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * count)))
    order = pd.Series(ranks, g.methods, name="mean_rank").sort_values(kind="stable")
    return Friedman(float(statistic), float(p), order, pairwise, distance, count), "; ".join(notes)


def mixed_model(
    table: pd.DataFrame, metric: str = "dice", reference: str = "finetune", methods: Sequence[str] | None = None
) -> pd.DataFrame:
    """A sensitivity check that takes the transfers as a sample of transfers: linear mixed models by REML.

    One model for each method, so that each has its own variance over transfers: the gain over `reference` (mean over
    classes and seeds) is a constant plus crossed random effects of transfer and of subject plus noise. The test of the
    constant is Wald's, from the normal distribution, hence too bold with few transfers. Where no subject is in two
    transfers, its effect cannot be told from noise and is left out of the model.

    Returns:
        One row a method: gain, standard_error, low, high (95 %, the metric's units), p, sd_transfer, sd_subject,
        sd_residual, n_transfers, n_values, converged, and note: every warning of the fit, or why there is none.
        Where the fit did not converge, `gain` is the plain mean and the rest is NaN.

    Raises:
        UserError: See `grid`; or a method has no values.
    """
    import warnings

    import statsmodels.formula.api as smf
    from threadpoolctl import threadpool_limits

    g = grid(table, metric)
    methods = [m for m in g.methods if m != reference] if methods is None else list(methods)
    rows: list[dict[str, Any]] = []
    for method in methods:
        gain = g.gain(method, reference)
        seeds = np.isfinite(gain).sum(axis=-1)
        t, s = np.nonzero(seeds)
        y = np.nansum(gain, axis=-1)[t, s] / seeds[t, s]
        row: dict[str, Any] = {"method": method, "versus": reference, "gain": y.mean() if len(y) else np.nan}
        row |= dict.fromkeys(["standard_error", "low", "high", "p", "sd_transfer", "sd_subject", "sd_residual"], np.nan)
        row |= {"n_transfers": len(np.unique(t)), "n_values": len(y), "converged": False, "note": ""}
        rows.append(row)
        scale = y.std() if len(y) else 0.0
        if row["n_transfers"] < 2:
            row["note"] = "needs 2 transfers"
            continue
        if scale < 1e-12:
            row["note"] = "all gains are equal"
            continue
        data = pd.DataFrame({"y": y / scale, "transfer": t, "subject": s, "all": 1})
        parts = {"transfer": "0 + C(transfer)"}
        if len(np.unique(s)) < len(s):
            parts["subject"] = "0 + C(subject)"
        # threads cost more than they bring: the matrices are many and small
        with threadpool_limits(1), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                fit = smf.mixedlm("y ~ 1", data, groups="all", vc_formula=parts).fit(reml=True, method=["powell", "nm"])
            except (np.linalg.LinAlgError, ValueError) as error:
                row["note"] = f"not fitted: {error}"
                continue
        notes = dict.fromkeys(str(w.message) for w in said)
        row["converged"] = bool(fit.converged)
        row["note"] = "; ".join(notes) or ("" if fit.converged else "not converged")
        if not fit.converged:
            continue
        spreads = dict(zip(fit.model.exog_vc.names, np.sqrt(fit.vcomp) * scale, strict=True))
        row["gain"], row["standard_error"] = fit.fe_params["Intercept"] * scale, fit.bse_fe["Intercept"] * scale
        row["low"], row["high"] = fit.conf_int().loc["Intercept"] * scale
        row["p"] = fit.pvalues["Intercept"]
        row["sd_transfer"], row["sd_subject"] = spreads["transfer"], spreads.get("subject", np.nan)
        row["sd_residual"] = np.sqrt(fit.scale) * scale
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------ size and spread


def smallest_detectable_gain(differences: ArrayLike, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest mean gain that a two-sided Wilcoxon test with these subjects would find, in the differences' units.

    The paired t-test's power (statsmodels TTestPower) with the differences' standard deviation, for n * 3/pi subjects
    in place of n: 3/pi is the asymptotic relative efficiency of the signed-rank test for normal differences (Hodges
    and Lehmann 1956, doi:10.1214/aoms/1177728261). For a family of k tests give alpha / k.

    Args:
        differences: One a subject.
        power: Probability of finding it.
        alpha: Two-sided level.

    Returns:
        The gain; NaN for fewer than 3 subjects, 0 where the differences do not vary.
    """
    from statsmodels.stats.power import TTestPower

    d = np.asarray(differences, float)
    if len(d) < 3:
        return float("nan")
    effect = TTestPower().solve_power(nobs=len(d) * 3 / np.pi, alpha=alpha, power=power, alternative="two-sided")
    return float(np.squeeze(effect) * d.std(ddof=1))


def seed_spread(table: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """Standard deviation over seeds (n - 1) of the mean over subjects: what another run of the training changes.

    It is not the spread of subjects and not a standard error. Only subjects that a method has under all its seeds
    count, so that the spread is not one of subjects.

    Returns:
        One row for each method and transfer, and with transfer = "mean" for the mean over transfers (seeds and
        transfers complete): mean, sd (NaN with one seed), n_seeds, n_subjects, left_out (subjects not under all seeds).
    """
    g = grid(table, metric)
    rows: list[dict[str, Any]] = []
    for method in g.methods:
        there = np.isfinite(g.of(method))
        seeds = np.any(there, axis=1)  # (transfer, seed)
        whole = np.all(there | ~seeds[:, None], axis=2) & np.any(there, axis=2)  # (transfer, subject)
        means = np.full(seeds.shape, np.nan)
        for t, transfer in enumerate(g.transfers):
            if whole[t].any():
                means[t, seeds[t]] = g.of(method)[t][whole[t]][:, seeds[t]].mean(axis=0)
            left_out = int((np.any(there[t], axis=1) & ~whole[t]).sum())
            rows.append(_spread(transfer, method, means[t], int(whole[t].sum()), left_out))
        left_out = int((np.any(there, axis=(0, 2)) & ~np.any(whole, axis=0)).sum())
        rows.append(_spread(OVERALL, method, means.mean(axis=0), int(np.any(whole, axis=0).sum()), left_out))
    return pd.DataFrame(rows)


def _spread(transfer: str, method: str, means: NDArray[np.float64], n_subjects: int, left_out: int) -> dict[str, Any]:
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
