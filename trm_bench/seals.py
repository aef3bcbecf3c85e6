"""Seals: files that hold the sha256 of their own bytes, so that damage is noticed on reading.

The checksum is taken with 64 zeros in its own place. So every byte counts, and there is no second
file that could be lost or belong to another version. A seal finds damage and mix-ups; whoever wants
to forge a file can seal it again.

A text (JSON, YAML) is sealed as a whole. Of a safetensors file the header is, in which the checksum
of the rest stands too, so that a header can be trusted before gigabytes are read.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm_bench.errors import Damaged
from trm_bench.files import write_atomically, write_text

if TYPE_CHECKING:
    from torch import Tensor

BLANK = "0" * 64  # where the seal will stand
NO_PAYLOAD = "f" * 64  # where the checksum of the tensors will stand
# the last one is the seal, whichever the format and its escapes
SEAL = re.compile(rb'sha256(?:\\?")?: (?:\\?")?([0-9a-f]{64})')
LARGEST_TEXT = 256 * 2**20
LARGEST_HEADER = 64 * 2**20
METADATA = "trm_bench"  # one key alone: safetensors writes several in any order


def write_sealed(path: Path, text: str) -> None:
    """Writes a text atomically, with its checksum in the place of its last `BLANK`."""
    write_text(path, _sealed(text))


def read_sealed(path: Path) -> str:
    """The text of a sealed file, as it was written.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        Damaged: It is not what was written.
    """
    content = _whole(path)
    _require_seal(path, content)
    return content.decode()


def unsealed(path: Path) -> str | None:
    """The text of a file that has no seal, such as one of an earlier version; None where it has."""
    content = _whole(path)
    return None if SEAL.search(content) else content.decode(errors="replace")


def _sealed(text: str) -> str:
    before, blank, after = text.rpartition(BLANK)
    assert blank, "there is no place for the seal"
    return before + hashlib.sha256(text.encode()).hexdigest() + after


def _whole(path: Path) -> bytes:
    require_file(path)
    with path.open("rb") as file:
        content = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        raise Damaged(f"is larger than {LARGEST_TEXT >> 20} MiB", path)
    return content


def require_file(path: Path) -> None:
    """Only a plain file is opened: reading from a pipe or a device might never end.

    Raises:
        FileNotFoundError: There is nothing.
        Damaged: It is something else.
    """
    if path.is_symlink() and not path.exists():
        raise Damaged("is a link that leads nowhere", path)
    path.stat()
    if not path.is_file():
        raise Damaged("is not a plain file", path)


def _require_seal(path: Path, content: bytes) -> None:
    """Raises `Damaged` unless a text or header carries its seal."""
    found = list(SEAL.finditer(content))
    if not found:
        raise Damaged("carries no checksum", path)
    start, end = found[-1].span(1)
    actual = hashlib.sha256(content[:start] + BLANK.encode() + content[end:]).hexdigest()
    if actual != found[-1][1].decode():
        raise Damaged("is not what was written: its checksum differs", path)


# ---------------------------------------------------------------------------------------- tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Any) -> None:
    """Writes tensors and what is known of them as a sealed safetensors file.

    Args:
        path: Where to.
        tensors: By name.
        about: JSON.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # cloned, since safetensors takes no memory twice, and networks list modules under two names
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    note = {"about": about, "payload": NO_PAYLOAD, "sha256": BLANK}
    metadata = {METADATA: json.dumps(note, allow_nan=False)}

    def write(temporary: Path) -> None:
        try:
            save_file(own, temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk, in words alone
            raise OSError(None, str(error)) from error
        with temporary.open("r+b") as file:
            header = file.read(_header_size(file.read(8), temporary)).decode()
            payload = _rest(file)
            before, _, after = header.rpartition(NO_PAYLOAD)
            file.seek(8)
            file.write(_sealed(before + payload + after).encode())

    write_atomically(path, write)


def read_about(path: Path) -> Any:
    """What a sealed safetensors file says of its tensors, which are not read.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        Damaged: It is not what was written.
    """
    return _note(path)["about"]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a sealed safetensors file, all of them.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        Damaged: It is not what was written.
    """
    from safetensors.torch import load_file

    require_tensors(path)
    return load_file(path)


def require_tensors(path: Path) -> None:
    """Raises `Damaged` unless header and tensors of a safetensors file are what was written.

    A file is read once by a process, until it changes.
    """
    payload = _note(path)["payload"]
    stat = path.stat()
    if _payload(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) != payload:
        raise Damaged("is not what was written: the checksum of its tensors differs", path)


@cache
def _payload(path: Path, *stat: int) -> str:
    with path.open("rb") as file:
        file.seek(8 + _header_size(file.read(8), path))
        return _rest(file)


def digest_of_file(path: Path) -> str:
    """The sha256 of a plain file, which is read once by a process, until it changes.

    Raises:
        OSError: There is none, or it cannot be read.
    """
    require_file(path)
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@cache
def _digest(path: Path, *stat: int) -> str:
    with path.open("rb") as file:
        return _rest(file)


def _rest(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def require_digest(path: Path, digest: str) -> None:
    """Raises `Damaged` unless a file has this sha256, or an OSError where there is none."""
    if digest_of_file(path) != digest:
        raise Damaged("is not what was written: its checksum differs", path)


def _note(path: Path) -> dict[str, Any]:
    require_file(path)
    with path.open("rb") as file:
        size = _header_size(file.read(8), path)
        header = file.read(size)
    _require_seal(path, header)
    try:
        note: dict[str, Any] = json.loads(json.loads(header)["__metadata__"][METADATA])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("is not a file of trm-bench", path) from error
    return note


def _header_size(first: bytes, path: Path) -> int:
    size = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 0 < size <= LARGEST_HEADER:
        raise Damaged("is no safetensors file", path)
    return int(size)
