"""Locks on files, which the system frees when a process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trm_bench.errors import UserError
from trm_bench.files import remove_leftovers
from trm_bench.runs.claims import remove_stale
from trm_bench.runs.folders import ProtocolFolder

HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
# an NFS whose server runs no lock daemon, a Lustre that is mounted without `flock`, some of FUSE
ABSENT = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


class NoLocks(UserError):
    """A file lies on a file system that has no locks."""


def take(lock: int, path: Path, shared: bool = False) -> bool:
    """Takes a lock on an open file, without waiting for it; closing the file frees it.

    Args:
        lock: Of the open file.
        path: Of the file.
        shared: Whether others may hold it in this way as well.

    Returns:
        False where another process holds it.

    Raises:
        NoLocks: The file system has none.
        OSError: The disk is gone, or the like; it names `path`.
    """
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        said = error.strerror or str(error)
        if error.errno in ABSENT:
            what = f"its file system has no locks ({said})"
            fix = "choose a folder on a local disk, or have it mounted with locks (flock)"
            raise NoLocks(what, path, fix) from error
        raise OSError(error.errno, said, str(path)) from error
    return True


@contextmanager
def only_one(
    folder: ProtocolFolder, warn: Callable[[str], object] = lambda text: None
) -> Iterator[None]:
    """Holds the lock of a folder, and removes what killed commands were writing there.

    Without locks the work goes on: files are written whole and no run is trained twice, lock or
    not. Only the files of the whole folder are then those of the command that ends last.

    Args:
        folder: Of a protocol.
        warn: Is told where there are no locks.

    Raises:
        UserError: Another command holds it, or the folder cannot be written.
    """
    folder.refuse_links()
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder.lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        what = f"cannot write here: {error.strerror}"
        raise UserError(what, folder.path, "choose another folder with --out") from error
    try:
        _take_soon(lock, folder, warn)
        try:
            _tidy(folder)
            yield
        finally:
            _tidy(folder)
    finally:
        os.close(lock)


def _take_soon(lock: int, folder: ProtocolFolder, warn: Callable[[str], object]) -> None:
    try:
        if take(lock, folder.lock):
            return
        # a command that was killed may leave workers that notice within a second or so
        time.sleep(2)
        if take(lock, folder.lock):
            return
    except NoLocks as error:
        warn(
            f"{folder.path}: {error.what}; give one command at a time in this folder: of two, the "
            "table may lack the other's cells until the command is given again (no run is lost)"
        )
        return
    what = "another trm-bench command is writing to this folder"
    raise UserError(what, folder.path, "wait for it, or choose another --out")


def _tidy(folder: ProtocolFolder) -> None:
    for inside in folder.written():
        remove_leftovers(inside)
        remove_stale(inside)
