"""Jobs in this process and in workers: order, results, failures, and death of either side."""

from __future__ import annotations

import heapq
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from trm_bench.runs.executors import (
    LONGEST_REASON,
    LONGEST_TRACEBACK,
    Event,
    Failure,
    LocalPool,
    Queue,
    Task,
    default_jobs,
)

CPU = torch.device("cpu")


def double(value: int, device: torch.device, progress: Any) -> int:
    progress(1, 2, 0.5)
    return 2 * value


def fail(value: int, device: torch.device, progress: Any) -> None:
    raise ValueError(f"no {value}")


def die(value: int, device: torch.device, progress: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def collect(tasks: list[Task], jobs: int) -> list[Event]:
    events: list[Event] = []
    LocalPool(CPU, jobs).run(tasks, events.append)
    return events


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_results_progress_and_failures(jobs: int) -> None:
    events = collect(
        [Task("a", double, (1,)), Task("b", fail, (2,)), Task("c", double, (3,))], jobs
    )
    assert {e.task: e.value for e in events if e.kind == "done"} == {"a": 2, "c": 6}
    assert [e.value for e in events if e.kind == "progress"] == [(1, 2, 0.5)] * 2
    (failed,) = (e for e in events if e.kind == "failed")
    assert (failed.task, str(failed.value)) == ("b", "ValueError: no 2")
    assert failed.value.traceback.startswith("Traceback") and "in fail\n" in failed.value.traceback
    assert sorted(e.task for e in events if e.kind == "started") == ["a", "b", "c"]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_task_waits_for_those_before_it_and_is_skipped_where_one_is_not_done(jobs: int) -> None:
    tasks = [
        Task("good", double, (1,)),
        Task("bad", fail, (2,)),
        Task("after good", double, (3,), after=("good",)),
        Task("after bad", double, (4,), after=("good", "bad")),
        Task("after that", double, (5,), after=("after bad",)),
    ]
    events = collect(tasks, jobs)
    order = [(e.task, e.kind) for e in events]
    assert order.index(("after good", "started")) > order.index(("good", "done"))
    skipped = {e.task: e.value for e in events if e.kind == "skipped"}
    assert skipped == {"after bad": "bad", "after that": "after bad"}
    last = {e.task: e.kind for e in events}
    assert last == {"good": "done", "bad": "failed", "after good": "done"} | dict.fromkeys(
        skipped, "skipped"
    )


def test_tasks_start_in_their_order_and_one_that_was_cut_off_comes_first() -> None:
    tasks = [Task(name, double, (1,)) for name in "abc"]
    tasks.insert(1, Task("after b", double, (1,), after=("a",)))
    events: list[Event] = []
    queue = Queue(tasks, events.append)
    first = queue.next()
    assert first is tasks[0]
    assert (queue.next(), queue.next(), queue.next()) == (tasks[2], tasks[3], None)
    queue.again(tasks[3])
    queue.hear(Event("a", "done"))
    queue.again(tasks[2])
    assert [queue.next() for _ in range(4)] == [tasks[1], tasks[2], tasks[3], None]


def simulated(tasks: list[Task], workers: int, in_order: bool = False) -> tuple[list[str], float]:
    """Order of starts, and the time until all is done, of workers that take what a task costs.

    With `in_order`, costs are kept from the queue.
    """
    costs = {task.id: task.cost for task in tasks}
    queue = Queue([replace(t, cost=0.0) for t in tasks] if in_order else tasks, lambda event: None)
    order, now, busy = list[str](), 0.0, list[tuple[float, str]]()
    while True:
        while len(busy) < workers and (task := queue.next()):
            order.append(task.id)
            heapq.heappush(busy, (now + costs[task.id], task.id))
        if not busy:
            return order, now
        now, ended = heapq.heappop(busy)
        queue.hear(Event(ended, "done"))


def test_what_has_the_longest_way_behind_it_starts_first() -> None:
    tasks = [
        Task("short", double, cost=1),
        Task("long", double, cost=5),
        Task("source", double, cost=2),
        Task("other source", double, cost=2),
        Task("as short", double, cost=1),
        Task("of the source", double, after=("source",), cost=9),
        Task("of both", double, after=("source", "other source"), cost=1),
    ]
    order, took = simulated(tasks, 2)
    assert order == [
        "source",
        "long",
        "of the source",
        "other source",
        "short",
        "as short",
        "of both",
    ]
    assert took == 11 and simulated(tasks, 2)[0] == order
    queue = Queue(tasks, lambda event: None)
    first = queue.next()
    assert first is not None and queue.next() is tasks[1]
    queue.again(first)
    assert queue.next() is first, "one that was cut off keeps its place"


@examples(40)
@given(costs=st.lists(st.integers(1, 9), min_size=1, max_size=6), workers=st.integers(2, 3))
def test_no_order_is_much_better(costs: list[int], workers: int) -> None:
    """Graham 1969: the longest first takes at most 4/3 - 1/(3 workers) of the shortest time."""
    tasks = [Task(str(i), double, cost=cost) for i, cost in enumerate(costs)]
    best = min(
        max(sum(c for c, w in zip(costs, dealt, strict=True) if w == k) for k in range(workers))
        for dealt in itertools.product(range(workers), repeat=len(costs))
    )
    assert simulated(tasks, workers)[1] <= (4 / 3 - 1 / (3 * workers)) * best + 1e-9


def test_a_long_method_at_the_end_of_the_plan_is_not_left_for_the_end() -> None:
    """A source, then runs of it, of which the last one listed takes five times as long."""
    tasks = [Task("source", double, cost=10)]
    tasks += [Task(f"run {i}", double, after=("source",), cost=10) for i in range(6)]
    tasks += [Task("long", double, after=("source",), cost=50)]
    order, took = simulated(tasks, 2)
    assert order == ["source", "long", *(f"run {i}" for i in range(6))]
    assert took == 70 and simulated(tasks, 2, in_order=True)[1] == 90


def test_what_is_kept_of_an_exception_is_bounded() -> None:
    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1) if levels % 2 else even(levels)
        raise ValueError("x\ny " * 10_000)

    def even(levels: int) -> None:
        deep(levels - 1)

    with pytest.raises(ValueError, match="x") as caught:
        deep(400)
    kept = Failure.of(caught.value)
    assert "\n" not in kept.reason and len(kept.reason) < LONGEST_REASON + 10
    assert len(kept.traceback) < LONGEST_TRACEBACK + 100
    assert kept.traceback.startswith("Traceback") and kept.traceback.endswith("y \n")


