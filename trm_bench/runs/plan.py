"""From a protocol to jobs: which trainings, with which configuration, fill which cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from trm_bench.data.cohorts import Cohort, Cohorts
from trm_bench.data.divisions import Division, divide
from trm_bench.data.splits import Split, inner_folds
from trm_bench.errors import UserError
from trm_bench.fingerprint import code_fingerprint, digest_of
from trm_bench.formats import resolved_precision
from trm_bench.methods import Method
from trm_bench.methods.registry import create
from trm_bench.protocol.schema import (
    CheckpointConfig,
    Domain,
    Protocol,
    TrainingConfig,
    Transfer,
)
from trm_bench.runs import compute, health
from trm_bench.runs.config import Imported, Member, RunConfig, RunDomain, RunMethod, Subjects
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.health import Health
from trm_bench.runs.records import Cell, Taken

# Where the code that can change a number starts; what these import counts as well.
NUMERIC = ("trm_bench.runs.compute", "trm_bench.data.volumes")
# Keys of the protocol in which the runs of one table may differ.
FREE = (
    "methods",
    "seeds",
    "transfers",
    "sweep",
    "tracking",
    "keep",
    "phantom",
    "description",
    "claim",
    "name",
)
FORWARD_BACKWARD = 3  # times a forward pass
# Blocks of the protocol that decide what is a good value of a parameter.
TUNED_ON = ("data", "domains", "split", "network", "training", "evaluation")


@dataclass(frozen=True)
class Job:
    """A training to be done: of a source network, or of a method on a target.

    What is computed is what `config` says and nothing else; the rest says where files lie.

    Attributes:
        config: What is run.
        title: For progress bars and messages.
        folder: Of the protocol's results.
        prepared: Subject to prepared file.
        source_prepared: Likewise, of the training subjects of the source.
        keep: Whether the trained network of a run stays; that of a source always does.
        voxels: Subject to size of its prepared volume.
    """

    config: RunConfig
    title: str
    folder: ProtocolFolder
    prepared: Mapping[str, Path]
    source_prepared: Mapping[str, Path] = field(default_factory=dict)
    keep: bool = False
    voxels: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Of the configuration."""
        return self.config.id

    @property
    def source(self) -> str:
        """Id of the source network that a run starts from; "" for none."""
        return self.config.source.id if self.config.source else ""

    @cached_property
    def cost(self) -> float:
        """About how long it takes, in voxels that pass the network once."""
        training, method, subjects = self.config.training, self.config.method, self.config.subjects
        patch, overlap = math.prod(training.patch), self.config.evaluation.overlap
        passes = create(method.name, method.parameters).passes() * FORWARD_BACKWARD
        windows = (1 - overlap) ** -len(training.patch)  # that a voxel is predicted in
        scored = [*subjects.test, *subjects.val * validations(training)]
        tested = sum(max(patch, self.voxels.get(member.subject, 0)) for member in scored)
        return training.steps * training.batch * patch * passes + tested * windows

    @property
    def result(self) -> Path:
        """The file that the job leaves."""
        if self.config.kind == "source":
            return self.folder.results.source(self.id)
        return self.folder.record(self.id)

    @property
    def savepoint(self) -> Path:
        """What the training goes on from, where it was cut off."""
        return self.folder.savepoint(self.id)

    def health(self) -> Health:
        """The state of what the job has left."""
        if self.config.kind == "source":
            found = health.of_source(self.result)
        else:
            found = health.of_run(self.folder, self.id)
        if not found.done:
            found.damaged += health.of_savepoint(self.savepoint).damaged
        return found

    def is_done(self) -> bool:
        """Whether the result is there, and all that belongs to it; see `Health.done`."""
        return self.health().done


