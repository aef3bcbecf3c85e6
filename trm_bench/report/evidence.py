"""What a folder's records say, computed once: tables, charts and pages only show it.

Nothing here raises on bad records: what cannot be computed is None or empty, and a sentence says
why.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trm_bench.analysis import (
    costs,
    family,
    gamma,
    negative_transfer,
    power,
    table,
    transferability,
    verdict,
)
from trm_bench.analysis.designs import design_of
from trm_bench.analysis.intervals import Design, gains, over_transfers, seed_spread, trimmed
from trm_bench.analysis.power import Spread
from trm_bench.analysis.table import HIGHER_IS_BETTER, OVERALL, UNITS, Grid, mean_over
from trm_bench.analysis.tests import Friedman, friedman
from trm_bench.analysis.voxels import REFERENCE, SCRATCH
from trm_bench.protocol.schema import Protocol
from trm_bench.report import gathering
from trm_bench.runs.records import VoxelAudit
from trm_bench.runs.store import Results

NAMES = {"dice": "Dice", "hd95": "HD95", "surface_dice": "Surface Dice"}
PHANTOM = (
    "STAND-IN DATA (phantom): they show that the software works, and say nothing about the claim "
    "or about real images."
)
SENSITIVITY = [
    "transfer",
    "method",
    "n_subjects",
    "n_seeds",
    "smallest_gain",
    "sd_of_subjects",
    "sd_of_seeds",
    "sd_of_residual",
    "sd_over_seeds",
]
RELATIVE = ["relative", "relative_low", "relative_high"]


def direction(metric: str) -> str:
    """Which way a metric is better, in words."""
    return f"{'higher' if HIGHER_IS_BETTER[metric] else 'lower'} is better"


class Largest(NamedTuple):
    """The largest of the gains over the reference, corrected for having looked at all of them.

    Attributes:
        method: Whose gain it is.
        gain: Over all transfers, printed units.
        low: Lower end of the corrected interval, NaN without one.
        high: Likewise.
        looked: At how many gains.
        clear: Methods whose interval, likewise corrected, does not hold 0, by gain.
        better: Those of them that gain.
    """

    method: str
    gain: float
    low: float
    high: float
    looked: int
    clear: tuple[str, ...]
    better: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """One metric, in the units of `table.UNITS`.

    Attributes:
        metric: Its name.
        fault: Why there are no numbers; "" where there are.
        reference: The method that the others are compared with.
        grid: Values by method, transfer, subject and seed; None where the rows cannot stand in one
            table.
        comparisons: `tests.compare`; empty where there is nothing to compare.
        incomplete: (transfer, method) to what is missing, e.g. "2 of 3 seeds".
    """

    metric: str
    fault: str
    reference: str
    grid: Grid | None
    comparisons: pd.DataFrame
    incomplete: dict[tuple[str, str], str]

    def by_seed(self, transfer: str, method: str) -> NDArray[np.float64]:
        """The mean over subjects under each seed of the table; NaN where a seed has no numbers."""
        return mean_over(self._values(transfer, method), axis=0)

    def by_subject(self, transfer: str, method: str) -> dict[str, float]:
        """Subject to its mean over seeds, of the subjects that have numbers."""
        means = mean_over(self._values(transfer, method), axis=1)
        subjects = self.grid.subjects if self.grid and len(means) else []
        return {s: float(m) for s, m in zip(subjects, means, strict=True) if np.isfinite(m)}

    def _values(self, transfer: str, method: str) -> NDArray[np.float64]:
        """(subject, seed); (0, 0) where there are none."""
        grid = self.grid
        if grid is None or method not in grid.methods or transfer not in grid.transfers:
            return np.empty((0, 0))
        return grid.of(method)[grid.transfers.index(transfer)]

    @property
    def gains(self) -> pd.DataFrame:
        """The comparisons with the reference."""
        rows = self.comparisons
        return rows if rows.empty else rows[rows["versus"] == self.reference]

    @property
    def family(self) -> pd.DataFrame:
        """The comparisons that are corrected for their number, over all transfers."""
        rows = self.comparisons
        return rows if rows.empty else rows[rows["role"] == "family"]

    def gain(self, method: str, transfer: str = OVERALL) -> dict[str, float] | None:
        """Gain over the reference with its 95 % interval, on its own.

        Returns:
            gain, low, high (printed units), relative (%). Ends of intervals may be NaN.
        """
        return self._gains.get((transfer, method))

    @cached_property
    def _gains(self) -> dict[tuple[str, str], dict[str, float]]:
        kept = ["gain", "low", "high", *RELATIVE]
        rows = self.gains
        if rows.empty:
            return {}
        rows = rows[np.isfinite(rows["gain"])]
        keys = zip(rows["transfer"], rows["method"], strict=True)
        return dict(zip(keys, rows[kept].astype(float).to_dict("records"), strict=True))


@dataclass(frozen=True)
class Evidence:
    """All that a report shows of one protocol.

    Attributes:
        results: The records.
        long: The long table.
        scores: By metric, the protocol's first one first.
        problems: Faults that `table.check` names.
        judgement: On the protocol's claim; None where there is none to be made.
        no_verdict: Why there is no verdict; "" where there is one.
        reference: The method that the others are compared with.
        focus: The method that is compared with all others.
        design: Of the splits.
    """

    results: Results
    long: pd.DataFrame
    scores: dict[str, Scores]
    problems: list[str]
    judgement: verdict.Judgement | None
    no_verdict: str
    reference: str
    focus: str
    design: Design

    @property
    def protocol(self) -> Protocol:
        """As the last command resolved it."""
        return self.results.plan.protocol

    @property
    def name(self) -> str:
        """Of the protocol."""
        return self.protocol.name

    @property
    def phantom(self) -> bool:
        """Whether the data are the stand-in."""
        return self.results.plan.data == "phantom"

    @cached_property
    def methods(self) -> list[str]:
        """In the protocol's order."""
        return list(dict.fromkeys(c.method for c in self.results.cells))

    @cached_property
    def transfers(self) -> list[str]:
        """In the protocol's order."""
        return list(dict.fromkeys(c.transfer for c in self.results.cells))

    @cached_property
    def seeds(self) -> list[int]:
        """Sorted."""
        return sorted({c.seed for c in self.results.cells})

    @property
    def main(self) -> Scores:
        """Scores of the metric that the protocol names first."""
        return next(iter(self.scores.values()))

    @property
    def words(self) -> list[str]:
        """The verdict's word, or two where the claim leaves its unit open; none without one."""
        if self.judgement is None or self.no_verdict:
            return []
        words = self.judgement.gains["word"]
        return list(dict.fromkeys(word for word in words if isinstance(word, str) and word))

    @property
    def holds(self) -> bool:
        """Whether the claim stands; see `verdict.Judgement`."""
        return self.judgement is not None and self.judgement.holds

    def unit(self, metric: str, transfer: str = OVERALL) -> str:
        """Of a metric's values; see `table.units_of`."""
        return " or ".join(table.units_of(self.results, metric, transfer))

    def is_mixed(self, metric: str) -> bool:
        """Whether transfers differ in the unit, so that nothing can be said over all of them."""
        return len(table.units_of(self.results, metric)) > 1

    def gain_unit(self, metric: str) -> str:
        """Of differences between a metric's values."""
        return "points" if UNITS[metric] == "%" else self.unit(metric)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """What each method used and took; see `costs.spent`."""
        return costs.spent(self.results, self.unit_of_cost)

    @property
    def unit_of_cost(self) -> str:
        """The method whose passes others are counted in: fine-tuning, or else the reference."""
        return REFERENCE if REFERENCE in self.methods else self.reference

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """Negative transfer gaps of every metric, per transfer, method and class, in its unit."""
        metrics = [m for m, scores in self.scores.items() if scores.grid is not None]
        if not metrics:
            return pd.DataFrame(columns=negative_transfer.GAPS)
        parts = [negative_transfer.gaps(self.long, m, design=self.design) for m in metrics]
        joined = pd.concat(parts, ignore_index=True)
        mixed = joined["metric"].map(self.is_mixed).astype(bool)
        return joined[~mixed | (joined["transfer"] != OVERALL)]

    @cached_property
    def audits(self) -> list[VoxelAudit]:
        """The voxel-level audits of the runs in the table."""
        return self.results.audits()

    @cached_property
    def rates(self) -> pd.DataFrame:
        """Voxel-level negative and positive transfer rates, per cent."""
        return negative_transfer.rates(self.audits, design=self.design)

    @cached_property
    def findings(self) -> pd.DataFrame:
        """How well the risk maps find the voxels that the reference lost."""
        return negative_transfer.findings(self.audits, design=self.design)

    @cached_property
    def transferability(self) -> pd.DataFrame:
        """LEEP, mean risk and gain of transfer in the main metric, a row a transfer and seed."""
        mixed = self.is_mixed(self.main.metric)
        if self.main.grid is None or mixed or self.reference == SCRATCH:
            return transferability.empty()
        given = self.reference, self.main.metric, self.focus
        return transferability.cells(self.results, *given, self.main.grid)

    @cached_property
    def predicts(self) -> pd.DataFrame:
        """Whether LEEP and the mean risk rank the transfers as they gain."""
        return transferability.predicts(self.transferability)

    @cached_property
    def gamma(self) -> pd.DataFrame:
        """Gains over the reference in the main metric against gamma; see `analysis.gamma`."""
        return gamma.gains(self.results, self.main.gains)

    @cached_property
    def sensitivity(self) -> pd.DataFrame:
        """What the intervals could have found, and what varies, in printed units.

        One row per transfer and method, and with a transfer "mean": `smallest_gain` over the
        reference that one 95 % interval would find with power 0.8 (`power.smallest_gain`), the
        standard deviations of that gain (`power.Spread`), and `sd_over_seeds` of the method's own
        mean (`intervals.seed_spread`).
        """
        if self.main.grid is None:
            return pd.DataFrame(columns=SENSITIVITY)
        rows = []
        for own in seed_spread(self.main.grid).to_dict("records"):
            transfer, method = str(own["transfer"]), str(own["method"])
            if transfer == OVERALL and self.is_mixed(self.main.metric):
                continue
            gain = self._gain(method, transfer)
            spread = None if gain is None else Spread.of(gain, self.design)
            # with splits of their own no subject may be under all seeds, and gains are there still
            seeds = int(own["n_seeds"]) if gain is None else trimmed(gain).shape[2]
            smallest = power.smallest_gain(spread, seeds, 1 - family.ALPHA)
            known = spread or Spread(np.nan, np.nan, np.nan, 0)
            row = (transfer, method, known.subjects, seeds, smallest, *known[:3], own["sd"])
            rows.append(row)
        return pd.DataFrame(rows, columns=SENSITIVITY)

    def spread(self, method: str, transfer: str = OVERALL) -> Spread | None:
        """How a method's gain over the reference varies, where that is known."""
        gain = self._gain(method, transfer)
        return None if gain is None else Spread.of(gain, self.design)

    def _gain(self, method: str, transfer: str) -> NDArray[np.float64] | None:
        """A method's gains over the reference, (transfer, subject, seed); None without any."""
        grid = self.main.grid
        if grid is None or self.reference not in grid.methods or method == self.reference:
            return None
        if transfer == OVERALL and self.is_mixed(self.main.metric):
            return None
        gain = grid.gain(method, self.reference)
        return gain if transfer == OVERALL else gain[[grid.transfers.index(transfer)]]

    @cached_property
    def over_transfers(self) -> tuple[float, float]:
        """Interval of the focus's gain, were the transfers a sample of transfers."""
        grid = self.main.grid
        mixed = self.is_mixed(self.main.metric)
        if grid is None or mixed or not {self.focus, self.reference} <= set(grid.methods):
            return np.nan, np.nan
        return over_transfers(grid.gain(self.focus, self.reference))

    @cached_property
    def best(self) -> Largest | None:
        """The largest gain of all methods over the reference; None where there is no gain.

        Not that of scratch, where others transfer: whether they are worse than it is another
        question (`gaps`).
        """
        gained = self.main.gains
        if gained.empty:
            return None
        rows = gained[(gained["transfer"] == OVERALL) & gained["gain"].notna()]
        others = rows[rows["method"] != SCRATCH]
        rows = rows if others.empty else others
        if rows.empty:
            return None
        rows = rows.sort_values("gain", ascending=False)
        looked, top = len(rows), rows.iloc[0]
        pairs, level = [(top["method"], self.reference)], 1 - family.ALPHA / looked
        assert self.main.grid is not None
        grid = self.main.grid
        over = gains(grid, pairs=pairs, design=self.design, level=level, relative=False, each=False)
        again = over.iloc[0]
        clear = rows[rows["p"] <= family.ALPHA / looked]
        return Largest(
            method=str(top["method"]),
            gain=float(again["gain"]),
            low=float(again["low"]),
            high=float(again["high"]),
            looked=looked,
            clear=tuple(clear["method"]),
            better=tuple(clear.loc[clear["gain"] > 0, "method"]),
        )

    @cached_property
    def ranked(self) -> tuple[Friedman | None, str]:
        """Whether methods differ in rank over transfers; see `tests.friedman`."""
        if self.main.grid is None:
            return None, f"cannot be run: {self.main.fault}"
        return friedman(self.main.grid)

    def states(self) -> dict[str, int]:
        """Number of cells in each state."""
        records = map(self.results.record, self.results.cells)
        return dict(Counter(record.state if record else "not run" for record in records))


def collect(results: Results) -> Evidence:
    """Computes the statistics of a folder."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # the matrices are many and small: threads slow them down
        return _collect(results)


def _collect(results: Results) -> Evidence:
    protocol = results.plan.protocol
    long = table.long_table(results).assign(data=results.plan.data)
    claim = protocol.claim
    reference, focus = gathering.sides(protocol)
    design = design_of(results)
    judgement, no_verdict = gathering.judged(long, protocol, design)
    scores: dict[str, Scores] = {}
    for metric in protocol.metrics:
        grid, comparisons, fault = gathering.compared(
            long[long.metric == metric], metric, reference, focus, claim, design
        )
        if len(comparisons) and len(table.units_of(results, metric)) > 1:
            comparisons = comparisons[comparisons["transfer"] != OVERALL]
        lacks = gathering.incomplete(results, grid) if grid else {}
        scores[metric] = Scores(metric, fault, reference, grid, comparisons, lacks)
    return Evidence(
        results=results,
        long=long,
        scores=scores,
        problems=gathering.problems(long, protocol.split.design == "resampled"),
        judgement=judgement,
        no_verdict=no_verdict,
        reference=reference,
        focus=focus,
        design=design,
    )
