"""Which differences between methods are more than chance: paired tests, ranks, a mixed model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from trm_bench.analysis.table import (
    HIGHER_IS_BETTER,
    Grid,
    Pairs,
    default_pairs,
    grid,
    mean_over,
)
from trm_bench.errors import UserError


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

    Zeros are ranked with the rest and then dropped from both sums (Pratt 1959,
    doi:10.1080/01621459.1959.10501526), so that many unchanged subjects weaken the evidence; where
    all differences are zero, p = 1. The p-value is exact for up to 50 subjects without zeros and
    ties, from all 2^n changes of sign for up to 13 subjects with them, and from the normal
    approximation, corrected for ties, otherwise.

    Effect sizes, with R+ and R- the sums of the ranks of positive and of negative differences:

        matched-pairs rank-biserial r = (R+ - R-) / (n (n + 1) / 2)
                                                        Kerby 2014, doi:10.2466/11.IT.3.1
        probability of superiority    = (number > 0 + 0.5 * number = 0) / n

    Args:
        differences: One a subject, in the metric's units, positive = better. Differences below
            1e-12 are taken as rounding errors of equal values.

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
    pairs: Pairs | None = None,
    reference: str = "finetune",
    focus: str = "trm",
) -> pd.DataFrame:
    """Tests each pair of methods within each transfer; Holm's correction goes over all rows.

    Args:
        table: The long table of one protocol.
        metric: Which metric.
        pairs: (method, versus) pairs; by default those of `default_pairs`.
        reference: The method that all are compared with.
        focus: The method that is compared with all.

    Returns:
        One row for each transfer and pair: n_subjects, n_seeds; mean_gain and median_gain over
        subjects (metric's units, positive = `method` is better); relative_gain (%, mean gain over
        the mean of `versus`); p (Wilcoxon, see `signed_rank`), p_holm (Holm 1979, family-wise over
        the rows here), test (how p was computed), rank_biserial, superiority, zeros (subjects
        without any difference), left_out ((subject, seed) cells not used).

    Raises:
        UserError: See `grid`; or a pair names a method without values; or there is nothing to
            compare.
    """
    from statsmodels.stats.multitest import multipletests

    g = grid(table, metric)
    pairs = default_pairs(g.methods, reference, focus) if pairs is None else list(pairs)
    if not pairs:
        raise UserError(
            f"nothing to compare: no '{reference}' and no '{focus}' beside another method in the "
            "table"
        )
    places = range(len(g.transfers))
    out = pd.DataFrame([_compared(g, t, *pair) for t in places for pair in pairs])
    tested = out["p"].notna().to_numpy()
    if tested.any():
        p = out.loc[tested, "p"].to_numpy()
        out.loc[tested, "p_holm"] = multipletests(p, method="holm")[1]
    return out


def _compared(g: Grid, t: int, method: str, versus: str) -> dict[str, Any]:
    """One row of `compare`, its p not corrected yet."""
    gain = g.gain(method, versus)[t]
    both = np.isfinite(gain)
    per_subject = mean_over(gain, axis=1)
    of_versus = mean_over(np.where(both, g.of(versus)[t], np.nan), axis=1)
    per_subject, of_versus = (x[np.any(both, axis=1)] for x in (per_subject, of_versus))
    test = signed_rank(per_subject)
    mean, level = (per_subject.mean(), of_versus.mean()) if test.n else (np.nan, np.nan)
    return {
        "transfer": g.transfers[t],
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
    independent, which the test takes them to be: read it as a description.

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
    if len(g.methods) < 3 or use.sum() < 2:
        has = f"{len(g.methods)} and {use.sum()}"
        return None, "; ".join([f"needs 3 methods and 2 transfers, has {has}", *notes])
    means = np.stack([g.values[:, t][:, common[t]].mean(axis=1) for t in np.flatnonzero(use)])
    better_is_less = np.round(means, 12) * (-1 if HIGHER_IS_BETTER[metric] else 1)
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


def mixed_model(
    table: pd.DataFrame,
    metric: str = "dice",
    reference: str = "finetune",
    methods: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A sensitivity check that takes transfers as a sample of transfers: mixed models by REML.

    One linear model for each method, so that each has its own variance over transfers: the gain
    over `reference` (mean over classes and seeds) is a constant plus crossed random effects of
    transfer and of subject plus noise. The test of the constant is Wald's, from the normal
    distribution, hence too bold with few transfers. Where no subject is in two transfers, its
    effect cannot be told from noise and is left out of the model.

    Returns:
        One row a method: gain, standard_error, low, high (95 %, the metric's units), p,
        sd_transfer, sd_subject, sd_residual, n_transfers, n_values, converged, and note: every
        warning of the fit, or why there is none. Where the fit did not converge, `gain` is the
        plain mean and the rest is NaN.

    Raises:
        UserError: See `grid`; or a method has no values.
    """
    g = grid(table, metric)
    methods = [m for m in g.methods if m != reference] if methods is None else list(methods)
    return pd.DataFrame(
        [
            {"method": m, "versus": reference, **_modelled(mean_over(g.gain(m, reference), axis=2))}
            for m in methods
        ]
    )


