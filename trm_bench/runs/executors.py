"""Where jobs run: behind one small interface, in this process or in local worker processes.

Another engine (a cluster's) implements `Executor.run` and keeps to what is said there.
"""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, Protocol

import torch

from trm_bench import signals
from trm_bench.environment import has_bf16
from trm_bench.seeds import CPU_THREADS

# seconds that a worker's death is not told of: what kills all processes gets to this one too, and
# then it is no failure of the worker's task
DEATH_PAUSE = 0.5
LONGEST_REASON, LONGEST_TRACEBACK = 500, 20_000  # characters that are kept
PRELOADED = ("trm_bench.runs.execute", "trm_bench.lean_monai")  # all that a training imports


@dataclass(frozen=True)
class Task:
    """A function to be called somewhere, with the device and a progress callback added.

    Attributes:
        id: Its name among the tasks of one `run`.
        function: Module-level, called as `function(*arguments, device, progress)`.
        arguments: What it gets; they cross process boundaries.
        after: Tasks that must be done before this one starts.
        cost: How long it takes, in any unit that the tasks of one `run` share; see `Queue`.
    """

    id: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    after: tuple[str, ...] = ()
    cost: float = 0.0


@dataclass(frozen=True)
class Failure:
    """Why a task failed.

    Attributes:
        reason: In one line.
        traceback: Of the process that it ran in, without values of variables; "" where no
            exception was raised.
    """

    reason: str
    traceback: str = ""

    def __str__(self) -> str:
        return self.reason

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """What an exception says, of bounded length."""
        said = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
        if len(reason) > LONGEST_REASON:
            reason = f"{reason[:LONGEST_REASON]} ..."
        trace = "".join(traceback.format_exception(error))
        if len(trace) > LONGEST_TRACEBACK:
            half = LONGEST_TRACEBACK // 2
            trace = f"{trace[:half]}\n  ... left out ...\n{trace[-half:]}"
        return cls(reason, trace)


@dataclass(frozen=True)
class Event:
    """What is heard of a task.

    Attributes:
        task: Its id.
        kind: `started`; `progress`; and one of `done`, `failed`, `skipped` as the last one.
        value: Of `progress` (step, steps, loss), of a test (subjects, of all, None); of `done` the
            result, of `failed` a `Failure`, of `skipped` the id of the task before it that was not
            done.
    """

    task: str
    kind: Literal["started", "progress", "done", "failed", "skipped"]
    value: Any = None


Listen = Callable[[Event], None]


class Executor(Protocol):
    """Something that runs tasks.

    Attributes:
        device: Where each task runs, as its process sees it.
        has_bf16: Whether that device computes in bfloat16.
    """

    device: torch.device
    has_bf16: bool

    def run(self, tasks: Sequence[Task], listen: Listen) -> None:
        """Runs tasks and tells what happens; returns when each has had its last event.

        A task starts when all tasks before it are done, long ones first; where one of them is not
        done, it is skipped. A task that fails, or whose process dies, ends alone.

        Args:
            tasks: Each after those it depends on.
            listen: Hears the events, in the calling process and thread.

        Raises:
            ValueError: Two tasks have one id, or one waits for a task that is not before it.
        """


