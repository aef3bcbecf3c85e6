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

from trm_bench.execution import Event, Task, default_jobs, run_all

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
    run_all(tasks, CPU, jobs, events.append)
    return events


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_results_progress_and_failures(jobs: int) -> None:
    said: list[str] = []
    tasks = [Task("a", double, (1,)), Task("b", fail, (2,), died=said.append), Task("c", double, (3,))]
    events = collect(tasks, jobs)
    assert {e.task: e.value for e in events if e.kind == "done"} == {0: 2, 2: 6}
    assert [e.value for e in events if e.kind == "progress"] == [(1, 2, 0.5)] * 2
    assert said == ["ValueError: no 2"] == [e.value for e in events if e.kind == "died"]
    assert sorted(e.task for e in events if e.kind == "started") == [0, 1, 2]


@pytest.mark.slow
def test_a_worker_that_dies_ends_its_task_alone() -> None:
    events = collect([Task("a", die, (0,)), *[Task("b", double, (i,)) for i in range(3)]], 2)
    assert [e.value for e in events if e.kind == "died"] == ["the worker process died (signal 9); out of memory?"]
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
        from trm_bench.execution import Task, run_all
        if __name__ == "__main__":
            say = lambda e: print(e.value[0], flush=True) if e.kind == "progress" else None
            run_all([Task("a", sleepers.wait, ()), Task("b", sleepers.wait, ())], torch.device("cpu"), 2, say)
        """)
    )
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert len({parent.stdout.readline() for _ in range(2)}) == 2, "both workers are at work"
    parent.kill()
    # standard output ends when the last process that holds it has ended; workers that live on would time this out
    assert parent.communicate(timeout=60) == ("", None)


def test_default_jobs_is_one_a_core() -> None:
    assert default_jobs(CPU) == len(os.sched_getaffinity(0))
