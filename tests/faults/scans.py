"""Cases of data: NIfTI files, dataset.json and partitioning csv, damaged in every way."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from faults.base import Base, write_protocol
from faults.case import CODE, Case, Scene, shown

NAME = "toy_000"
FLIPS = 100
Damage = Callable[[Path, random.Random], bool]
"""Damages a file; returns whether it must be refused."""


# Bytes of a compressed file


def flip(path: Path, draws: random.Random) -> bool:
    before = gzip.decompress(path.read_bytes())
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content))] ^= draws.randrange(1, 256)
    path.write_bytes(content)
    try:
        return gzip.decompress(bytes(content)) != before
    except Exception:  # whatever broken compression raises
        return True


def cut(path: Path, draws: random.Random) -> bool:
    content = path.read_bytes()
    path.write_bytes(content[: draws.randrange(len(content))])
    return True


def bad_checksum(path: Path, draws: random.Random) -> bool:
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF
    path.write_bytes(content)
    return True


def bad_length(path: Path, draws: random.Random) -> bool:
    content = bytearray(path.read_bytes())
    content[-4:] = struct.pack("<I", 7)
    path.write_bytes(content)
    return True


def not_compressed(path: Path, draws: random.Random) -> bool:
    path.write_bytes(draws.randbytes(3000))
    return True


def empty(path: Path, draws: random.Random) -> bool:
    path.write_bytes(b"")
    return True


def compressed_bomb(path: Path, draws: random.Random) -> bool:
    """A few kilobytes that promise and hold a lot of zeros."""
    head = bytearray(gzip.decompress(path.read_bytes())[:352])
    struct.pack_into("<8h", head, 40, 3, 2000, 2000, 2000, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(bytes(head) + bytes(20_000_000), 9))
    return True


# Bytes of the image in it


def header(path: Path, draws: random.Random) -> bool:
    """Some bytes of the header become others; what that means is anybody's guess."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    for _ in range(draws.choice((1, 1, 2, 8))):
        content[draws.randrange(352)] = draws.randrange(256)
    path.write_bytes(gzip.compress(bytes(content), 1))
    return False


def promised(sizes: tuple[int, ...], path: Path, draws: random.Random) -> bool:
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<8h", content, 40, *sizes)
    path.write_bytes(gzip.compress(bytes(content), 1))
    return True


def short_payload(path: Path, draws: random.Random) -> bool:
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[: draws.randrange(353, len(content))], 1))
    return True


SIZES = {
    "no dimensions": (0, 1, 1, 1, 1, 1, 1, 1),
    "one dimension": (1, 4096, 1, 1, 1, 1, 1, 1),
    "an empty axis": (3, 16, 0, 16, 1, 1, 1, 1),
    "a negative axis": (3, 16, -16, 16, 1, 1, 1, 1),
    "32767 along each axis": (3, 32767, 32767, 32767, 1, 1, 1, 1),
    "seven axes of 32767": (7, 32767, 32767, 32767, 32767, 32767, 32767, 32767),
    "nine dimensions": (9, 16, 16, 16, 1, 1, 1, 1),
    "another size": (3, 16, 16, 15, 1, 1, 1, 1),
    "a second volume": (4, 16, 16, 8, 2, 1, 1, 1),
}


# Images that are whole and wrong


def image(change: Callable[[np.ndarray], np.ndarray], path: Path, draws: random.Random) -> bool:
    old: Any = nib.load(path)
    array = change(np.asarray(old.dataobj).copy())
    nib.save(nib.Nifti1Image(array, old.affine), path)
    return True


def affine(change: Callable[[np.ndarray], np.ndarray], path: Path, draws: random.Random) -> bool:
    old: Any = nib.load(path)
    new = nib.Nifti1Image(np.asarray(old.dataobj), None)
    new.header.set_sform(change(old.affine.copy()), code=1)
    new.header.set_qform(None, code=0)
    nib.save(new, path)
    return True


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array[3, 3, 3] = value
        return array

    return change


def colours(array: np.ndarray) -> np.ndarray:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    return np.zeros(array.shape, kind)


IMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "NaN": put(float("nan")),
    "infinite": put(float("inf")),
    "minus infinite": put(float("-inf")),
    "colours": colours,
    "complex": lambda array: array.astype(np.complex64) + 1j,
    "another shape": lambda array: array[:-1],
    "two dimensions": lambda array: array[0],
    "four dimensions": lambda array: np.stack([array, array], -1),
}
AFFINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "singular": lambda a: np.diag([0.0, 1, 1, 1]),
    "all zeros": lambda a: np.zeros((4, 4)),
    "NaN": lambda a: a * float("nan"),
    "infinite": lambda a: np.diag([float("inf"), 1, 1, 1]),
    "1e-30 mm": lambda a: np.diag([1e-30, 1e-30, 1e-30, 1]),
    "1e30 mm": lambda a: np.diag([1e30, 1e30, 1e30, 1]),
}


