"""A signal ends a command: its processes, one line, its exit code, and never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trm_bench import signals
from trm_bench.signals import STOPPED

HEAD = """
import signal, time
from trm_bench import signals
def ready():
    print("ready", flush=True)
    time.sleep(60)
"""


def start(folder: Path, text: str) -> subprocess.Popen[str]:
    """A script in a process group of its own, after it has said that it is ready."""
    script = folder / "script.py"
    script.write_text(HEAD + textwrap.dedent(text))
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error, once no process holds the latter any more."""
    said = process.communicate(timeout=50)[1]
    return process.returncode, said


@pytest.mark.parametrize("number", [*signals.SIGNALS, signals.AHEAD])
def test_the_exit_code_is_that_of_the_signal(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "with signals.ending(): ready()")
    process.send_signal(number)
    assert ended(process) == (128 + number, STOPPED)


@pytest.mark.parametrize(
    "body",
    [
        # a library keeps the exception to itself, for longer than a command has
        "try: ready()\n    except BaseException: time.sleep(60)",
        # or makes another one of it
        "try: ready()\n    except BaseException: raise RuntimeError('odd')",
        "import slow",
        # what is left to do meets more signals
        "try: ready()\n    finally: [signal.raise_signal(signal.SIGHUP) for _ in range(3)]",
        "class D:\n        __del__ = lambda self: ready()\n    d = D(); del d; time.sleep(60)",
    ],
    ids=["kept", "changed", "import", "again", "destructor"],
)
def test_whatever_the_command_does(tmp_path: Path, body: str) -> None:
    (tmp_path / "slow.py").write_text("import __main__\n__main__.ready()")
    process = start(tmp_path, f"signals.GRACE = 0.2\nwith signals.ending():\n    {body}")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, STOPPED)


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    text = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nwith signals.ending(): ready()"
    process = start(tmp_path, text)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, STOPPED)


def test_a_training_stops_by_itself(tmp_path: Path) -> None:
    """The exception comes from its look, at the end of the step, and not from the handler."""
    process = start(
        tmp_path,
        """
        with signals.ending(), signals.at_ends_of_steps():
            print("ready", flush=True)
            while not signals.asked():
                pass
            print("saved", flush=True)
            raise signals.Stopped
        """,
    )
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=50)
    assert (process.returncode, out, said) == (143, "saved\n", STOPPED)


def test_a_training_whose_step_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    text = "signals.GRACE = 0.2\nwith signals.ending(), signals.at_ends_of_steps(): ready()"
    process = start(tmp_path, text)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, STOPPED)


@pytest.mark.parametrize("number", [signals.AHEAD, signal.SIGTERM])
def test_who_is_told_ahead_has_more_time(tmp_path: Path, number: signal.Signals) -> None:
    process = start(
        tmp_path,
        """
        with signals.ending():
            try: ready()
            finally: print(signals.time_to_end(), flush=True)
        """,
    )
    process.send_signal(number)
    ahead = number == signals.AHEAD
    expected = signals.GRACE_AHEAD if ahead else signals.GRACE
    assert process.communicate(timeout=50)[0] == f"{expected}\n"


@pytest.mark.parametrize("trains", [False, True])
def test_a_worker_that_does_not_train_ends_at_once(tmp_path: Path, trains: bool) -> None:
    process = start(
        tmp_path,
        f"""
        import contextlib
        signals.work_until_asked()
        with signals.at_ends_of_steps() if {trains} else contextlib.nullcontext():
            print("ready", flush=True)
            while not signals.asked():
                pass
            print("saved", flush=True)
            import sys; sys.exit(5)
        """,
    )
    process.send_signal(signals.AHEAD)
    out, _ = process.communicate(timeout=50)
    assert (process.returncode, out) == ((5, "saved\n") if trains else (128 + signals.AHEAD, ""))


@pytest.mark.slow
@pytest.mark.parametrize("at_work", [True, False], ids=["at work", "while they start"])
def test_workers_end_with_the_command_and_are_no_failures(tmp_path: Path, at_work: bool) -> None:
    (tmp_path / "sleepers.py").write_text(
        textwrap.dedent("""
        import threading
        def wait(device, progress):
            progress(1, 1, 0.0)
            threading.Event().wait()
        """)
    )
    kinds = ("progress", "failed") if at_work else ("started", "failed")
    process = start(
        tmp_path,
        f"""
        if __name__ == "__main__":
            import sleepers, torch
            from trm_bench.runs.executors import LocalPool, Task
            def say(event):
                if event.kind in {kinds}:
                    print("ready" if event.kind != "failed" else event, flush=True)
            with signals.ending():
                tasks = [Task("a", sleepers.wait), Task("b", sleepers.wait)]
                LocalPool(torch.device("cpu"), 2).run(tasks, say)
        """,
    )
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, said = process.communicate(timeout=50)
    assert (process.returncode, said) == (130, STOPPED)
    assert set(out.split()) <= {"ready"}
