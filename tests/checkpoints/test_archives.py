"""PyTorch's files are read as data: the same numbers as PyTorch reads, and no code of any file."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import files
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trm_bench import checkpoints
from trm_bench.checkpoints import archives, pickles
from trm_bench.errors import UserError

ZIP, LEGACY = {"_use_new_zipfile_serialization": True}, {"_use_new_zipfile_serialization": False}
BOTH = pytest.mark.parametrize("layout", [ZIP, LEGACY], ids=["zip", "legacy"])


@BOTH
def test_the_numbers_are_those_that_pytorch_reads(layout: dict[str, bool], tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save({**files.odd_state(), "note": "no tensor", "step": 3}, file, **layout)
    foreign = checkpoints.read(file)
    expected = torch.load(file, weights_only=True)
    del expected["note"], expected["step"]
    assert list(foreign.tensors) == list(expected)
    for name, tensor in expected.items():
        own = foreign.tensors[name]
        assert own.dtype == tensor.dtype and torch.equal(own.view(tensor.shape), tensor), name
    assert foreign.format == ("torch" if layout is ZIP else "torch before 1.6")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * self.sizes[0]


def test_torchscript_gives_its_tensors_by_attribute_path(tmp_path: Path) -> None:
    file, network = tmp_path / "script.pt", Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.save(torch.jit.script(network), file)
    foreign = checkpoints.read(file)
    assert foreign.format == "torchscript" and list(foreign.tensors) == list(network.state_dict())
    assert all(torch.equal(foreign.tensors[k], v) for k, v in network.state_dict().items())


# --------------------------------------------------------------------------------------------- code


class Writes:
    """Writes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


class Odd(dict):
    """Code of its own in a checkpoint."""


@pytest.mark.parametrize("protocol", [2, 4])
def test_no_code_is_run(protocol: int, tmp_path: Path) -> None:
    trap, file = tmp_path / "trap", tmp_path / "weights.pt"
    content = {"state_dict": {"w": torch.zeros(2)}, "optimizer": [Writes(trap)]}
    for layout in (ZIP, LEGACY):
        torch.save(content, file, pickle_protocol=protocol, **layout)
        with pytest.raises(UserError, match=r"names '\w+\.mkdir': that is code"):
            checkpoints.read(file)
    for lower in range(protocol + 1):
        file.write_bytes(pickle.dumps(content, lower))
        with pytest.raises(UserError):
            checkpoints.read(file)
    assert not trap.exists()
    with pytest.raises(FileNotFoundError):  # the trap would have worked
        pickle.loads(pickle.dumps(Writes(trap / "inner")))  # noqa: S301


def test_a_whole_network_or_a_class_of_ones_own_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "network.pt"
    for content in (nn.Conv2d(1, 1, 1), Odd(w=torch.zeros(1))):
        torch.save(content, file)
        with pytest.raises(UserError, match=r"torch\.save\(network\.state_dict\(\), FILE\)"):
            checkpoints.read(file)


# ------------------------------------------------------------------------------------------- damage


def whole(file: Path) -> bytes:
    torch.save({"a.weight": torch.randn(3, 4), "b": torch.arange(6)}, file)
    return file.read_bytes()


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80", b"text", b"\x80\x02.", b"\x80\x02]."])
def test_what_is_no_checkpoint_is_said(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(content)
    with pytest.raises(UserError, match="cannot be used as a checkpoint"):
        checkpoints.read(file)


@BOTH
def test_every_truncated_file_is_refused(layout: dict[str, bool], tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"a.weight": torch.randn(3, 4)}, file, **layout)
    content = file.read_bytes()
    for length in range(0, len(content) - 1, 7):
        file.write_bytes(content[:length])
        with pytest.raises(UserError):
            checkpoints.read(file)


