"""Archives that anybody may download: resumed, checked, extracted; whole or not there at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from trm_bench import datasets
from trm_bench.datasets.base import Archive, Dataset
from trm_bench.errors import UserError, nearest
from trm_bench.inputs import ensure_writable, exists
from trm_bench.runs.locks import take

if TYPE_CHECKING:
    from requests import Response

MOST_BYTES = 2**36  # of an archive
MOST_FILES = 100_000  # in one
CHUNK = 2**16  # bytes; what a broken connection may lose
TIMEOUT = (30, 60)  # seconds to connect, and between two chunks
AGAIN = "give the same command again: it goes on where this one stopped"

Progress = Callable[[int, int | None], None]
"""Is told the bytes that are here, and those of the whole archive where that is known."""


def find(name: str) -> tuple[type[Dataset], Archive]:
    """The archive of that name and the dataset that it belongs to.

    Raises:
        UserError: There is none; for a dataset's name it says what to do instead.
    """
    names = datasets.REGISTRY.names()
    archives = []
    for kind in map(datasets.REGISTRY.get, names):
        if name in kind.archives:
            return kind, kind.archives[name]
        archives += list(kind.archives)
    if name not in names:
        raise UserError(f"no archive '{name}'", None, nearest(name, [*archives, *names]))
    kind = datasets.REGISTRY.get(name)
    if kind.archives:
        what, fix = "consists of several archives", f"name one: {', '.join(kind.archives)}"
        raise UserError(what, name, fix)
    how = f"get it there ({kind.access}): {kind.url}" if kind.url else "ask whoever has it"
    layout = "\n".join(f"    {line}" for line in kind.layout.splitlines())
    what = "nothing here may download it" if kind.access == "registration" else "is not downloaded"
    raise UserError(what, name, f"{how}\n  it is expected to look so:\n{layout}")


def fetch(name: str, archive: Archive, folder: Path, progress: Progress) -> bool:
    """Downloads an archive and extracts it to ``folder/name``; after a kill, it goes on.

    Args:
        name: Of the archive, and of the folder that it holds.
        archive: Where it is.
        folder: Where the extracted folder is to lie.
        progress: Is told how far it is.

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: The folder cannot be written or lacks the space, the server does not answer or
            has another file, or the archive holds what it should not.
    """
    target, part = folder / name, folder / f".{name}.tar.part"
    temporary = folder / f".{name}.extracted"
    if exists(target):  # a command that was killed at its very end may have left the others
        part.unlink(missing_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        return False
    ensure_writable(folder)
    # by O_NOFOLLOW a link that lies there is not written through
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    with os.fdopen(handle, "r+b") as file:
        if not take(file.fileno(), part):
            raise UserError("another command downloads this", part, "wait for it")
        if not exists(target):  # else that other command has just ended
            _receive(archive.url, file, part, progress)
            _verify(file, archive, part)
            _extract(part, temporary, target)
        part.unlink(missing_ok=True)
    return True


def _receive(url: str, file: IO[bytes], part: Path, progress: Progress) -> None:
    """Appends what the file lacks; a connection that breaks is made again while bytes arrive."""
    import requests

    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            headers = {"Accept-Encoding": "identity"}
            if before:
                headers["Range"] = f"bytes={before}-"
            with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                if _append(response, file, part, before, progress):
                    return
        except requests.RequestException as error:
            if file.seek(0, os.SEEK_END) <= before:
                if not before:
                    part.unlink(missing_ok=True)
                reason = " ".join(str(_innermost(error)).split())[:200]
                raise UserError(f"cannot be downloaded: {reason}", url, AGAIN) from error


def _innermost(error: BaseException) -> BaseException:
    """What the libraries between here and the network had to say something about."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _append(
    response: Response, file: IO[bytes], part: Path, before: int, progress: Progress
) -> bool:
    """Whether the file is complete now; where not, what was there is of no use and is gone."""
    said = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""), re.ASCII
    )
    if before and response.status_code in (206, 416):
        if said is None or (said[1] or said[2]) != str(before):
            file.truncate(0)
            return False
        if said[1] is None:  # 416: there is nothing from the last byte on
            return True
        total: int | None = int(said[2])
    elif response.status_code == 200:  # the whole file, also where the server knows no ranges
        file.truncate(0)
        length = response.headers.get("Content-Length", "")
        before, total = 0, int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else None
    else:
        what = f"the server answers {response.status_code} {response.reason}"
        raise UserError(what, response.url, "try again later, or look where the file is now")
    # the archive and, beside it, what is extracted from it
    needed, free = 2 * (total or 0) - before, shutil.disk_usage(part.parent).free
    if needed > free:
        what = f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
        raise UserError(what, part.parent, "make room, or choose another --out")
    for chunk in response.iter_content(CHUNK):
        file.write(chunk)
        file.flush()
        before += len(chunk)
        if before > MOST_BYTES:
            raise UserError(f"more than {MOST_BYTES} bytes", response.url, "report this")
        progress(before, total)
    return True


def _verify(file: IO[bytes], archive: Archive, part: Path) -> None:
    algorithm, _, expected = archive.checksum.partition(":")
    file.seek(0)
    found = hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]  # a file
    if found != expected:
        part.unlink()
        what = f"what was downloaded has the {algorithm} {found}, not {expected}, and was removed"
        raise UserError(what, archive.url, "give the same command again")


def _extract(part: Path, temporary: Path, target: Path) -> None:
    """The archive's folder to `target`, which is there when all of it is."""
    shutil.rmtree(temporary, ignore_errors=True)  # of a command that was killed
    fix, size, number = f"report this; the archive is {part}", 0, 0
    try:
        with tarfile.open(part, "r:") as archive:  # not compressed: no larger than itself
            for member in archive:
                size, number = size + member.size, number + 1
                plain = (member.isreg() or member.isdir()) and not member.issparse()
                if not plain or size > part.stat().st_size or number > MOST_FILES:
                    raise UserError(f"holds {member.name[:200]!r}, no plain file", part, fix)
                archive.extract(member, temporary, filter="data")
    except tarfile.TarError as error:
        raise UserError(f"cannot be extracted: {error}", part, fix) from error
    inside = temporary / target.name
    if not inside.is_dir():
        raise UserError(f"holds no folder {target.name}", part, fix)
    inside.rename(target)
    shutil.rmtree(temporary, ignore_errors=True)
