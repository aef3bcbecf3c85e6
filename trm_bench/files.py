"""Writing that leaves the whole file or none."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32] or "host"
TEMPORARY = re.compile(r"\.([A-Za-z0-9]+)-(\d+)\..+")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary)` and renames the result to `path`.

    The temporary file lies beside `path`, so that a kill or a full disk never leaves a part under
    the final name.

    Raises:
        OSError: The disk is full, or the folder cannot be written; it names `path`.
    """
    # the ending stays as it is, since it tells some writers the format
    temporary = path.with_name(f".{HOST}-{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
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


def leftovers(folder: Path) -> list[Path]:
    """Temporary files right in a folder, of processes of this machine that are dead."""
    if not folder.is_dir():
        return []
    found = ((path, TEMPORARY.fullmatch(path.name)) for path in sorted(folder.iterdir()))
    return [p for p, m in found if m and m[1] == HOST and not _lives(int(m[2]))]


def remove_leftovers(folder: Path) -> None:
    """Removes them."""
    for path in leftovers(folder):
        _discard(path)


def _discard(temporary: Path) -> None:
    # a folder that is a file, a disk that is gone: the error that led here says more
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
