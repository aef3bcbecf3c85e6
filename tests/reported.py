"""Synthetic results of a size for tests of reports, edits of them, and what is said of files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import synthetic
from helpers import rewrite

from trm_bench.report import evidence
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.store import read_results

DICTIONARY = (Path(__file__).resolve().parents[1] / "docs" / "results.md").read_text()
METHODS = [*synthetic.FAMILY, "focal"]
TRANSFERS = ["t1->t2", "t2->t1"]


def small(folder: Path, **changes: Any) -> Path:
    """Results of few methods, transfers and subjects; `changes` are those of `synthetic.write`."""
    given = {
        "methods": METHODS,
        "transfers": TRANSFERS,
        "seeds": (0, 1, 2),
        "subjects": 16,
        "files": 1,
    }
    return synthetic.write(folder, **(given | changes))


def collected(folder: Path) -> evidence.Evidence:
    """What the folder's records say."""
    return evidence.collect(read_results(ProtocolFolder(folder)))


def change(folder: Path, cell: int, edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Edits the record of a cell; returns the cell."""
    chosen: dict[str, Any] = json.loads((folder / "plan.json").read_text())["cells"][cell]
    path = folder / "records" / f"{chosen['run']}.json"
    rewrite(path, edit)
    return chosen


def change_plan(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits the plan."""
    rewrite(folder / "plan.json", edit)


def set_split(folder: Path, **split: Any) -> None:
    """Edits the protocol that the plan holds."""
    change_plan(folder, lambda plan: plan["protocol"]["split"].update(split))


def set_units(folder: Path, units: Mapping[str, str]) -> None:
    """Edits the unit of each transfer's distances."""

    def edit(plan: dict[str, Any]) -> None:
        for cell in plan["cells"]:
            cell["distance_unit"] = units[cell["transfer"]]

    change_plan(folder, edit)


def documented(heading: str, first: str = "column") -> list[str]:
    """The first cells of the table below a heading of docs/results.md."""
    part = DICTIONARY.split(f"\n{heading}\n", 1)[1].split(f"| {first} |", 1)[1]
    return [line.split("|")[1].strip() for line in part.split("\n\n", 1)[0].splitlines()[2:]]


def columns(path: Path) -> list[str]:
    """The head of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))
