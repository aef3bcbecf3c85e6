"""A cluster on loopback, in processes of its own, and tasks that tell what happens to them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trm_bench import signals
from trm_bench.cluster import executor
from trm_bench.cluster.engine import connected
from trm_bench.cluster.executor import DaskExecutor
from trm_bench.cluster.folder import ClusterFolder
from trm_bench.runs.executors import Event, Task

__all__ = [
    "DaskExecutor",
    "Event",
    "Task",
    "connected",
    "executor",
    "replace",
]  # for tests and their scripts

LONGEST = 90.0  # seconds that a test waits for something
TESTS = Path(__file__).resolve().parents[1]


def until(condition: Callable[[], object], what: str) -> None:
    """Waits for a condition."""
    end = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.05)


@dataclass
class Cluster:
    """A scheduler and the processes that keep its workers, with their logs.

    Attributes:
        folder: Of scheduler.json.
        scheduler: Its process.
        keepers: Of workers, in the order of their start.
    """

    folder: Path
    scheduler: subprocess.Popen[bytes]
    keepers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def file(self) -> str:
        return str(ClusterFolder(self.folder).scheduler_file)

    def add(self, processes: int = 1) -> subprocess.Popen[bytes]:
        """Starts workers."""
        command = [sys.executable, "-m", "trm_bench.cluster.worker", "--folder", str(self.folder)]
        log = (self.folder / f"workers{len(self.keepers)}.log").open("wb")
        self.keepers.append(
            subprocess.Popen(
                [*command, "--processes", str(processes)],
                stdout=log,
                stderr=log,
                env=environment(),
            )
        )
        return self.keepers[-1]

    def log(self) -> str:
        """What all workers said."""
        files = sorted(self.folder.glob("workers*.log"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def run(
        self, tasks: list[Task], folder: Path, workers: int = 1, events: list[Event] | None = None
    ) -> list[Event]:
        """Runs tasks with that many workers at first; returns what was heard."""
        events = [] if events is None else events
        with connected(self.file, "auto", lambda text: None) as engine:
            engine.client.wait_for_workers(workers, timeout=LONGEST)
            folder.mkdir(exist_ok=True)
            DaskExecutor(engine, folder, lambda text: None).run(tasks, events.append)
        return events

    def end(self) -> None:
        for process in (*self.keepers, self.scheduler):
            process.terminate()
        for process in (*self.keepers, self.scheduler):
            try:
                process.wait(LONGEST)
            except subprocess.TimeoutExpired:
                process.kill()


def environment() -> dict[str, str]:
    paths = [
        str(TESTS.parent),
        str(TESTS),
        str(TESTS / "cluster"),
        os.environ.get("PYTHONPATH", ""),
    ]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    }


@contextmanager
def cluster(folder: Path, workers: int = 0) -> Iterator[Cluster]:
    """A scheduler on loopback and so many workers, ended with the context."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = ClusterFolder(folder)
    log = (folder / "scheduler.log").open("wb")
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    command += ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    command += ["--scheduler-file", str(shared.scheduler_file)]
    started = Cluster(folder, subprocess.Popen(command, stdout=log, stderr=log, env=environment()))
    try:
        # its file alone is no sign: dask opens it first and writes it then
        until(shared.address, "a scheduler that answers")
        if workers:
            started.add(workers)
        yield started
    finally:
        started.end()


def slow_to_retire(go: Path, dask_scheduler: Any = None) -> None:
    """Called in a scheduler: it lets workers go only once the file `go` is there."""
    retire = dask_scheduler.handlers["retire_workers"]

    async def late(*args: Any, **kwargs: Any) -> Any:
        while not go.exists():
            await asyncio.sleep(0.05)
        return await retire(*args, **kwargs)

    dask_scheduler.handlers["retire_workers"] = late


# Tasks: each notes in a folder that it began, so that its starts can be counted


def begun(folder: Path, name: str) -> list[int]:
    """The processes in which a task began."""
    return [int(path.name.split("-")[1]) for path in sorted(folder.glob(f"{name}-*"))]


def note(folder: Path, name: str) -> None:
    (folder / f"{name}-{os.getpid()}-{time.monotonic_ns()}").touch()


def double(folder: Path, name: str, value: int, device: Any, progress: Any) -> int:
    note(folder, name)
    progress(1, 2, 0.5)
    return 2 * value


def fail(folder: Path, name: str, value: int, device: Any, progress: Any) -> None:
    note(folder, name)
    raise ValueError(f"no {value}")


def die(folder: Path, name: str, times: int, device: Any, progress: Any) -> str:
    """Dies at its first starts."""
    note(folder, name)
    if len(begun(folder, name)) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


def wait(folder: Path, name: str, value: int, device: Any, progress: Any) -> int:
    """Waits for the file `go`, telling of progress."""
    note(folder, name)
    while not (folder / "go").exists():
        progress(1, 2, 0.5)
        time.sleep(0.05)
    return value


def until_asked(folder: Path, name: str, value: int, device: Any, progress: Any) -> int:
    """Stops as a training does where its process is asked to; where `go` is there, it is done."""
    note(folder, name)
    while not (folder / "go").exists():
        if signals.asked():
            raise signals.Stopped
        time.sleep(0.05)
    return value


def visible(folder: Path, name: str, value: int, device: Any, progress: Any) -> str:
    """Which GPUs its process sees, once so many tasks have begun."""
    note(folder, name)
    until(lambda: len(list(folder.glob("*-*"))) >= value, "the other tasks")
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")
