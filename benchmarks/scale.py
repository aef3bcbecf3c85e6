"""How the engines scale: throughput against workers, and what a driver needs for many jobs.

    .venv/bin/python benchmarks/scale.py [--results FILE] [--seconds 1 5 30] [--workers 1 2 ... 64]

Trainings are stand-ins that sleep, so that one machine can have 64 of them: all else is as in a
benchmark, `DaskExecutor` in this process, a scheduler in another, workers of
`trm_bench.cluster.worker`, up to PER_PROCESS of them in one process, each with its own connection.
Told are

- throughput: runs done at a time, (runs x seconds) / wall time, of N workers with RUNS runs each;
- the pause of a worker between two runs: result heard, next run given out and begun;
- of a driver with 100 to 10,000 jobs of no length: seconds a job, and how much its memory grows.

A measurement is one line of FILE, and is not made again where it stands there. Exit code 1 where N
workers do less than LEAST x N of the longest runs, or pause for more than MOST of one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

# in the place of this folder, whose statistics.py is not the standard library's
sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
import torch

from trm_bench.cluster.engine import connected
from trm_bench.cluster.executor import DaskExecutor
from trm_bench.cluster.folder import ClusterFolder
from trm_bench.cluster.worker import work
from trm_bench.runs.executors import Event, Executor, LocalPool, Task

LEAST, MOST = 0.9, 0.01
PER_PROCESS, RUNS, STEP = 16, 3, 0.1
JOBS = (100, 1_000, 10_000)
CPU = torch.device("cpu")
CONTENT = "x" * 4096  # of a job, about as long as a real one
Line = dict[str, Any]


def sleeping(seconds: float, device: torch.device, progress: Callable[..., None]) -> Line:
    """A stand-in for a training: tells of progress, and where and when it was."""
    begin = time.time()
    step, steps = 0, round(seconds / STEP)
    while (left := begin + seconds - time.time()) > 0:
        time.sleep(min(STEP, left))
        step += 1
        progress(step, steps, 0.5)
    return {"place": place(), "begin": begin, "end": time.time()}


def nothing(content: str, device: torch.device, progress: Callable[..., None]) -> None:
    """A run that is over at once."""


def place() -> str:
    """The worker's address."""
    from distributed import get_worker

    return str(get_worker().address)


@contextmanager
def cluster(workers: int) -> Iterator[Path]:
    """Starts a scheduler and workers on loopback; yields their folder."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        quiet = {**os.environ, "PYTHONPATH": sys.path[0]}

        def start(*command: str) -> subprocess.Popen[bytes]:
            log = stack.enter_context((folder / f"log-{len(started)}").open("wb"))
            process = subprocess.Popen([sys.executable, *command], stderr=log, env=quiet)
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process)
            return process

        started: list[subprocess.Popen[bytes]] = []
        file = ClusterFolder(folder).scheduler_file
        how = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
        start("-m", "distributed.cli.dask_scheduler", *how, "--scheduler-file", str(file))
        while not file.exists() and started[0].poll() is None:
            time.sleep(0.05)
        for first in range(0, workers, PER_PROCESS):
            number = min(PER_PROCESS, workers - first)
            start(__file__, "--as-workers", str(number), "--folder", str(folder))
        yield folder


async def as_workers(folder: Path, number: int) -> None:
    """Many workers in this process, each as `trm_bench.cluster.worker` has it alone."""
    await asyncio.gather(*(work(folder, f"{os.getpid()}-{i}") for i in range(number)))


@contextmanager
def dask(workers: int) -> Iterator[Executor]:
    """The executor of a cluster all of whose workers are there."""
    with cluster(workers) as folder, connected(str(folder), "cpu", lambda text: None) as engine:
        engine.client.wait_for_workers(workers, timeout=120)
        executor = DaskExecutor(engine, folder, lambda text: None)
        # a worker's first task imports things, which takes it most of a second
        first = [Task(f"first {i}", sleeping, (1.0,)) for i in range(workers)]
        executor.run(first, lambda event: None)
        yield executor


def throughput(executor: Executor, workers: int, seconds: float) -> Line:
    """What N workers get done, and how long each pauses between two runs."""
    tasks = [Task(f"{seconds} {i}", sleeping, (seconds,)) for i in range(RUNS * workers)]
    done: list[Line] = []

    def listen(event: Event) -> None:
        assert event.kind not in ("failed", "skipped"), event
        if event.kind == "done":
            done.append(event.value)

    begin = time.perf_counter()
    executor.run(tasks, listen)
    wall = time.perf_counter() - begin
    pauses = []
    for name in {run["place"] for run in done}:
        runs = sorted((r for r in done if r["place"] == name), key=lambda r: float(r["begin"]))
        pauses += [b["begin"] - a["end"] for a, b in pairwise(runs)]
    return {
        "at a time": len(done) * seconds / wall,
        "pause ms": 1000 * float(np.median(pauses)),
        "longest pause ms": 1000 * float(np.max(pauses)),
    }


def driving(executor: Executor, jobs: int) -> Line:
    """What a driver needs for so many jobs that take no time, from the end of the first one on."""
    tasks = [Task(str(i), nothing, (f"{i}{CONTENT}",)) for i in range(jobs)]
    ended, used = 0, list[tuple[float, float, float]]()

    def listen(event: Event) -> None:
        nonlocal ended
        assert event.kind not in ("failed", "skipped"), event
        ended += event.kind == "done"
        if event.kind == "done" and ended in (1, jobs):
            used.append((time.perf_counter(), time.process_time(), memory()))

    executor.run(tasks, listen)
    (begin, busy, before), (end, busy_then, then) = used
    return {
        "ms a job": 1000 * (end - begin) / jobs,
        "processor ms a job": 1000 * (busy_then - busy) / jobs,
        "MB before": before,
        "MB more": then - before,
    }


def memory() -> float:
    """Of this process, as the system counts what is in use, in MB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