# Places


def gone(path: Path, draws: random.Random) -> bool:
    path.unlink()
    return True


def a_folder(path: Path, draws: random.Random) -> bool:
    path.unlink()
    path.mkdir()
    return True


def a_pipe(path: Path, draws: random.Random) -> bool:
    path.unlink()
    os.mkfifo(path)
    return True


def a_link(to: str, path: Path, draws: random.Random) -> bool:
    path.unlink()
    path.symlink_to(to)
    return True


def a_link_out(path: Path, draws: random.Random) -> bool:
    """A good file, outside the root of the data."""
    outside = path.parents[2] / f"outside-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)
    return True


DAMAGES: dict[str, Damage] = {
    "a wrong checksum": bad_checksum,
    "a wrong length": bad_length,
    "garbage": not_compressed,
    "empty": empty,
    "a bomb": compressed_bomb,
    "gone": gone,
    "a folder": a_folder,
    "a pipe": a_pipe,
    "a link out of the root": a_link_out,
    "a broken link": partial(a_link, "nowhere"),
    "a link to itself": partial(a_link, f"{NAME}.nii.gz"),
    "a link to /dev/zero": partial(a_link, "/dev/zero"),
    "a link to /etc/passwd": partial(a_link, "/etc/passwd"),
    **{f"promises {name}": partial(promised, sizes) for name, sizes in SIZES.items()},
    **{f"image: {name}": partial(image, change) for name, change in IMAGES.items()},
    **{f"affine: {name}": partial(affine, change) for name, change in AFFINES.items()},
}
OF_LABELS: dict[str, Damage] = {
    "image: a label of 9": partial(image, lambda a: np.where(a == 2, 9, a).astype(np.uint8)),
    "image: a negative label": partial(image, lambda a: np.where(a == 2, -1, a.astype(np.int16))),
    "image: half a label": partial(image, lambda a: np.where(a == 2, 1.5, a).astype(np.float32)),
}
OF_IMAGES: dict[str, Damage] = {
    "image: constant": partial(image, lambda a: np.zeros_like(a)),
}


def scan(folder: str, damage: Damage, seed: str, command: str, scene: Scene) -> None:
    """One file of one subject is damaged."""
    data = scene.folder / "data"
    shutil.copytree(scene.base.data, data)
    path = data / folder / f"{NAME}.nii.gz"
    refused = damage(path, random.Random(seed))
    codes = (2,) if refused else (0, 2)
    if command == "risk-map":
        if damage in (a_link_out, OF_LABELS["image: a label of 9"]):
            codes = (0, 2)  # the person named the file; and any number may be a class there
        image, label = (data / f / f"{NAME}.nii.gz" for f in ("imagesTr", "labelsTr"))
        given = ("--image", image, "--label", label, "--out", "map.nii.gz")
        checkpoint = ("--checkpoint", scene.base.source)
        scene.call("risk-map", *checkpoint, *given, codes=codes, names=[path.name])
        if refused and codes == (2,) and (scene.folder / "map.nii.gz").exists():
            scene.fault(CODE, f"wrote a map of {path.name}")
        return
    write_protocol(scene.folder / "p.yaml", data)
    tail = ("--out", "out") if command == "check" else ()
    names = [path.name, NAME]
    scene.call(*command.split(), "p.yaml", *tail, codes=codes, names=names)


# dataset.json

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3.5, "", "text", "../../../etc/passwd", "/etc/passwd", "/dev/zero", "a\0b",
    "x" * 5000, "\ud800", [], {}, [[]], [None], [{}], {"a": {}}, float("nan"), float("inf"), 10**30,
)  # fmt: skip
TEXTS: dict[str, str] = {
    "empty": "",
    "null": "null",
    "a list": "[]",
    "a number": "7",
    "deep lists": "[" * 20_000 + "]" * 20_000,
    "deep mappings": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "a long number": "1" * 5000,
    "not JSON": "{",
    "no training": '{"labels": {}}',
}


def about(change: Callable[[Path, random.Random], object], seed: str, scene: Scene) -> None:
    """dataset.json is changed."""
    data = scene.folder / "data"
    shutil.copytree(scene.base.data, data)
    change(data / "dataset.json", random.Random(seed))
    write_protocol(scene.folder / "p.yaml", data)
    names = ["dataset.json", "toy_", "data.root", "subject", str(data)]
    answer = scene.call("data", "check", "p.yaml", codes=(0, 2), names=names)
    if "root:" in answer.output:
        scene.fault(CODE, f"shows what is in a file outside the root: {shown(answer)}")


