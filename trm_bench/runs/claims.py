"""Claims: who is at work on a job, for workers that share nothing but a file system.

A claim is a file beside the job's result, made so that only one can make it, and removed when the
job ends. Its holder touches it every minute. It is stale when its process is dead, which can be
seen on the same machine, or when nobody has touched it for ten minutes by the clock of the file
system; then another worker takes it over.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trm_bench.errors import UserError
from trm_bench.files import HOST, clock, lives
from trm_bench.inputs import read_text

TOUCHED_EVERY = 60.0  # seconds
STALE_AFTER = 600.0
LOOK_EVERY = 2.0  # at the claim of another
MOST_BYTES = 4096  # of a claim
JOB_IDS = ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID")  # of the queueing systems


def claim_of(result: Path) -> Path:
    """The claim on the job that leaves a result."""
    return result.with_name(f"{result.name}.claim")


@contextmanager
def claimed(result: Path) -> Iterator[None]:
    """Holds the claim on a job; waits while another worker that lives holds it.

    Raises:
        OSError: The folder cannot be written.
    """
    path = claim_of(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    ours = _ours()
    while not _made(path, ours):
        if not _taken_over(path):
            time.sleep(LOOK_EVERY)
    ended = threading.Event()
    threading.Thread(target=_touch, args=(path, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with contextlib.suppress(FileNotFoundError):
            if holder(path) == ours:  # not where it was taken over, after a sleep of hours
                path.unlink()


def holder(path: Path) -> dict[str, str]:
    """Who holds a claim: `host`, `process` and `job`; empty where that cannot be read.

    Raises:
        FileNotFoundError: Nobody holds it.
    """
    path.stat()
    try:
        content = json.loads(read_text(path, MOST_BYTES))
    except (UserError, ValueError, RecursionError):  # of one who was killed while writing it
        return {}
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}


def is_stale(path: Path) -> bool:
    """Whether the holder of a claim is gone.

    Raises:
        FileNotFoundError: Nobody holds it.
    """
    by = holder(path)
    if by.get("host") == HOST and by.get("process", "").isdecimal():
        return not lives(int(by["process"]))
    return clock(path.parent) - path.stat().st_mtime > STALE_AFTER


def remove_stale(folder: Path) -> None:
    """Removes the claims right in a folder whose holders are gone."""
    for path in folder.glob("*.claim"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is a link to nowhere
            if is_stale(path):
                _taken_over(path)


def _ours() -> dict[str, str]:
    job = next((os.environ[name] for name in JOB_IDS if os.environ.get(name)), "")
    return {"host": HOST, "process": str(os.getpid()), "job": job}


def _made(path: Path, ours: dict[str, str]) -> bool:
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(json.dumps(ours).encode())
    except OSError:  # a full disk; one without a holder would be waited for
        path.unlink(missing_ok=True)
        raise
    return True


def _taken_over(path: Path) -> bool:
    """Removes a stale claim, and never another that lies in its place by now.

    The right to remove that very file is a claim of its own, so that nobody has to move a claim
    in order to see whether it is still the stale one.

    Returns:
        Whether to try again at once: the claim is gone, or was stale and nobody else removes it.
    """
    try:
        stale = _identity(path)  # before it is judged: what is removed must be what was judged
        if not is_stale(path):
            return False
        right = path.with_suffix(".{}-{}.claim".format(*stale))
        if not _made(right, _ours()):
            return _taken_over(right)  # of one who was killed in the next three lines
        try:
            if _identity(path) == stale:
                path.unlink()
        finally:
            right.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    return True


def _identity(path: Path) -> tuple[int, int]:
    """Of the very file: another, or this one once it was touched again, has another one."""
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(TOUCHED_EVERY):
        with contextlib.suppress(OSError):
            os.utime(path)
