"""Tasks on a cluster: as many at a time as its workers have slots."""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trm_bench import signals
from trm_bench.cluster.engine import CONNECT, Engine, about, gone, refuse_differences
from trm_bench.errors import UserError
from trm_bench.fingerprint import digest_of
from trm_bench.runs.executors import Event, Failure, Listen, Queue, Task
from trm_bench.seeds import CPU_THREADS

if TYPE_CHECKING:
    from distributed import Future

LOOK_EVERY = 1.0  # seconds between looks at the number of workers, and between words of progress
# A task that only waited where another one killed the worker is given out again, but not for ever:
# it could be what kills workers before it is said that it began.
MOST_KILLED = 3

logger = logging.getLogger("trm_bench.cluster")


class DaskExecutor:
    """Gives tasks to the workers of a dask.distributed cluster; see `Executor`.

    Several commands, and one that was killed and its successor, meet at the scheduler by the keys
    of tasks: a task that is at work there is joined, not started again. What was given out when a
    command ends is finished, so that its result is there for the next.

    Args:
        engine: Connected.
        folder: That the tasks write to, on a file system that all workers share.
        say: Called with what a person should know.
    """

    def __init__(self, engine: Engine, folder: Path, say: Callable[[str], None]) -> None:
        self.client, self.say = engine.client, say
        self.device, self.has_bf16 = engine.device, engine.has_bf16
        self.engine, self.name = engine, f"trm-bench-{digest_of(str(folder.absolute()))[:12]}"
        self.conditions = {"about": dict(engine.about), "folder": str(folder.absolute())}
        self.slots, self.looked = 1, 0.0
        self.given: Counter[str] = Counter()  # how often each task was given out

    def run(self, tasks: Sequence[Task], listen: Listen) -> None:
        """See `Executor.run`.

        Raises:
            UserError: The scheduler is gone, or a worker that came later is not like the others.
        """
        waiting = Queue(tasks, listen)
        flight: dict[str, tuple[Task, Future]] = {}
        inbox: queue.SimpleQueue[tuple[str, str, Any]] = queue.SimpleQueue()
        self.client.subscribe_topic(self.name, lambda event: inbox.put(event[1]))
        started: set[str] = set()
        begun: dict[str, str] = {}  # the task that began last, by worker
        killed: Counter[str] = Counter()
        try:
            while True:
                # one also where no worker is left: it waits at the scheduler for a new one
                while len(flight) < max(1, self._slots()) and (task := waiting.next()):
                    flight[task.id] = task, self._given(task, inbox)
                if not flight:
                    return
                name, kind, value = self._heard(inbox)
                if kind == "started":
                    begun[value] = name
                if name not in flight:  # of another command, or said late
                    continue
                if kind == "killed":
                    killed[name] += 1
                    if begun.get(value[0]) == name or killed[name] >= MOST_KILLED:
                        kind, value = "failed", value[1]
                if kind in ("cut off", "killed"):
                    waiting.again(flight.pop(name)[0])
                    continue
                if name not in started:
                    started.add(name)
                    waiting.hear(Event(name, "started"))
                if kind in ("done", "failed"):
                    del flight[name]
                if kind != "started":
                    waiting.hear(Event(name, kind, value))  # type: ignore[arg-type]
        finally:
            self.client.unsubscribe_topic(self.name)

    def _given(self, task: Task, inbox: queue.SimpleQueue[tuple[str, str, Any]]) -> Future:
        from distributed import fire_and_forget

        # A key is forgotten a while after its task ended, and gives the old result until then. The
        # first one is the same in every command, so that they meet.
        again = f"-{self.given[task.id]}" if self.given[task.id] else ""
        self.given[task.id] += 1
        with self._reached():
            future = self.client.submit(
                perform,
                task.id,
                task.function,
                task.arguments,
                str(self.device),
                self.name,
                self.conditions,
                key=f"{self.name}-{task.id}{again}",
                pure=False,
            )
            fire_and_forget(future)  # this process may be killed
        future.add_done_callback(lambda ended: inbox.put((task.id, *_outcome(ended))))
        return future

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """For calls of the scheduler, which fail in many ways where it is gone."""
        try:
            yield
        except Exception as error:
            if self.client.status == "running" and not isinstance(error, OSError):
                raise
            raise gone(self.engine.address) from error

    def _slots(self) -> int:
        """One a worker; asked again every second, as workers come and go."""
        if time.monotonic() > self.looked + LOOK_EVERY:
            with self._reached():
                # with a limit, since a call can wait for ever at a scheduler that dies meanwhile
                scheduler: Any = self.client.scheduler
                slots = len(self.client.sync(scheduler.ncores, callback_timeout=CONNECT))
            if not slots and self.slots:
                self.say("no worker is left; waiting for one")
            self.slots, self.looked = slots, time.monotonic()
        return self.slots

    def _heard(self, inbox: queue.SimpleQueue[tuple[str, str, Any]]) -> tuple[str, str, Any]:
        try:
            name, kind, value = inbox.get(timeout=LOOK_EVERY)
        except queue.Empty:
            if self.client.status not in ("running", "connecting"):
                raise gone(self.engine.address) from None
            return "", "", None
        if kind == "lost":
            raise gone(self.engine.address)
        if kind == "refused":
            raise UserError(str(value), "--on", "mend that worker and give the same command")
        return name, kind, tuple(value) if kind == "progress" else value