def test_other_bytes_are_refused_or_read_but_nothing_else(tmp_path: Path) -> None:
    """Of both layouts and of safetensors, a byte or a few exchanged."""
    draws, file = random.Random(0), tmp_path / "weights"
    torch.save({"a.weight": torch.randn(3, 4), "b": torch.arange(6)}, file, **LEGACY)
    kinds = [file.read_bytes(), whole(file)]
    save_file({"a.weight": torch.randn(3, 4)}, file)
    kinds.append(file.read_bytes())
    refused = 0
    for content in kinds:
        for _ in range(150):
            bytes_ = bytearray(content)
            for _ in range(draws.choice((1, 1, 4))):
                bytes_[draws.randrange(len(bytes_))] = draws.randrange(256)
            file.write_bytes(bytes_)
            try:
                checkpoints.read(file)
            except UserError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "pickle, message",
    [
        (files.tensor(2**40, (2**40,), (1,)), "claims"),
        (files.tensor(8, (2**40,), (0,)), "claims a tensor of shape"),
        (files.tensor(8, (3,), (4,)), "claims a tensor of shape"),
        (files.tensor(8, (4,), (1,), offset=5), "claims a tensor of shape"),
        (files.tensor(9, (4,), (1,)), "in a storage of 32"),
        (files.tensor(8, (2, 2**70), (1, 1)), "claims a tensor of shape"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.", "are claimed"),
        (b"\x80\x02]" + 30 * b"(h\x00h\x00h\x00l", "damaged"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00wh\x00s.", "holds no tensors"),
        (b"\x80\x02" + 200 * b"(" + b"K\x01" + 200 * b"l" + b".", "no mapping"),
    ],
)
def test_what_a_header_claims_is_checked(pickle: bytes, message: str, tmp_path: Path) -> None:
    file = files.zipped(tmp_path / "weights.pt", pickle, {"0": bytes(32)})
    with pytest.raises(UserError, match=message):
        checkpoints.read(file)


def test_the_claims_are_read_where_they_are_true(tmp_path: Path) -> None:
    content = np.arange(8, dtype=np.float32).tobytes()
    file = files.zipped(tmp_path / "w.pt", files.tensor(8, (2, 3), (1, 2), 1), {"0": content})
    assert checkpoints.read(file).tensors["w"].tolist() == [[1, 3, 5], [2, 4, 6]]


def test_lists_of_lists_of_lists_do_not_grow() -> None:
    """Each list holds the one before ten times: 10**30 values, were they counted one by one."""
    laughs = b"\x80\x02]q\x00" + b"".join(
        b"(" + 10 * (b"h" + bytes([n])) + b"l" + b"q" + bytes([n + 1]) for n in range(30)
    )
    value = pickles.read(io.BytesIO(laughs + b"."))
    with pytest.raises(pickles.Refused, match="too many values"):
        list(archives.described(value))


def test_a_safetensors_header_that_claims_too_much(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(struct.pack("<Q", 2**40) + b'{"w":1}')
    with pytest.raises(UserError, match="damaged safetensors"):
        checkpoints.read(file)


def test_compressed_and_shared_entries_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(UserError, match="compressed"):
        checkpoints.read(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/byteorder", b"big")
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(UserError, match="byte order"):
        checkpoints.read(file)


def test_the_place_and_the_checksum_are_checked(tmp_path: Path) -> None:
    file, pipe = tmp_path / "weights.pt", tmp_path / "pipe"
    content = whole(file)
    digest = checkpoints.read(file).sha256
    assert checkpoints.read(file, digest.upper()).sha256 == digest
    with pytest.raises(UserError, match=f"its sha256 is {digest}"):
        checkpoints.read(file, "0" * 64)
    os.mkfifo(pipe)
    for path, message in (
        (pipe, "not a plain file"),
        (tmp_path, "no MONAI bundle"),
        (tmp_path / "none.pt", "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoints.read(path)
    file.write_bytes(content[::-1])
    with pytest.raises(UserError, match="is another file"):
        checkpoints.read(file, digest)
