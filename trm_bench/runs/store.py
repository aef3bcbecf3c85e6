"""Readers and writers of a results folder's texts; `runs.folders` has its paths, `runs.arrays` the
rest.

Everything read back proves what it is: texts and tensors by their seals, predictions and slices by
the checksums in their run's record, and all by the names in them.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from trm_bench.errors import Damaged, UserError
from trm_bench.protocol.markup import parse_yaml
from trm_bench.runs.config import SCHEMA
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import (
    Cell,
    Record,
    StoredPlan,
    Trials,
    Tuned,
    VoxelAudit,
)
from trm_bench.seals import (
    BLANK,
    read_sealed,
    unsealed,
    write_sealed,
)

Model = TypeVar("Model", bound=BaseModel)


def open_model(kind: type[Model], path: Path) -> Model | None:
    """A sealed JSON file as a model, or None where there is none.

    Raises:
        Damaged: It is not what was written.
        UserError: It was written under another schema version.
    """
    try:
        return parse_model(kind, from_json(read_sealed(path)), path)
    except FileNotFoundError:
        return None
    except Damaged:
        _refuse_version(path)
        raise
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}", path) from error
    except (ValueError, RecursionError) as error:
        raise Damaged("is no JSON", path) from error


def read_model(kind: type[Model], path: Path) -> Model | None:
    """A sealed JSON file as a model, or None where there is none that can be trusted.

    Raises:
        UserError: It was written under another schema version.
    """
    try:
        return open_model(kind, path)
    except Damaged:
        return None


def parse_model(kind: type[Model], content: Any, where: Path) -> Model:
    """The content of a sealed file as a model.

    Raises:
        Damaged: It is not of this kind.
        UserError: It was written under another schema version.
    """
    if isinstance(content, dict):
        content.pop("sha256", None)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        _refuse_other_version(content, where)
        first = error.errors()[0]
        what = f"is no {kind.__name__} ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        raise Damaged(what, where) from error


def _refuse_version(path: Path) -> None:
    """Tells a file of a version without seals from a damaged one."""
    text = unsealed(path)
    if text is not None:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(content, dict) and len(content) > 1:  # a version alone is of none
            _refuse_other_version(content, path)


def _refuse_other_version(content: Any, where: Path) -> None:
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != SCHEMA:
        raise UserError(
            f"has schema version {version}; this trm-bench reads version {SCHEMA}",
            where,
            "use the trm-bench that wrote it, or run the protocol again with another --out",
        )


def write_model(path: Path, content: BaseModel) -> None:
    """Writes a model as sealed JSON; NaN and infinity are refused, since JSON has none."""
    plain = content.model_dump(mode="json") | {"sha256": BLANK}
    write_sealed(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def open_record(path: Path) -> Record | None:
    """A record, or None where there is none.

    Raises:
        Damaged: It is not what was written, that of another run, or not of its own split.
    """
    try:
        record = open_model(Record, path)
    except UserError as error:  # of another version: its id, and so its name, would be another
        raise Damaged(error.what, path) from error
    if record is None:
        return None
    if not path.stem == record.id == record.config.id:
        raise Damaged(f"is the record of another run, {record.id}", path)
    tested = {member.subject for member in record.config.subjects.test}
    if record.state == "finished" and not tested == set(record.metrics) == set(record.predictions):
        raise Damaged("does not have the test subjects of its split", path)
    return record


def read_record(path: Path) -> Record | None:
    """A record, or None where there is none that can be trusted; see `open_record`."""
    try:
        return open_record(path)
    except Damaged:
        return None


def open_audit(folder: ProtocolFolder, transfer: str, seed: int) -> VoxelAudit | None:
    """An audit, or None where there is none.

    Raises:
        Damaged: It is not what was written, or that of another transfer or seed.
        UserError: It was written under another schema version.
    """
    path = folder.audit(transfer, seed)
    audit = open_model(VoxelAudit, path)
    if audit is not None and (audit.transfer, audit.seed) != (transfer, seed):
        raise Damaged(f"is the audit of {audit.transfer} seed {audit.seed}", path)
    return audit


def read_audit(folder: ProtocolFolder, transfer: str, seed: int) -> VoxelAudit | None:
    """An audit, or None where there is none that can be trusted; see `open_audit`."""
    try:
        return open_audit(folder, transfer, seed)
    except Damaged:
        return None


def write_plan(folder: ProtocolFolder, plan: StoredPlan) -> tuple[int, int]:
    """Writes plan.json, joined with earlier commands' cells that can stand in the same table.

    So `--methods a` and then `--methods b` make one table of both, while a change of any shared
    setting starts a new one; the records of earlier settings stay on disk. Methods with tuned
    values never stand beside others without.

    Returns:
        Number of earlier cells kept, and of earlier cells dropped.

    Raises:
        UserError: The folder holds results of the other kind of data, or of another schema.
    """
    refuse_mixture(folder, plan.data)
    earlier = read_model(StoredPlan, folder.plan)
    new = {(c.transfer, c.method, c.seed) for c in plan.cells}
    others = [
        c for c in (earlier.cells if earlier else ()) if (c.transfer, c.method, c.seed) not in new
    ]
    new_table = not earlier or (earlier.settings, earlier.tuned) != (plan.settings, plan.tuned)
    kept = [] if new_table else others
    cells = tuple(_in_order([*kept, *plan.cells]))
    write_model(folder.plan, plan.model_copy(update={"cells": cells}))
    return len(kept), len(others) - len(kept)


def refuse_mixture(folder: ProtocolFolder, data: str) -> None:
    """Refuses to put results on one kind of data beside results on the other.

    Raises:
        UserError: The folder holds the other kind, or a file of another schema.
    """
    held = {p.data for p in (read_model(StoredPlan, folder.plan), tuned_here(folder)) if p}
    for other in sorted(held - {data}):
        raise UserError(
            f"this folder holds results on {other} data; results on {data} data never go beside "
            "them",
            folder.path,
            "choose another folder with --out",
        )


def tuned_here(folder: ProtocolFolder) -> Tuned | None:
    """What a sweep left here; None where there is nothing that can be trusted."""
    try:
        return read_tuned(folder.tuned) if folder.tuned.is_file() else None
    except Damaged:
        return None


def write_tuned(folder: ProtocolFolder, tuned: Tuned, trials: Trials) -> None:
    """Writes tuned.yaml, and trials.json beside it."""
    import yaml

    write_model(folder.trials, trials)
    plain = tuned.model_dump(mode="json")
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    write_sealed(folder.tuned, f'{text}sha256: "{BLANK}"\n')


def read_tuned(path: Path) -> Tuned:
    """What a sweep left.

    Raises:
        Damaged: It is not what was written.
        UserError: It is not there, or of another schema version.
    """
    fix = "give the tuned.yaml that trm-bench sweep wrote, as it wrote it; or sweep again"
    try:
        text = unsealed(path)
        if text is not None:
            _refuse_other_version(_plain(text, path), path)
        return parse_model(Tuned, _plain(read_sealed(path), path), path)
    except Damaged as error:
        raise Damaged(error.what, path, fix) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", path, fix) from error
    except ValueError as error:  # not UTF-8
        raise Damaged("holds no tuned values", path, fix) from error


def _plain(text: str, path: Path) -> Any:
    try:
        return parse_yaml(text, path)
    except UserError as error:
        raise Damaged("holds no tuned values", path) from error


def read_trials(folder: ProtocolFolder) -> Trials:
    """The trials of the sweep; none where there are none that can be trusted."""
    return read_model(Trials, folder.trials) or Trials()


def _in_order(cells: list[Cell]) -> list[Cell]:
    """By transfer, method and seed; transfers and methods in order of first appearance."""
    transfers = list(dict.fromkeys(c.transfer for c in cells))
    methods = list(dict.fromkeys(c.method for c in cells))
    return sorted(
        cells, key=lambda c: (transfers.index(c.transfer), methods.index(c.method), c.seed)
    )


def read_plan(folder: ProtocolFolder) -> StoredPlan:
    """A protocol folder's plan.

    Raises:
        Damaged: It is not what was written.
        UserError: There is none, or it is of another schema version.
    """
    plan = open_model(StoredPlan, folder.plan)
    if plan is None:
        fix = "give the folder of a protocol (with plan.json), or the folder given to --out"
        raise UserError("no results of trm-bench here", folder.path, fix)
    return plan


@dataclass(frozen=True)
class Results:
    """What a protocol's folder holds.

    Attributes:
        folder: Where it is.
        plan: Its plan.
        records: Run id to record, of the runs that the cells name.
        damaged: Run id to what is wrong with its record.
    """

    folder: ProtocolFolder
    plan: StoredPlan
    records: dict[str, Record]
    damaged: dict[str, Damaged] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Cells of the table, in the protocol's order."""
        return self.plan.cells

    def record(self, cell: Cell) -> Record | None:
        """The record that fills a cell, if it is there."""
        return self.records.get(cell.run)

    def finished(self) -> Iterator[tuple[Cell, Record]]:
        """Cells with their records, of the runs that finished."""
        for cell in self.cells:
            record = self.record(cell)
            if record is not None and record.state == "finished":
                yield cell, record

    def unfinished(self) -> list[tuple[Cell, str]]:
        """Cells without numbers, and why."""
        reasons = []
        for cell in self.cells:
            record = self.record(cell)
            if cell.run in self.damaged:
                reasons.append((cell, f"damaged: its record {self.damaged[cell.run].what}"))
            elif record is None:
                reasons.append((cell, "not run"))
            elif record.state != "finished":
                reasons.append((cell, f"{record.state}: {record.reason}"))
        return reasons

    def audits(self) -> list[VoxelAudit]:
        """The voxel-level audits of the runs that are in the table now."""
        runs = {(c.transfer, c.seed, c.method): c.run for c, _ in self.finished()}
        audits = []
        for transfer, seed in dict.fromkeys((t, s) for t, s, _ in runs):
            with uncollected():
                audit = read_audit(self.folder, transfer, seed)
            if audit and all(runs.get((transfer, seed, m)) == run for m, run in audit.runs.items()):
                audits.append(audit)
        return audits


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing looks for circles among what is read, which has none, over and over as it grows."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_results(folder: ProtocolFolder) -> Results:
    """Reads a protocol's folder.

    Raises:
        UserError: It is not one, or a file in it has another schema version.
    """
    plan = read_plan(folder)
    records: dict[str, Record] = {}
    damaged: dict[str, Damaged] = {}
    with uncollected():
        for run in dict.fromkeys(cell.run for cell in plan.cells):
            try:
                if (record := open_record(folder.record(run))) is not None:
                    records[run] = record
            except Damaged as error:
                damaged[run] = error
    return Results(folder, plan, records, damaged)
