"""Does transferability predict? LEEP and the mean risk against what transfer then brought.

A cell is a transfer under a seed: the source network's LEEP on the target training set (Nguyen et
al. 2020, arXiv:2002.12462), the mean risk of the map made from it, and the gain of fine-tuning over
training from scratch. Both measures are known before anything is trained on the target.

They are judged as rankings, by Kendall's tau weighted after Vigna (2015,
doi:10.1145/2736277.2741088), as You et al. do (2021, arXiv:2102.11005). Its hyperbolic weights
stress the top, which here are the transfers that look best (high LEEP, low risk) and, in the other
of the two rankings that are averaged, those that gain most: it is among these that one chooses. The
sign is that of the measure as it stands: one that is of use has tau > 0 for LEEP and tau < 0 for
the mean risk.

Seeds of one transfer share domains, and mostly subjects, so they are no independent evidence:
intervals are percentiles of a bootstrap of whole transfers. Where nothing is related they hold 0 in
91-93 % of simulated tables (5 to 30 transfers, 3 to 5 seeds), and transfers that share a domain are
taken as independent: read them as somewhat too narrow. The weights depend on the number of cells,
and so does tau: tables of different sizes do not compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from trm_bench.analysis.table import Grid, grid, long_table, mean_over
from trm_bench.analysis.voxels import SCRATCH
from trm_bench.runs.store import Results

Values = NDArray[np.float64]

MEASURES = {"leep": 1, "risk_mean": -1}  # the sign of tau where the measure is of use
CLASSES = "classes"
KEYS = ["protocol", "transfer", "seed"]
CELLS = [*KEYS, *MEASURES, "gain"]
PREDICTS = ["measure", "n_cells", "n_transfers", "tau", "tau_plain", "low", "high", "note"]
FEWEST_TRANSFERS = 5  # for an interval
RESAMPLES = 2000


def cells(
    results: Results,
    reference: str = "finetune",
    metric: str = "dice",
    focus: str = "trm",
    arrays: Grid | None = None,
) -> pd.DataFrame:
    """What was foreseen and what came, a row a transfer and seed.

    Args:
        results: Of one protocol.
        reference: The method whose gain over scratch is foreseen.
        metric: Of the gain.
        focus: The method whose LEEP and risks are taken: the readings of the paper differ in both.
            Where it has none, the first that has them. Only those of the `shared_variable` count.
        arrays: The values of `metric`, where they are arranged already.

    Returns:
        protocol, transfer, seed, leep, risk_mean, gain: the mean over subjects of the mean over
        classes, in points (mm for hd95), above 0 where transfer helps. Cells that lack any of them
        are left out.

    Raises:
        UserError: The records cannot stand in one table (`table.grid`).
    """
    variables = source_variables(results, focus)
    shared = shared_variable(variables)
    measured = {key: m.numbers for key, m in variables.items() if m.variable == shared}
    if arrays is None:
        long = long_table(results)
        if not (long["metric"] == metric).any():
            return empty()
        arrays = grid(long, metric)
    if not measured or not {SCRATCH, reference} <= set(arrays.methods):
        return empty()
    gains = mean_over(arrays.gain(reference, SCRATCH), axis=1)
    rows = [
        (results.plan.protocol.name, transfer, seed, *measured[transfer, seed], gain)
        for transfer, by_seed in zip(arrays.transfers, gains, strict=True)
        for seed, gain in zip(arrays.seeds, by_seed, strict=True)
        if (transfer, seed) in measured and np.isfinite(gain)
    ]
    return pd.DataFrame(rows, columns=CELLS) if rows else empty()


class Measured(NamedTuple):
    """What a run knew of a transfer: LEEP's source variable, and the `MEASURES`."""

    variable: str
    numbers: tuple[float, ...]


def source_variables(results: Results, focus: str) -> dict[tuple[str, int], Measured]:
    """What was known by transfer and seed, of `focus` or else the first method that has a map.

    The map of an uninformative source, a variable with one value, knows nothing of a transfer.
    """
    known: dict[tuple[str, int], Measured] = {}
    for cell, record in results.finished():
        numbers = tuple(record.diagnostics.get(name, np.nan) for name in MEASURES)
        key = cell.transfer, cell.seed
        conditional: Any = record.diagnostics.get("conditional")
        is_blind = bool(conditional) and np.shape(conditional)[-1] == 1
        chosen = cell.method == focus or key not in known
        if np.isfinite(numbers).all() and chosen and not is_blind:
            known[key] = Measured(variable_of(record.diagnostics), numbers)
    return known