@dataclass
class Plan:
    """All jobs of a protocol, and the cells of the table that they fill.

    Attributes:
        sources: Source trainings, each once.
        runs: Method trainings, each once: a run that does not see the source fills a cell of
            every source.
        cells: One per (transfer, method, seed), with the run that fills it.
        settings: Hash of what runs must share to stand in one table.
        conditions: What tuned values depend on, by name: hashes of the subjects' files and of
            blocks of the protocol.
    """

    sources: list[Job] = field(default_factory=list)
    runs: list[Job] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    settings: str = ""
    conditions: dict[str, str] = field(default_factory=dict)


def refuse_misfit(taken: Taken, plan: Plan, data: str, *, borrowed: bool = False) -> None:
    """Refuses tuned values that were found under other conditions than a plan's.

    Args:
        taken: The values.
        plan: Whose runs would have them.
        data: Whether its subjects are real or the stand-in.
        borrowed: The values are another protocol's, whose settings and code are its own.

    Raises:
        UserError: Data, settings or code are not those of the sweep, or it lacks a method or
            transfer of the plan.
    """
    tuned = taken.tuned
    fix = "sweep again (trm-bench sweep), or undo the change"
    if tuned.data != data:
        raise UserError(f"was tuned on {tuned.data} data, and these are {data}", "--tuned", fix)
    names = {"subjects": "the subjects' files"}
    changed = [
        names.get(name, f"the protocol's '{name}'")
        for name, condition in plan.conditions.items()
        if not borrowed and tuned.conditions.get(name) != condition
    ]
    if changed:
        what = f"was tuned before a change of {', '.join(changed)}"
        raise UserError(what, "--tuned", fix)
    codes = {job.id: job.config.code for job in plan.runs}
    for cell in plan.cells:
        method = taken.training_of or cell.method
        known = tuned.of(method, cell.transfer)
        if known is None:
            what = f"holds nothing for '{method}' in {cell.transfer}"
            raise UserError(what, "--tuned", "sweep it too, or leave it out with --transfers")
        if not borrowed and method == cell.method and known.code != codes[cell.run]:
            what = f"was tuned with other code: what computes '{cell.method}' has changed since"
            raise UserError(what, "--tuned", fix)


@dataclass(frozen=True)
class _Arm:
    """A method in a transfer: its label, the method, and its target training."""

    label: str
    method: Method
    training: TrainingConfig


@dataclass(frozen=True)
class _Source:
    """What a target, or the next source of a chain, starts from."""

    config: RunConfig | Imported
    cohort: Cohort | None


