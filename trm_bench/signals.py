"""Ctrl-C, SIGTERM and the like: a command ends its processes, says that it goes on, and exits.

A training is not torn from a step: the signal waits for its end, where the training saves what it
holds (`runs.savepoints`), looks at `asked`, and stops by itself.

This module imports nothing large, so that it is at work before what takes seconds to import.
"""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# what schedulers send ahead of a time limit; a worker process is asked to stop by it
AHEAD = signal.SIGUSR1
GRACE = 4.0  # seconds that a command has to end in good order
GRACE_AHEAD = 60.0  # where it was told ahead
STOPPED = "stopped; the same command goes on where this one was\n"
SHOW_CURSOR = "\x1b[?25h"  # progress bars hide it


class Stopped(BaseException):
    """A signal ends the command, or its worker.

    It is no Exception, so that no run takes it for its own failure, and no KeyboardInterrupt, which
    typer would keep to itself.
    """


@contextmanager
def ending() -> Iterator[None]:
    """For a whole process: from here on, one of the signals ends it with 128 + its number.

    The first signal raises `Stopped` in the main thread, so that what is open is closed; during a
    training, at the end of its step. What takes longer than it has (`time_to_end`), meets a second
    signal or imports a module is cut off, which is safe, since files are written whole or not at
    all. A signal that is ignored, as SIGHUP is below nohup, stays so.
    """
    for number in (*SIGNALS, AHEAD):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop.hear)
    try:
        yield
    finally:  # also where something kept `Stopped` to itself, or made another exception of it
        if stopping():
            _stop.ends = True
            with contextlib.suppress(OSError, ValueError):
                print(end="", flush=True)
            _stop.end()


def stopping() -> bool:
    """Whether a signal ends this process; an exception then says nothing of its own."""
    return _stop.first is not None


def ask_to_stop() -> None:
    """Has the trainings of this process save and stop at the end of their steps.

    For processes that are not commands; may be called from a handler of signals.
    """
    _stop.asked = True


def asked() -> bool:
    """Whether this process is to stop; who trains looks at it after each step."""
    return _stop.asked


def time_to_end() -> float:
    """Seconds that this process has to end in good order."""
    return GRACE_AHEAD if _stop.first == AHEAD else GRACE


@contextmanager
def at_ends_of_steps() -> Iterator[None]:
    """While this is entered, a training looks at `asked` after each step, and stops by itself.

    Raises:
        Stopped: It was asked to after the last step.
    """
    _stop.trainings += 1
    try:
        yield
    finally:
        _stop.trainings -= 1
    if asked():
        raise Stopped


def work_until_asked() -> None:
    """For a worker process: `AHEAD` ends it, at once or at the end of a training's step."""

    def hear(number: int, frame: FrameType | None) -> None:
        ask_to_stop()
        if not _stop.trainings:
            os._exit(128 + number)

    signal.signal(AHEAD, hear)


class _Stop:
    """What a process does about the signals: the first one it hears, and whether it ends by now."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.ends = self.asked = False
        self.trainings = 0  # that look after each step whether they are asked to stop
        self.said = _thread.allocate_lock()

    def hear(self, number: int, frame: FrameType | None) -> None:
        if self.ends:
            return
        if self.first is not None:
            self.end()
        self.first = number
        if _imports(frame):  # many a C extension aborts where its start meets an exception
            self.end()
        # an exception that is raised in a destructor is printed, and forgotten
        sys.unraisablehook = lambda unraisable: None
        # not a threading.Thread: its start could wait for a lock that the main thread holds
        _thread.start_new_thread(self._cut, ())
        self.asked = True
        if not self.trainings:
            raise Stopped

    def _cut(self) -> None:
        time.sleep(time_to_end())
        self.end()

    def end(self) -> NoReturn:
        """At once; in what Python does at its end, one more signal would be a traceback."""
        assert self.first is not None
        for child in multiprocessing.active_children():
            child.kill()
        if self.said.acquire(blocking=False):
            text = SHOW_CURSOR + STOPPED if os.isatty(2) else STOPPED
            with contextlib.suppress(OSError):
                os.write(2, text.encode())
        os._exit(128 + self.first)


_stop = _Stop()


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def held_back() -> Iterator[None]:
    """The signals wait while this is entered; a process that is started meanwhile never has them.

    A terminal and a scheduler signal all processes of a command: its workers neither end by
    themselves, which would be a failure of their runs, nor print tracebacks.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
