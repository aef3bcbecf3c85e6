"""What a folder's records say, computed once: tables, charts and pages only show it.

Nothing here raises on bad records: what cannot be computed is None or empty, and a sentence says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from trm_bench import negative_transfer, statistics, verdict
from trm_bench.errors import UserError
from trm_bench.results import Results

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

NAMES = {"dice": "Dice", "hd95": "HD95", "surface_dice": "Surface Dice"}
UNITS = {"dice": "%", "surface_dice": "%", "hd95": "mm"}
GAIN_UNITS = {"dice": "points", "surface_dice": "points", "hd95": "mm"}
SCALE = verdict.POINTS  # from a metric's own unit to the printed one
OVERALL = statistics.OVERALL
ALPHA = 0.05
PHANTOM = "STAND-IN DATA (phantom): these numbers say nothing about the paper's claim."


@dataclass(frozen=True)
class Scores:
    """One metric, in printed units (per cent, or mm).

    Attributes:
        metric: Its name.
        fault: Why there are no numbers; "" where there are.
        grid: Values by method, transfer, subject and seed; None where the rows cannot stand in one table.
        comparisons: `statistics.compare` of the whole family; empty where there is nothing to compare.
        gains: `statistics.bootstrap_gain` of each method over the reference; empty without a reference.
        incomplete: (transfer, method) to what is missing, e.g. "2 of 3 seeds".
    """

    metric: str
    fault: str
    grid: statistics.Grid | None
    comparisons: pd.DataFrame
    gains: pd.DataFrame
    incomplete: dict[tuple[str, str], str]

    def by_seed(self, transfer: str, method: str) -> NDArray[np.float64]:
        """The mean over subjects under each seed of the table; NaN where a seed has no numbers."""
        if self.grid is None or method not in self.grid.methods or transfer not in self.grid.transfers:
            return np.empty(0)
        values = self.grid.of(method)[self.grid.transfers.index(transfer)]
        there = np.isfinite(values)
        total, count = np.where(there, values, 0).sum(axis=0), there.sum(axis=0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan) * SCALE[self.metric]

    def by_subject(self, transfer: str, method: str) -> dict[str, float]:
        """Subject to its mean over seeds."""
        if self.grid is None or method not in self.grid.methods or transfer not in self.grid.transfers:
            return {}
        values = self.grid.of(method)[self.grid.transfers.index(transfer)]
        pairs = zip(self.grid.subjects, values, strict=True)
        return {s: float(np.nanmean(v)) * SCALE[self.metric] for s, v in pairs if np.isfinite(v).any()}

    def gain(self, method: str, transfer: str = OVERALL) -> dict[str, float] | None:
        """Gain over the reference: gain, low, high (printed units); relative, relative_low, relative_high (%)."""
        if self.gains.empty:
            return None
        rows = self.gains[(self.gains.method == method) & (self.gains.transfer == transfer)]
        if rows.empty or not np.isfinite(rows.iloc[0]["gain"]):
            return None
        names = ["gain", "low", "high", "relative", "relative_low", "relative_high"]
        return {k: float(rows.iloc[0][k]) for k in names}

    def comparison(self, transfer: str, method: str, versus: str) -> pd.Series | None:
        """The row of a test, if it was made."""
        found = self._indexed.get((transfer, method, versus))
        return None if found is None else self.comparisons.loc[found]

    @cached_property
    def _indexed(self) -> dict[tuple[str, str, str], Any]:
        if self.comparisons.empty:
            return {}
        keys = zip(self.comparisons.transfer, self.comparisons.method, self.comparisons.versus, strict=True)
        return dict(zip(keys, self.comparisons.index, strict=True))


@dataclass(frozen=True)
class Evidence:
    """All that a report shows of one protocol.

    Attributes:
        results: The records.
        long: The long table.
        scores: By metric, the protocol's first one first.
        problems: Faults that `statistics.check` names.
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
    def name(self) -> str:
        """Of the protocol."""
        return str(self.results.plan["protocol"]["name"])

    @property
    def phantom(self) -> bool:
        """Whether the data are the stand-in."""
        return bool(self.results.plan["data"] == "phantom")

    @property
    def methods(self) -> list[str]:
        """In the protocol's order."""
        return list(dict.fromkeys(c["method"] for c in self.results.cells))

    @property
    def transfers(self) -> list[str]:
        """In the protocol's order."""
        return list(dict.fromkeys(c["transfer"] for c in self.results.cells))

    @property
    def seeds(self) -> list[int]:
        """Sorted."""
        return sorted({c["seed"] for c in self.results.cells})

    @property
    def main(self) -> Scores:
        """Scores of the metric that the protocol names first."""
        return next(iter(self.scores.values()))

    @property
    def words(self) -> list[str]:
        """The verdict's word, or its two words where the claim leaves its unit open; none without a verdict."""
        if self.judgement is None or self.no_verdict:
            return []
        return list(dict.fromkeys(word for word in self.judgement.gains["word"] if isinstance(word, str) and word))

    @property
    def holds(self) -> bool:
        """Whether the claim is reproduced, at least in its direction, in every reading of its unit."""
        return bool(self.words) and all(word in ("reproduced", "direction reproduced") for word in self.words)

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """Negative transfer gaps of every metric, per transfer, method and class, in the metrics' own units."""
        import pandas as pd

        found = [negative_transfer.gaps(self.long, metric) for metric, s in self.scores.items() if s.grid is not None]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=negative_transfer.COLUMNS)

    @cached_property
    def audits(self) -> list[dict[str, Any]]:
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

        One row per transfer and method, and with a transfer "mean": `smallest_gain` over the reference that one test
        would find with power 0.8 (`statistics.smallest_detectable_gain`; for "mean" that of the subjects' means over
        transfers), and `sd_over_seeds` of the method's own mean (`statistics.seed_spread`).
        """
        import pandas as pd

        grid, scale = self.main.grid, SCALE[self.main.metric]
        if grid is None:
            return pd.DataFrame(columns=["transfer", "method", "n_subjects", "smallest_gain", "sd_over_seeds"])
        spread = statistics.seed_spread(self.long[self.long.metric == self.main.metric], self.main.metric)
        gains = {m: grid.gain(m, self.reference) for m in grid.methods} if self.reference in grid.methods else {}

        def smallest(transfer: str, method: str) -> tuple[int, float]:
            if method not in gains or method == self.reference:
                return 0, np.nan
            gain = gains[method] if transfer == OVERALL else gains[method][[grid.transfers.index(transfer)]]
            there = np.isfinite(gain)
            count = there.sum(axis=(0, 2))
            per_subject = np.where(there, gain, 0).sum(axis=(0, 2))[count > 0] / count[count > 0]
            return len(per_subject), statistics.smallest_detectable_gain(per_subject) * scale

        rows = [
            (row["transfer"], row["method"], *smallest(row["transfer"], row["method"]), row["sd"] * scale)
            for row in spread.to_dict("records")
        ]
        return pd.DataFrame(rows, columns=["transfer", "method", "n_subjects", "smallest_gain", "sd_over_seeds"])

    @cached_property
    def mixed_model(self) -> pd.DataFrame:
        """`statistics.mixed_model` of the focus over the reference, in printed units; empty without both."""
        import pandas as pd

        grid = self.main.grid
        if grid is None or not {self.focus, self.reference} <= set(grid.methods):
            return pd.DataFrame()
        rows = self.long[self.long.metric == self.main.metric]
        found = statistics.mixed_model(rows, self.main.metric, self.reference, [self.focus])
        names = ["gain", "standard_error", "low", "high", "sd_transfer", "sd_subject", "sd_residual"]
        found[names] *= SCALE[self.main.metric]
        return found

    def states(self) -> dict[str, int]:
        """Number of cells in each state."""
        found: dict[str, int] = {}
        for cell in self.results.cells:
            record = self.results.record(cell)
            state = str(record["state"]) if record else "not run"
            found[state] = found.get(state, 0) + 1
        return found


def collect(results: Results) -> Evidence:
    """Computes the statistics of a folder."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # the matrices are many and small: threads make them three times slower
        return _collect(results)


