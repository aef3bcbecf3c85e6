"""Where jobs run: in this process, or in worker processes that outlive a job but not their parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from trm_bench.environment import CPU_THREADS


@dataclass(frozen=True)
class Task:
    """A function to be called somewhere, with the device and a progress callback added.

    Attributes:
        name: For messages.
        function: Module-level, called as `function(*arguments, device, progress)`.
        arguments: What it gets; they cross process boundaries.
        died: Called in this process, with the reason, where the worker died or the function raised.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    died: Callable[[str], None] = lambda reason: None


@dataclass(frozen=True)
class Event:
    """What is heard of a task: `started`, `progress` (step, steps, loss), `done` (result) or `died` (reason)."""

    task: int
    kind: str
    value: Any = None


def default_jobs(device: torch.device) -> int:
    """Workers where the user does not say: one a core on a CPU, one a GPU."""
    if device.type == "cuda":
        return torch.cuda.device_count()
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def run_all(
    tasks: Sequence[Task], device: torch.device, jobs: int, listen: Callable[[Event], None] = lambda event: None
) -> None:
    """Runs tasks, `jobs` at a time, and tells what happens; tasks that fail do not stop the others.

    With one job everything runs in this process. With more, each worker process takes a task when it is free; on
    several GPUs the workers are dealt out evenly. A worker that dies (killed, out of memory) ends its task alone.

    Args:
        tasks: In order.
        device: cpu, cuda or cuda:N.
        jobs: How many at a time.
        listen: Hears the events, in this process.
    """
    if jobs <= 1 or len(tasks) <= 1:
        for i, task in enumerate(tasks):
            listen(Event(i, "started"))
            try:
                result = task.function(*task.arguments, device, lambda *at, i=i: listen(Event(i, "progress", at)))
            except Exception as error:  # a task that fails must not stop the others
                _died(task, i, f"{type(error).__name__}: {error}", listen)
            else:
                listen(Event(i, "done", result))
        return
    waiting = list(enumerate(tasks))
    workers = [_Worker(_device_of(slot, device)) for slot in range(min(jobs, len(tasks)))]
    try:
        while waiting or any(worker.task is not None for worker in workers):
            for worker in workers:
                if worker.task is None and waiting:
                    worker.give(*waiting.pop(0))
                    listen(Event(worker.index, "started"))
            by_connection = {worker.connection: worker for worker in workers if worker.task is not None}
            for connection in wait(list(by_connection)):
                _hear(by_connection[connection], workers, listen)  # type: ignore[index]
    finally:
        for worker in workers:
            worker.stop()


def _hear(worker: _Worker, workers: list[_Worker], listen: Callable[[Event], None]) -> None:
    task, index = worker.task, worker.index
    assert task is not None
    try:
        kind, value = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        _died(task, index, f"the worker process died ({how}); out of memory?", listen)
        workers[workers.index(worker)] = _Worker(worker.device)
        return
    if kind == "died":
        _died(task, index, value, listen)
        worker.task = None
    else:
        if kind == "done":
            worker.task = None
        listen(Event(index, kind, value))


def _died(task: Task, index: int, reason: str, listen: Callable[[Event], None]) -> None:
    task.died(reason)
    listen(Event(index, "died", reason))


def _device_of(slot: int, device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", slot % torch.cuda.device_count())
    return device


class _Worker:
    """A process that does one task after the other."""

    def __init__(self, device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")  # fork and CUDA do not go together
        self.connection, theirs = context.Pipe()
        self.device, self.index = device, -1
        self.task: Task | None = None
        self.process = context.Process(target=_work, args=(theirs, str(device)), daemon=True)
        self.process.start()
        theirs.close()  # so that a dead worker is heard as the end of its pipe

    def give(self, index: int, task: Task) -> None:
        self.task, self.index = task, index
        with contextlib.suppress(OSError):  # it died while idle; the next read says so
            self.connection.send((task.function, task.arguments))

    def stop(self) -> None:
        self.connection.close()
        if self.task is not None:
            self.process.terminate()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()


def _work(connection: Connection, device: str) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # the parent was killed: nobody reads the results, and the same command will start anew

    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its workers
    torch.set_num_threads(CPU_THREADS)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            result = function(*arguments, torch.device(device), lambda *at: connection.send(("progress", at)))
        except Exception as error:
            connection.send(("died", f"{type(error).__name__}: {error}"))
        else:
            connection.send(("done", result))
