"""One command from protocol to table: open and prepare the data, plan, train what is missing, report, track."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trm_bench import audit, datasets, execution, networks, phantom, registry, report, results, runs, tracking
from trm_bench.datasets.base import Dataset, Subject
from trm_bench.display import Display
from trm_bench.errors import BadSubject, UserError, nearest
from trm_bench.execution import Event, Task
from trm_bench.protocol import Protocol, Transfer, data_root, transfers_of
from trm_bench.runs import Job, Plan
from trm_bench.training import uses_bf16
from trm_bench.volumes import Prepared, cache_path, open_prepared, prepare

WORTH_WORKERS = 128 * 2**20  # bytes of files to prepare above which starting worker processes pays


@dataclass(frozen=True)
class Data:
    """A protocol's data, prepared.

    Attributes:
        dataset: Opened.
        subjects: The usable ones.
        prepared: Their prepared volumes, by id.
        left_out: Subjects that cannot be used: `subject`, `file`, `reason`.
        phantom: Whether this is the stand-in.
    """

    dataset: Dataset
    subjects: list[Subject]
    prepared: dict[str, Prepared]
    left_out: list[dict[str, str]]
    phantom: bool


@dataclass(frozen=True)
class Outcome:
    """What a benchmark did: its folder, and the number of runs by state (`finished`, `diverged`, `failed`)."""

    folder: Path
    states: dict[str, int]


def run(
    protocol: Protocol,
    output: Path,
    *,
    stand_in: bool = False,
    transfers: Sequence[str] = (),
    device: torch.device | None = None,
    jobs: int | None = None,
    display: Display | None = None,
    pages: bool = True,
) -> Outcome:
    """Runs a protocol; what has been done before is not done again.

    Args:
        protocol: Resolved.
        output: The folder of the results.
        stand_in: Use the phantom instead of the real data.
        transfers: Names of the transfers to run; all where empty.
        device: CPU where not given.
        jobs: Trainings at a time; by default one a core or GPU.
        display: Where progress is shown.
        pages: Draw charts and report.html too, which takes some seconds.

    Raises:
        UserError: Protocol, data or folder are not as they must be; nothing has been trained then.
    """
    device, display = device or torch.device("cpu"), display or Display(quiet=True)
    jobs = jobs or execution.default_jobs(device)
    folder = output / protocol.name
    with _only_one(folder), display:
        data = open_data(protocol, output, stand_in, jobs, display)
        chosen = choose_transfers(protocol, data.dataset, transfers)
        made = runs.plan(protocol, data.dataset, chosen, data.subjects, data.prepared, output, data.phantom)
        check_networks(protocol, made, device)
        kind = "phantom" if data.phantom else "real"
        kept, dropped = results.write_plan(folder, made, protocol.model_dump(mode="json"), kind, data.left_out)
        if kept or dropped:
            display.say(f"{kept} cells of earlier commands stay in the table, {dropped} of other settings are left out")
        with tracking.tracker(protocol, folder, display) as track:
            for job in made.runs:
                if job.is_done():
                    track(job)
            _train(made, device, jobs, display, track)
            _audit(protocol, data, folder, output, device, jobs, display)
            (report.write_pages if pages else report.write)(folder)
        states = _states(made)
    return Outcome(folder, states)


def planned(
    protocol: Protocol, output: Path, stand_in: bool, transfers: Sequence[str], jobs: int, display: Display
) -> tuple[Data, Plan]:
    """What `run` would do, without training."""
    with display:
        data = open_data(protocol, output, stand_in, jobs, display)
    chosen = choose_transfers(protocol, data.dataset, transfers)
    return data, runs.plan(protocol, data.dataset, chosen, data.subjects, data.prepared, output, data.phantom)


def open_data(protocol: Protocol, output: Path, stand_in: bool, jobs: int, display: Display) -> Data:
    """Opens the dataset (or makes the phantom) and prepares every subject that is not prepared yet.

    Raises:
        UserError: The data are not there, or a subject cannot be used and `data.on_bad_subject` is `stop`.
    """
    root = phantom_root(protocol, output, display) if stand_in else data_root(protocol)
    dataset = datasets.open_dataset(protocol.data.dataset, root)
    modalities = protocol.data.modalities or dataset.modalities
    transfers_of(protocol, dataset)  # names are checked before the long work
    found = dataset.subjects()
    cache = output / "prepared" / dataset.name
    paths = {s.id: cache_path(cache, dataset, s, modalities, protocol.data.volume) for s in found}
    prepared = {s.id: p for s in found if (p := open_prepared(paths[s.id])) is not None}
    missing = [s for s in found if s.id not in prepared]
    left_out = []
    if missing:
        tasks = [
            Task(s.id, _prepare, (protocol.data.dataset, root, s, modalities, protocol.data.volume, paths[s.id]))
            for s in missing
        ]
        with display.stage("preparing volumes", len(missing)) as stage:
            wrong: dict[int, Any] = {}

            def listen(event: Event) -> None:
                if event.kind in ("done", "died"):
                    wrong[event.task] = event.value
                    stage.advance()

            size = sum(f.stat().st_size for s in missing for f in dataset.files(s) if f.is_file())
            execution.run_all(tasks, torch.device("cpu"), jobs if size > WORTH_WORKERS else 1, listen)
        for index, value in sorted(wrong.items()):
            if isinstance(value, BadSubject):
                left_out.append({"subject": value.subject, "file": value.where or "", "reason": value.what})
                if protocol.data.on_bad_subject == "stop":
                    raise UserError(
                        f"subject {value.subject} cannot be used: {value.what}",
                        value.where,
                        "mend or remove it, or leave such subjects out with --set data.on_bad_subject=skip",
                    )
                display.warn(f"left out {value.subject}: {value.what} ({value.where})")
            elif value is not None:
                raise UserError(f"{missing[index].id} cannot be prepared: {value}", cache, "free some space or memory")
        prepared |= {s.id: p for s in missing if (p := open_prepared(paths[s.id])) is not None}
    usable = [s for s in found if s.id in prepared]
    return Data(dataset, usable, prepared, left_out, stand_in or phantom.is_phantom(root))


def phantom_root(protocol: Protocol, output: Path, display: Display) -> Path:
    """Makes the protocol's phantom under `output`, once, and returns its folder.

    Raises:
        UserError: The protocol has no phantom, or its dataset has none.
    """
    block, layout = protocol.phantom, protocol.data.dataset
    if block is None or layout not in phantom.LAYOUTS:
        raise UserError(
            f"there is no phantom for the dataset '{layout}' in this protocol",
            "--phantom",
            f"phantoms exist for {', '.join(phantom.LAYOUTS)}",
        )
    name = f"{layout}-{block.subjects}x{block.spacing:g}mm-seed{block.seed}"
    with display.stage("making the phantom", block.subjects) as stage:
        return phantom.write_phantom(
            layout,
            output / "phantom" / name,
            block.subjects,
            block.spacing,
            block.seed,
            lambda done, total: stage.advance(done),
        )


def choose_transfers(protocol: Protocol, dataset: Dataset, names: Sequence[str]) -> list[Transfer]:
    """The protocol's transfers, or those named.

    Raises:
        UserError: A name is not one of them.
    """
    found = transfers_of(protocol, dataset)
    known = [t.name for t in found]
    for name in names:
        if name not in known:
            raise UserError(f"the protocol has no transfer '{name}'", "--transfers", nearest(name, known))
    return [t for t in found if not names or t.name in names]


def check_networks(protocol: Protocol, made: Plan, device: torch.device) -> int:
    """Builds every network of a plan and passes a patch through it on paper; returns the bytes of the largest step.

    Raises:
        UserError: A network refuses its arguments or its patch, or a method the network, so that a run would fail.
    """
    largest = 0
    trainings = {"source": protocol.training.source, "run": protocol.training.target}
    shapes = {(job.kind, len(job.domain.images), len(job.label_map.classes)) for job in (*made.sources, *made.runs)}
    for kind, channels, classes in sorted(shapes):
        parts = networks.parts(protocol.network, channels, protocol.spatial_dims)
        network = networks.build(protocol.network, channels, classes, protocol.spatial_dims, seed=0)
        for chosen in protocol.methods:
            registry.create(chosen.name, chosen.parameters).check(network, parts)
        training = trainings[kind]
        size = 2 if uses_bf16(device, training.precision) else 4
        largest = max(largest, networks.training_bytes(protocol.network, training, channels, classes, size))
    return largest


def _prepare(dataset: str, root: Path, subject: Subject, modalities, volume, path: Path, device, progress) -> Any:
    """Prepares a subject in a worker; returns the BadSubject that it meets, so that it arrives as itself."""
    try:
        prepare(datasets.open_dataset(dataset, root), subject, modalities, volume, path)
    except BadSubject as error:
        return error
    return None


def _train(made: Plan, device: torch.device, jobs: int, display: Display, track: tracking.Track) -> None:
    """Trains the missing sources, then the missing runs; a run whose source failed is recorded as failed."""
    failed: dict[str, str] = {}
    for stage_name, stage_jobs in (("source networks", made.sources), ("runs", made.runs)):
        missing = [job for job in stage_jobs if not job.is_done()]
        done_before = len(stage_jobs) - len(missing)
        for job in [job for job in missing if job.source in failed]:
            runs.failed(job, f"its source network failed: {failed[job.source]}", device)
            display.warn(f"{job.title}: its source network failed")
            missing.remove(job)
        if done_before:
            display.say(f"{done_before} of {len(stage_jobs)} {stage_name} are done already")
        if not missing:
            continue
        tasks = [Task(job.title, runs.do, (job,)) for job in missing]
        with display.stage(stage_name, len(missing)) as stage:

            def listen(event: Event, missing: list[Job] = missing, stage=stage) -> None:
                job = missing[event.task]
                stage.hear(event, job.title)
                if event.kind == "died":
                    if job.kind == "source":
                        failed[job.id] = event.value
                    else:
                        runs.failed(job, event.value, device)
                if event.kind in ("done", "died") and job.kind == "run":
                    track(job)

            execution.run_all(tasks, device, jobs, listen)


def _audit(
    protocol: Protocol, data: Data, folder: Path, output: Path, device: torch.device, jobs: int, display: Display
) -> None:
    """Judges voxel by voxel what is finished; one that fails is a warning, since the runs stand without it."""
    missing = audit.pending(results.read(folder), protocol, data.dataset, data.prepared, output)
    if not missing:
        return
    with display.stage("voxel-level audits", len(missing)) as stage:

        def listen(event: Event) -> None:
            stage.hear(event, missing[event.task].title)

        execution.run_all([Task(work.title, audit.audit, (work,)) for work in missing], device, jobs, listen)


def _states(made: Plan) -> dict[str, int]:
    states: dict[str, int] = {}
    for job in made.runs:
        record = runs.read_record(job.result)
        state = str(record["state"]) if record else "failed"
        states[state] = states.get(state, 0) + 1
    return states


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Holds a lock on the folder, which the system frees when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise UserError(f"cannot write here: {error.strerror}", folder, "choose another folder with --out") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # a command that was killed may leave workers that notice within a second or so
        time.sleep(2)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise UserError(
                "another trm-bench command is writing to this folder", folder, "wait for it, or choose another --out"
            ) from error
    try:
        yield
    finally:
        os.close(lock)
