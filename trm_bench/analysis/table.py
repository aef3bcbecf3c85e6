"""The one long table that everything is computed from, its faults, and its arrays.

The columns are `protocol, transfer, method, seed, subject, class, metric, value` and, where known,
`data` ("phantom" or "real"). `class` names a scored region. One call treats one protocol. Values
are in `UNITS`, from here on and in every file: shares of the records are per cent, and differences
of them points.

The unit is the test subject: a value is averaged over classes, then over seeds, and methods are
compared within a subject. A gain is positive where the method is better, whatever the metric.

Nothing is averaged away. `check` names every fault. Duplicated rows, and phantom data beside real
data, stop a test; a subject without a finite value for *every* class of its transfer counts as
missing under that seed. Comparisons use the (subject, seed) cells that both methods have, and
`left_out` says how many cells of the transfer they do not use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trm_bench.errors import UserError, nearest

if TYPE_CHECKING:
    from trm_bench.runs.store import Results

KEYS = ["protocol", "transfer", "method", "seed", "subject", "class", "metric"]
COLUMNS = [*KEYS, "value"]
HIGHER_IS_BETTER = {
    "dice": True,
    "surface_dice": True,
    "hd95": False,
    "auroc": True,
    "share": True,
}
UNITS = {"dice": "%", "surface_dice": "%", "hd95": "mm"}
# from the records' unit, in which a Dice is a share
SCALE = {"dice": 100.0, "surface_dice": 100.0, "hd95": 1.0}
# the row over all transfers, each with the same weight, as in the tables' last column
OVERALL = "mean"

Pairs = Sequence[tuple[str, str]]


def long_table(results: Results) -> pd.DataFrame:
    """One row per (protocol, transfer, method, seed, subject, class, metric) that a run scored.

    In `UNITS`.
    """
    finished = list(results.finished())
    subjects: list[str] = []
    classes: list[str] = []
    metrics: list[str] = []
    values: list[float] = []
    number = []
    for _, record in finished:
        before = len(values)
        for subject, regions in record.metrics.items():
            for region, scores in regions.items():
                subjects += [subject] * len(scores)
                classes += [region] * len(scores)
                metrics += scores.keys()
                values += [SCALE[metric] * value for metric, value in scores.items()]
        number.append(len(values) - before)
    of_cell = {
        key: np.repeat(
            np.array([getattr(cell, key) for cell, _ in finished], object), np.array(number, int)
        )
        for key in ("transfer", "method", "seed")
    }
    protocol = [results.plan.protocol.name] * len(values)
    return framed(
        {
            "protocol": protocol,
            **of_cell,
            "subject": subjects,
            "class": classes,
            "metric": metrics,
            "value": np.array(values, float),
        }
    )


def framed(columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> pd.DataFrame:
    """A table in which a name that comes in many rows is kept once, sorted as texts are.

    Args:
        columns: By name, those of `KEYS` among them.
    """
    held = {
        name: _categories(column) if name in KEYS and name != "seed" else column
        for name, column in columns.items()
    }
    return pd.DataFrame(held).infer_objects()


def _categories(names: Sequence[str] | NDArray[Any]) -> pd.Categorical:
    codes, kinds = pd.factorize(np.asarray(names, object), sort=True)
    made: pd.Categorical = pd.Categorical.from_codes(codes, pd.Index(kinds))
    return made


def units_of(results: Results, metric: str, transfer: str = OVERALL) -> list[str]:
    """The unit of a metric's values in a transfer, or the units over all.

    Distances are in voxels where the target's files do not state the voxel size. Two units have no
    mean.
    """
    if UNITS[metric] != "mm":
        return [UNITS[metric]]
    cells = [c for c in results.cells if transfer in (OVERALL, c.transfer)]
    return sorted({cell.distance_unit for cell in cells}) or [UNITS[metric]]


def mean_over(values: NDArray[np.float64], axis: int | tuple[int, ...]) -> NDArray[np.float64]:
    """Mean over the finite values along some axes; NaN where there is none.

    With values (transfer, subject, seed): over the last axis, each subject's mean over its seeds;
    over axis 1, each seed's mean over its subjects.
    """
    there = np.isfinite(values)
    total, count = np.where(there, values, 0.0).sum(axis=axis), there.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


# ----------------------------------------------------------------------------------------- faults


def check(table: pd.DataFrame) -> list[str]:
    """Lists everything that is wrong with a table, one sentence a fault; empty if complete.

    Looked for: absent columns, rows without a key, duplicated rows, phantom mixed with real data,
    values that are not finite, and missing values: within a transfer each method should have each
    subject with each class under each seed of the protocol.
    """
    absent = [column for column in COLUMNS if column not in table]
    if absent:
        return [f"the table has no column {', '.join(absent)}"]
    problems = _blocking(table)
    bad = table[~np.isfinite(table["value"].to_numpy(float))]
    if len(bad):
        problems.append(f"{_count(len(bad), 'value')} not finite, for instance {_row(bad)}")
    for protocol, rows in table.dropna(subset=KEYS).groupby("protocol"):
        problems += [f"{protocol}, {gap}" for gap in _gaps(rows)]
    return problems


def _gaps(rows: pd.DataFrame) -> Iterator[str]:
    """What the methods of one protocol lack, by transfer, metric and method."""
    methods, seeds = sorted(rows["method"].unique()), sorted(rows["seed"].unique())
    for transfer, part in rows.groupby("transfer"):
        subjects = sorted(part["subject"].unique())
        # the metrics of the protocol, not of the transfer: one may be missing here altogether
        for metric in sorted(rows["metric"].unique()):
            cells = part[part["metric"] == metric]
            classes = sorted(cells["class"].unique())
            axes = {"method": methods, "seed": seeds, "subject": subjects, "class": classes}
            given = np.zeros([len(names) for names in axes.values()], bool)
            given[tuple(pd.Index(n).get_indexer(cells[key]) for key, n in axes.items())] = True
            for method, has in zip(methods, given, strict=True):
                if not has.all() or not classes:
                    lacks = _missing(~has, seeds, subjects, classes)
                    yield f"{transfer}, {metric}: {method} lacks {lacks}"


def _blocking(table: pd.DataFrame) -> list[str]:
    """The faults that no test can be run on."""
    problems = []
    unnamed = table[np.any([table[key].isna() for key in KEYS], axis=0)]
    if len(unnamed):
        keys = " or ".join(k for k in KEYS if unnamed[k].isna().any())
        problems.append(f"{_count(len(unnamed), 'row')} without {keys}")
    twice = table[table.duplicated(KEYS)]
    if len(twice):
        problems.append(
            f"{_count(len(twice), 'row')} given more than once, for instance {_row(twice)}"
        )
    if "data" in table:
        stated = table["data"].unique()
        kinds = sorted({"not stated" if pd.isna(kind) else str(kind) for kind in stated})
        if len(kinds) > 1:
            problems.append(f"data of different kinds in one table: {', '.join(kinds)}")
    return problems


def _count(number: int, noun: str) -> str:
    return f"{number} {noun} is" if number == 1 else f"{number} {noun}s are"


def _row(rows: pd.DataFrame) -> str:
    return ", ".join(f"{key} {rows.iloc[0][key]}" for key in KEYS)


def _missing(
    lacks: NDArray[np.bool_], seeds: list[Any], subjects: list[Any], classes: list[Any]
) -> str:
    """Says which values of one method are missing: whole seeds first, then whole subjects.

    Args:
        lacks: (seed, subject, class).
        seeds: Names of the first axis.
        subjects: Of the second.
        classes: Of the third.
    """
    if lacks.all():
        return "every value"
    no_seed, no_subject = np.all(lacks, axis=(1, 2)), np.all(lacks, axis=(0, 2))
    rest = lacks & ~no_seed[:, None, None] & ~no_subject[None, :, None]
    parts = [f"seed {seeds[i]}" for i in np.flatnonzero(no_seed)]
    parts += [f"subject {subjects[i]}" for i in np.flatnonzero(no_subject)[:5]]
    parts += [f"{no_subject.sum() - 5} more subjects"] if no_subject.sum() > 5 else []
    if rest.any():
        i, j, k = np.argwhere(rest)[0]
        example = f"seed {seeds[i]}, subject {subjects[j]}, {classes[k]}"
        parts.append(f"{rest.sum()} single values, for instance {example}")
    return f"{lacks.sum()} of {lacks.size} values: {'; '.join(parts)}"


# ----------------------------------------------------------------------------------------- arrays


class Grid(NamedTuple):
    """One metric of one protocol as arrays, sorted by name: the order of rows cannot matter.

    Attributes:
        metric: Its name.
        methods: Sorted, like the other names.
        transfers: Their names.
        subjects: Their ids.
        seeds: Of the trainings.
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
            fix = nearest(method, self.methods)
            raise UserError(f"no values of method '{method}' in the table", fix=fix)
        return self.values[self.methods.index(method)]

    def gain(self, method: str, versus: str) -> NDArray[np.float64]:
        """How much better `method` is than `versus`, in the metric's units.

        Returns:
            (transfer, subject, seed), NaN where either is missing.
        """
        return (self.of(method) - self.of(versus)) * (1 if HIGHER_IS_BETTER[self.metric] else -1)


