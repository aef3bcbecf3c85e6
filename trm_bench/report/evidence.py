"""What a folder's records say, computed once: tables, charts and pages only show it.

Nothing here raises on bad records: what cannot be computed is None or empty, and a sentence says
why.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trm_bench.analysis import negative_transfer, table, tests, verdict
from trm_bench.analysis.intervals import bootstrap_gain, seed_spread, smallest_detectable_gain
from trm_bench.analysis.table import OVERALL, Grid, mean_over
from trm_bench.errors import UserError
from trm_bench.protocol.schema import Claim, Protocol
from trm_bench.runs.records import VoxelAudit
from trm_bench.runs.store import Results

NAMES = {"dice": "Dice", "hd95": "HD95", "surface_dice": "Surface Dice"}
UNITS = {"dice": "%", "surface_dice": "%", "hd95": "mm"}
GAIN_UNITS = {"dice": "points", "surface_dice": "points", "hd95": "mm"}
SCALE = verdict.POINTS  # from a metric's own unit to the printed one
ALPHA = 0.05
PHANTOM = "STAND-IN DATA (phantom): these numbers say nothing about the paper's claim."
SENSITIVITY = ["transfer", "method", "n_subjects", "smallest_gain", "sd_over_seeds"]


@dataclass(frozen=True)
class Scores:
    """One metric, in printed units (per cent, or mm).

    Attributes:
        metric: Its name.
        fault: Why there are no numbers; "" where there are.
        grid: Values by method, transfer, subject and seed, in the metric's own unit; None where
            the rows cannot stand in one table.
        comparisons: `tests.compare` of the whole family; empty where there is nothing to compare.
        gains: `intervals.bootstrap_gain` of each method over the reference; empty without one.
        incomplete: (transfer, method) to what is missing, e.g. "2 of 3 seeds".
    """

    metric: str
    fault: str
    grid: Grid | None
    comparisons: pd.DataFrame
    gains: pd.DataFrame
    incomplete: dict[tuple[str, str], str]

    def by_seed(self, transfer: str, method: str) -> NDArray[np.float64]:
        """The mean over subjects under each seed of the table; NaN where a seed has no numbers."""
        return mean_over(self._values(transfer, method), axis=0) * SCALE[self.metric]

    def by_subject(self, transfer: str, method: str) -> dict[str, float]:
        """Subject to its mean over seeds, of the subjects that have numbers."""
        means = mean_over(self._values(transfer, method), axis=1) * SCALE[self.metric]
        subjects = self.grid.subjects if self.grid and len(means) else []
        return {s: float(m) for s, m in zip(subjects, means, strict=True) if np.isfinite(m)}

    def _values(self, transfer: str, method: str) -> NDArray[np.float64]:
        """(subject, seed), in the metric's own unit; (0, 0) where there are none."""
        grid = self.grid
        if grid is None or method not in grid.methods or transfer not in grid.transfers:
            return np.empty((0, 0))
        return grid.of(method)[grid.transfers.index(transfer)]

    def gain(self, method: str, transfer: str = OVERALL) -> dict[str, float] | None:
        """Gain over the reference, with its interval.

        Returns:
            gain, low, high (printed units); relative, relative_low, relative_high (%).
        """
        if self.gains.empty:
            return None
        rows = self.gains[(self.gains.method == method) & (self.gains.transfer == transfer)]
        if rows.empty or not np.isfinite(rows.iloc[0]["gain"]):
            return None
        names = ["gain", "low", "high", "relative", "relative_low", "relative_high"]
        return {k: float(rows.iloc[0][k]) for k in names}

    def comparison(self, transfer: str, method: str, versus: str) -> pd.Series | None:
        """The row of a test, if it was made."""
        at = self._indexed.get((transfer, method, versus))
        return None if at is None else self.comparisons.loc[at]

    @cached_property
    def _indexed(self) -> dict[tuple[str, str, str], Any]:
        if self.comparisons.empty:
            return {}
        rows = self.comparisons
        keys = zip(rows.transfer, rows.method, rows.versus, strict=True)
        return dict(zip(keys, rows.index, strict=True))


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
    """

    results: Results
    long: pd.DataFrame
    scores: dict[str, Scores]
    problems: list[str]
    judgement: verdict.Judgement | None
    no_verdict: str
    reference: str
    focus: str

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

    @property
    def methods(self) -> list[str]:
        """In the protocol's order."""
        return list(dict.fromkeys(c.method for c in self.results.cells))

    @property
    def transfers(self) -> list[str]:
        """In the protocol's order."""
        return list(dict.fromkeys(c.transfer for c in self.results.cells))

    @property
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
        """Whether the claim is reproduced, at least in its direction, in every reading."""
        reproduced = ("reproduced", "direction reproduced")
        return bool(self.words) and all(word in reproduced for word in self.words)

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """Negative transfer gaps of every metric, per transfer, method and class, in its unit."""
        metrics = [m for m, scores in self.scores.items() if scores.grid is not None]
        if not metrics:
            return pd.DataFrame(columns=negative_transfer.GAPS)
        parts = [negative_transfer.gaps(self.long, metric) for metric in metrics]
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def audits(self) -> list[VoxelAudit]:
        """The voxel-level audits of the runs in the table."""
        return self.results.audits()

    @cached_property
    def rates(self) -> pd.DataFrame:
        """Voxel-level negative and positive transfer rates, shares."""
        return negative_transfer.rates(self.audits)

    @cached_property
    def findings(self) -> pd.DataFrame:
        """How well the risk maps find the voxels that the reference lost."""
        return negative_transfer.findings(self.audits)

    @cached_property
    def sensitivity(self) -> pd.DataFrame:
        """What the tests could have found, and what the seed changes, in printed units.

        One row per transfer and method, and with a transfer "mean": `smallest_gain` over the
        reference that one test would find with power 0.8 (`intervals.smallest_detectable_gain`;
        for "mean" that of the subjects' means over transfers), and `sd_over_seeds` of the method's
        own mean (`intervals.seed_spread`).
        """
        grid, scale = self.main.grid, SCALE[self.main.metric]
        if grid is None:
            return pd.DataFrame(columns=SENSITIVITY)
        rows = []
        for spread in seed_spread(self._main_rows, self.main.metric).to_dict("records"):
            transfer, method = spread["transfer"], spread["method"]
            gains = self._gains_of_subjects(grid, transfer, method)
            smallest = smallest_detectable_gain(gains) * scale
            rows.append((transfer, method, len(gains), smallest, spread["sd"] * scale))
        return pd.DataFrame(rows, columns=SENSITIVITY)

    def _gains_of_subjects(self, grid: Grid, transfer: str, method: str) -> NDArray[np.float64]:
        """Each subject's mean gain over the reference in one transfer, or over all of them."""
        if method == self.reference or self.reference not in grid.methods:
            return np.empty(0)
        gain = grid.gain(method, self.reference)
        if transfer != OVERALL:
            gain = gain[[grid.transfers.index(transfer)]]
        means = mean_over(gain, axis=(0, 2))
        return means[np.isfinite(means)]

    @property
    def _main_rows(self) -> pd.DataFrame:
        return self.long[self.long.metric == self.main.metric]

    @cached_property
    def mixed_model(self) -> pd.DataFrame:
        """`tests.mixed_model` of focus over reference, in printed units; empty without both."""
        grid, metric = self.main.grid, self.main.metric
        if grid is None or not {self.focus, self.reference} <= set(grid.methods):
            return pd.DataFrame()
        rows = tests.mixed_model(self._main_rows, metric, self.reference, [self.focus])
        names = ["gain", "standard_error", "low", "high", "sd_transfer", "sd_subject"]
        rows[[*names, "sd_residual"]] *= SCALE[metric]
        return rows

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
    reference = claim.versus if claim else "finetune"
    focus = claim.method if claim else _first_trm(protocol)
    judgement, no_verdict = _judge(long, claim)
    scores: dict[str, Scores] = {}
    for metric in protocol.metrics:
        scores[metric] = _scores(results, long[long.metric == metric], metric, reference, focus)
    return Evidence(
        results=results,
        long=long,
        scores=scores,
        problems=_problems(long, protocol.split.per_seed),
        judgement=judgement,
        no_verdict=no_verdict,
        reference=reference,
        focus=focus,
    )


