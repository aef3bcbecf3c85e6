"""What a results folder holds, as `trm-bench list` and `trm-bench show` tell it."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trm_bench.errors import Damaged, UserError, nearest
from trm_bench.inputs import is_file
from trm_bench.runs.arrays import open_savepoint
from trm_bench.runs.config import RunConfig
from trm_bench.runs.folders import ProtocolFolder, protocol_folders
from trm_bench.runs.records import Cell, Record, StoredPlan
from trm_bench.runs.store import Results, open_record, read_model, read_results

STATES = ("finished", "diverged", "failed", "damaged", "not run")
WORST = 5  # test subjects that `show` names
SHORTEST = 8  # digits of an id that tables show; `show` takes any prefix that is of one run


@dataclass(frozen=True)
class Row:
    """A cell of a protocol's table, and the run that fills it.

    Attributes:
        protocol: Its name.
        transfer: Its name.
        method: Its label.
        seed: Of the training.
        run: Its id.
        state: One of `STATES`.
        dice: Per cent, mean over test subjects and regions; None without a test.
        seconds: Of preparation, training and test; None where it has not ended by itself.
        reason: Why there are no numbers.
    """

    protocol: str
    transfer: str
    method: str
    seed: int
    run: str
    state: str
    dice: float | None
    seconds: float | None
    reason: str


def rows(path: Path, choices: Mapping[str, Sequence[str]]) -> list[Row]:
    """The runs of a results folder, or of a protocol's part of it, in the order of their plans.

    Args:
        path: The folder.
        choices: `method`, `transfer`, `seed` or `state` to those wanted; an empty one wants all.

    Raises:
        UserError: There are no results, or nothing has a name that is wanted.
    """
    found = [row for folder in protocol_folders(path) for row in _rows(read_results(folder))]
    for key, wanted in choices.items():
        known = list(dict.fromkeys(str(getattr(row, key)) for row in found))
        for name in wanted:
            if name not in (STATES if key == "state" else known):
                fix = nearest(name, STATES if key == "state" else known)
                raise UserError(f"no run has the {key} '{name}'", f"--{key}", fix)
    return [
        r
        for r in found
        if all(str(getattr(r, k)) in (w or [str(getattr(r, k))]) for k, w in choices.items())
    ]


def _rows(results: Results) -> Iterator[Row]:
    reasons = dict(results.unfinished())
    for cell in results.cells:
        record, reason = results.record(cell), reasons.get(cell, "")
        state = record.state if record else reason.partition(":")[0]
        if state == "not run":
            reason = _cut_off(results.folder.savepoint(cell.run))
        yield Row(
            results.plan.protocol.name,
            cell.transfer,
            cell.method,
            cell.seed,
            cell.run,
            state,
            dice_of(record),
            sum(record.seconds.values()) if record and record.seconds else None,
            reason.removeprefix(f"{state}: ") if reason != state else "",
        )


def _cut_off(savepoint: Path) -> str:
    """How far a training is that has not ended; "" where it has not begun."""
    try:
        saved = open_savepoint(savepoint)
    except (FileNotFoundError, Damaged):
        return ""
    return f"at step {saved.step} of {saved.steps}"


def dice_of(record: Record | None) -> float | None:
    """Per cent, mean over test subjects and regions."""
    several = list(_subject_dice(record).values()) if record else []
    return sum(several) / len(several) if several else None


def _subject_dice(record: Record) -> dict[str, float]:
    """Test subject to Dice, per cent, mean over regions."""
    found = {}
    for subject, regions in record.metrics.items():
        values = [m["dice"] for m in regions.values() if "dice" in m]
        if values:
            found[subject] = 100 * sum(values) / len(values)
    return found


def _region_dice(record: Record) -> dict[str, float]:
    """Region to Dice, per cent, mean over test subjects."""
    several: dict[str, list[float]] = {}
    for regions in record.metrics.values():
        for region, metrics in regions.items():
            if "dice" in metrics:
                several.setdefault(region, []).append(100 * metrics["dice"])
    return {region: sum(values) / len(values) for region, values in several.items()}


@dataclass(frozen=True)
class Run:
    """One run, and where it lies.

    Attributes:
        folder: Of its protocol.
        record: What it left.
        cells: That it fills; none where the protocol's table has other settings now.
    """

    folder: ProtocolFolder
    record: Record
    cells: tuple[Cell, ...]

    @property
    def network(self) -> Path | None:
        """The file of its trained network, where that is kept."""
        path = self.folder.network(self.record.id)
        return path if path.is_file() else None

    @property
    def predict(self) -> str:
        """The command that applies its network, "" where that is not kept."""
        if self.network is None:
            return ""
        images = [f"--image {shlex.quote(f'{i}.nii.gz')}" for i in self.record.config.domain.images]
        return " ".join(["trm-bench predict --checkpoint", shlex.quote(str(self.network)), *images])

    def worst(self) -> dict[str, float]:
        """The test subjects with the lowest Dice, per cent, lowest first."""
        ordered = sorted(_subject_dice(self.record).items(), key=lambda item: item[1])
        return dict(ordered[:WORST])

    def about(self) -> dict[str, Any]:
        """What there is to say of it, as plain values."""
        return {
            "run": self.record.id,
            "protocol": self.folder.path.name,
            "file": str(self.folder.record(self.record.id)),
            "cells": [
                c.model_dump(mode="json", include={"transfer", "method", "seed"})
                for c in self.cells
            ],
            "dice": dice_of(self.record),
            "dice_of_regions": _region_dice(self.record),
            "worst_subjects": self.worst(),
            "network": self.network and str(self.network),
            "predict": self.predict,
            "record": self.record.model_dump(mode="json"),
        }


def configuration(config: RunConfig) -> dict[str, Any]:
    """A run's configuration without checksums, and of its source network what names it."""
    plain = config.model_dump(mode="json", exclude={"source", "subjects"})
    parts = config.subjects.parts().items()
    plain["subjects"] = {part: [member.subject for member in members] for part, members in parts}
    if (source := config.source) is not None:
        trained = (
            {"method": source.method.name, "seed": source.seed} if source.kind == "source" else {}
        )
        seen = source.domain.model_dump(mode="json", include={"images", "labels"})
        plain["source"] = {"id": source.id, "kind": source.kind, **seen, **trained}
    return plain