def _outcome(future: Future) -> tuple[str, Any]:
    """How a task ended: what `perform` returned, or why it returned nothing."""
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    try:
        kind, value = future.result()
        return str(kind), value
    except (FutureCancelledError, TimeoutError, OSError):
        return "lost", None
    except KilledWorker as error:
        died = "the worker died in it, again and again; out of memory, or a time limit?"
        return "killed", (error.last_worker.address, Failure(died, str(error)))
    except Exception as error:  # what dask says of a task that it could not take there
        return "failed", Failure.of(error)
    finally:
        future.release()


def perform(
    name: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    device: str,
    topic: str,
    conditions: Mapping[str, Any],
) -> tuple[str, Any]:
    """A task, in a worker.

    Returns:
        `done` and the result; `failed` and the reason; `cut off`, where the worker was asked to
        stop; `refused` and the reason, where this worker is not like the others.
    """
    from distributed import get_worker
    from distributed.utils import sync

    worker = get_worker()
    if reason := _unfit(worker, conditions):
        return "refused", f"{worker.address}: {reason}"
    torch.set_num_threads(CPU_THREADS)
    # Waits until the scheduler has it: where this task kills the worker, no other is blamed for it.
    begins = (name, "started", worker.address)
    sync(
        worker.loop,
        worker.scheduler.log_event,
        topic=topic,
        msg=begins,
        callback_timeout=CONNECT,
    )
    logger.info("%s begins", name)
    said = time.monotonic()

    def progress(*at: Any) -> None:
        nonlocal said
        if time.monotonic() > said + LOOK_EVERY:
            said = time.monotonic()
            worker.log_event(topic, (name, "progress", at))

    outcome: tuple[str, Any]
    try:
        outcome = "done", function(*arguments, torch.device(device), progress)
    except signals.Stopped:
        outcome = "cut off", None
    except Exception as error:  # a task that fails must not stop the others
        outcome = "failed", Failure.of(error)
    logger.info("%s: %s", name, outcome[0])
    return outcome


def _unfit(worker: Any, conditions: Mapping[str, Any]) -> str:
    """Why a worker, which may have come after the others were compared, is not to be used."""
    here = about() | {"slots": str(worker.state.nthreads)}
    try:
        refuse_differences(conditions["about"], {worker.address: here})
    except UserError as error:
        return error.what
    folder = Path(conditions["folder"])
    return "" if folder.is_dir() else f"does not see {folder}, which all workers must share"