def test_tasks_that_could_never_start_are_refused() -> None:
    for tasks in (
        [Task("a", double, (1,), after=("b",)), Task("b", double, (1,))],
        [Task("a", double, (1,), after=("nowhere",))],
        [Task("a", double, (1,)), Task("a", double, (2,))],
    ):
        with pytest.raises(ValueError, match="task a"):
            collect(tasks, 1)


@pytest.mark.slow
def test_a_worker_that_dies_ends_its_task_alone() -> None:
    events = collect([Task("a", die, (0,)), *[Task(f"b{i}", double, (i,)) for i in range(3)]], 2)
    assert [str(e.value) for e in events if e.kind == "failed"] == [
        "the worker process died (signal 9); out of memory?"
    ]
    assert sorted(e.value for e in events if e.kind == "done") == [0, 2, 4]


def pid(device: torch.device, progress: Any) -> int:
    return os.getpid()


@pytest.mark.slow
def test_workers_stay_within_a_pool_and_one_that_died_there_is_replaced() -> None:
    def pids(pool: LocalPool) -> set[int]:
        events: list[Event] = []
        pool.run([Task(str(i), pid) for i in range(8)], events.append)
        return {event.value for event in events if event.kind == "done"}

    with LocalPool(CPU, 2) as pool:
        first = pids(pool)
        assert pids(pool) <= first and 1 <= len(first) <= 2
        for process in first:
            os.kill(process, signal.SIGKILL)
        for worker in pool._workers:
            worker.process.join()
        assert not pids(pool) & first
        waiting = [Task("a", pid), Task("b", pid, after=("a",)), Task("c", pid, after=("b",))]
    one = LocalPool(CPU, 3)
    events: list[Event] = []
    one.run(waiting, events.append)
    used = {event.value for event in events if event.kind == "done"}
    assert len(used) == 1, "one task could start at a time, and one worker was there for it"
    assert not one._workers


@pytest.mark.slow
def test_a_worker_imports_nothing_that_only_the_command_needs(tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text("import sys\ndef look(*at):\n    return [*sys.modules]")
    (tmp_path / "parent.py").write_text(
        textwrap.dedent("""
        import looks, torch
        from trm_bench.runs.executors import LocalPool, Task
        if __name__ == "__main__":
            say = lambda e: print(*e.value) if e.kind == "done" else None
            LocalPool(torch.device("cpu"), 2).run([Task(i, looks.look) for i in "ab"], say)
        """)
    )
    command = [sys.executable, "parent.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for there in map(str.split, done.stdout.splitlines()):
        assert {"trm_bench.runs.execute", "monai.networks.nets"} <= {*there}, "imported beforehand"
        heavy = {"mlflow", "optuna", "matplotlib", "nilearn", "pandas", "sklearn"}
        assert not heavy & {*there}
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "sleepers.py").write_text(
        textwrap.dedent("""
        import os, threading
        def wait(device, progress):
            progress(os.getpid(), 1, 0.0)
            threading.Event().wait()
        """)
    )
    (tmp_path / "parent.py").write_text(
        textwrap.dedent("""
        import sleepers, torch
        from trm_bench.runs.executors import LocalPool, Task
        if __name__ == "__main__":
            say = lambda e: print(e.value[0], flush=True) if e.kind == "progress" else None
            tasks = [Task("a", sleepers.wait), Task("b", sleepers.wait)]
            LocalPool(torch.device("cpu"), 2).run(tasks, say)
        """)
    )
    parent = subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert len({parent.stdout.readline() for _ in range(2)}) == 2, "both workers are at work"
    parent.kill()
    # standard output ends when the last process that holds it has ended; workers that live on would
    # time this out
    assert parent.communicate(timeout=60) == ("", None)


def test_default_jobs_is_one_a_core() -> None:
    assert default_jobs(CPU) == len(os.sched_getaffinity(0))


def seen(device: torch.device, progress: Any) -> tuple[str, str | None, bool]:
    """Where a worker is to train, whether asking for CUDA starts it, and what was imported."""
    nvml = os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")
    return str(device), nvml, "trm_bench.runs.execute" in sys.modules


@pytest.mark.slow
def test_workers_on_a_gpu_are_forked_with_all_imports_and_cuda_not_started() -> None:
    events: list[Event] = []
    tasks = [Task("a", seen), Task("b", seen)]
    LocalPool(torch.device("cuda", 0), 2).run(tasks, events.append)
    assert [e.value for e in events if e.kind == "done"] == [("cuda:0", "1", True)] * 2


def test_workers_are_one_for_a_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert default_jobs(torch.device("cuda")) == 4
    assert default_jobs(torch.device("cuda", 2)) == 1
