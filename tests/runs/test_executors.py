"""Jobs in this process and in workers: order, results, failures, and death of either side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

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