class LocalPool:
    """Runs tasks on this machine, several at a time.

    With one job everything runs in this process. With more, each worker process takes a task when
    it is free, and none is started before there is one for it; on several GPUs the workers are
    dealt out evenly. Workers end with the `run`; within `with pool:` they stay for the next one.

    Args:
        device: cpu, cuda or cuda:N.
        jobs: How many at a time; one a core, or a GPU, where not given.
    """

    def __init__(self, device: torch.device, jobs: int | None = None) -> None:
        self.device, self.jobs = device, jobs or default_jobs(device)
        self.has_bf16 = has_bf16(device)
        self._workers: list[_Worker] = []
        self._stay = False

    def __enter__(self) -> LocalPool:
        self._stay = True
        return self

    def __exit__(self, *raised: object) -> None:
        self._stay = False
        self._stop()

    def run(self, tasks: Sequence[Task], listen: Listen) -> None:
        """See `Executor.run`."""
        queue = Queue(tasks, listen)
        if self.jobs <= 1 or len(tasks) <= 1:
            while task := queue.next():
                _call(task, self.device, queue.hear)
            return
        try:
            while busy := self._busy(queue):
                for connection in wait(list(busy)):
                    slot = busy[connection]  # type: ignore[index]
                    self._workers[slot] = _heard(self._workers[slot], queue.hear)
        except BaseException:
            _end(self._workers)
            self._stop()
            raise
        finally:
            if not self._stay:
                self._stop()

    def _busy(self, queue: Queue) -> dict[Connection, int]:
        """Gives out what can start.

        Returns:
            Connection to number of each worker that has a task.
        """
        for slot in range(self.jobs):
            if slot < len(self._workers) and self._workers[slot].task:
                continue
            if (task := queue.next()) is None:
                break
            if slot == len(self._workers):
                self._workers.append(_Worker(_device_of(slot, self.device)))
            elif not self._workers[slot].process.is_alive():  # it died while idle, of no task
                self._workers[slot].stop()
                self._workers[slot] = _Worker(self._workers[slot].device)
            self._workers[slot].give(task)
            queue.hear(Event(task.id, "started"))
        return {worker.connection: i for i, worker in enumerate(self._workers) if worker.task}

    def _stop(self) -> None:
        while self._workers:
            self._workers.pop().stop()


def _end(workers: Sequence[_Worker]) -> None:
    """Ends workers that are not wanted any more; those that train save what they hold before."""
    last = time.monotonic() + signals.time_to_end() - 1  # which this process needs itself
    for worker in workers:
        if worker.process.is_alive() and worker.process.pid is not None:
            os.kill(worker.process.pid, signals.AHEAD)
    for worker in workers:
        worker.process.join(max(0.0, last - time.monotonic()))
        worker.process.kill()  # files are written whole or not at all


def default_jobs(device: torch.device) -> int:
    """Workers where the user does not say: one a core on a CPU, one a GPU."""
    if device.type == "cuda":
        return 1 if device.index is not None else torch.cuda.device_count()
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


class Queue:
    """Tasks that have not started, and what waits for what.

    First starts what has the longest way behind it: its own cost and those of a chain of tasks that
    wait for each other, the costliest there is. So no long task is left for the end, when the other
    workers are idle, and what much waits for is done early. Among equals it is the given order.

    Takes about the same time for each of ten tasks and of ten thousand.

    Args:
        tasks: Each after those it depends on.
        listen: Hears the events.

    Raises:
        ValueError: See `Executor.run`.
    """

    def __init__(self, tasks: Sequence[Task], listen: Listen) -> None:
        self._tasks, self._listen = list(tasks), listen
        self._before: list[int] = []  # how many each still waits for
        self._behind: dict[str, list[int]] = {}  # which wait for a task that has not ended
        self._index: dict[str, int] = {}
        for index, task in enumerate(self._tasks):
            after = set(task.after)
            if task.id in self._index or not after <= self._index.keys():
                raise ValueError(f"task {task.id}: not the only one, or not after {task.after}")
            self._behind[task.id], self._index[task.id] = [], index
            self._before.append(len(after))
            for before in after:
                self._behind[before].append(index)
        self._skipped: set[str] = set()
        self._ways = [task.cost for task in self._tasks]
        for index in reversed(range(len(self._tasks))):  # those behind a task come after it
            behind = self._behind[self._tasks[index].id]
            self._ways[index] += max((self._ways[i] for i in behind), default=0.0)
        self._ready: list[tuple[float, int]] = []
        for index, number in enumerate(self._before):
            if not number:
                self._push(index)

    def _push(self, index: int) -> None:
        heapq.heappush(self._ready, (-self._ways[index], index))

    def next(self) -> Task | None:
        """The first task that can start now, out of the queue."""
        return self._tasks[heapq.heappop(self._ready)[1]] if self._ready else None

    def again(self, task: Task) -> None:
        """Puts a task back that was cut off, in its old place."""
        self._push(self._index[task.id])

    def hear(self, event: Event) -> None:
        """Passes an event on; after the last one of a task, others can start or are skipped."""
        events = [event]
        while events:
            event = events.pop(0)
            self._listen(event)
            if event.kind not in ("done", "failed", "skipped"):
                continue
            for index in self._behind.pop(event.task):
                task = self._tasks[index]
                self._before[index] -= 1
                if event.kind != "done" and task.id not in self._skipped:
                    self._skipped.add(task.id)
                    events.append(Event(task.id, "skipped", event.task))
                elif not self._before[index] and task.id not in self._skipped:
                    self._push(index)


