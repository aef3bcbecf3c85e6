"""Tasks on a real cluster on loopback: order, results, and the death of every part of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="needs trm-bench[cluster]")

import loopback
from loopback import LONGEST, Cluster, begun, cluster, until

from trm_bench.cluster.engine import GONE
from trm_bench.errors import UserError
from trm_bench.runs.executors import Event, Task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("two"), workers=2) as started:
        yield started


def ends(events: list[Event]) -> dict[str, str]:
    return {e.task: e.kind for e in events}


def test_results_progress_failures_and_order(two: Cluster, tmp_path: Path) -> None:
    tasks = [
        Task("good", loopback.double, (tmp_path, "good", 1)),
        Task("bad", loopback.fail, (tmp_path, "bad", 2)),
        Task("after good", loopback.double, (tmp_path, "after", 3), after=("good",)),
        Task("after bad", loopback.double, (tmp_path, "never", 4), after=("good", "bad")),
    ]
    events = two.run(tasks, tmp_path, workers=2)
    order = [(e.task, e.kind) for e in events]
    assert order.index(("after good", "started")) > order.index(("good", "done"))
    assert {e.task: e.value for e in events if e.kind == "done"} == {"good": 2, "after good": 6}
    assert [e.value for e in events if e.kind == "skipped"] == ["bad"]
    (failed,) = (e.value for e in events if e.kind == "failed")
    assert str(failed) == "ValueError: no 2" and "in fail\n" in failed.traceback
    assert not begun(tmp_path, "never")
    for name in ("good", "bad", "after good"):
        assert order.count((name, "started")) == 1


def test_no_more_are_given_out_than_there_are_workers(two: Cluster, tmp_path: Path) -> None:
    tasks = [Task(f"t{i}", loopback.wait, (tmp_path, f"t{i}", i)) for i in range(5)]
    events: list[Event] = []
    thread = threading.Thread(target=two.run, args=(tasks, tmp_path, 2, events))
    thread.start()
    until(lambda: [e for e in events if e.kind == "progress"], "what is told while a task lasts")
    until(lambda: len(list(tmp_path.glob("t*"))) == 2, "two tasks")
    with loopback.connected(two.file, "auto", lambda text: None) as engine:
        known = engine.client.run_on_scheduler(
            lambda dask_scheduler: sorted(k[-2:] for k in dask_scheduler.tasks)
        )
    assert known == ["t0", "t1"], "the others are not the scheduler's yet"
    (tmp_path / "go").touch()
    thread.join(LONGEST)
    assert ends(events) == dict.fromkeys((f"t{i}" for i in range(5)), "done")


def test_a_task_whose_worker_died_is_done_by_another(two: Cluster, tmp_path: Path) -> None:
    tasks = [Task("once", loopback.die, (tmp_path, "once", 1))]
    tasks += [Task(f"t{i}", loopback.double, (tmp_path, f"t{i}", i)) for i in range(3)]
    events = two.run(tasks, tmp_path, workers=2)
    assert ends(events) == dict.fromkeys(("once", "t0", "t1", "t2"), "done")
    assert len(begun(tmp_path, "once")) == 2


def test_a_task_that_kills_its_workers_fails_alone(two: Cluster, tmp_path: Path) -> None:
    tasks = [Task("killer", loopback.die, (tmp_path, "killer", 9))]
    tasks += [Task(f"t{i}", loopback.double, (tmp_path, f"t{i}", i)) for i in range(3)]
    events = two.run(tasks, tmp_path, workers=2)
    assert ends(events) == {"killer": "failed"} | dict.fromkeys(("t0", "t1", "t2"), "done")
    assert len(begun(tmp_path, "killer")) == 2, "a second chance, and no third"
    (failed,) = (e.value for e in events if e.kind == "failed")
    assert "the worker died in it" in str(failed)


def test_tasks_wait_for_a_worker_where_the_last_one_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback.executor, "LOOK_EVERY", 0.0)  # so that it sees that none is there
    tasks = [Task("killer", loopback.die, (tmp_path, "killer", 9))]
    tasks += [Task("last", loopback.double, (tmp_path, "last", 1))]
    with cluster(tmp_path / "cluster", workers=1) as started:
        events = started.run(tasks, tmp_path)
    assert ends(events) == {"killer": "failed", "last": "done"}


def test_a_task_that_is_given_again_is_done_again(two: Cluster, tmp_path: Path) -> None:
    """A sweep tries again what failed; the scheduler must not answer from memory."""
    task = Task("same", loopback.double, (tmp_path, "same", 1))
    with loopback.connected(two.file, "auto", lambda text: None) as engine:
        executor = loopback.DaskExecutor(engine, tmp_path, lambda text: None)
        for _ in range(5):
            executor.run([task], lambda event: None)
    assert len(begun(tmp_path, "same")) == 5


def test_a_command_joins_what_a_killed_one_gave_out(two: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(
        textwrap.dedent(f"""
        from pathlib import Path
        import loopback
        from loopback import Task, connected, DaskExecutor
        here = Path({str(tmp_path)!r})
        with connected({two.file!r}, "auto", lambda text: None) as engine:
            tasks = [Task("long", loopback.wait, (here, "long", 7))]
            DaskExecutor(engine, here, print).run(tasks, print)
        """)
    )
    driver = subprocess.Popen([sys.executable, str(script)], env=loopback.environment())
    until(lambda: begun(tmp_path, "long"), "the task of the first command")
    driver.kill()
    driver.wait(LONGEST)
    threading.Timer(1.0, (tmp_path / "go").touch).start()
    events = two.run([Task("long", loopback.wait, (tmp_path, "long", 7))], tmp_path)
    assert [(e.kind, e.value) for e in events if e.kind != "progress"] == [
        ("started", None),
        ("done", 7),
    ]
    assert len(begun(tmp_path, "long")) == 1, "it was joined, not started again"


def test_a_scheduler_that_dies_is_no_failure_of_a_task(tmp_path: Path) -> None:
    events: list[Event] = []
    with cluster(tmp_path / "cluster", workers=1) as started:
        threading.Thread(
            target=lambda: (
                until(lambda: begun(tmp_path, "long"), "the task"),
                started.scheduler.kill(),
            )
        ).start()
        with (
            pytest.raises(UserError, match=GONE),
            loopback.connected(started.file, "auto", lambda text: None) as engine,
        ):
            executor = loopback.DaskExecutor(engine, tmp_path, lambda text: None)
            executor.run([Task("long", loopback.wait, (tmp_path, "long", 1))], events.append)
        (tmp_path / "go").touch()
        assert not {"failed", "done"} & {e.kind for e in events}
        assert started.keepers[0].wait(LONGEST) is not None, "its workers end with it"


def at_work(started: Cluster, folder: Path) -> tuple[list[Event], threading.Thread]:
    """What is heard of a long task that has begun, and the thread that waits for it."""
    events: list[Event] = []
    tasks = [Task("long", loopback.until_asked, (folder, "long", 1))]
    thread = threading.Thread(target=started.run, args=(tasks, folder, 1, events))
    thread.start()
    until(lambda: begun(folder, "long"), "the task")
    return events, thread


def test_a_worker_that_is_asked_to_stop_hands_its_task_on(tmp_path: Path) -> None:
    with cluster(tmp_path / "cluster") as started:
        first = started.add()
        events, thread = at_work(started, tmp_path)
        first.send_signal(signal.SIGUSR1)
        assert first.wait(LONGEST) == 0
        (tmp_path / "go").touch()
        started.add()
        thread.join(LONGEST)
        assert ends(events) == {"long": "done"}
        assert len(begun(tmp_path, "long")) == 2
        assert "cut off" in started.log()


def test_a_worker_that_leaves_is_given_nothing_more(tmp_path: Path) -> None:
    """Also where the scheduler is slow to let it go."""
    with cluster(tmp_path / "cluster") as started:
        first = started.add()
        events, thread = at_work(started, tmp_path)
        with loopback.connected(started.file, "auto", lambda text: None) as engine:
            engine.client.run_on_scheduler(loopback.slow_to_retire, go=tmp_path / "go")
        first.send_signal(signal.SIGUSR1)
        until(lambda: "cut off" in started.log(), "the task is left")
        started.add()
        until(lambda: len(set(begun(tmp_path, "long"))) == 2, "another worker")
        (tmp_path / "go").touch()
        thread.join(LONGEST)
        assert first.wait(LONGEST) == 0
        assert ends(events) == {"long": "done"}
        assert len(begun(tmp_path, "long")) == 2, "once a worker"


def test_workers_of_another_kind_are_refused_with_the_list(two: Cluster, tmp_path: Path) -> None:
    with loopback.connected(two.file, "auto", lambda text: None) as engine:
        changed = {**engine.about, "numpy": "1.0"}
        other = loopback.replace(engine, about=changed)
        tasks = [Task("t", loopback.double, (tmp_path, "t", 1))]
        with pytest.raises(UserError, match=r"numpy .*, not 1\.0"):
            loopback.DaskExecutor(other, tmp_path, lambda text: None).run(tasks, [].append)
        gone = loopback.DaskExecutor(engine, tmp_path / "elsewhere", lambda text: None)
        with pytest.raises(UserError, match="does not see"):
            gone.run(tasks, [].append)
    assert not begun(tmp_path, "t")
