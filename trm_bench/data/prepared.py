"""Prepared volumes on disk: made once, one safetensors file a subject."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import Tensor

from trm_bench.data.volumes import prepare_scan
from trm_bench.datasets.base import Dataset, Subject
from trm_bench.datasets.grid import Grid
from trm_bench.errors import Damaged
from trm_bench.fingerprint import code_fingerprint, digest_of
from trm_bench.seals import digest_of_file, read_about, require_tensors, write_tensors

if TYPE_CHECKING:
    from trm_bench.protocol.schema import VolumeConfig


@dataclass(frozen=True)
class Prepared:
    """A prepared subject on disk.

    Attributes:
        path: The safetensors file: `image` fp16 (C, X, Y, Z), `label` uint8 raw values, `brain`
            bool, and `native`, the label at the scan's own spacing, where that differs.
        subject: Id.
        digest: Hash of the contents of the subject's files, in the order of modalities, label last.
        voxels: Hash of each image's voxels, by which the same scan is recognised under another
            name or compression, or in another data set.
        files: File, relative to the dataset's root, to [bytes, sha256].
        modalities: Names of the channels.
        shape: Of the prepared volume.
        spacing: Of the prepared volume, mm.
        native_spacing: Of the scan, mm.
        diagonal: Of the whole scan, mm: the distance given to a missed object.
        grid: Of the scan's first file, and where the cropped native grid lies on it.
    """

    path: Path
    subject: str
    digest: str
    voxels: tuple[str, ...]
    files: dict[str, list[Any]]
    modalities: tuple[str, ...]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    native_spacing: tuple[float, float, float]
    diagonal: float
    grid: Grid

    def load(self, modalities: Sequence[str]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Channels (X, Y, Z) fp16 of the modalities asked for, label (raw values) uint8, brain mask
        bool.

        All lie in the mapped file, nothing is read before it is used, and processes share it: do
        not write to them. A prepared file is replaced by another under its name and never changed,
        so that what is mapped stays as it is, also where the file is made anew or removed meanwhile
        (by another machine on a network file system, this process would be killed).
        """
        with safe_open(self.path, framework="pt") as file:
            image = file.get_tensor("image")
            channels = [image[self.modalities.index(m)] for m in modalities]
            return channels, file.get_tensor("label"), file.get_tensor("brain")

    def native_label(self) -> Tensor:
        """The label (raw values) on the cropped grid at the scan's own spacing, where metrics are
        computed.
        """
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor("native" if "native" in file.keys() else "label")  # noqa: SIM118 (not a dict)


def cache_path(
    cache: Path, dataset: Dataset, subject: Subject, modalities: Sequence[str], volume: VolumeConfig
) -> Path:
    """Where a subject's prepared file lies: its name holds everything that could change it.

    Files are recognised by size and modification time, so that nothing is read to find out that all
    is prepared.
    """
    stats: list[list[Any]] = []
    for file in dataset.files(in_play(subject, modalities)):
        try:
            stat = file.stat()
            stats.append([file.name, stat.st_size, stat.st_mtime_ns])
        except OSError:
            stats.append([file.name, None, None])
    key = digest_of(
        dataset.name,
        subject.id,
        list(modalities),
        volume.model_dump(mode="json"),
        stats,
        code_fingerprint("trm_bench.data.volumes", type(dataset).__module__),
    )
    return cache / f"{subject.id}-{key[:16]}.safetensors"


def in_play(subject: Subject, modalities: Sequence[str]) -> Subject:
    """The subject with the images of some modalities alone, so that others' files do not count."""
    return replace(
        subject, images={m: subject.images[m] for m in modalities if m in subject.images}
    )


def open_prepared(path: Path) -> Prepared | None:
    """The prepared subject at `path`, or None where there is none; its voxels are not read.

    Raises:
        Damaged: It is not what was written there.
    """
    try:
        about = read_about(path)
        names = ("voxels", "modalities", "shape", "spacing", "native_spacing")
        tuples = {name: tuple(about[name]) for name in names}
        if about.pop("name") != path.stem:
            raise Damaged("is another prepared volume under this name", path)
        return Prepared(path=path, **{**about, **tuples, "grid": Grid(**about["grid"])})
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}", path) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged("is not a prepared volume", path) from error


def open_expected(path: Path, subject: str, digest: str) -> Prepared:
    """The prepared subject at `path`, which must be a certain one, made of certain files.

    Its voxels are read once and held against their checksum.

    Raises:
        Damaged: It is gone, not what was written, or another one.
    """
    prepared = open_prepared(path)
    if prepared is None:
        raise Damaged("is gone", path)
    if (prepared.subject, prepared.digest) != (subject, digest):
        raise Damaged("is another prepared volume", path)
    require_tensors(path)
    return prepared


def prepare(
    dataset: Dataset, subject: Subject, modalities: Sequence[str], volume: VolumeConfig, path: Path
) -> Prepared:
    """Reads, validates and prepares one subject, and writes it to `path`.

    Raises:
        BadSubject: The subject cannot be used (see `Dataset.read`).
    """
    scan = dataset.read(subject, tuple(modalities))
    tensors, about = prepare_scan(scan, volume)
    files = {
        Path(os.path.relpath(file, dataset.root)).as_posix(): [
            file.stat().st_size,
            digest_of_file(file),
        ]
        for file in dataset.files(in_play(subject, modalities))
    }
    return save(path, tensors, {**about, "subject": subject.id, "files": files})


def save(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> Prepared:
    """Writes a prepared subject.

    Args:
        path: Where to.
        tensors: Of `prepare_scan`.
        about: Of `prepare_scan`, with `subject` and `files`.
    """
    digest = digest_of([sha for _, sha in about["files"].values()])
    write_tensors(path, tensors, {**about, "digest": digest, "name": path.stem})
    prepared = open_prepared(path)
    if prepared is None:
        raise OSError(f"{path}: written, but cannot be read back")
    return prepared