def _modelled(gain: NDArray[np.float64]) -> dict[str, Any]:
    """One row of `mixed_model`, from gains by (transfer, subject), NaN where missing."""
    t, s = np.nonzero(np.isfinite(gain))
    y = gain[t, s]
    unknown = ["standard_error", "low", "high", "p", "sd_transfer", "sd_subject", "sd_residual"]
    row: dict[str, Any] = {"gain": y.mean() if len(y) else np.nan, **dict.fromkeys(unknown, np.nan)}
    row |= {"n_transfers": len(np.unique(t)), "n_values": len(y), "converged": False, "note": ""}
    scale = y.std() if len(y) else 0.0
    if row["n_transfers"] < 2:
        return row | {"note": "needs 2 transfers"}
    if scale < 1e-12:
        return row | {"note": "all gains are equal"}
    fit, note = _fitted(y / scale, t, s)  # the optimiser's tolerances are for values of about 1
    if fit is None or not fit.converged:
        return row | {"note": note}
    spreads = dict(zip(fit.model.exog_vc.names, np.sqrt(fit.vcomp) * scale, strict=True))
    low, high = fit.conf_int().loc["Intercept"] * scale
    return row | {
        "gain": fit.fe_params["Intercept"] * scale,
        "standard_error": fit.bse_fe["Intercept"] * scale,
        "low": low,
        "high": high,
        "p": fit.pvalues["Intercept"],
        "sd_transfer": spreads["transfer"],
        "sd_subject": spreads.get("subject", np.nan),
        "sd_residual": np.sqrt(fit.scale) * scale,
        "converged": True,
        "note": note,
    }


def _fitted(
    y: NDArray[np.float64], transfer: NDArray[np.int64], subject: NDArray[np.int64]
) -> tuple[Any, str]:
    """The fit of statsmodels, or None, and its warnings, or why there is none."""
    import statsmodels.formula.api as smf
    from threadpoolctl import threadpool_limits

    data = pd.DataFrame({"y": y, "transfer": transfer, "subject": subject, "all": 1})
    effects = {"transfer": "0 + C(transfer)"}
    if len(np.unique(subject)) < len(subject):
        effects["subject"] = "0 + C(subject)"
    # threads cost more than they bring: the matrices are many and small
    with threadpool_limits(1), warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        try:
            model = smf.mixedlm("y ~ 1", data, groups="all", vc_formula=effects)
            fit = model.fit(reml=True, method=["powell", "nm"])
        except (np.linalg.LinAlgError, ValueError) as error:
            return None, f"not fitted: {error}"
    notes = dict.fromkeys(str(w.message) for w in raised)
    return fit, "; ".join(notes) or ("" if fit.converged else "not converged")
