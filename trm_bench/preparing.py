"""A protocol's data: opened, or made where they are the stand-in, and prepared once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from trm_bench import datasets, phantom
from trm_bench.data.prepared import (
    Prepared,
    cache_path,
    open_prepared,
    prepare,
)
from trm_bench.datasets.base import Dataset, Subject
from trm_bench.display import Display
from trm_bench.errors import BadSubject, Damaged, UserError
from trm_bench.protocol import Protocol
from trm_bench.protocol.choices import transfers_of
from trm_bench.protocol.load import data_root
from trm_bench.runs import health
from trm_bench.runs.executors import Event, Executor, LocalPool, Task, default_jobs
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.records import LeftOut
from trm_bench.seals import require_tensors

WORTH_WORKERS = 128 * 2**20  # bytes of files to prepare above which starting processes pays


@dataclass(frozen=True)
class Data:
    """A protocol's data, prepared.

    Attributes:
        dataset: Opened.
        subjects: The usable ones.
        prepared: Their prepared volumes, by id.
        left_out: Subjects that cannot be used.
        kind: Whether these are real data or the stand-in.
    """

    dataset: Dataset
    subjects: list[Subject]
    prepared: dict[str, Prepared]
    left_out: list[LeftOut]
    kind: Literal["phantom", "real"]


def open_data(
    protocol: Protocol, results: ResultsFolder, stand_in: bool, jobs: int | None, display: Display
) -> Data:
    """Opens the dataset (or makes the phantom) and prepares every subject not prepared yet.

    Raises:
        UserError: The data are not there, or a subject cannot be used and `data.on_bad_subject`
            is `stop`.
    """
    root = phantom_root(protocol, results, display) if stand_in else data_root(protocol)
    dataset = datasets.open_dataset(protocol.data.dataset, root, protocol.data.allow_links)
    modalities = protocol.data.modalities or dataset.modalities
    transfers_of(protocol, dataset)  # names are checked before the long work
    subjects = dataset.subjects()
    cache, volume = results.prepared(dataset.name), protocol.data.volume
    paths = {s.id: cache_path(cache, dataset, s, modalities, volume) for s in subjects}
    prepared = _whole(paths, display)
    missing = [s for s in subjects if s.id not in prepared]
    tasks = [Task(s.id, _prepare, (dataset, s, modalities, volume, paths[s.id])) for s in missing]
    size = sum(f.stat().st_size for s in missing for f in dataset.files(s) if f.is_file())
    cpu = torch.device("cpu")
    workers = jobs or default_jobs(cpu)
    pool = LocalPool(cpu, workers if size > WORTH_WORKERS else 1)
    left_out = _prepare_all(tasks, pool, protocol, cache, display)
    prepared |= {s.id: p for s in missing if (p := open_prepared(paths[s.id])) is not None}
    usable = [s for s in subjects if s.id in prepared]
    is_phantom = stand_in or phantom.is_phantom(root)
    return Data(dataset, usable, prepared, left_out, "phantom" if is_phantom else "real")


def _whole(paths: Mapping[str, Path], display: Display) -> dict[str, Prepared]:
    """The subjects that are prepared, all voxels held against their checksums.

    What is damaged is set aside, and so made again.
    """
    prepared, damaged = dict[str, Prepared](), list[Damaged]()
    with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock alone
        for subject, found in zip(paths, pool.map(_opened, paths, paths.values()), strict=True):
            if isinstance(found, Damaged):
                damaged.append(found)
            elif found is not None:
                prepared[subject] = found
    mend(damaged, display)
    return prepared


def _opened(subject: str, path: Path) -> Prepared | Damaged | None:
    try:
        found = open_prepared(path)
        if found is not None and found.subject != subject:
            raise Damaged(f"is {found.subject}, prepared", path)
        if found is not None:
            require_tensors(path)
    except Damaged as error:
        return error
    return found


def mend(damaged: Iterable[Damaged], display: Display) -> None:
    """Sets damaged files aside, so that they are made again, and says so once."""
    for line in health.set_aside(damaged):
        display.warn(line)


def _prepare_all(
    tasks: Sequence[Task], pool: Executor, protocol: Protocol, cache: Path, display: Display
) -> list[LeftOut]:
    """Prepares subjects; returns those that cannot be used.

    Raises:
        UserError: There is one, and the protocol says `stop`; or the disk or memory is full.
    """
    if not tasks:
        return []
    results: dict[str, Any] = {}
    with display.stage("preparing volumes", len(tasks)) as stage:

        def listen(event: Event) -> None:
            if event.kind in ("done", "failed"):
                results[event.task] = event.value
                stage.advance()

        pool.run(tasks, listen)
    left_out = []
    for subject in (task.id for task in tasks):
        problem = results[subject]
        if isinstance(problem, BadSubject):
            reason = LeftOut(subject=subject, file=problem.where or "", reason=problem.what)
            left_out.append(reason)
            if protocol.data.on_bad_subject == "stop":
                raise UserError(
                    f"subject {subject} cannot be used: {problem.what}",
                    problem.where,
                    "fix or remove it, or leave such subjects out with "
                    "--set data.on_bad_subject=skip",
                )
            display.warn(f"left out {subject}: {problem.what} ({problem.where})")
        elif problem is not None:
            what = f"{subject} cannot be prepared: {problem}"
            raise UserError(what, cache, "free some space or memory")
    return left_out


def _prepare(
    dataset: Dataset,
    subject: Subject,
    modalities: Sequence[str],
    volume: Any,
    path: Path,
    device: torch.device,
    progress: Any,
) -> BadSubject | None:
    """Prepares a subject, maybe in a worker; returns the BadSubject that it meets, as itself."""
    try:
        prepare(dataset, subject, modalities, volume, path)
    except BadSubject as error:
        return error
    return None


def phantom_root(protocol: Protocol, results: ResultsFolder, display: Display) -> Path:
    """Makes the protocol's phantom in the results folder, once, and returns its folder.

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
            results.phantom(name),
            block.subjects,
            block.spacing,
            block.seed,
            lambda done, total: stage.advance(done),
        )