def find(name: str, results: Path) -> Run:
    """A run by the path of its record, or by its id or the beginning of it.

    Args:
        name: Of the run.
        results: The folder in which an id is looked for.

    Raises:
        UserError: There is none, there are several, or its record is damaged.
    """
    fix = f"trm-bench list {results} shows the runs"
    path = Path(name)
    if is_file(path):
        return _run(path)
    if not re.fullmatch("[0-9a-f]{1,16}", name):
        what = "neither a folder, a record nor the id of a run"
        raise UserError(f"'{name[:200]}' is {what}", results, fix)
    paths = sorted(results.glob(f"*/records/{name}*.json")) or sorted(
        results.glob(f"records/{name}*.json")
    )
    ids = sorted({path.stem for path in paths})
    if not ids:
        raise UserError(
            f"no run's id begins with '{name}'", results, f"{fix}; --results names another folder"
        )
    if len(ids) > 1:
        listed = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise UserError(
            f"'{name}' begins the ids of {len(ids)} runs", results, f"give more of it: {listed}"
        )
    return _run(paths[0])


def _run(path: Path) -> Run:
    folder = ProtocolFolder(
        path.resolve().parent.parent if path.is_symlink() else path.parent.parent
    )
    record = open_record(path)
    if record is None:
        raise UserError("there is no record", path)
    plan = read_model(StoredPlan, folder.plan)
    cells = tuple(cell for cell in (plan.cells if plan else ()) if cell.run == record.id)
    return Run(folder, record, cells)


def about_protocol(folder: ProtocolFolder) -> dict[str, Any]:
    """What a protocol's folder holds, as plain values.

    Raises:
        UserError: It holds no results.
    """
    results = read_results(folder)
    plan, cells = results.plan, results.cells
    report = folder.report("report.html")
    states = Counter({row.run: row.state for row in _rows(results)}.values())
    return {
        "protocol": plan.protocol.name,
        "description": plan.protocol.description,
        "folder": str(folder.path),
        "data": plan.data,
        "datasets": list(dict.fromkeys(data.dataset for data in plan.protocol.sets)),
        "network": plan.protocol.network.name,
        "transfers": list(dict.fromkeys(cell.transfer for cell in cells)),
        "methods": list(dict.fromkeys(cell.method for cell in cells)),
        "seeds": sorted({cell.seed for cell in cells}),
        "states": {state: states[state] for state in STATES if states[state]},
        "left_out": [one.model_dump(mode="json") for one in plan.left_out],
        "tuned": plan.tuned is not None,
        "report": str(report) if report.is_file() else None,
    }


def plain(several: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain values."""
    return [asdict(row) for row in several]


def failures(folder: ProtocolFolder) -> list[tuple[Row, str]]:
    """The runs of a protocol that failed, each once, with their tracebacks."""
    results = read_results(folder)
    failed = {row.run: row for row in _rows(results) if row.state == "failed"}
    return [(row, results.records[run].traceback) for run, row in failed.items()]
