"""Reading a results folder: the plan, its records, and the one long table that everything is computed from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm_bench.errors import UserError
from trm_bench.files import write_json
from trm_bench.runs import Plan, read_record

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["protocol", "transfer", "method", "seed", "subject", "class", "metric", "value"]


@dataclass(frozen=True)
class Results:
    """A protocol's folder of results.

    Attributes:
        folder: Where it is.
        plan: plan.json: `protocol`, `data` ("phantom" or "real"), `settings`, `cells`, `left_out`.
        records: Run id to record, of the runs that the cells name.
    """

    folder: Path
    plan: dict[str, Any]
    records: dict[str, dict[str, Any]]

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Cells of the table (transfer, method, seed, run), in the protocol's order."""
        return self.plan["cells"]

    def record(self, cell: dict[str, Any]) -> dict[str, Any] | None:
        """The record that fills a cell, if it is there."""
        return self.records.get(cell["run"])

    def finished(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Cells with their records, of the runs that finished."""
        for cell in self.cells:
            record = self.record(cell)
            if record is not None and record["state"] == "finished":
                yield cell, record

    def unfinished(self) -> list[tuple[dict[str, Any], str]]:
        """Cells without numbers, and why."""
        found = []
        for cell in self.cells:
            record = self.record(cell)
            if record is None:
                found.append((cell, "not run"))
            elif record["state"] != "finished":
                found.append((cell, f"{record['state']}: {record.get('reason', '')}"))
        return found

    def audits(self) -> list[dict[str, Any]]:
        """The voxel-level audits (`trm_bench.audit`) of the runs that are in the table now."""
        runs = {(c["transfer"], c["seed"], c["method"]): c["run"] for c, _ in self.finished()}
        found = []
        for transfer, seed in dict.fromkeys((t, s) for t, s, _ in runs):
            made = read_audit(audit_path(self.folder, transfer, seed))
            if made and all(runs.get((transfer, seed, method)) == run for method, run in made["runs"].items()):
                found.append(made)
        return found

    def table(self) -> pd.DataFrame:
        """The long table: one row per (protocol, transfer, method, seed, subject, class, metric)."""
        import pandas as pd

        name = self.plan["protocol"]["name"]
        rows = [
            (name, cell["transfer"], cell["method"], cell["seed"], subject, region, metric, value)
            for cell, record in self.finished()
            for subject, regions in record["metrics"].items()
            for region, metrics in regions.items()
            for metric, value in metrics.items()
        ]
        return pd.DataFrame(rows, columns=COLUMNS)


def read(folder: Path) -> Results:
    """Reads a protocol's folder.

    Raises:
        UserError: It is not one.
    """
    path = folder / "plan.json"
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        cells = plan["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "give the folder of a protocol (with plan.json), or the folder given to --out"
        raise UserError("no results of trm-bench here", folder, hint) from error
    records = {c["run"]: read_record(folder / "records" / f"{c['run']}.json") for c in cells}
    return Results(folder, plan, {k: v for k, v in records.items() if v is not None})


def slug(transfer: str) -> str:
    """A transfer's name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", transfer)


def audit_path(folder: Path, transfer: str, seed: int) -> Path:
    """Where the voxel-level audit of a transfer lies."""
    return folder / "voxels" / f"{slug(transfer)}_seed{seed}.json"


def read_audit(path: Path) -> dict[str, Any] | None:
    """An audit, or None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "auroc" in found else None


def folders(path: Path) -> list[Path]:
    """Protocol folders at `path`: itself, or those below it.

    Raises:
        UserError: There is none.
    """
    found = [path] if (path / "plan.json").is_file() else sorted(p.parent for p in path.glob("*/plan.json"))
    if not found:
        raise UserError("no results of trm-bench here", path, "run a protocol first: trm-bench run PROTOCOL --out DIR")
    return found


def write_plan(
    folder: Path, made: Plan, protocol: dict[str, Any], data: str, left_out: list[dict[str, str]]
) -> tuple[int, int]:
    """Writes plan.json, joined with the cells of earlier commands that can stand in the same table.

    So `--methods a` and then `--methods b` make one table of both, while a change of any shared setting starts anew;
    the records of earlier settings stay on disk.

    Returns:
        Number of earlier cells kept, and of earlier cells dropped.

    Raises:
        UserError: The folder holds results of the other kind of data.
    """
    path = folder / "plan.json"
    earlier: dict[str, Any] = {}
    if path.is_file():
        earlier = read(folder).plan
        if earlier["data"] != data:
            raise UserError(
                f"this folder holds results on {earlier['data']} data; results on {data} data never go beside them",
                folder,
                "choose another folder with --out",
            )
    cells = {(c["transfer"], c["method"], c["seed"]): c for c in made.cells}
    old = [c for c in earlier.get("cells", []) if (c["transfer"], c["method"], c["seed"]) not in cells]
    kept = old if earlier.get("settings") == made.settings else []
    joined = _in_order([*kept, *made.cells])
    write_json(
        path,
        {"protocol": protocol, "data": data, "settings": made.settings, "left_out": left_out, "cells": joined},
    )
    return len(kept), len(old) - len(kept)


def _in_order(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By transfer, method and seed; transfers and methods in order of first appearance."""
    transfers = list(dict.fromkeys(c["transfer"] for c in cells))
    names = list(dict.fromkeys(c["method"] for c in cells))
    return sorted(cells, key=lambda c: (transfers.index(c["transfer"]), names.index(c["method"]), c["seed"]))
