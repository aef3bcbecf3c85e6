"""A protocol's data: opened, or made where they are the stand-in, and prepared once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from trm_bench import datasets, importing, phantom
from trm_bench.data.cohorts import Cohort, Cohorts
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
from trm_bench.protocol.load import folder_of
from trm_bench.protocol.schema import SetConfig
from trm_bench.protocol.transfers import add_label_maps, choose_transfers, in_play
from trm_bench.runs import health
from trm_bench.runs.config import Imported
from trm_bench.runs.executors import Event, Executor, LocalPool, Task, default_jobs
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.records import LeftOut
from trm_bench.seals import require_tensors

WORTH_WORKERS = 128 * 2**20  # bytes of files to prepare above which starting processes pays


@dataclass(frozen=True)
class Data:
    """A protocol's data, prepared.

    Attributes:
        cohorts: Its data sets.
        imported: Its checkpoints, whose networks lie among the sources, by domain.
        left_out: Subjects that cannot be used.
        kind: Whether these are real data or the stand-in.
    """

    cohorts: Cohorts
    imported: dict[str, Imported]
    left_out: list[LeftOut]
    kind: Literal["phantom", "real"]

    @property
    def datasets(self) -> dict[SetConfig, Dataset]:
        """The data sets, opened."""
        return {data: cohort.dataset for data, cohort in self.cohorts.items()}


def open_data(
    protocol: Protocol,
    results: ResultsFolder,
    stand_in: bool,
    jobs: int | None,
    display: Display,
    transfers: Sequence[str] = (),
) -> Data:
    """Opens the data sets (or makes their phantoms), prepares every subject not prepared yet, and
    reads the checkpoints.

    Args:
        protocol: Which.
        results: Where prepared volumes and phantoms lie.
        stand_in: Use the phantoms instead of the real data.
        jobs: Subjects that are prepared at a time.
        display: Where progress is shown.
        transfers: Names that are going to be asked for; a wrong one is told before the long work.

    Raises:
        UserError: The data are not there, there is no such transfer, a subject cannot be used and
            `data.on_bad_subject` is `stop`, or a checkpoint does not fit.
    """
    opened = open_sets(protocol, results if stand_in else None, display)
    choose_transfers(protocol, opened, transfers)
    imported = importing.read_all(protocol, results, display)
    cohorts, left_out, phantoms = {}, list[LeftOut](), stand_in
    for data, dataset in opened.items():
        cohorts[data], unusable = _prepared(protocol, data, dataset, results, jobs, display)
        left_out += unusable
        phantoms |= phantom.is_phantom(dataset.root)
    return Data(cohorts, imported, left_out, "phantom" if phantoms else "real")


def open_sets(
    protocol: Protocol, stand_in: ResultsFolder | None, display: Display
) -> dict[SetConfig, Dataset]:
    """Opens the data sets of a protocol, with the label maps that it adds.

    Args:
        protocol: Which.
        stand_in: Where the phantoms are made that are used instead; None for the data themselves.
        display: Where progress is shown.

    Raises:
        UserError: One is not there, or a label map does not fit.
    """
    opened = {}
    for data in protocol.sets:
        if stand_in:
            root = phantom_root(protocol, data.dataset, stand_in, display)
        else:
            root = folder_of(protocol, data)
        links = protocol.data.allow_links
        dataset = datasets.open_dataset(data.dataset, root, links, data.distance_unit)
        add_label_maps(protocol, data, dataset)
        opened[data] = dataset
    return opened


def _prepared(
    protocol: Protocol,
    data: SetConfig,
    dataset: Dataset,
    results: ResultsFolder,
    jobs: int | None,
    display: Display,
) -> tuple[Cohort, list[LeftOut]]:
    """The subjects of a data set, prepared, and those that cannot be used."""
    modalities, subjects = in_play(protocol, data, dataset), dataset.subjects()
    cache, volume = results.prepared(dataset.name), data.volume
    paths = {s.id: cache_path(cache, dataset, s, modalities, volume) for s in subjects}
    prepared = _whole(paths, display)
    missing = [s for s in subjects if s.id not in prepared]
    tasks = [
        Task(s.id, _prepare, (dataset, s, modalities, volume, paths[s.id]), cost=_size(dataset, s))
        for s in missing
    ]
    size = sum(task.cost for task in tasks)
    cpu = torch.device("cpu")
    workers = jobs or default_jobs(cpu)
    pool = LocalPool(cpu, workers if size > WORTH_WORKERS else 1)
    left_out = _prepare_all(tasks, pool, protocol, cache, display)
    prepared |= {s.id: p for s in missing if (p := open_prepared(paths[s.id])) is not None}
    usable = [s for s in subjects if s.id in prepared]
    return Cohort(data, dataset, usable, prepared), left_out


def _size(dataset: Dataset, subject: Subject) -> int:
    """Bytes of a subject's files."""
    return sum(file.stat().st_size for file in dataset.files(subject) if file.is_file())


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
    health.set_aside(damaged, display.warn)
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


def phantom_root(protocol: Protocol, layout: str, results: ResultsFolder, display: Display) -> Path:
    """Makes the phantom of a data set of the protocol in the results folder, once, and returns its
    folder.

    Raises:
        UserError: The protocol has no phantom, or its dataset has none.
    """
    block = protocol.phantom
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
