"""What each method spent and used for its numbers: steps, passes, parameters, time, labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trm_bench.analysis.voxels import REFERENCE
from trm_bench.errors import UserError

if TYPE_CHECKING:
    from trm_bench.runs.records import Record
    from trm_bench.runs.store import Results

USES = ("uses_validation", "uses_source_data", "validation_in_training_set")
COLUMNS = ["method", "steps", "passes", "trained", "seconds", "times_finetune", *USES]


def spent(results: Results, unit: str = REFERENCE) -> pd.DataFrame:
    """One row a method, in the table's order, from the finished runs that fill its cells.

    A run counts once, however many cells it fills.

    Args:
        results: The records.
        unit: The method whose passes are 1: fine-tuning, or another in a table without it.

    Returns:
        `method`; `steps` of the target training, `passes` (forward passes with a gradient),
        `trained` (number of parameters) and `seconds` of training, each the mean over runs, NaN
        where no record says; `times_finetune`, the passes over those of `unit`, NaN without it;
        `uses_validation`,
        `uses_source_data` and `validation_in_training_set` as the method declares, None where no
        run finished or the method is not installed.
    """
    runs: dict[str, dict[str, Record]] = {cell.method: {} for cell in results.cells}
    for cell, record in results.finished():
        runs[cell.method][cell.run] = record
    rows = [{"method": method, **_costs([*own.values()])} for method, own in runs.items()]
    table = pd.DataFrame(rows, columns=COLUMNS)
    reference = table.loc[table["method"] == unit, "passes"]
    table["times_finetune"] = table["passes"] / (reference.iloc[0] if len(reference) else np.nan)
    return table


def _costs(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "steps": _mean([record.config.training.steps for record in records]),
        # records of before these were counted have 0
        "passes": _mean([record.passes for record in records if record.passes]),
        "trained": _mean([record.trained for record in records if record.trained]),
        "seconds": _mean([r.seconds["train"] for r in records if "train" in r.seconds]),
        **_uses(records[0].config.method.name if records else ""),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def _uses(name: str) -> dict[str, bool | None]:
    from trm_bench.methods.registry import REGISTRY  # imports PyTorch

    try:
        kind = REGISTRY.get(name)
    except UserError:  # of a package that is not installed here
        return dict.fromkeys(USES)
    return {key: bool(getattr(kind, key)) for key in USES}