def _collect(results: Results) -> Evidence:
    long = results.table().assign(data=results.plan["data"])
    protocol = results.plan["protocol"]
    claim = protocol.get("claim")
    reference, focus = (claim["versus"], claim["method"]) if claim else ("finetune", _first_trm(protocol))
    judgement, no_verdict = _judge(long, claim)
    return Evidence(
        results=results,
        long=long,
        scores={m: _scores(results, long[long.metric == m], m, reference, focus) for m in protocol["metrics"]},
        problems=_problems(long, bool(protocol["split"].get("per_seed"))),
        judgement=judgement,
        no_verdict=no_verdict,
        reference=reference,
        focus=focus,
    )


def _first_trm(protocol: dict[str, Any]) -> str:
    """What the table calls the paper's method, or the first of its readings."""
    labels = [m["label"] for m in protocol["methods"] if m["name"] == "trm"]
    return "trm" if "trm" in labels or not labels else str(labels[0])


def _judge(long: pd.DataFrame, claim: dict[str, Any] | None) -> tuple[verdict.Judgement | None, str]:
    if not claim:
        return None, "no verdict: this protocol holds no claim to judge"
    try:
        made = verdict.judge(long, claim)
    except UserError as error:
        return None, f"no verdict: {error}"
    return made, made.no_verdict


