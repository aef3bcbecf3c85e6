"""Every comparison of methods in one table; the signed-rank test of trained networks; ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from trm_bench.analysis import family
from trm_bench.analysis.intervals import FIXED, Design, gains
from trm_bench.analysis.table import (
    HIGHER_IS_BETTER,
    OVERALL,
    Grid,
    Pairs,
    default_pairs,
    grid,
    mean_over,
)
from trm_bench.errors import UserError
from trm_bench.protocol.schema import Claim

MIN_TRANSFERS = 5  # of Friedman's test


class SignedRank(NamedTuple):
    """The result of `signed_rank`.

    Attributes:
        n: Number of subjects.
        zeros: How many of them do not differ.
        p: Two-sided.
        rank_biserial: -1 to 1.
        superiority: 0 to 1.
        method: How p was computed: exact, permutation, asymptotic, or "all zero".
    """

    n: int
    zeros: int
    p: float
    rank_biserial: float
    superiority: float
    method: str


def signed_rank(differences: ArrayLike) -> SignedRank:
    """Two-sided Wilcoxon signed-rank test of paired differences, with two effect sizes.

    Over subjects, it asks whether these trained networks differ, not whether the methods do: with
    other seeds the networks are others.

    Zeros are ranked with the rest and then dropped from both sums (Pratt 1959,
    doi:10.1080/01621459.1959.10501526), so that many unchanged subjects weaken the evidence; where
    all differences are zero, p = 1. The p-value is exact for up to 50 subjects without zeros and
    ties, from all 2^n changes of sign for up to 13 subjects with them, and from the normal
    approximation, corrected for ties, otherwise.

    Effect sizes, with R+ and R- the sums of the ranks of positive and of negative differences among
    those that are not zero:

        matched-pairs rank-biserial r = (R+ - R-) / (R+ + R-)
                                                        Kerby 2014, doi:10.2466/11.IT.3.1
        probability of superiority    = (number > 0 + 0.5 * number = 0) / n

    Args:
        differences: One a subject, in the metric's units, positive = better. Differences below
            1e-10 are taken as rounding errors of equal values.

    Raises:
        ValueError: A difference is not finite.
    """
    return signed_ranks([differences])[0]


def signed_ranks(several: Sequence[ArrayLike]) -> list[SignedRank]:
    """`signed_rank` of each of several, with one call for all that are as long and tested alike.

    Args:
        several: Differences, each as for `signed_rank`.

    Raises:
        ValueError: A difference is not finite.
    """
    rounded = [np.round(np.asarray(d, float), 10) for d in several]
    if not all(np.isfinite(d).all() for d in rounded):
        raise ValueError("differences must be finite")
    results = [SignedRank(0, 0, np.nan, np.nan, np.nan, "no subjects")] * len(rounded)
    alike: dict[tuple[int, str], list[int]] = {}
    for i, d in enumerate(rounded):
        if len(d):
            alike.setdefault((len(d), _how(d)), []).append(i)
    for (_, how), at in alike.items():
        for i, result in zip(at, _of_alike(np.stack([rounded[i] for i in at]), how), strict=True):
            results[i] = result
    return results


def _how(d: NDArray[np.float64]) -> str:
    """How the p-value of differences is computed."""
    n, zeros = len(d), int((d == 0).sum())
    if zeros == n:
        return "all zero"
    tied = zeros > 0 or len(np.unique(np.abs(d))) < n
    if tied and n <= 13:
        return "permutation"
    return "asymptotic" if tied or n > 50 else "exact"


def _of_alike(d: NDArray[np.float64], how: str) -> list[SignedRank]:
    """The tests of differences (test, subject), all of them computed in one way."""
    from scipy import stats

    n, zeros = d.shape[1], (d == 0).sum(axis=1)
    superiority = ((d > 0).sum(axis=1) + 0.5 * zeros) / n
    if how == "all zero":
        return [SignedRank(n, n, 1.0, 0.0, float(share), how) for share in superiority]
    ranks = stats.rankdata(np.abs(d), axis=1)
    # among those that changed, which have the highest ranks
    of_changed, changed = np.sign(d) * (ranks - zeros[:, None]), n - zeros
    rank_biserial = of_changed.sum(axis=1) / (changed * (changed + 1) / 2)
    if how == "permutation":
        p = [_p_of_all_signs(*one) for one in zip(d, ranks, strict=True)]
    else:
        p = stats.wilcoxon(d, zero_method="pratt", correction=False, method=how, axis=1).pvalue
    return [
        SignedRank(n, int(zero), min(float(own), 1.0), float(r), float(share), how)
        for zero, own, r, share in zip(zeros, p, rank_biserial, superiority, strict=True)
    ]


def _p_of_all_signs(d: NDArray[np.float64], ranks: NDArray[np.float64]) -> float:
    """Two-sided p from every change of sign.

    scipy's wilcoxon has this test as well, in a Python loop that takes two seconds for 13 subjects.
    """
    from scipy import stats

    def statistic(x: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        total: NDArray[np.float64] = (np.sign(x) * ranks).sum(axis=axis)
        return total

    return float(
        stats.permutation_test(
            (d,), statistic, permutation_type="samples", vectorized=True, n_resamples=2**13
        ).pvalue
    )


def compare(
    table: pd.DataFrame | Grid,
    metric: str = "dice",
    reference: str = "finetune",
    focus: str = "trm",
    *,
    claim: Claim | None = None,
    design: Design = FIXED,
) -> pd.DataFrame:
    """Compares methods within each transfer and over all, with everything that is said of them.

    The pairs are those of `default_pairs` and of the family; see `family.pairs_of`. Only the rows
    of the family's pairs over all transfers are corrected for their number and marked; all others
    are exploratory, each on its own.

    Args:
        table: The long table of one protocol, or its `grid`.
        metric: Which metric, of a long table.
        reference: The method that all are compared with.
        focus: The method that is compared with all.
        claim: Of the protocol; declares the family.
        design: Of the splits.

    Returns:
        One row for each pair and transfer, and transfer "mean": role (`family` or `exploratory`);
        what `intervals.mean_gains` gives (of methods, over subjects and seeds); what `family.judge`
        gives, in rows of the family; and `signed_rank`'s test of the networks that were trained,
        over subjects (means over seeds), in the rows of a transfer: networks_p, networks_p_holm
        (Holm over all of them), networks_test, median_gain, rank_biserial, superiority, zeros.

    Raises:
        UserError: See `grid`; or there is nothing to compare.
    """
    g = table if isinstance(table, Grid) else grid(table, metric)
    of_family = family.pairs_of(claim, g.methods, reference, focus)
    pairs = list(dict.fromkeys([*default_pairs(g.methods, reference, focus), *of_family]))
    if not pairs:
        raise UserError(
            f"nothing to compare: no '{reference}' and no '{focus}' beside another method in the "
            "table"
        )
    rows = gains(g, metric, pairs, design=design)
    judged = family.judge(g, metric, of_family, design=design)[family.COLUMNS]
    judged = judged.assign(transfer=OVERALL, role="family")
    rows = rows.merge(judged, how="left", on=["transfer", "method", "versus"])
    rows["role"] = rows["role"].fillna("exploratory")
    rows["mark"] = rows["mark"].fillna("")
    networks = _networks(g, pairs)
    tested = networks["networks_p"].notna().to_numpy()
    networks["networks_p_holm"] = np.nan
    if tested.any():
        p = networks.loc[tested, "networks_p"].to_numpy()
        networks.loc[tested, "networks_p_holm"] = family.holm(p)
    return rows.merge(networks, how="left", on=["transfer", "method", "versus"])


def _networks(g: Grid, pairs: Pairs) -> pd.DataFrame:
    """The signed-rank tests of the pairs in each transfer, not corrected yet."""
    places = [(t, *pair) for t in range(len(g.transfers)) for pair in pairs]
    means = [mean_over(g.gain(method, versus)[t], axis=1) for t, method, versus in places]
    means = [m[np.isfinite(m)] for m in means]
    return pd.DataFrame(
        {
            "transfer": g.transfers[t],
            "method": method,
            "versus": versus,
            "networks_p": test.p,
            "networks_test": test.method,
            "median_gain": np.median(own) if test.n else np.nan,
            "rank_biserial": test.rank_biserial,
            "superiority": test.superiority,
            "zeros": test.zeros,
        }
        for (t, method, versus), own, test in zip(places, means, signed_ranks(means), strict=True)
    )


# --------------------------------------------------------------------------------- over transfers


class Friedman(NamedTuple):
    """Friedman's test, and the critical difference of Nemenyi's; rank 1 is the best method.

    Attributes:
        statistic: Of Friedman's test.
        p: Its p-value.
        ranks: Method to mean rank over transfers, best first.
        critical_difference: Of mean ranks.
        n_transfers: How many transfers were ranked.
    """

    statistic: float
    p: float
    ranks: pd.Series
    critical_difference: float
    n_transfers: int


def friedman(
    table: pd.DataFrame | Grid, metric: str = "dice", alpha: float = 0.05
) -> tuple[Friedman | None, str]:
    """Do methods differ in rank over transfers? Friedman's test, then Nemenyi's difference.

    Each transfer gives each method one value, its mean over the subjects and seeds that all
    methods have there. Methods whose mean ranks lie closer than the critical difference are not
    told apart (Demsar, JMLR 7:1-30, 2006):

        CD = q(1 - alpha; k, inf) / sqrt(2) * sqrt(k (k + 1) / (6 N))

    with k methods, N transfers and q the studentized range. Transfers that share subjects are not
    independent, which the test takes them to be: read it as a description. Below `MIN_TRANSFERS`
    transfers it can tell hardly anything apart, and is not run.

    Returns:
        The result, or None where the test cannot be run, and a note: why not, or what was left out
        ("" if nothing).

    Raises:
        UserError: See `grid`.
    """
    g = table if isinstance(table, Grid) else grid(table, metric)
    common = np.all(np.isfinite(g.values), axis=0)  # (transfer, subject, seed)
    use = np.any(common, axis=(1, 2))
    notes = []
    if not use.all():
        names = ", ".join(name for name, used in zip(g.transfers, use, strict=True) if not used)
        notes.append(f"transfers left out, since no subject and seed has all methods: {names}")
    left_out = int(g.cells[use].sum() - common.sum())
    if left_out:
        notes.append(f"{left_out} (subject, seed) cells left out, since not all methods have them")
    if len(g.methods) < 3 or use.sum() < MIN_TRANSFERS:
        has = f"{len(g.methods)} and {use.sum()}"
        needs = f"needs 3 methods and {MIN_TRANSFERS} transfers, has {has}"
        return None, "; ".join([needs, *notes])
    means = np.stack([g.values[:, t][:, common[t]].mean(axis=1) for t in np.flatnonzero(use)])
    better_is_less = np.round(means, 10) * (-1 if HIGHER_IS_BETTER[g.metric] else 1)
    return _ranked(better_is_less, g.methods, alpha), "; ".join(notes)


def _ranked(means: NDArray[np.float64], methods: list[str], alpha: float) -> Friedman:
    """The tests on (transfer, method), less is better."""
    from scipy import stats

    ranks = stats.rankdata(means, axis=1).mean(axis=0)
    # where no transfer tells the methods apart, Friedman's statistic is 0 / 0
    differ = np.ptp(means, axis=1).any()
    statistic, p = stats.friedmanchisquare(*means.T) if differ else (0.0, 1.0)
    count, k = means.shape
    q = stats.studentized_range.ppf(1 - alpha, k, np.inf)
    distance = float(q / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * count)))
    order = pd.Series(ranks, methods, name="mean_rank").sort_values(kind="stable")
    return Friedman(float(statistic), float(p), order, distance, count)