class Results:
    """The measurements of a file, one a line.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self.lines: list[Line] = [json.loads(line) for line in text.splitlines()]

    def missing(self, about: Line) -> bool:
        """Whether nothing was measured of this yet."""
        return not any(about.items() <= line.items() for line in self.lines)

    def add(self, about: Line, measured: Line) -> None:
        """Notes a measurement."""
        self.lines.append({**about, **measured, "date": str(date.today())})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
        print(json.dumps(self.lines[-1]), flush=True)


def measure(results: Results, workers: Sequence[int], seconds: Sequence[float]) -> None:
    """Measures what is missing."""
    for number in workers:
        missing = [
            about
            for length in seconds
            if results.missing(about := {"what": "throughput", "workers": number, "s": length})
        ]
        if missing:
            with dask(number) as executor:
                for about in missing:
                    results.add(about, throughput(executor, number, about["s"]))
    for engine in ("LocalPool", "DaskExecutor"):
        for jobs in JOBS:
            about = {"what": "driver", "engine": engine, "jobs": jobs}
            if results.missing(about):  # each in a process of its own, with nothing in its memory
                command = [sys.executable, __file__, "--driving", engine, str(jobs)]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                results.add(about, json.loads(said.stdout.splitlines()[-1]))


def table(results: Results, seconds: Sequence[float]) -> Iterator[str]:
    """The measurements in Markdown."""
    found = {(ln["workers"], ln["s"]): ln for ln in results.lines if ln["what"] == "throughput"}
    versions = ", ".join(f"{name} {version(name)}" for name in ("distributed", "torch"))
    cores = len(os.sched_getaffinity(0))
    yield f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, {versions}\n"
    yield "| workers |" + "".join(f" runs at a time, {s:g} s |" for s in seconds) + " pause, ms |"
    yield "|---:|" + "---:|" * (len(seconds) + 1)
    for number in sorted({workers for workers, _ in found}):
        row = [found.get((number, s)) for s in seconds]
        last = row[-1]
        cells = [f"{one['at a time']:.2f}" if one else "?" for one in row]
        cells.append(f"{last['pause ms']:.0f} ({last['longest pause ms']:.0f})" if last else "?")
        yield f"| {number} | " + " | ".join(cells) + " |"
    yield "\n| engine | jobs | ms a job | processor, ms a job | memory, MB | and for the jobs |"
    yield "|---|---:|---:|---:|---:|---:|"
    for line in results.lines:
        if line["what"] == "driver":
            numbers = f"{line['ms a job']:.2f} | {line['processor ms a job']:.2f}"
            used = f"{line['MB before']:.0f} | {line['MB more']:.1f}"
            yield f"| {line['engine']} | {line['jobs']:,} | {numbers} | {used} |"


def faults(results: Results, seconds: float) -> Iterator[str]:
    """What is not as good as it should be, with runs of this length."""
    for line in results.lines:
        if line["what"] == "throughput" and line["s"] == seconds:
            number = line["workers"]
            if line["at a time"] < LEAST * number:
                yield f"{number} workers do {line['at a time']:.2f} runs of {seconds:g} s at a time"
            if line["pause ms"] > 1000 * MOST * seconds:
                yield f"{number} workers pause for {line['pause ms']:.0f} ms"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("scale.jsonl"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 5.0, 30.0])
    parser.add_argument("--as-workers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--driving", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_workers:
        asyncio.run(as_workers(given.folder, given.as_workers))
        return 0
    if given.driving:
        engine, jobs = given.driving
        if engine == "LocalPool":
            print(json.dumps(driving(LocalPool(CPU, 2), int(jobs))))
        else:
            with dask(2) as executor:
                print(json.dumps(driving(executor, int(jobs))))
        return 0
    results = Results(given.results)
    measure(results, given.workers, given.seconds)
    print("\n".join(table(results, given.seconds)))
    wrong = [*faults(results, max(given.seconds))]
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