def grid(table: pd.DataFrame, metric: str = "dice") -> Grid:
    """Arranges one metric of a table for tests and intervals.

    Raises:
        UserError: A column is absent, the metric is unknown or has no rows, several protocols are
            in the table, a row is duplicated or unnamed, or phantom data lies beside real data.
    """
    rows = _rows(table, metric)
    axes = ["method", "transfer", "subject", "seed", "class"]
    codes, names = zip(*(pd.factorize(rows[axis], sort=True) for axis in axes), strict=True)
    full = np.full([len(n) for n in names], np.nan)
    full[codes] = rows["value"].to_numpy(float)
    full[~np.isfinite(full)] = np.nan
    given = np.zeros(full.shape, bool)
    given[codes] = True
    # The mean goes over the classes that a transfer has, whichever method has them: a cell that
    # lacks one of them is NaN, rather than a mean over easier classes.
    used = np.any(given, axis=(0, 2, 3))
    total = np.where(used[None, :, None, None, :], full, 0.0).sum(axis=-1)
    methods, transfers, subjects, seeds, _ = (list(n) for n in names)
    values = total / used.sum(axis=-1)[None, :, None, None]
    return Grid(metric, methods, transfers, subjects, seeds, values, np.any(given, axis=(0, 4)))


def _rows(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of one metric, of a table that tests can be run on; errors as `grid` raises them."""
    absent = [column for column in COLUMNS if column not in table]
    if absent:
        raise UserError(f"the table has no column {', '.join(absent)}")
    if metric not in HIGHER_IS_BETTER:
        fix = nearest(metric, list(HIGHER_IS_BETTER))
        raise UserError(f"unknown metric '{metric}'", fix=fix)
    rows = table[table["metric"] == metric]
    if rows.empty:
        fix = f"it has {sorted(table['metric'].unique())}"
        raise UserError(f"the table has no values of metric '{metric}'", fix=fix)
    if faults := _blocking(table):
        fix = "no test is run on such a table; fix the records first"
        raise UserError("; ".join(faults), fix=fix)
    protocols = sorted(rows["protocol"].unique())
    if len(protocols) > 1:
        raise UserError(f"several protocols in one test: {protocols}", fix="test them one by one")
    if OVERALL in set(rows["transfer"]):
        what = f"a transfer is named '{OVERALL}', as is the row over all transfers"
        raise UserError(what, fix="rename the transfer")
    return rows


def default_pairs(
    methods: Iterable[str], reference: str = "finetune", focus: str = "trm"
) -> list[tuple[str, str]]:
    """The family of comparisons: each method against `reference`, and `focus` against each."""
    methods = sorted(methods)
    pairs = [(m, reference) for m in methods if m != reference and reference in methods]
    return pairs + [(focus, m) for m in methods if m not in (focus, reference) and focus in methods]
