"""Files that come from outside, and folders that are written: what they are, before they are used.

Nothing here blocks: pipes, devices and folders are refused before they are opened.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from trm_bench.errors import UserError


def exists(path: Path) -> bool:
    """Whether there is something; False where that cannot be found out, as for a long name."""
    return _mode(path) != 0


def is_file(path: Path) -> bool:
    """Whether there is a regular file; see `exists`."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether there is a folder; see `exists`."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def read_text(path: Path, most: int, fix: str = "check the path and the file") -> str:
    """The text of a UTF-8 file.

    Args:
        path: The file.
        most: Bytes that it may have.
        fix: What the person can do where it cannot be read.

    Raises:
        UserError: It is missing, no regular file, too large, or not text.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError("is not a regular file", path, fix)
        # NONBLOCK: should it have become a pipe since
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise UserError(f"is larger than {most} bytes", path, fix)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"is not text in UTF-8 ({error.reason})", path, fix) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot be read: {reason}", path, fix) from error
    if "\0" in text:
        raise UserError("is not text: it holds NUL", path, fix)
    return text


def ensure_writable(folder: Path, option: str = "--out") -> None:
    """Makes a folder that is to be written, and tries it; `option` names another one.

    Raises:
        UserError: It cannot be made, or no file can be made in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        fix = f"choose another {option}, or change its permissions"
        raise UserError(f"cannot be written: {reason}", folder, fix) from error
