"""Ctrl-C, SIGTERM and SIGHUP: a command ends its processes, says that it goes on, and exits.

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
GRACE = 4.0  # seconds that a command has to end in good order
STOPPED = "stopped; the same command goes on where this one was\n"
SHOW_CURSOR = "\x1b[?25h"  # progress bars hide it


class Stopped(BaseException):
    """A signal ends the command.

    It is no Exception, so that no run takes it for its own failure, and no KeyboardInterrupt, which
    typer would keep to itself.
    """


@contextmanager
def ending() -> Iterator[None]:
    """For a whole process: from here on, one of the signals ends it with 128 + its number.

    The first signal raises `Stopped` in the main thread, so that what is open is closed. What takes
    longer than `GRACE`, meets a second signal or imports a module is cut off, which is safe, since
    files are written whole or not at all. A signal that is ignored, as SIGHUP is below nohup, stays
    so.
    """
    for number in SIGNALS:
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


class _Stop:
    """What a process does about the signals: the first one it hears, and whether it ends by now."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.ends = False
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
        raise Stopped

    def _cut(self) -> None:
        time.sleep(GRACE)
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


asked_here = False


def ask_to_stop() -> None:
    """Has the trainings of this process save and stop at the end of their steps."""
    global asked_here
    asked_here = True


def asked() -> bool:
    """Whether."""
    return asked_here
