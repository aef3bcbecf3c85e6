"""Seals notice every byte, and reading never waits for what is no file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from trm_bench.errors import Damaged
from trm_bench.seals import (
    BLANK,
    digest_of_file,
    read_about,
    read_sealed,
    read_tensors,
    require_digest,
    require_tensors,
    unsealed,
    write_sealed,
    write_tensors,
)

JSON = f'{{\n "a": "sha256: {"1" * 64}",\n "b": 0.1,\n "sha256": "{BLANK}"\n}}\n'
TENSORS = {"one": torch.arange(24.0).reshape(2, 3, 4), "two": torch.zeros(5, dtype=torch.uint8)}


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    path.write_bytes(content)


def test_a_seal_is_the_checksum_with_zeros_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, JSON)
    text = read_sealed(path)
    seal = hashlib.sha256(JSON.encode()).hexdigest()
    assert text == JSON.replace(BLANK, seal) and unsealed(path) is None


@given(st.integers(0, len(JSON) - 1), st.integers(0, 7))
@examples(60)
def test_every_byte_of_a_text_counts(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.json"
    write_sealed(path, JSON)
    flip(path, position, bit)
    with pytest.raises(Damaged):
        read_sealed(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b + b" ",
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b.replace(b"0.1", b"0.2"),
        lambda b: JSON.encode(),
    ],
)
def test_other_texts_are_told(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, JSON)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Damaged) as told:
        read_sealed(path)
    assert told.value.where == str(path)


def test_tensors_are_read_back_with_what_is_known_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    about = {"name": "a", "values": [1, 2.5, None]}
    write_tensors(path, {**TENSORS, "shared": TENSORS["one"]}, about)
    assert read_about(path) == about
    read = read_tensors(path)
    assert read.keys() == {*TENSORS, "shared"}
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    again = tmp_path / "b.safetensors"
    write_tensors(again, {**TENSORS, "shared": TENSORS["one"]}, about)
    assert again.read_bytes() == path.read_bytes(), "the same content gives the same file"


@given(st.integers(0, 10_000), st.integers(0, 7))
@examples(80)
def test_every_byte_of_a_tensor_file_counts(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "a.safetensors"
    write_tensors(path, TENSORS, {})
    size = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    flip(path, position, bit)
    with pytest.raises(Damaged):
        require_tensors(path)
    if position % path.stat().st_size < size:
        with pytest.raises(Damaged):
            read_about(path)


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {})
    require_tensors(path)
    digest = digest_of_file(path)
    require_digest(path, digest)
    flip(path, -1)
    os.utime(path, ns=(1, 1))  # as a copy that keeps other times
    with pytest.raises(Damaged):
        require_tensors(path)
    with pytest.raises(Damaged):
        require_digest(path, digest)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/zero")])
@pytest.mark.parametrize("read", [read_sealed, read_about, read_tensors, digest_of_file])
def test_what_is_no_file_is_never_waited_for(
    tmp_path: Path, make: Callable[[Path], object], read: Callable[[Path], object]
) -> None:
    make(tmp_path / "odd")
    with pytest.raises(Damaged, match="plain file"):
        read(tmp_path / "odd")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


# ------------------------------------------------------------------------------------------ files