def _scores(results: Results, rows: pd.DataFrame, metric: str, reference: str, focus: str) -> Scores:
    import pandas as pd

    none = pd.DataFrame()
    try:
        grid = statistics.grid(rows, metric)
    except UserError as error:
        fault = "no run has finished" if rows.empty else str(error)
        return Scores(metric, fault, None, none, none, {})
    pairs = statistics.default_pairs(grid.methods, reference, focus)
    comparisons = statistics.compare(rows, metric, pairs) if pairs else none
    gains = none
    if over := [pair for pair in pairs if pair[1] == reference]:
        gains = statistics.bootstrap_gain(rows, metric, over)
        gains[["gain", "low", "high"]] *= SCALE[metric]
    return Scores(metric, "", grid, comparisons, gains, _incomplete(results, grid))


def _incomplete(results: Results, grid: statistics.Grid) -> dict[tuple[str, str], str]:
    """What each (transfer, method) lacks of its seeds, or of the subjects that another method has."""
    planned: dict[tuple[str, str], set[int]] = {}
    done: dict[tuple[str, str], set[int]] = {}
    for cell in results.cells:
        key = (cell["transfer"], cell["method"])
        record = results.record(cell)
        planned.setdefault(key, set()).add(cell["seed"])
        if record is not None and record["state"] == "finished":
            done.setdefault(key, set()).add(cell["seed"])
    found = {}
    for key, seeds in planned.items():
        transfer, method = key
        if len(done.get(key, ())) < len(seeds):
            found[key] = f"{len(done.get(key, ()))} of {len(seeds)} seeds"
        elif method in grid.methods and transfer in grid.transfers:
            t = grid.transfers.index(transfer)
            has, all_have = int(np.isfinite(grid.of(method)[t]).sum()), int(grid.cells[t].sum())
            if has < all_have:
                found[key] = f"{has} of {all_have} scans"
    return found


def _problems(long: pd.DataFrame, per_seed: bool) -> list[str]:
    """Faults of the table; with a split a seed, each seed has its own subjects and is checked by itself."""
    if long.empty:
        return []
    parts = [part for _, part in long.groupby("seed")] if per_seed else [long]
    found = [problem for part in parts for problem in statistics.check(part)]
    return list(dict.fromkeys(found))