@dataclass(frozen=True)
class Planner:
    """What all jobs of a protocol share.

    Attributes:
        protocol: As the command resolved it.
        cohorts: Its data sets.
        imported: Its checkpoints, as they were read, by domain.
        folder: Of the protocol's results.
        data: Whether the subjects are real or the stand-in.
        device: Where jobs will run; its kind and what `precision: auto` means on it are part of
            every configuration.
        bf16: Whether that device computes in bfloat16.
        tested: Whether the runs are tested. Those of a sweep's trials are not: they have no test
            subjects at all.
        folds: Of an inner cross-validation; a cell then has a run for each. None for the split's
            own training and validation subjects.
    """

    protocol: Protocol
    cohorts: Cohorts
    imported: Mapping[str, Imported]
    folder: ProtocolFolder
    data: Literal["phantom", "real"]
    device: torch.device
    bf16: bool
    tested: bool = True
    folds: int | None = None

    def plan(self, transfers: Sequence[Transfer]) -> Plan:
        """Expands the protocol into jobs.

        Args:
            transfers: Those to run.

        Raises:
            UserError: The split does not work out or leaks, or a method's parameters are wrong or
                do not fit a source.
        """
        plan = Plan(settings=self._settings(), conditions=self._conditions())
        arms = {
            transfer.name: [self._arm(i, transfer) for i in range(len(self.protocol.methods))]
            for transfer in transfers
        }
        known: set[str] = set()
        for seed, transfer in product(self.protocol.seeds, transfers):
            divided = divide(transfer, self.cohorts, self.protocol.split, seed)
            jobs, source = self._sources(transfer, seed, divided)
            parts = self._parts(transfer, divided.target)
            unit = self.cohorts[transfer.target.data].dataset.distance_unit
            for arm, subjects in product(arms[transfer.name], parts):
                job = self._run(transfer, seed, subjects, source, arm)
                needed = jobs if job.source else []
                plan.sources += [j for j in needed if j.id not in known]
                if job.id not in known:
                    plan.runs.append(job)
                known |= {job.id, *(j.id for j in needed)}
                cell = Cell(
                    transfer=transfer.name,
                    method=arm.label,
                    seed=seed,
                    run=job.id,
                    distance_unit=unit,
                )
                plan.cells.append(cell)
        return plan

    def _arm(self, index: int, transfer: Transfer) -> _Arm:
        chosen = self.protocol.methods[index]
        settings = chosen.at(transfer.name)
        method = create(chosen.name, settings.parameters, f"methods.{index}")
        training = settings.training.applied(self.protocol.training.target)
        return _Arm(chosen.label, method, method.adjusted(training))

    def _settings(self) -> str:
        shared = self.protocol.model_dump(mode="json", exclude=set(FREE))
        _without_places(shared)
        trainings = self.protocol.training
        precision = [
            resolved_precision(self.device, t.precision, self.bf16)
            for t in (trainings.source, trainings.target)
        ]
        modules = sorted({type(c.dataset).__module__ for c in self.cohorts.values()})
        code = code_fingerprint(*NUMERIC, *modules)
        contents = self._contents()
        return digest_of(shared, contents, self.data, self.device.type, precision, code)[:16]

    def _conditions(self) -> dict[str, str]:
        blocks = self.protocol.model_dump(mode="json", include=set(TUNED_ON))
        _without_places(blocks)
        hashed = {"subjects": [self._contents(), self.data], **blocks}
        return {name: digest_of(content)[:16] for name, content in hashed.items()}

    def _contents(self) -> list[Any]:
        """All that is read: subjects of each data set by contents, and checkpoints."""
        read = [cohort.contents for cohort in self.cohorts.values()]
        return [*read, *sorted(one.id for one in self.imported.values())]

    def _sources(
        self, transfer: Transfer, seed: int, divided: Division
    ) -> tuple[list[Job], _Source]:
        """The trainings before the target's, first to last, and what the target starts from."""
        jobs: list[Job] = []
        source: _Source | None = None
        for i, domain in enumerate(transfer.sources):
            if isinstance(domain, CheckpointConfig):
                source = _Source(self.imported[transfer.way[i]], None)
                continue
            cohort = self.cohorts[domain.data]
            train, val = divided.sources[i]
            subjects = Subjects(train=_members(cohort, train), val=_members(cohort, val))
            method = create("finetune" if source else "scratch", {})
            training = self.protocol.training.source
            config = self._config("source", domain, seed, subjects, training, method)
            way = "->".join(transfer.way[: i + 1])
            config = self._after(config, cohort, source)
            jobs.append(self._job(config, cohort, f"source {way} seed {seed}", source))
            source = _Source(config, cohort)
        assert source is not None
        return jobs, source

    def _parts(self, transfer: Transfer, division: Split) -> list[Subjects]:
        """Who trains, validates and tests: once, or in each fold."""
        cohort = self.cohorts[transfer.target.data]
        parts = [(division.train_of(transfer.shots), division.val)]
        if self.folds is not None:
            parts = inner_folds(division, cohort.subjects, transfer.shots, self.folds)
        test = _members(cohort, division.test) if self.tested else ()
        return [
            Subjects(train=_members(cohort, train), val=_members(cohort, val), test=test)
            for train, val in parts
        ]

    def _run(
        self, transfer: Transfer, seed: int, subjects: Subjects, source: _Source, arm: _Arm
    ) -> Job:
        # not in a trial: it would be scored on subjects that it trained on
        if arm.method.validation_in_training_set and self.tested:
            subjects = subjects.model_copy(update={"train": subjects.train + subjects.val})
        config = self._config("run", transfer.target, seed, subjects, arm.training, arm.method)
        metrics = self.protocol.metrics if self.tested else ()
        config = config.model_copy(update={"metrics": metrics})
        start = source if arm.method.transfers else None
        cohort = self.cohorts[transfer.target.data]
        title = f"{transfer.name} {arm.label} seed {seed}"
        config = self._after(config, cohort, start)
        if start is not None:
            arm.method.check_source(start.config.has_head, compute.has_data(config))
        return self._job(config, cohort, title, start)

    def _config(
        self,
        kind: Literal["source", "run"],
        domain: Domain,
        seed: int,
        subjects: Subjects,
        training: TrainingConfig,
        method: Method,
    ) -> RunConfig:
        precision = resolved_precision(self.device, training.precision, self.bf16)
        dataset = self.cohorts[domain.data].dataset
        modules = (type(dataset).__module__, type(method).__module__)
        return RunConfig(
            kind=kind,
            data=self.data,
            dataset=dataset.name,
            domain=RunDomain.of(domain.images, domain.labels, dataset.label_map(domain.labels)),
            volume=domain.data.volume,
            subjects=subjects,
            network=self.protocol.network,
            training=training.model_copy(update={"precision": precision}),
            evaluation=self.protocol.evaluation,
            method=RunMethod(name=method.name, parameters=method.p.model_dump(mode="json")),
            seed=seed,
            device="cuda" if self.device.type == "cuda" else "cpu",
            code=code_fingerprint(*NUMERIC, *modules),
        )

    def _after(self, config: RunConfig, cohort: Cohort, source: _Source | None) -> RunConfig:
        """A training that starts from a source network.

        Raises:
            UserError: The source's head is to come along and has other classes.
        """
        if source is None:
            return config
        ours, theirs = config.domain, source.config.domain
        same_task = self.protocol.transfers.same_task
        if same_task is None:
            shared = source.cohort is None or (
                source.cohort.origin == cohort.origin and theirs.labels == ours.labels
            )
            same_task = shared and theirs.classes == ours.classes
        if same_task and len(theirs.classes) != len(ours.classes):
            what = f"the source has {len(theirs.classes)} classes, the target {len(ours.classes)}"
            raise UserError(what, "transfers.same_task", "remove it, so that the head is replaced")
        adapted = len(theirs.images) != len(ours.images)
        changes = {
            "source": source.config,
            "same_task": same_task,
            "channels": self.protocol.transfers.channels if adapted else None,
        }
        return config.model_copy(update=changes)

    def _job(self, config: RunConfig, cohort: Cohort, title: str, source: _Source | None) -> Job:
        members = {m.subject for part in config.subjects.parts().values() for m in part}
        files = {i: cohort.prepared[i].path for i in sorted(members)}
        of_source: dict[str, Path] = {}
        if source is not None and source.cohort and isinstance(source.config, RunConfig):
            train = source.config.subjects.train
            of_source = {m.subject: source.cohort.prepared[m.subject].path for m in train}
        keep = config.kind == "run" and self.tested and self.protocol.keep != "none"
        voxels = {i: math.prod(cohort.prepared[i].shape) for i in files}
        return Job(config, title, self.folder, files, of_source, keep, voxels)


def validations(training: TrainingConfig) -> int:
    """How often a training is scored on its validation subjects."""
    if training.select == "last":
        return 1
    return 1 + training.steps // (training.validate_every or max(1, training.steps // 10))


def _members(cohort: Cohort, ids: Iterable[str]) -> tuple[Member, ...]:
    return tuple(Member(i, cohort.prepared[i].digest) for i in ids)


def _without_places(blocks: dict[str, Any]) -> None:
    """Takes out of a protocol's blocks where its data lie."""
    for block in (blocks["data"], *blocks["domains"].values()):
        for name in ("root", "allow_links", "checkpoint", "sha256"):
            block.pop(name, None)
