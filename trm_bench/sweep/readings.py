"""Which readings of a method do well: the effect of each value of its options, over datasets.

The trials of a sweep are few and unbalanced, since a sampler goes where scores are good: the mean
score of a value is also that of the values that came along with it. So each dataset gets an
additive model, fitted by least squares,

    score_t = m + sum_o e_o(value of o in t) + sum_x s_x (log x_t - middle) + error_t

with effects e_o that sum to 0 over the values drawn of an option, and a slope s_x for each number,
which counts only in the trials that have it; its middle is that of its range, so that the effect of
the value under which it matters is the effect at that middle. Interactions are not in it. Trials
with the same runs are one observation. An effect that the trials cannot tell from others is not
estimable, and is left out (Searle, Linear Models, 1971, section 5.4: a contrast c'b is estimable
where c lies in the row space of the design matrix).

Effects are told against the mean over values that all datasets can compare, since those against
another mean in each would differ between datasets where the method does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trm_bench.errors import UserError, nearest
from trm_bench.runs.folders import ProtocolFolder, distinct_names, swept_folders
from trm_bench.runs.records import SweptTrial
from trm_bench.sweep.findings import Finding, float_of, read_findings
from trm_bench.sweep.space import Dimension

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-8
LEVEL = 0.95
FEWEST = 3  # datasets from which there is an interval over datasets
Array = NDArray[np.float64]
FIXED = ("trm_paper_literal", "trm_minmax_power")  # readings that stand beside the searched ones


@dataclass(frozen=True)
class Dataset:
    """The sweep of the method in one protocol; of one transfer where each has its own.

    Attributes:
        name: Of the protocol, and the transfer; no two have the same.
        path: Of the protocol's folder.
        data: `real`, or `phantom` for the stand-in.
        finding: Of the method.
        others: Findings of the fixed readings, where the sweep has them.
        subjects: Hash of the subjects.
    """

    name: str
    path: Path
    data: str
    finding: Finding
    others: tuple[Finding, ...]
    subjects: str = ""


def collect(paths: Sequence[Path], method: str) -> list[Dataset]:
    """The sweeps of a method in results or protocol folders, each once.

    Raises:
        UserError: There is none, they searched different spaces, or real and stand-in data meet.
    """
    folders: dict[Path, ProtocolFolder] = {}
    for path in paths:
        found = swept_folders(path)
        if not found:
            fix = "run trm-bench sweep first, and give the folder given to --out"
            raise UserError("no sweep here", path, fix)
        folders |= {folder.path.resolve(): folder for folder in found}
    datasets = [one for folder in folders.values() for one in _datasets(folder, method)]
    _refuse_mixture(datasets)
    names = distinct_names([(d.name, ProtocolFolder(d.path)) for d in datasets])
    return [replace(d, name=name) for d, name in zip(datasets, names, strict=True)]


def _datasets(folder: ProtocolFolder, method: str) -> list[Dataset]:
    tuned, findings = read_findings(folder)
    own = [f for f in findings if f.entry.method == method]
    if not own:
        known = nearest(method, [f.entry.method for f in findings])
        raise UserError(f"no trials of '{method}' here", folder.sweep, known)
    datasets = []
    for finding in own:
        transfer = finding.entry.transfer
        others = tuple(
            f for f in findings if f.entry.method in FIXED and f.entry.transfer == transfer
        )
        name = " ".join(filter(None, (tuned.protocol, transfer)))
        subjects = tuned.conditions.get("subjects", "")
        datasets.append(Dataset(name, folder.path, tuned.data, finding, others, subjects))
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


def observations(finding: Finding) -> list[SweptTrial]:
    """Trials with a score; of those with the same runs the first, since they are one score."""
    first: dict[tuple[str, ...], SweptTrial] = {}
    for trial in finding.trials:
        first.setdefault(trial.runs or (str(trial.number),), trial)
    return [t for t in first.values() if t.validation_dice is not None]


class Model:
    """The additive model of a dataset's trials.

    Attributes:
        dimensions: Options and numbers.
        trials: Those it is fitted to.
        places: Option or number to the place of its first column; an option has one a value.
        df: Trials left for the error.
    """

    def __init__(self, finding: Finding) -> None:
        self.dimensions = finding.dimensions
        self.trials = observations(finding)
        self._failed = [t for t in finding.trials if t.validation_dice is None]
        score = np.array([100 * float_of(t.validation_dice) for t in self.trials])
        columns = [np.ones((len(self.trials), 1))]
        self.places: dict[str, int] = {}
        for dimension in self.dimensions:
            self.places[dimension.name] = sum(block.shape[1] for block in columns)
            columns.append(_columns(dimension, [t.values for t in self.trials]))
        design = np.hstack(columns)
        self._inverse = np.linalg.pinv(design, rcond=TOLERANCE)
        self._row_space = self._inverse @ design  # the projection onto it
        self._coefficients = self._inverse @ score
        self.df = len(score) - round(float(np.trace(self._row_space)))
        residual = score - design @ self._coefficients
        self._variance = float(residual @ residual) / self.df if self.df > 0 else math.nan

    def estimate(self, contrast: Array) -> tuple[float, float]:
        """A contrast of the coefficients and its standard error; NaN where it is not estimable."""
        if not np.allclose(contrast @ self._row_space, contrast, atol=1e-6):
            return math.nan, math.nan
        variance = self._variance * float(np.square(contrast @ self._inverse).sum())
        return float(contrast @ self._coefficients), math.sqrt(variance)

    def count(self, option: str, value: Any = None, failed: bool = False) -> int:
        """Trials that have a value of an option; that have a number, where none is given."""
        trials = self._failed if failed else self.trials
        return sum(option in t.values and value in (None, str(t.values[option])) for t in trials)

    def unit(self, place: int) -> Array:
        """The contrast that is one coefficient."""
        return np.eye(len(self._coefficients))[place]

    @cached_property
    def comparable(self) -> dict[str, list[str]]:
        """Option to its values between which the trials can tell, where there are two or more.

        That differences are estimable is transitive, so the values fall into classes; these are
        those of the largest one.
        """
        found: dict[str, list[str]] = {}
        for dimension in self.dimensions:
            classes: list[list[int]] = []
            for i in range(len(dimension.search) if dimension.kind == "choice" else 0):
                for known in classes:
                    if math.isfinite(self.estimate(self._difference(dimension, i, known[0]))[0]):
                        known.append(i)
                        break
                else:
                    classes.append([i])
            largest = max(classes, key=len, default=[])
            if len(largest) > 1:
                found[dimension.name] = [str(dimension.search[i]) for i in largest]
        return found

    def _difference(self, dimension: Dimension, one: int, other: int) -> Array:
        first = self.places[dimension.name]
        return self.unit(first + one) - self.unit(first + other)


def _columns(dimension: Dimension, values: Sequence[Mapping[str, Any]]) -> Array:
    """An option's indicators less their mean over the values drawn; a number's place.

    0 in the trials that lack it, and for a value that was never drawn.
    """
    name = dimension.name
    if dimension.kind != "choice":
        scaled = math.log if dimension.log else float
        middle = sum(scaled(end) for end in dimension.search) / 2
        return np.array([[scaled(v[name]) - middle if name in v else 0.0] for v in values]).reshape(
            -1, 1
        )
    drawn = np.array(
        [[name in v and v[name] == level for level in dimension.search] for v in values], float
    ).reshape(-1, len(dimension.search))
    used = drawn.any(axis=0)
    return drawn - np.outer(drawn.any(axis=1), used / max(used.sum(), 1))


def effects(
    model: Model | Finding, shared: Mapping[str, Sequence[str]] | None = None
) -> pd.DataFrame:
    """The effects in one dataset, in Dice points.

    Args:
        model: Of the dataset, or what it is fitted to.
        shared: Option to the values whose mean is 0; those that are comparable, where not given.

    Returns:
        One row a value of an option, and one a slope (per factor e): `option`, `value`, `trials`
        (how many have it), `failed` (likewise), `effect`, `se` (NaN without residual degrees of
        freedom), `df`, `why` (there is no effect).
    """
    import pandas as pd

    model = model if isinstance(model, Model) else Model(model)
    shared = model.comparable if shared is None else shared
    rows = []
    for dimension in model.dimensions:
        for value, contrast in _contrasts(model, dimension, shared.get(dimension.name, ())):
            key = None if dimension.kind != "choice" else value
            trials, failed = (model.count(dimension.name, key, f) for f in (False, True))
            effect, se = (math.nan, math.nan) if contrast is None else model.estimate(contrast)
            why = "" if math.isfinite(effect) else "not told apart" if trials else "never drawn"
            rows.append((dimension.name, value, trials, failed, effect, se, model.df, why))
    columns = ["option", "value", "trials", "failed", "effect", "se", "df", "why"]
    return pd.DataFrame(rows, columns=columns)


def _contrasts(
    model: Model, dimension: Dimension, shared: Sequence[str]
) -> Iterable[tuple[str, Array | None]]:
    """Each value of an option against the mean of the shared ones; the slope of a number."""
    first = model.places[dimension.name]
    if dimension.kind != "choice":
        yield "per factor e" if dimension.log else "per unit", model.unit(first)
        return
    values = [str(level) for level in dimension.search]
    mean = [model.unit(first + values.index(value)) for value in shared]
    for i, value in enumerate(values):
        yield value, model.unit(first + i) - np.mean(mean, axis=0) if mean else None


def shared_values(models: Sequence[Model]) -> dict[str, list[str]]:
    """Option to the values that can be compared in every dataset in which any can be.

    An option without two of them is left out.
    """
    found: dict[str, list[str]] = {}
    for option in (d.name for d in models[0].dimensions):
        known = [m.comparable[option] for m in models if option in m.comparable]
        values = [v for v in (known[0] if known else []) if all(v in k for k in known)]
        if len(values) > 1:
            found[option] = values
    return found


def over_datasets(datasets: Sequence[Dataset]) -> pd.DataFrame:
    """Mean effect of each value over the datasets where it is estimable.

    Returns:
        `option`, `value`, `trials`, `failed`, `datasets`, `effect`, `against` (the values whose
        mean is 0), `low`, `high`, `interval` (what these are: a 95 % t interval over 3 or more
        datasets; the range of 2; of 1, the interval of its own model, which speaks of those trials
        alone; or why there is no effect), `rank` (mean over datasets; 1 is the option's best),
        `best` (in how many datasets), `ranked` (of how many: those that have all values that any
        has), and a column for each dataset.
    """
    import pandas as pd

    models = [Model(d.finding) for d in datasets]
    shared = shared_values(models)
    tables = [effects(model, shared) for model in models]
    ranks = _ranks(tables)
    rows = []
    for i, (option, value) in enumerate(zip(tables[0].option, tables[0].value, strict=True)):
        own = [table.iloc[i] for table in tables]
        known = [row for row in own if math.isfinite(row.effect)]
        low, high, kind = _interval(known)
        why = " or ".join(sorted({row.why for row in own} - {""}))
        placed = ranks.iloc[i].dropna()
        rows.append(
            {
                "option": option,
                "value": value,
                "trials": sum(int(row.trials) for row in own),
                "failed": sum(int(row.failed) for row in own),
                "datasets": len(known),
                "effect": float(np.mean([r.effect for r in known])) if known else math.nan,
                "against": ", ".join(shared.get(option, [])),
                "low": low,
                "high": high,
                "interval": kind or f"not estimable: {why}",
                "rank": placed.mean(),
                "best": int((placed == 1).sum()),
                "ranked": len(placed),
                **{d.name: row.effect for d, row in zip(datasets, own, strict=True)},
            }
        )
    return pd.DataFrame(rows)


def _ranks(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rank of each row within its option, a column a dataset.

    NaN for slopes, and in a dataset that lacks a value which another has: fewer places are no ranks
    to be averaged with those.
    """
    import pandas as pd

    known = pd.concat([table.effect.notna() for table in tables], axis=1)
    option = tables[0].option.mask(tables[0].value.str.startswith("per "))
    columns = []
    for i, table in enumerate(tables):
        lacks = (known.any(axis=1) & ~known.iloc[:, i]).groupby(option).transform("any")
        ranks = table.effect.groupby(option).rank(ascending=False, method="min")
        columns.append(ranks.mask(lacks.eq(True)))
    return pd.concat(columns, axis=1)


def _interval(rows: Sequence[Any]) -> tuple[float, float, str]:
    from scipy import stats

    values = np.array([row.effect for row in rows])
    if len(values) == 0:
        return math.nan, math.nan, ""
    if len(values) == 1:
        row = rows[0]
        if not math.isfinite(row.se):
            return math.nan, math.nan, "one dataset, no residual"
        half = float(stats.t.ppf((1 + LEVEL) / 2, row.df)) * row.se
        return row.effect - half, row.effect + half, "one dataset: its trials alone"
    if len(values) < FEWEST:
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


def balance(datasets: Sequence[Dataset], option: str) -> dict[str, dict[str, float]]:
    """Mean share of the voxel-wise term in the gradient, by the value of an option and dataset.

    Plain means over trials with a score: the other options are not held fixed.
    """
    shares: dict[str, dict[str, list[float]]] = {}
    for dataset in datasets:
        for trial in observations(dataset.finding):
            if option in trial.values and trial.voxel_share is not None:
                of_value = shares.setdefault(str(trial.values[option]), {})
                of_value.setdefault(dataset.name, []).append(trial.voxel_share)
    return {
        value: {name: float(np.mean(own)) for name, own in by_dataset.items()}
        for value, by_dataset in shares.items()
    }
