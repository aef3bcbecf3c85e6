"""What a results folder keeps: plans, records, checkpoints' descriptions, voxel-level audits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from trm_bench.environment import Environment
from trm_bench.fingerprint import digest_of
from trm_bench.protocol.schema import Protocol
from trm_bench.protocol.strict import Count, Measured, Plain, Strict
from trm_bench.runs.config import SCHEMA, Imported, RunConfig

Curve = list[tuple[int, float]]


class Cell(Strict):
    """A cell of the table, and the run that fills it.

    Attributes:
        transfer: Its name.
        method: Its label.
        seed: Of the training.
        run: The id of its record.
        distance_unit: Of distances between surfaces; see `datasets.base.Dataset`.
    """

    transfer: str
    method: str
    seed: int
    run: str
    distance_unit: Literal["mm", "voxels"] = "mm"


class LeftOut(Strict):
    """A subject that cannot be used, and why."""

    subject: str
    file: str = ""
    reason: str = ""


class Budget(Strict):
    """What every method of a sweep got; see `protocol.sweep.SweepConfig`, resolved."""

    trials: int
    steps: int
    seeds: tuple[int, ...]
    transfers: tuple[str, ...]
    folds: int | None = None
    tune_training: Literal["otherwise", "always"] = "otherwise"
    per: Literal["protocol", "transfer"]
    sampler: Literal["tpe", "random"]
    batch: int
    seed: int


class TunedMethod(Strict):
    """What a sweep gave for a method, and for one transfer where each has its own values.

    Attributes:
        method: Its label.
        name: Of the method.
        transfer: None where the values are for all.
        trial: The best one; 0 has the defaults; None where none finished.
        values: Of the best trial.
        validation_dice: Of the best trial, a mean over transfers and seeds.
        default_validation_dice: Of trial 0; None where it did not finish.
        finished: Number of trials.
        failed: Number of trials that failed or diverged.
        runs: Trainings; trials with the same values share theirs.
        steps: Of these trainings, in all.
        passes: Forward and backward passes of these trainings, in all.
        space: What was searched.
        space_hash: Of that, and of what was held fixed.
        code: Fingerprint of the code that computed.
    """

    method: str
    name: str
    transfer: str | None
    trial: int | None
    values: dict[str, Plain]
    validation_dice: float | None
    default_validation_dice: float | None
    finished: int
    failed: int
    runs: int
    steps: int
    passes: int
    space: dict[str, Plain]
    space_hash: str
    code: str

    @property
    def title(self) -> str:
        """Method, and transfer where each has its own values."""
        return " ".join(filter(None, (self.method, self.transfer)))


class Tuned(Strict):
    """tuned.yaml: the best values that a sweep came to.

    Attributes:
        protocol: Its name.
        data: Whether the subjects are real or the stand-in.
        budget: Of each method.
        conditions: Hashes of what the values depend on; see `plan.Plan`.
        methods: By label and transfer.
    """

    schema_version: Literal[4] = SCHEMA
    protocol: str
    data: Literal["phantom", "real"]
    budget: Budget
    conditions: dict[str, str]
    methods: tuple[TunedMethod, ...]

    def of(self, method: str, transfer: str) -> TunedMethod | None:
        """What holds for a method in a transfer."""
        fits = [m for m in self.methods if m.method == method and m.transfer in (None, transfer)]
        return fits[0] if fits else None

    @property
    def digest(self) -> str:
        """16 hex digits of what the file holds."""
        return digest_of(self.model_dump(mode="json"))[:16]


@dataclass(frozen=True)
class Taken:
    """What runs take of a tuned.yaml.

    Attributes:
        tuned: What the file holds.
        training_of: The method whose training values all take, and nothing else; "" where each
            method takes all of its own.
    """

    tuned: Tuned
    training_of: str = ""

    def is_borrowed(self, protocol: str) -> bool:
        """Whether the values are another protocol's than the one of a name."""
        return self.tuned.protocol != protocol

    def note(self, protocol: str, conditions: Mapping[str, str]) -> TunedNote:
        """What a plan says of it.

        Args:
            protocol: Name of the protocol that takes the values.
            conditions: Of that protocol; see `plan.Plan`.
        """
        tuned, borrowed = self.tuned, self.is_borrowed(protocol)
        differ = [k for k in conditions if tuned.conditions.get(k) != conditions[k]]
        return TunedNote(
            digest=tuned.digest,
            budget=tuned.budget,
            passes=sum(m.passes for m in tuned.methods if self.training_of in ("", m.method)),
            borrowed_from=tuned.protocol if borrowed else None,
            differs=tuple(differ) if borrowed else (),
            training_of=self.training_of,
        )


class TunedNote(Strict):
    """What plan.json says of the tuned.yaml whose values its runs have.

    Attributes:
        digest: Its hash.
        budget: Of each method.
        passes: Of the trials of all its methods, or of `training_of`; see `Record`.
        borrowed_from: The protocol that the values were tuned on, where it is another one.
        differs: The conditions of that one that are not this one's; see `plan.Plan`.
        training_of: The method whose training values all runs have; "" where each has its own.
    """

    digest: str
    budget: Budget
    passes: int = 0
    borrowed_from: str | None = None
    differs: tuple[str, ...] = ()
    training_of: str = ""


