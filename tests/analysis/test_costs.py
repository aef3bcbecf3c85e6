"""What methods spent and used, read from records."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import synthetic

from trm_bench.analysis.costs import COLUMNS, spent
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Cell, Record
from trm_bench.runs.store import Results, read_results

METHODS = ["forkmerge", "scratch", "finetune", "finetune_with_validation", "co_tuning", "elsewhere"]
Change = Callable[[Cell, Record], dict[str, Any]]


def changed(folder: Path, change: Change, **given: Any) -> Results:
    """Synthetic results whose records differ in what `change` gives for them."""
    small = {"methods": METHODS, "transfers": ["a->b", "c->d"], "seeds": (0, 1), "subjects": 4}
    results = read_results(ProtocolFolder(synthetic.write(folder / "costs", **small | given)))
    records = {
        cell.run: results.records[cell.run].model_copy(
            update=change(cell, results.records[cell.run])
        )
        for cell in results.cells
    }
    return Results(results.folder, results.plan, records)


def of(table: pd.DataFrame, method: str) -> dict[str, Any]:
    return table.set_index("method").loc[method].to_dict()


def test_the_means_are_those_of_the_runs_in_the_order_of_the_table(tmp_path: Path) -> None:
    def change(cell: Cell, record: Record) -> dict[str, Any]:
        passes = 300 if cell.method != "forkmerge" else (600, 750)[cell.seed]
        return {"passes": passes, "seconds": {"prepare": 99.0, "train": 10.0 + 4 * cell.seed}}

    table = spent(changed(tmp_path, change))
    assert [*table] == COLUMNS and [*table["method"]] == METHODS
    assert set(table["steps"]) == {300.0} and set(table["seconds"]) == {12.0}
    assert [*table["passes"]] == [675.0, *[300.0] * 5]
    assert [*table["times_finetune"]] == [2.25, *[1.0] * 5]
    assert table["trained"].isna().all(), "records of before it was counted"


def test_trained_parameters_are_means_over_the_runs_that_say(tmp_path: Path) -> None:
    def change(cell: Cell, record: Record) -> dict[str, Any]:
        counted = cell.method == "finetune" or (cell.method == "forkmerge" and cell.seed)
        return {"trained": 4_000 + 200 * cell.seed if counted else 0}

    table = spent(changed(tmp_path, change))
    assert of(table, "finetune")["trained"] == 4_100 and of(table, "forkmerge")["trained"] == 4_200
    assert math.isnan(of(table, "scratch")["trained"])


def test_what_a_method_uses_is_what_it_declares(tmp_path: Path) -> None:
    table = spent(changed(tmp_path, lambda cell, record: {}))
    uses = ["uses_validation", "uses_source_data", "validation_in_training_set"]
    found = {method: [of(table, method)[key] for key in uses] for method in METHODS}
    assert found == {
        "forkmerge": [True, True, False],
        "scratch": [False] * 3,
        "finetune": [False] * 3,
        "finetune_with_validation": [True, False, True],
        "co_tuning": [False] * 3,
        "elsewhere": [None] * 3,  # of a package that is not installed
    }


def test_what_no_record_says_is_nan(tmp_path: Path) -> None:
    def change(cell: Cell, record: Record) -> dict[str, Any]:
        if cell.method == "scratch":
            return {"state": "failed", "passes": 300}
        known = cell.method == "finetune" or (cell.method == "forkmerge" and cell.seed)
        return {"passes": 300 if known else 0, "seconds": {}}

    table = spent(changed(tmp_path, change))
    failed = of(table, "scratch")
    assert all(math.isnan(failed[k]) for k in ("steps", "passes", "seconds", "times_finetune"))
    assert failed["uses_validation"] is None
    older = of(table, "co_tuning")
    assert older["steps"] == 300 and math.isnan(older["passes"]) and math.isnan(older["seconds"])
    assert math.isnan(older["times_finetune"])
    assert of(table, "forkmerge")["passes"] == 300, "a record without the count is no pass of 0"
    alone = spent(changed(tmp_path / "alone", change, methods=["forkmerge"]))
    assert [*alone["passes"]] == [300.0] and alone["times_finetune"].isna().all()


def test_a_run_that_fills_several_cells_counts_once(tmp_path: Path) -> None:
    results = changed(tmp_path, lambda cell, record: {"passes": 100 + 60 * cell.seed})
    cells = [c for c in results.cells if c.method == "scratch"]
    shared, *others = [c for c in cells if c.seed == 0]
    again = tuple(
        c.model_copy(update={"run": shared.run}) if c in others else c for c in results.cells
    )
    # seed 0 once, of two transfers; seed 1 twice
    plan = results.plan.model_copy(update={"cells": again})
    table = spent(Results(results.folder, plan, results.records))
    assert of(table, "scratch")["passes"] == (100 + 160 + 160) / 3
    assert of(table, "finetune")["passes"] == 130