def _call(task: Task, device: torch.device, hear: Listen) -> None:
    hear(Event(task.id, "started"))
    try:
        result = task.function(
            *task.arguments, device, lambda *at: hear(Event(task.id, "progress", at))
        )
    except Exception as error:  # a task that fails must not stop the others
        hear(Event(task.id, "failed", Failure.of(error)))
    else:
        hear(Event(task.id, "done", result))


def _heard(worker: _Worker, hear: Listen) -> _Worker:
    """Passes on what a worker says; returns it, or a new one where it died."""
    assert worker.task is not None
    task = worker.task.id
    try:
        kind, value = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        time.sleep(DEATH_PAUSE)
        code = worker.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        died = Failure(f"the worker process died ({how}); out of memory?")
        hear(Event(task, "failed", died))
        return _Worker(worker.device)
    if kind != "progress":
        worker.task = None
    hear(Event(task, kind, value))
    return worker


def _device_of(slot: int, device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", slot % torch.cuda.device_count())
    return device


class _Worker:
    """A process that does one task after the other."""

    def __init__(self, device: torch.device) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.device = device
        self.task: Task | None = None
        self.process = _started((theirs, str(device)))
        theirs.close()  # so that a dead worker is heard as the end of its pipe

    def give(self, task: Task) -> None:
        self.task = task
        with contextlib.suppress(OSError):  # it died while idle; the next read says so
            self.connection.send((task.function, task.arguments))

    def stop(self) -> None:
        self.connection.close()  # which ends a worker that is idle
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()


def _started(arguments: tuple[Connection, str]) -> BaseProcess:
    """A process at `_work`, in which the signals of a terminal are held back.

    Forked from a process that imports all once: they start at once, and share its memory.
    """
    # before the others, since starting a process would start it, and lets signals through
    resource_tracker.ensure_running()
    # what importing asks of CUDA would start it, and what is forked from there could not use it
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    multiprocessing.set_forkserver_preload([*PRELOADED])
    with signals.held_back():
        forkserver.ensure_running()
    process = multiprocessing.get_context("forkserver").Process(
        target=_work, args=arguments, daemon=True
    )
    # a signal cuts off the waiting, while that process imports, and not the start
    starting = threading.Thread(target=process.start, daemon=True)
    starting.start()
    starting.join()
    if process.pid is None:
        raise OSError("a worker process could not be started")
    return process


def _work(connection: Connection, device: str) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        # the parent was killed: nobody reads the results, and the same command will start again
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    signals.work_until_asked()
    torch.set_num_threads(CPU_THREADS)
    # the parent wants no more, or was killed, which may reset the pipe; or the worker stops
    with contextlib.suppress(EOFError, OSError, signals.Stopped):
        while True:
            function, arguments = connection.recv()
            connection.send(_outcome(function, arguments, device, connection))


def _outcome(
    function: Callable[..., Any], arguments: tuple[Any, ...], device: str, connection: Connection
) -> tuple[str, Any]:
    try:
        result = function(
            *arguments, torch.device(device), lambda *at: connection.send(("progress", at))
        )
    except Exception as error:
        return "failed", Failure.of(error)
    return "done", result