def some_value(index: int, path: Path, draws: random.Random) -> None:
    content = json.loads(path.read_text())
    node: Any = content
    while True:
        key = draws.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not (isinstance(node[key], dict | list) and node[key] and draws.random() < 0.7):
            break
        node = node[key]
    if index < len(VALUES):
        node[key] = VALUES[index]
    elif isinstance(node, list):
        node.append(node[key])
    else:
        del node[key]
    path.write_text(json.dumps(content))


def some_bytes(path: Path, draws: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draws.choice((1, 3, 20))):
        content[draws.randrange(len(content))] = draws.randrange(256)
    path.write_bytes(content[: draws.choice((len(content), draws.randrange(len(content))))])


def a_text(text: str, path: Path, draws: random.Random) -> None:
    path.write_text(text)


# The csv of institutions

CSV = "Partition_ID,Subject_ID\n" + "".join(f"{i % 2 + 1},FeTS_{i:03d}\n" for i in range(8))


def write_fets(root: Path) -> None:
    """Eight subjects of four modalities, of a few voxels."""
    draws = np.random.default_rng(0)
    for i in range(8):
        folder = root / f"FeTS_{i:03d}"
        folder.mkdir(parents=True)
        for part in ("t1", "t1ce", "t2", "flair", "seg"):
            array = draws.normal(100, 10, (8, 8, 8)).astype(np.float32)
            array = (array > 105).astype(np.uint8) if part == "seg" else array
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{folder.name}_{part}.nii.gz")


def institutions(change: Callable[[Path, random.Random], object], seed: str, scene: Scene) -> None:
    data = scene.folder / "data"
    write_fets(data)
    path = data / "partitioning_1.csv"
    path.write_text(CSV)
    change(path, random.Random(seed))
    write_protocol(
        scene.folder / "p.yaml",
        data,
        data={"dataset": "fets2021", "root": str(data), "labels": "whole_tumor"},
        transfers={"kind": "cross_modality", "pairs": [["t1", "t2"]]},
    )
    names = ["partitioning_1.csv", "FeTS_"]
    scene.call("data", "check", "p.yaml", codes=(0, 2), names=names)


TABLES = {
    "empty": "", "head alone": "Partition_ID,Subject_ID\n", "no head": "1,FeTS_000\n",
    "other columns": "a,b\n1,2\n", "short rows": "Partition_ID,Subject_ID\n1\n\n,\n",
    "long rows": "Partition_ID,Subject_ID\n1,FeTS_000,3,4,5\n",
    "an open quote": 'Partition_ID,Subject_ID\n1,"FeTS_000\n',
    "a long field": "Partition_ID,Subject_ID\n1," + "x" * 200_000 + "\n",
    "NUL": "Partition_ID,Subject_ID\n1,FeTS\0_000\n",
    "a subject twice": "Partition_ID,Subject_ID\n1,FeTS_000\n2,FeTS_000\n",
    "a way up": "Partition_ID,Subject_ID\n1,../../etc\n",
    "a formula": "Partition_ID,Subject_ID\n=1+1,FeTS_000\n",
}  # fmt: skip


def a_place(place: str, path: Path, draws: random.Random) -> None:
    path.unlink()
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(place)


PLACES = ("folder", "pipe", "nowhere", "/dev/zero", "/etc/passwd")


def cases(base: Base, seed: int) -> Iterator[Case]:
    """Every damage of an image and of a label, through each command that reads them."""
    commands = ("data check", "check", "risk-map")
    for folder, own in (("imagesTr", OF_IMAGES), ("labelsTr", OF_LABELS)):
        several: dict[str, Damage] = {**DAMAGES, **own}
        several |= {f"flip {i}": flip for i in range(FLIPS)}
        several |= {f"header {i}": header for i in range(FLIPS)}
        several |= {f"cut {i}": cut for i in range(20)}
        several |= {f"a short payload {i}": short_payload for i in range(10)}
        for turn, (name, damage) in enumerate(several.items()):
            often = commands if name in DAMAGES or name in own else (commands[turn % 3],)
            for command in often:
                play = partial(scan, folder, damage, f"{seed} {name}", command)
                yield Case(f"data: {folder[:-3]}", f"{name} ({command})", play)
    for kind, judge, texts in (
        ("dataset.json", about, TEXTS),
        ("partitioning csv", institutions, TABLES),
    ):
        changes: dict[str, Callable[[Path, random.Random], object]] = {
            name: partial(a_text, text) for name, text in texts.items()
        }
        changes |= {place: partial(a_place, place) for place in PLACES}
        changes |= {f"bytes {i}": some_bytes for i in range(60)}
        if kind == "dataset.json":
            several_values = range(4 * (len(VALUES) + 1))
            changes |= {
                f"value {i}": partial(some_value, i % (len(VALUES) + 1)) for i in several_values
            }
        for name, change in changes.items():
            yield Case(f"data: {kind}", name, partial(judge, change, f"{seed} {name}"))
