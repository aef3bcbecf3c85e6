"""PyTorch's own files without PyTorch's own reader: what they hold, and the numbers of it.

Three layouts, told by their first bytes: the zip archive of `torch.save`, that of TorchScript
(which has code beside it, and it stays unread), and the row of pickles of PyTorch before 1.6.

Sizes are checked against the file before memory is taken, and only what is asked for is read: an
optimiser's state stays on the disk.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from trm_bench.checkpoints.pickles import MOST_BYTES, Made, Named, Persistent, Refused, read

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MOST_DEEP, MOST_VALUES = 64, 500_000  # of what a file holds
OTHER_ORDER = "has its numbers in another byte order, as machines seldom do"
KINDS = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
"""Storages by the name that precedes `Storage`; others (complex, quantised) are no weights."""


@dataclass(frozen=True)
class Archive:
    """A file of PyTorch's, as long as it is open.

    Attributes:
        format: `torch`, `torch before 1.6` or `torchscript`.
        content: As `pickles.read` gives it.
        bytes_of: Storage key and size to that many bytes.
    """

    format: str
    content: Any
    bytes_of: Callable[[str, int], bytearray]

    def tensors(self, within: Any) -> dict[str, Tensor]:
        """Name to tensor of all that a part of the content holds; names are joined by dots.

        Raises:
            Refused: One of them does not lie within its storage, or there is too much.
        """
        storages: dict[str, Tensor] = {}
        return {name: self._tensor(made, storages) for name, made in described(within)}

    def _tensor(self, made: Made, storages: dict[str, Tensor]) -> Tensor:
        try:
            storage, offset, shape, stride = made.arguments[:4]
            tag, kind, key, _, numbers, *view = storage.key
            dtype = KINDS[_kind(kind)]
            whole = all(type(n) is int and n >= 0 for n in (offset, numbers, *shape, *stride))
            if tag != "storage" or not whole or any(view) or len(shape) != len(stride):
                raise ValueError
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Refused("holds a tensor of a kind that weights do not have") from error
        count = prod(shape)
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if count > numbers or (count and last >= numbers):
            raise Refused(f"claims a tensor of shape {list(shape)[:8]} that it does not hold")
        if not count:
            return torch.empty(0, dtype=dtype)
        if key not in storages:
            content = self.bytes_of(str(key), numbers * dtype.itemsize)
            storages[key] = torch.frombuffer(content, dtype=torch.uint8)
        return storages[key].view(dtype).as_strided(shape, stride, offset)


def described(within: Any) -> Iterator[tuple[str, Made]]:
    """Names and descriptions of the tensors in a part of a file's content.

    Raises:
        Refused: There is too much, or it is nested too deep.
    """
    waiting: list[tuple[str, Any, int]] = [("", within, 0)]
    seen = 0
    while waiting:
        name, value, depth = waiting.pop()
        seen += 1
        if depth > MOST_DEEP or seen > MOST_VALUES:
            raise Refused("holds too many values, or holds itself")
        if isinstance(value, Made) and value.by == "torch._utils _rebuild_parameter":
            value = value.arguments[0] if value.arguments else None
        if isinstance(value, Made) and value.by.startswith("torch._utils _rebuild_tensor"):
            yield name, value
            continue
        inner = value.state if isinstance(value, Made) else value
        if isinstance(inner, list | tuple):
            inner = {str(n): item for n, item in enumerate(inner)}
        if isinstance(inner, dict):
            parts = [(f"{name}.{k}" if name else str(k), v, depth + 1) for k, v in inner.items()]
            waiting += reversed(parts)


# ------------------------------------------------------------------------------------------ layouts


def is_archive(start: bytes) -> bool:
    """Whether a file that begins so may be one of PyTorch's."""
    return start.startswith(b"PK\x03\x04") or start[:1] == b"\x80"


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """What a file of PyTorch's holds.

    Raises:
        OSError: It cannot be read.
        Refused: It is damaged, holds code, or is none.
    """
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        if start != b"PK":
            yield _legacy(file)
            return
        with _damage():
            archive = zipfile.ZipFile(file)
        yield _zipped(archive, os.fstat(file.fileno()).st_size)


@contextmanager
def _damage() -> Iterator[None]:
    """Tells what zipfile meets, in many a kind of exception, where bytes are not as they should."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refused(f"is a damaged archive: {said}") from error


def _zipped(archive: zipfile.ZipFile, size: int) -> Archive:
    names = set(archive.namelist())
    inside = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(inside) != 1:
        raise Refused("is a zip archive without the data.pkl of PyTorch")
    top, left = inside[0].removesuffix("data.pkl"), size

    def entry(name: str, most: int) -> bytearray:
        nonlocal left
        if top + name not in names:
            raise Refused(f"is a damaged archive: it lacks '{name[:60]}'")
        info = archive.getinfo(top + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise Refused("is compressed, which PyTorch never does")
        left -= info.file_size  # entries may be made to share bytes
        if info.file_size > most or left < 0:
            raise Refused(f"claims {info.file_size} bytes in '{name[:60]}', which it cannot hold")
        with _damage():
            return bytearray(archive.read(info))

    def bytes_of(key: str, wanted: int) -> bytearray:
        content = entry(f"data/{key}", size)
        if len(content) < wanted:
            raise Refused(f"claims {wanted} bytes in a storage of {len(content)}")
        return content[:wanted]

    if f"{top}byteorder" in names and entry("byteorder", 16) != b"little":
        raise Refused(OTHER_ORDER)
    content = read(io.BytesIO(entry("data.pkl", MOST_BYTES)))
    code = any(n == f"{top}constants.pkl" or n.startswith(f"{top}code/") for n in names)
    return Archive("torchscript" if code else "torch", content, bytes_of)


def _legacy(file: BinaryIO) -> Archive:
    """A magic number, a version, notes, the content, the keys of storages, each in a pickle; then
    each storage: how many numbers, and they.
    """
    if read(file, 64) != LEGACY_MAGIC or read(file, 64) != LEGACY_PROTOCOL:
        raise Refused("is a pickle, but none of PyTorch's")
    notes = read(file, 4096)
    if not isinstance(notes, dict) or notes.get("little_endian") is not True:
        raise Refused(OTHER_ORDER)
    outside: list[Persistent] = []
    content, keys = read(file, outside=outside), read(file)
    sizes = {}
    for storage in outside:
        if isinstance(storage.key, tuple) and len(storage.key) > 2:
            sizes[str(storage.key[2])] = KINDS.get(_kind(storage.key[1]), torch.uint8).itemsize
    places: dict[str, tuple[int, int]] = {}
    end, at = os.fstat(file.fileno()).st_size, file.tell()
    for key in map(str, keys if isinstance(keys, list) else []):
        file.seek(at)
        head = file.read(8)
        length = struct.unpack("<q", head)[0] * sizes.get(key, 1) if len(head) == 8 else -1
        if not 0 <= length <= end - at - 8:
            raise Refused("is shorter than it claims")
        places[key] = (at + 8, length)
        at += 8 + length

    def bytes_of(key: str, wanted: int) -> bytearray:
        start, length = places.get(key, (0, 0))
        if length < wanted:
            raise Refused(f"claims {wanted} bytes in a storage of {length}")
        file.seek(start)
        return bytearray(file.read(wanted))

    return Archive("torch before 1.6", content, bytes_of)


def _kind(named: Any) -> str:
    """`Float` of `torch FloatStorage`."""
    return named.name.split()[-1].removesuffix("Storage") if isinstance(named, Named) else ""
