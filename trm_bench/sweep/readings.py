"""Which readings of a method do well: the effect of each value of its options, over datasets.

The trials of a sweep are few and unbalanced, since a sampler goes where scores are good: the mean
score of a value is also that of the values that came along with it. So each dataset gets an
additive model, fitted by least squares,

    score_t = m + sum_o e_o(value of o in t) + sum_x s_x (log x_t - middle) + error_t

with effects e_o that sum to 0 over the values drawn of an option, and a slope s_x for each number,
which counts only in the trials that have it; its middle is that of its range, so that the effect of
the value under which it matters is the effect at that middle. Interactions are not in it. An effect
that the trials cannot tell from others is not estimable, and is left out (Searle, Linear Models,
1971, section 5.4: a contrast c'b is estimable where c lies in the row space of the design matrix).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trm_bench.errors import UserError, nearest
from trm_bench.runs.folders import swept_folders
from trm_bench.sweep.findings import Finding, float_of, read_findings
from trm_bench.sweep.space import Dimension

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-8
LEVEL = 0.95
FIXED = ("trm_paper_literal", "trm_minmax_power")  # readings that stand beside the searched ones


@dataclass(frozen=True)
class Dataset:
    """The sweep of the method in one protocol; of one transfer where each has its own.

    Attributes:
        name: Of the protocol, and the transfer.
        path: Of the protocol's folder.
        data: `real`, or `phantom` for the stand-in.
        finding: Of the method.
        others: Findings of the fixed readings, where the sweep has them.
    """

    name: str
    path: Path
    data: str
    finding: Finding
    others: tuple[Finding, ...]


def collect(paths: Sequence[Path], method: str) -> list[Dataset]:
    """The sweeps of a method in results or protocol folders.

    Raises:
        UserError: There is none, they searched different spaces, or real and stand-in data meet.
    """
    datasets: list[Dataset] = []
    for path in paths:
        folders = swept_folders(path)
        if not folders:
            fix = "run trm-bench sweep first, and give the folder given to --out"
            raise UserError("no sweep here", path, fix)
        for folder in folders:
            tuned, findings = read_findings(folder)
            own = [f for f in findings if f.entry.method == method]
            if not own:
                known = nearest(method, [f.entry.method for f in findings])
                raise UserError(f"no trials of '{method}' here", folder.sweep, known)
            for finding in own:
                transfer = finding.entry.transfer
                others = tuple(
                    f for f in findings if f.entry.method in FIXED and f.entry.transfer == transfer
                )
                name = " ".join(filter(None, (tuned.protocol, transfer)))
                datasets.append(Dataset(name, folder.path, tuned.data, finding, others))
    _refuse_mixture(datasets)
    return datasets


def _refuse_mixture(datasets: Sequence[Dataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        both = f"{first.path} and {other.path}"
        if other.data != first.data:
            what = f"phantom and real data never stand in one table: {both}"
            raise UserError(what, fix="read each kind by itself")
        if other.finding.entry.space != first.finding.entry.space:
            what = f"these sweeps searched different spaces: {both}"
            raise UserError(what, fix="sweep them with the same trm-bench and settings")


def effects(finding: Finding) -> pd.DataFrame:
    """The effects in one dataset, in Dice points.

    Returns:
        One row a value of an option, and one a slope (per factor e): `option`, `value`, `trials`
        (how many have it), `effect`, `se` (NaN without residual degrees of freedom), `df`. Values
        that were never drawn have 0 trials; what is not estimable has the effect NaN.
    """
    import pandas as pd

    trials = [t for t in finding.trials if t.validation_dice is not None]
    score = np.array([100 * float_of(t.validation_dice) for t in trials])
    values = [t.values for t in trials]
    design, contrasts = _design(finding.dimensions, values)
    rows = []
    inverse = np.linalg.pinv(design, rcond=TOLERANCE)
    rank = int(np.linalg.matrix_rank(design)) if trials else 0
    coefficients, df = inverse @ score, len(score) - rank
    residual = score - design @ coefficients
    variance = float(residual @ residual) / df if df > 0 else math.nan
    for option, value, number, contrast in contrasts:
        effect, se = math.nan, math.nan
        if contrast is not None and np.allclose(contrast @ inverse @ design, contrast, atol=1e-6):
            effect = float(contrast @ coefficients)
            se = math.sqrt(variance * float(np.square(contrast @ inverse).sum()))
        rows.append((option, value, number, effect, se, df))
    return pd.DataFrame(rows, columns=["option", "value", "trials", "effect", "se", "df"])


Contrast = tuple[str, str, int, "np.ndarray | None"]


def _design(
    dimensions: Sequence[Dimension], values: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, list[Contrast]]:
    """Design matrix, and for each value and slope its number of trials and its contrast."""
    columns, places = [np.ones(len(values))], []
    for dimension in dimensions:
        name, has = dimension.name, [dimension.name in v for v in values]
        first = len(columns)
        if dimension.kind == "choice":
            masks = [
                np.array([h and v[name] == level for h, v in zip(has, values, strict=True)], float)
                for level in dimension.search
            ]
            drawn = [mask for mask in masks if mask.any()]
            columns += [mask - drawn[-1] for mask in drawn[:-1]]
            places.append((dimension, masks, first, len(drawn) - 1))
        else:
            scaled = math.log if dimension.log else float
            middle = sum(scaled(end) for end in dimension.search) / 2
            centred = np.array([scaled(v[name]) - middle if name in v else 0.0 for v in values])
            columns.append(centred)
            places.append((dimension, [np.array(has, float)], first, 1))
    design = np.stack(columns, axis=1)
    contrasts: list[Contrast] = []
    for dimension, masks, first, number in places:
        contrasts += _contrasts(dimension, masks, first, number, design.shape[1])
    return design, contrasts


def _contrasts(
    dimension: Dimension, masks: Sequence[np.ndarray], first: int, number: int, width: int
) -> list[Contrast]:
    """A contrast for each level of a choice (the last drawn is minus the others), or the slope."""
    unit = np.eye(width)
    if dimension.kind != "choice":
        per = "per factor e" if dimension.log else "per unit"
        return [(dimension.name, per, int(masks[0].sum()), unit[first])]
    found: list[Contrast] = []
    drawn = [i for i, mask in enumerate(masks) if mask.any()]
    for i, (level, mask) in enumerate(zip(dimension.search, masks, strict=True)):
        contrast = None
        if i in drawn and number > 0:
            last = i == drawn[-1]
            own = unit[first : first + number]
            contrast = -own.sum(0) if last else own[drawn.index(i)]
        found.append((dimension.name, str(level), int(mask.sum()), contrast))
    return found


def over_datasets(datasets: Sequence[Dataset]) -> pd.DataFrame:
    """Mean effect of each value over the datasets where it is estimable.

    Returns:
        `option`, `value`, `datasets`, `effect`, `low`, `high`, `interval` (what these are: a 95 %
        t interval over 3 or more datasets; the range of 2; of 1, the interval of its own model,
        which speaks of those trials alone), `rank` (mean over datasets; 1 is the option's best),
        `best` (in how many datasets), and a column for each dataset.
    """
    import pandas as pd

    tables = []
    for dataset in datasets:
        table = effects(dataset.finding)
        slopes = table["value"].str.startswith("per ")
        table["rank"] = table.groupby("option")["effect"].rank(ascending=False).mask(slopes)
        tables.append(table)
    rows = []
    for i in range(len(tables[0])):
        own = [table.iloc[i] for table in tables]
        known = [row for row in own if math.isfinite(row.effect)]
        low, high, kind = _interval(known)
        rows.append(
            {
                "option": own[0].option,
                "value": own[0].value,
                "datasets": len(known),
                "effect": float(np.mean([r.effect for r in known])) if known else math.nan,
                "low": low,
                "high": high,
                "interval": kind,
                "rank": float(np.mean([r["rank"] for r in known])) if known else math.nan,
                "best": sum(r["rank"] == 1 for r in known),
                **{d.name: row.effect for d, row in zip(datasets, own, strict=True)},
            }
        )
    return pd.DataFrame(rows)


def _interval(rows: Sequence[Any]) -> tuple[float, float, str]:
    from scipy import stats

    values = np.array([row.effect for row in rows])
    if len(values) == 0:
        return math.nan, math.nan, "not estimable"
    if len(values) == 1:
        row = rows[0]
        if not math.isfinite(row.se):
            return math.nan, math.nan, "one dataset, no residual"
        half = float(stats.t.ppf((1 + LEVEL) / 2, row.df)) * row.se
        return row.effect - half, row.effect + half, "one dataset: its trials alone"
    if len(values) == 2:
        return float(values.min()), float(values.max()), "range of two datasets"
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    mean = float(values.mean())
    return mean - half, mean + half, "95 % over datasets"


def references(datasets: Sequence[Dataset]) -> list[tuple[str, str, float | None, float | None]]:
    """Dataset, method, and its validation Dice with the defaults and with the best trial."""
    return [
        (d.name, f.entry.method, f.entry.default_validation_dice, f.entry.validation_dice)
        for d in datasets
        for f in (d.finding, *d.others)
    ]


def balance(datasets: Sequence[Dataset], option: str) -> dict[str, float]:
    """Mean share of the voxel-wise term in the gradient, by the value of an option."""
    shares: dict[str, list[float]] = {}
    for dataset in datasets:
        for trial in dataset.finding.trials:
            if option in trial.values and trial.voxel_share is not None:
                shares.setdefault(str(trial.values[option]), []).append(trial.voxel_share)
    return {value: float(np.mean(of_value)) for value, of_value in shares.items()}
