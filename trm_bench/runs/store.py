"""Readers and writers of what a results folder holds; see `runs.folders` for its paths."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from trm_bench.errors import UserError
from trm_bench.files import write_atomically, write_text
from trm_bench.runs.config import SCHEMA
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import (
    Cell,
    Checkpoint,
    Record,
    StoredPlan,
    Trials,
    Tuned,
    VoxelAudit,
)

Model = TypeVar("Model", bound=BaseModel)


def read_model(kind: type[Model], path: Path) -> Model | None:
    """A JSON file as a model, or None where there is none that can be read.

    Raises:
        UserError: The file was written under another schema version.
    """
    try:
        return parse_model(kind, path.read_text(encoding="utf-8"), path)
    except (OSError, ValidationError, ValueError):
        return None


def parse_model(kind: type[Model], text: str, where: Path) -> Model:
    """JSON text as a model.

    Raises:
        UserError: It was written under another schema version.
        ValueError: It is not JSON, or not of this kind.
    """
    content = json.loads(text)
    if isinstance(content, dict):
        version = content.get("schema_version", 1)
        if version != SCHEMA:
            raise UserError(
                f"has schema version {version}; this trm-bench reads version {SCHEMA}",
                where,
                "use the trm-bench that wrote it, or run the protocol again with another --out",
            )
    return kind.model_validate(content)


def write_model(path: Path, content: BaseModel) -> None:
    """Writes a model as JSON, atomically; NaN and infinity are refused, since JSON has none."""
    plain = content.model_dump(mode="json")
    write_text(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> Record | None:
    """A record, or None where there is none that can be read; see `read_model`."""
    return read_model(Record, path)


def write_checkpoint(path: Path, about: Checkpoint, state: Mapping[str, Any]) -> None:
    """Writes a source network."""
    from safetensors.torch import save_file

    # cloned, since safetensors takes no tensor twice and DynUNet lists its modules under two names
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
    metadata = {"checkpoint": about.model_dump_json()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def read_checkpoint(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """A source network's description and weights.

    Raises:
        UserError: The file is not such a checkpoint, or of another schema version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = parse_model(Checkpoint, file.metadata()["checkpoint"], path)
            names = file.keys()  # a list, though it is named like a dict's
            return about, {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        fix = "source networks lie under RESULTS/sources/"
        raise UserError(f"not a checkpoint of trm-bench ({reason})", path, fix) from error


def write_slices(path: Path, slices: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes tensors by subject and name."""
    from safetensors.torch import save_file

    tensors = {
        f"{s}/{name}": t.contiguous() for s, named in slices.items() for name, t in named.items()
    }
    write_atomically(path, partial(save_file, tensors))


def read_slices(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Subject to name to slice, float32."""
    from safetensors.numpy import load_file

    slices: dict[str, dict[str, np.ndarray]] = {}
    for key, value in load_file(path).items():
        subject, _, name = key.rpartition("/")
        slices.setdefault(subject, {})[name] = value.astype(np.float32)
    return slices


def write_prediction(path: Path, classes: np.ndarray, affine: np.ndarray) -> None:
    """Writes a predicted label, uint8, as NIfTI."""
    import nibabel as nib

    image_class: Any = nib.Nifti1Image  # without types
    write_atomically(path, partial(nib.save, image_class(classes, affine)))


def read_prediction(path: Path) -> np.ndarray:
    """A predicted label, uint8, on the cropped native grid."""
    import nibabel as nib

    image: Any = nib.load(path)
    return np.asarray(image.dataobj).astype(np.uint8)


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
    earlier = read_plan(folder) if folder.plan.is_file() else None
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
    held = {read_plan(folder).data} if folder.plan.is_file() else set()
    held |= {read_tuned(folder.tuned).data} if folder.tuned.is_file() else set()
    for other in sorted(held - {data}):
        raise UserError(
            f"this folder holds results on {other} data; results on {data} data never go beside "
            "them",
            folder.path,
            "choose another folder with --out",
        )


def write_tuned(folder: ProtocolFolder, tuned: Tuned, trials: Trials) -> None:
    """Writes tuned.yaml, and trials.json beside it."""
    import yaml

    write_model(folder.trials, trials)
    plain = tuned.model_dump(mode="json")
    write_text(folder.tuned, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100))


def read_tuned(path: Path) -> Tuned:
    """What a sweep left.

    Raises:
        UserError: It is not there, is no such file, or of another schema version.
    """
    import yaml

    fix = "give the tuned.yaml that trm-bench sweep wrote, as it wrote it"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return parse_model(Tuned, json.dumps(content), path)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", path, fix) from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError("holds no tuned values", path, fix) from error


def read_trials(folder: ProtocolFolder) -> Trials:
    """The trials of the sweep; none where there was none."""
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
        UserError: There is none that can be read.
    """
    try:
        text = folder.plan.read_text(encoding="utf-8")
    except OSError as error:
        fix = "give the folder of a protocol (with plan.json), or the folder given to --out"
        raise UserError("no results of trm-bench here", folder.path, fix) from error
    try:
        return parse_model(StoredPlan, text, folder.plan)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        what = str(error)
    fix = "use the trm-bench that wrote it, or run the protocol again with another --out"
    raise UserError(f"not a plan that this trm-bench can read ({what})", folder.plan, fix)


@dataclass(frozen=True)
class Results:
    """What a protocol's folder holds.

    Attributes:
        folder: Where it is.
        plan: Its plan.
        records: Run id to record, of the runs that the cells name.
    """

    folder: ProtocolFolder
    plan: StoredPlan
    records: dict[str, Record]

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
            if record is None:
                reasons.append((cell, "not run"))
            elif record.state != "finished":
                reasons.append((cell, f"{record.state}: {record.reason}"))
        return reasons

    def audits(self) -> list[VoxelAudit]:
        """The voxel-level audits of the runs that are in the table now."""
        runs = {(c.transfer, c.seed, c.method): c.run for c, _ in self.finished()}
        audits = []
        for transfer, seed in dict.fromkeys((t, s) for t, s, _ in runs):
            audit = read_model(VoxelAudit, self.folder.audit(transfer, seed))
            if audit and all(runs.get((transfer, seed, m)) == run for m, run in audit.runs.items()):
                audits.append(audit)
        return audits


def read_results(folder: ProtocolFolder) -> Results:
    """Reads a protocol's folder.

    Raises:
        UserError: It is not one, or a file in it has another schema version.
    """
    plan = read_plan(folder)
    records = {c.run: read_record(folder.record(c.run)) for c in plan.cells}
    return Results(folder, plan, {run: r for run, r in records.items() if r is not None})
