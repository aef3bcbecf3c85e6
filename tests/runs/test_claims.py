"""Claims: one holder at a time, whoever dies; and jobs that another command did meanwhile."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import plan

from trm_bench.files import HOST
from trm_bench.runs import claims, execute
from trm_bench.runs.claims import claim_of, claimed, is_stale, remove_stale
from trm_bench.verification import _remains

DEAD = 2**22 + 1  # above the largest number of a process
CPU = torch.device("cpu")


def write(result: Path, host: str, process: int, age: float = 0.0) -> Path:
    path = claim_of(result)
    path.write_text(json.dumps({"host": host, "process": str(process), "job": ""}))
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return path


def test_a_claim_names_its_holder_and_goes_with_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    result = tmp_path / "records" / "a.json"
    with claimed(result):
        about = claims.holder(claim_of(result))
        assert about == {"host": HOST, "process": str(os.getpid()), "job": "17"}
        assert not is_stale(claim_of(result))
    assert list(result.parent.iterdir()) == []
    with pytest.raises(ZeroDivisionError), claimed(result):
        raise ZeroDivisionError
    assert list(result.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "process", "age", "stale"),
    [
        ("here", "dead", 0, True),
        ("here", "this one", 10_000, False),  # asleep for hours, and alive
        ("elsewhere", "dead", 0, False),  # who knows
        ("elsewhere", "this one", 590, False),
        ("elsewhere", "this one", 610, True),
    ],
)
def test_who_is_gone(tmp_path: Path, host: str, process: str, age: float, stale: bool) -> None:
    number = DEAD if process == "dead" else os.getpid()
    path = write(tmp_path / "a.json", HOST if host == "here" else host, number, age)
    assert is_stale(path) == stale
    remove_stale(tmp_path)
    assert path.exists() != stale
    assert [p.name for p in tmp_path.iterdir()] == ([] if stale else ["a.json.claim"])


def test_time_is_that_of_the_file_system(tmp_path: Path, monkeypatch: Any) -> None:
    path = write(tmp_path / "a.json", "elsewhere", 1)
    monkeypatch.setattr(claims, "clock", lambda folder: path.stat().st_mtime + 601)
    assert is_stale(path)


def test_a_claim_that_was_cut_off_while_written_is_stale_after_a_while(tmp_path: Path) -> None:
    path = claim_of(tmp_path / "a.json")
    for text in ("", "[1]", '{"host": "'):
        path.write_text(text)
        assert not is_stale(path)
        os.utime(path, (1.0, 1.0))
        assert is_stale(path)


def test_what_is_no_claim_is_not_read_for_ever(tmp_path: Path) -> None:
    """A pipe would be waited for, a device has no end."""
    os.mkfifo(tmp_path / "pipe.claim")
    (tmp_path / "zero.claim").symlink_to("/dev/zero")
    (tmp_path / "loop.claim").symlink_to("loop.claim")
    assert claims.holder(tmp_path / "pipe.claim") == claims.holder(tmp_path / "zero.claim") == {}
    remove_stale(tmp_path)
    assert {f.path.name for f in _remains(tmp_path)} >= {"loop.claim"}


def test_a_claim_that_could_not_be_written_is_not_left(tmp_path: Path) -> None:
    """On a full disk; nobody could see that its process has ended."""

    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(file: int, mode: str) -> Full:
        os.close(file)
        return Full()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims.os, "fdopen", full)
        with pytest.raises(OSError, match="No space"), claimed(tmp_path / "a.json"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_worker_waits_for_the_first(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(claims, "LOOK_EVERY", 0.01)
    result, order, waits = tmp_path / "a.json", list[str](), threading.Event()
    taken_over = claims._taken_over

    def noted(path: Path) -> bool:
        waits.set()
        return taken_over(path)

    monkeypatch.setattr(claims, "_taken_over", noted)

    def second() -> None:
        with claimed(result):
            order.append("second")

    with claimed(result):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_the_claim_of_a_killed_process_is_taken_over_by_one_of_many(tmp_path: Path) -> None:
    """Several find it stale at once; each holds it alone."""
    script = (
        "import sys, time; from pathlib import Path; from trm_bench.runs import claims\n"
        "claims.LOOK_EVERY = 0.01\n"
        "result = Path(sys.argv[1]); print('ready', flush=True); sys.stdin.read()\n"
        "with claims.claimed(result):\n"
        "    (result.parent / 'alone').touch(exist_ok=False)\n"
        "    time.sleep(0.05)\n"
        "    (result.parent / 'alone').unlink()\n"
        "    print('held', flush=True)\n"
    )
    result = tmp_path / "a.json"
    write(result, HOST, DEAD)
    several = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(result)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in several:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in several:
        assert process.stdin
        process.stdin.close()
    assert [p.stdout.read() for p in several if p.stdout] == ["held\n"] * 4
    assert [p.wait(30) for p in several] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def test_one_who_is_late_does_not_remove_the_claim_of_the_next(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Both found it stale; the faster one has a claim of its own by now."""
    result = tmp_path / "a.json"
    path = write(result, HOST, DEAD)
    judged = claims.is_stale

    def late(claim: Path) -> bool:
        stale = judged(claim)
        path.unlink()
        write(result, HOST, os.getpid())
        return stale

    monkeypatch.setattr(claims, "is_stale", late)
    assert claims._taken_over(path)
    assert claims.holder(path)["process"] == str(os.getpid())
    assert [p.name for p in tmp_path.iterdir()] == ["a.json.claim"]


def test_one_takes_over_from_whom_another_is_taking_over(tmp_path: Path) -> None:
    """While the other lives; after its kill the right is taken over as well."""
    result = tmp_path / "a.json"
    path = write(result, HOST, DEAD)
    right = path.with_suffix(".{}-{}.claim".format(*claims._identity(path)))
    for process, removed in ((os.getpid(), False), (DEAD, True)):
        right.write_text(json.dumps({"host": HOST, "process": str(process)}))
        assert claims._taken_over(path) == removed
        assert path.exists() and right.exists() != removed
    with claimed(result):
        assert claims.holder(path)["process"] == str(os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_slept_too_long_leaves_the_claim_of_the_next(tmp_path: Path) -> None:
    result = tmp_path / "a.json"
    with claimed(result):
        claim_of(result).unlink()
        path = write(result, "elsewhere", 1)
    assert path.exists()


def test_a_holder_touches_its_claim(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(claims, "TOUCHED_EVERY", 0.01)
    touched, utime = threading.Event(), os.utime

    def noted(*arguments: Any, **options: Any) -> None:
        utime(*arguments, **options)
        touched.set()

    monkeypatch.setattr(os, "utime", noted)
    with claimed(tmp_path / "a.json"):
        assert touched.wait(30)


def test_a_job_that_was_done_meanwhile_is_not_done_again(
    tmp_path: Path, toy_data: Path, monkeypatch: Any
) -> None:
    made = plan(toy_data, tmp_path, methods=["scratch"])
    (job,) = made.runs
    assert execute.do(job, CPU, lambda *at: None) == "finished"

    def never(*arguments: Any) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(execute, "_train_method", never)
    assert execute.do(job, CPU, lambda *at: None) == "finished"
    assert not claim_of(job.result).exists()