def variable_of(diagnostics: Mapping[str, Any]) -> str:
    """LEEP's source variable in a run: `classes` of the source, `clusters`, or a `probe`."""
    return str(diagnostics.get("evidence", {}).get("kind", CLASSES))


def shared_variable(known: Mapping[tuple[str, int], Measured]) -> str:
    """The variable of most transfers and seeds: LEEP of several does not compare."""
    counts = Counter(measured.variable for measured in known.values())
    return max(counts, key=lambda name: (counts[name], name == CLASSES), default=CLASSES)


def empty() -> pd.DataFrame:
    """The table of no cell."""
    numbers = dict.fromkeys([*MEASURES, "gain"], float)
    return pd.DataFrame(columns=CELLS).astype({"seed": int, **numbers})


def predicts(cells: pd.DataFrame) -> pd.DataFrame:
    """Whether LEEP and the mean risk rank the cells as their gains do.

    Args:
        cells: Of one protocol or of several, one below the other.

    Returns:
        A row a measure: n_cells, n_transfers, tau (weighted), tau_plain (Kendall's, tau-b), low and
        high (95 % interval of tau), and a note where something is missing.
    """
    from scipy.stats import kendalltau

    transfers = cells.groupby(["protocol", "transfer"]).ngroup().to_numpy()
    number, gain = len(set(transfers)), cells["gain"].to_numpy(float)
    rows = []
    for measure, sign in MEASURES.items():
        promise = sign * cells[measure].to_numpy(float)
        tau = plain = low = high = np.nan
        note = ""
        if len(cells) > 1:
            tau = sign * float(weighted_tau(promise, gain, np.ones((1, len(cells))))[0])
            plain = sign * float(kendalltau(promise, gain).statistic)
        if not np.isfinite(tau):
            note = "nothing to rank: fewer than 2 cells, or no difference between them"
        elif number < FEWEST_TRANSFERS:
            note = f"no interval: {number} transfers, at least {FEWEST_TRANSFERS} are needed"
        else:
            draws = np.random.default_rng(0)  # the same transfers for both measures
            chosen = draws.multinomial(number, np.full(number, 1 / number), RESAMPLES)
            taus = sign * weighted_tau(promise, gain, chosen[:, transfers])
            low, high = np.nanpercentile(taus, [2.5, 97.5])
        rows.append((measure, len(cells), number, tau, plain, low, high, note))
    return pd.DataFrame(rows, columns=PREDICTS)


def weighted_tau(x: ArrayLike, y: ArrayLike, counts: ArrayLike) -> Values:
    """Vigna's tau with additive hyperbolic weights, of many resamples at once.

    As `scipy.stats.weightedtau` gives it: a pair weighs 1/r_i + 1/r_j, r the rank from 1 for the
    largest value, and the result is the mean over the ranking by x and that by y. As the weights
    add up, all pairs of one element come as a product of matrices, and its copies as a difference
    of harmonic numbers.

    Args:
        x: Values, shape (n,).
        y: Values, shape (n,).
        counts: How often each element occurs, shape (resamples, n).

    Returns:
        Shape (resamples,), NaN where all x or all y are the same.
    """
    x, y, counts = (np.asarray(values, float) for values in (x, y, counts))
    of_x, of_y = (np.sign(values[:, None] - values[None, :]) for values in (x, y))
    products = [counts @ signs for signs in (of_x * of_y, of_x**2, of_y**2)]
    largest = int(counts.sum(axis=1).max())
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, largest + 1))])
    taus = []
    for keys in ((y, x), (x, y)):
        order = np.lexsort(keys)[::-1]
        ends = np.cumsum(counts[:, order], axis=1).astype(int)
        weights = np.empty_like(counts)
        weights[:, order] = np.diff(harmonic[ends], axis=1, prepend=0.0)
        both, only_x, only_y = ((weights * product).sum(axis=1) for product in products)
        size = np.sqrt(only_x * only_y)
        taus.append(np.divide(both, size, out=np.full(len(counts), np.nan), where=size > 0))
    mean: Values = np.mean(taus, axis=0)
    return mean