def _first_trm(protocol: Protocol) -> str:
    """What the table calls the paper's method, or the first of its readings."""
    labels = [m.label for m in protocol.methods if m.name == "trm"]
    return "trm" if "trm" in labels or not labels else labels[0]


def _judge(long: pd.DataFrame, claim: Claim | None) -> tuple[verdict.Judgement | None, str]:
    if not claim:
        return None, "no verdict: this protocol holds no claim to judge"
    try:
        judgement = verdict.judge(long, claim)
    except UserError as error:
        return None, f"no verdict: {error}"
    return judgement, judgement.no_verdict


def _scores(
    results: Results, rows: pd.DataFrame, metric: str, reference: str, focus: str
) -> Scores:
    none = pd.DataFrame()
    try:
        grid = table.grid(rows, metric)
    except UserError as error:
        fault = "no run has finished" if rows.empty else str(error)
        return Scores(metric, fault, None, none, none, {})
    pairs = table.default_pairs(grid.methods, reference, focus)
    comparisons = tests.compare(rows, metric, pairs) if pairs else none
    gains = none
    if over := [pair for pair in pairs if pair[1] == reference]:
        gains = bootstrap_gain(rows, metric, over)
        gains[["gain", "low", "high"]] *= SCALE[metric]
    return Scores(metric, "", grid, comparisons, gains, _incomplete(results, grid))


def _incomplete(results: Results, grid: Grid) -> dict[tuple[str, str], str]:
    """What each (transfer, method) lacks: seeds, or subjects that another method has."""
    planned: dict[tuple[str, str], set[int]] = {}
    done: dict[tuple[str, str], set[int]] = {}
    for cell in results.cells:
        planned.setdefault((cell.transfer, cell.method), set()).add(cell.seed)
    for cell, _ in results.finished():
        done.setdefault((cell.transfer, cell.method), set()).add(cell.seed)
    lacks = {}
    for (transfer, method), seeds in planned.items():
        finished = len(done.get((transfer, method), ()))
        if finished < len(seeds):
            lacks[transfer, method] = f"{finished} of {len(seeds)} seeds"
        elif method in grid.methods and transfer in grid.transfers:
            t = grid.transfers.index(transfer)
            has, all_have = int(np.isfinite(grid.of(method)[t]).sum()), int(grid.cells[t].sum())
            if has < all_have:
                lacks[transfer, method] = f"{has} of {all_have} scans"
    return lacks


def _problems(long: pd.DataFrame, per_seed: bool) -> list[str]:
    """Faults of the table; with a split a seed, each seed has its own subjects."""
    if long.empty:
        return []
    parts = [part for _, part in long.groupby("seed")] if per_seed else [long]
    return list(dict.fromkeys(problem for part in parts for problem in table.check(part)))
