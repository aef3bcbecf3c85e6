"""Every comparison of methods in one table; the signed-rank test of trained networks; ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from trm_bench.analysis import family
from trm_bench.analysis.intervals import FIXED, Design, gains
from trm_bench.analysis.table import (
    HIGHER_IS_BETTER,
    OVERALL,
    Grid,
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
    from scipy import stats

    d = np.round(np.asarray(differences, float), 10)
    if not np.isfinite(d).all():
        raise ValueError("differences must be finite")
    n, zeros = len(d), int((d == 0).sum())
    if n == 0:
        return SignedRank(0, 0, np.nan, np.nan, np.nan, "no subjects")
    superiority = ((d > 0).sum() + 0.5 * zeros) / n
    if zeros == n:
        return SignedRank(n, zeros, 1.0, 0.0, superiority, "all zero")
    ranks = stats.rankdata(np.abs(d))
    changed = d[d != 0]
    rank_biserial = stats.rankdata(np.abs(changed)) @ np.sign(changed)
    rank_biserial /= len(changed) * (len(changed) + 1) / 2
    tied = zeros > 0 or len(np.unique(np.abs(d))) < n
    if tied and n <= 13:
        how, p = "permutation", _p_of_all_signs(d, ranks)
    else:
        how = "asymptotic" if tied or n > 50 else "exact"
        p = stats.wilcoxon(d, zero_method="pratt", correction=False, method=how).pvalue
    return SignedRank(n, zeros, min(float(p), 1.0), float(rank_biserial), float(superiority), how)


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
    table: pd.DataFrame,
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
        table: The long table of one protocol.
        metric: Which metric.
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
    g = grid(table, metric)
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
    networks = pd.DataFrame(
        [_networks(g, t, *pair) for t in range(len(g.transfers)) for pair in pairs]
    )
    tested = networks["networks_p"].notna().to_numpy()
    networks["networks_p_holm"] = np.nan
    if tested.any():
        p = networks.loc[tested, "networks_p"].to_numpy()
        networks.loc[tested, "networks_p_holm"] = family.holm(p)
    return rows.merge(networks, how="left", on=["transfer", "method", "versus"])


def _networks(g: Grid, t: int, method: str, versus: str) -> dict[str, Any]:
    """The signed-rank test of a pair in a transfer, not corrected yet."""
    per_subject = mean_over(g.gain(method, versus)[t], axis=1)
    per_subject = per_subject[np.isfinite(per_subject)]
    test = signed_rank(per_subject)
    return {
        "transfer": g.transfers[t],
        "method": method,
        "versus": versus,
        "networks_p": test.p,
        "networks_test": test.method,
        "median_gain": np.median(per_subject) if test.n else np.nan,
        "rank_biserial": test.rank_biserial,
        "superiority": test.superiority,
        "zeros": test.zeros,
    }


# --------------------------------------------------------------------------------- over transfers


class Friedman(NamedTuple):
    """Friedman's test with Nemenyi's post-hoc test; rank 1 is the best method.

    Attributes:
        statistic: Of Friedman's test.
        p: Its p-value.
        ranks: Method to mean rank over transfers, best first.
        nemenyi: p-values of each pair of methods.
        critical_difference: Of mean ranks.
        n_transfers: How many transfers were ranked.
    """

    statistic: float
    p: float
    ranks: pd.Series
    nemenyi: pd.DataFrame
    critical_difference: float
    n_transfers: int


def friedman(
    table: pd.DataFrame, metric: str = "dice", alpha: float = 0.05
) -> tuple[Friedman | None, str]:
    """Do methods differ in rank over transfers? Friedman's test, then Nemenyi's for each pair.

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
    if len(g.methods) < 3 or use.sum() < MIN_TRANSFERS:
        has = f"{len(g.methods)} and {use.sum()}"
        needs = f"needs 3 methods and {MIN_TRANSFERS} transfers, has {has}"
        return None, "; ".join([needs, *notes])
    means = np.stack([g.values[:, t][:, common[t]].mean(axis=1) for t in np.flatnonzero(use)])
    better_is_less = np.round(means, 10) * (-1 if HIGHER_IS_BETTER[metric] else 1)
    return _ranked(better_is_less, g.methods, alpha), "; ".join(notes)


def _ranked(means: NDArray[np.float64], methods: list[str], alpha: float) -> Friedman:
    """The tests on (transfer, method), less is better."""
    import scikit_posthocs
    from scipy import stats

    ranks = stats.rankdata(means, axis=1).mean(axis=0)
    # where no transfer tells the methods apart, Friedman's statistic is 0 / 0
    differ = np.ptp(means, axis=1).any()
    statistic, p = stats.friedmanchisquare(*means.T) if differ else (0.0, 1.0)
    count, k = means.shape
    pairwise = scikit_posthocs.posthoc_nemenyi_friedman(means)
    pairwise.index = pairwise.columns = pd.Index(methods)
    q = stats.studentized_range.ppf(1 - alpha, k, np.inf)
    distance = float(q / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * count)))
    order = pd.Series(ranks, methods, name="mean_rank").sort_values(kind="stable")
    return Friedman(float(statistic), float(p), order, pairwise, distance, count)
