"""Writing that leaves the whole file or none."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\.([A-Za-z0-9]+)-(\d+)-[0-9a-f]+\..+")
FORGOTTEN_SECONDS = 24 * 3600.0  # nobody writes to a temporary file for longer


def _host() -> str:
    name = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:24] or "host"
    known = []
    for ask in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"),
        lambda: str(Path("/proc/self/ns/pid").readlink()),
    ):
        with contextlib.suppress(OSError):  # Linux alone has them
            known.append(ask().strip())
    return name + hashlib.sha256(" ".join(known).encode()).hexdigest()[:8]


HOST = _host()
"""Letters and digits for the processes among which a process's number means something.

Two containers may have one name and the same numbers, and a machine that was started anew gives
its numbers again: so not the name alone counts, but the start and the space of numbers as well.
"""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary)` and renames the result to `path`.

    The temporary file lies beside `path`, so that a kill or a full disk never leaves a part under
    the final name.

    Raises:
        OSError: The disk is full, or the folder cannot be written; it names `path`.
    """
    temporary = temporary_for(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # The folder is not synchronised: after a power cut the name may lead to what was there
        # before, which is whole too, and a run without its record is done again.
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        _discard(temporary)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def temporary_for(path: Path) -> Path:
    """A name beside `path` that no other process, thread or machine takes.

    The ending stays as it is, since it tells some writers the format.
    """
    return path.with_name(f".{HOST}-{os.getpid()}-{secrets.token_hex(4)}.{path.name}")


def leftovers(folder: Path) -> list[Path]:
    """Temporary files right in a folder that nobody is going to finish.

    Those of dead processes of this machine, and all that are older than a day: whether a process
    of another machine lives, nobody here can know.
    """
    if not folder.is_dir():
        return []
    found = {p: m for p in sorted(folder.iterdir()) if (m := TEMPORARY.fullmatch(p.name))}
    dead = {path for path, m in found.items() if m[1] == HOST and not lives(int(m[2]))}
    if found.keys() == dead:
        return sorted(dead)
    oldest = clock(folder) - FORGOTTEN_SECONDS
    return [path for path in found if path in dead or _changed(path) < oldest]


def remove_leftovers(folder: Path) -> None:
    """Removes them."""
    for path in leftovers(folder):
        _discard(path)


def clock(folder: Path) -> float:
    """What time it is by the file system of a folder, by which its files' times are told.

    The clocks of a file server and of its clients may differ by minutes.

    Returns:
        Seconds since 1970; -inf where the folder cannot be written.
    """
    probe = temporary_for(folder / "clock")
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    except OSError:
        return -math.inf
    finally:
        _discard(probe)


def lives(process: int) -> bool:
    """Whether there is a process with this number; it is one of this `HOST`."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # finished or removed meanwhile
        return math.inf


def _discard(temporary: Path) -> None:
    # a folder that is a file, a disk that is gone: the error that led here says more
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
