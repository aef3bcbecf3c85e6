"""What a results folder keeps: plans, records, checkpoints' descriptions, voxel-level audits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trm_bench.environment import Environment
from trm_bench.protocol.schema import Protocol, Strict
from trm_bench.runs.config import SCHEMA, RunConfig

Curve = list[tuple[int, float]]


class Cell(Strict):
    """A cell of the table, and the run that fills it."""

    transfer: str
    method: str
    seed: int
    run: str


class LeftOut(Strict):
    """A subject that cannot be used, and why."""

    subject: str
    file: str = ""
    reason: str = ""


class StoredPlan(Strict):
    """plan.json.

    Attributes:
        protocol: As the last command resolved it.
        data: Whether the subjects are real or the stand-in.
        settings: Hash of what all runs of the table share.
        left_out: Subjects that cannot be used.
        cells: By transfer, method and seed.
    """

    schema_version: Literal[2] = SCHEMA
    protocol: Protocol
    data: Literal["phantom", "real"]
    settings: str
    left_out: tuple[LeftOut, ...] = ()
    cells: tuple[Cell, ...]


class SourceNote(Strict):
    """What a run's record says of the source network that it started from."""

    id: str
    validation_dice: float


class Loading(Strict):
    """Which source weights were loaded: how many tensors, and the names of those left out."""

    loaded: int
    skipped: tuple[str, ...]


class Record(Strict):
    """What a run leaves.

    Attributes:
        id: Of the configuration.
        state: `finished`; `diverged`; or `failed`, which is tried again.
        reason: Why it did not finish.
        traceback: Of a failure.
        config: What was run.
        environment: Where.
        started: ISO 8601.
        source: The source network that it started from.
        loading: Audit of the source weights.
        curves: `loss` and `validation`, as (step, value).
        validation_dice: Mean over validation subjects and regions, at the end.
        metrics: Test subject to region to metric to value.
        manifest: Part to subject to file to (bytes, sha256).
        diagnostics: What the method has to say.
        seconds: Of `prepare`, `train` and `test`.
        peak_memory_bytes: Of the device, or of the process on a CPU.
    """

    schema_version: Literal[2] = SCHEMA
    id: str
    state: Literal["finished", "diverged", "failed"]
    reason: str = ""
    traceback: str = ""
    config: RunConfig
    environment: Environment
    started: str = ""
    source: SourceNote | None = None
    loading: Loading | None = None
    curves: dict[str, Curve] = Field(default_factory=dict)
    validation_dice: float | None = None
    metrics: dict[str, dict[str, dict[str, float]]] = Field(default_factory=dict)
    manifest: dict[str, dict[str, dict[str, tuple[int, str]]]] = Field(default_factory=dict)
    diagnostics: dict[str, Any] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    peak_memory_bytes: int | None = None


class Checkpoint(Strict):
    """What a source network's file says of it, beside the weights."""

    schema_version: Literal[2] = SCHEMA
    id: str
    config: RunConfig
    validation_dice: float
    curves: dict[str, Curve] = Field(default_factory=dict)
    environment: Environment


class VoxelAudit(Strict):
    """The voxel level of one transfer under one seed; see `trm_bench.analysis.audit`.

    Attributes:
        transfer: Its name.
        seed: Of the runs.
        runs: Method to the run that was judged.
        code: Fingerprint of the code that judged.
        classes: Of the target, background first.
        outcomes: Method to subject to, per class, voxels in all, lost and won.
        auroc: Map to subject to place to the area under the ROC curve.
        roc: Map to the mean true positive rate at each false positive rate.
    """

    schema_version: Literal[2] = SCHEMA
    transfer: str
    seed: int
    runs: dict[str, str]
    code: str
    classes: tuple[str, ...]
    outcomes: dict[str, dict[str, list[tuple[int, int, int]]]]
    auroc: dict[str, dict[str, dict[str, float]]]
    roc: dict[str, list[float]]