class SweptTrial(Strict):
    """A trial of a sweep.

    Attributes:
        number: From 0, which has the defaults.
        values: Of the dimensions that mattered.
        validation_dice: Mean over its runs; None where one failed or diverged.
        reason: Why there is none.
        voxel_share: Mean over its runs and their looks; see `training.loop.Curves`. None where the
            loss has one term.
        seconds: Of its runs, added up; another trial with these values has the same runs.
        runs: Their ids.
    """

    number: int
    values: dict[str, Plain]
    validation_dice: float | None
    reason: str = ""
    voxel_share: float | None = None
    seconds: float
    runs: tuple[str, ...]


class SweptMethod(Strict):
    """All trials of a method, of one transfer where each has its own values.

    Attributes:
        method: Its label.
        transfer: None where the values are for all.
        seconds: Of all its runs, each once.
        trials: In the order of their numbers.
    """

    method: str
    transfer: str | None
    seconds: float
    trials: tuple[SweptTrial, ...]


class Trials(Strict):
    """trials.json, apart from tuned.yaml, since no two sweeps take the same time."""

    schema_version: Literal[4] = SCHEMA
    methods: tuple[SweptMethod, ...] = ()


class StoredPlan(Strict):
    """plan.json.

    Attributes:
        protocol: As the last command resolved it.
        data: Whether the subjects are real or the stand-in.
        settings: Hash of what all runs of the table share.
        left_out: Subjects that cannot be used.
        cells: By transfer, method and seed.
        tuned: Where the methods' values come from, if they are tuned.
    """

    schema_version: Literal[4] = SCHEMA
    protocol: Protocol
    data: Literal["phantom", "real"]
    settings: str
    left_out: tuple[LeftOut, ...] = ()
    cells: tuple[Cell, ...]
    tuned: TunedNote | None = None


class SourceNote(Strict):
    """What a run's record says of the source network that it started from."""

    id: str
    validation_dice: float | None


class Loading(Strict):
    """Which source weights were loaded.

    Attributes:
        loaded: Number of tensors.
        skipped: The network's own that kept their initial values.
        adapted: Those loaded that were adapted to another number of channels.
    """

    loaded: int
    skipped: tuple[str, ...]
    adapted: tuple[str, ...] = ()


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
        curves: `loss`, `validation` and `voxel_share`, as (step, value); see `training.loop`.
        passes: Forward passes that a gradient went back through: one a step, and of all branches
            and source batches of a method.
        trained: Number of parameters that the optimiser moved; 0 where it was not counted.
        validation_dice: Mean over validation subjects and regions, at the end.
        metrics: Test subject to region to metric to value.
        manifest: Part to subject to file to (bytes, sha256).
        predictions: Test subject to the sha256 of the file of its prediction.
        slices: The sha256 of the file of the slices kept for pictures; "" without test subjects.
        diagnostics: What the method has to say.
        seconds: Of `prepare`, `train` and `test`; `train` of all sittings together where it was
            cut off, up to the savepoints that it went on from.
        resumed: How often the training was taken up again after it was cut off.
        peak_memory_bytes: Of the device, or of the process on a CPU.
    """

    schema_version: Literal[4] = SCHEMA
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
    passes: int = 0
    trained: int = 0
    validation_dice: float | None = None
    metrics: dict[str, dict[str, dict[str, Measured]]] = Field(default_factory=dict)
    manifest: dict[str, dict[str, dict[str, tuple[Count, str]]]] = Field(default_factory=dict)
    predictions: dict[str, str] = Field(default_factory=dict)
    slices: str = ""
    diagnostics: dict[str, Plain] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    resumed: int = 0
    peak_memory_bytes: int | None = None


class Checkpoint(Strict):
    """What a network's file says of it, beside the weights; of a source, or a kept target.

    Attributes:
        id: Of the configuration.
        config: Of its training, or of its import.
        validation_dice: At the end of its training; None where it was trained elsewhere.
        curves: Of its training.
        environment: Where it was made.
        account: What became of each tensor of an imported file; see `checkpoints.fit`.
    """

    schema_version: Literal[4] = SCHEMA
    id: str
    config: RunConfig | Imported
    validation_dice: float | None = None
    curves: dict[str, Curve] = Field(default_factory=dict)
    environment: Environment
    account: dict[str, Plain] = Field(default_factory=dict)


class Saved(Strict):
    """What a savepoint says of the training that it was cut off from; see `runs.savepoints`.

    Attributes:
        id: Of the configuration.
        step: Number of steps done.
        steps: Of the training.
        seconds: What it took so far, in all sittings.
        resumed: How often it was taken up again.
        torch: The version of PyTorch, whose numbers go on.
        state: What it held; its tensors are in the file.
    """

    schema_version: Literal[4] = SCHEMA
    id: str
    step: int
    steps: int
    seconds: float
    resumed: int
    torch: str
    state: Any


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

    schema_version: Literal[4] = SCHEMA
    transfer: str
    seed: int
    runs: dict[str, str]
    code: str
    classes: tuple[str, ...]
    outcomes: dict[str, dict[str, list[tuple[Count, Count, Count]]]]
    auroc: dict[str, dict[str, dict[str, float]]]
    roc: dict[str, list[float]]
