"""From a scan to a prepared volume (crop, spacing, intensity), once, kept as one safetensors file a subject."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trm_bench.datasets.base import Dataset, LabelMap, Scan, Subject
from trm_bench.files import code_fingerprint, digest_of, write_atomically
from trm_bench.protocol import VolumeConfig

FLOAT16_LARGEST = 65504.0


@dataclass(frozen=True)
class Prepared:
    """A prepared subject on disk.

    Attributes:
        path: The safetensors file: `image` fp16 (C, X, Y, Z), `label` uint8 raw values, `brain` bool, and `native`,
            the label at the scan's own spacing, where that differs.
        subject: Id.
        digest: Hash of the contents of the subject's files, in the order of modalities, label last.
        voxels: Hash of the image's voxels, by which the same scan is recognised under another name or compression.
        files: File, relative to the dataset's root, to [bytes, sha256].
        modalities: Names of the channels.
        shape: Of the prepared volume.
        spacing: Of the prepared volume, mm.
        native_spacing: Of the scan, mm.
        diagonal: Of the whole scan, mm: the distance given to a missed object.
        affine: Voxel index of the cropped native grid to mm, RAS.
    """

    path: Path
    subject: str
    digest: str
    voxels: str
    files: dict[str, list[Any]]
    modalities: tuple[str, ...]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    native_spacing: tuple[float, float, float]
    diagonal: float
    affine: list[list[float]]

    def load(self, modalities: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Image (C, X, Y, Z) fp16 of the modalities asked for, label (raw values) uint8, brain mask bool."""
        with safe_open(self.path, framework="pt") as file:
            channels = file.get_slice("image")
            image = torch.cat([channels[i : i + 1] for i in (self.modalities.index(m) for m in modalities)])
            return image, file.get_tensor("label"), file.get_tensor("brain")

    def native_label(self) -> Tensor:
        """The label (raw values) on the cropped grid at the scan's own spacing, where metrics are computed."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor("native" if "native" in file.keys() else "label")  # noqa: SIM118 (not a dict)


def cache_path(
    cache: Path, dataset: Dataset, subject: Subject, modalities: Sequence[str], volume: VolumeConfig
) -> Path:
    """Where a subject's prepared file lies: its name holds everything that could change it.

    Files are recognised by size and modification time, so that nothing is read to find out that all is prepared.
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
        code_fingerprint("trm_bench.volumes", type(dataset).__module__, "trm_bench.datasets.base"),
    )
    return cache / f"{subject.id}-{key[:16]}.safetensors"


def in_play(subject: Subject, modalities: Sequence[str]) -> Subject:
    """The subject with the images of some modalities alone, so that others' files do not count."""
    return replace(subject, images={m: subject.images[m] for m in modalities if m in subject.images})


def open_prepared(path: Path) -> Prepared | None:
    """The prepared subject at `path`, or None where there is none that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["prepared"])
        tuples = {k: tuple(about[k]) for k in ("modalities", "shape", "spacing", "native_spacing")}
        return Prepared(path=path, **{**about, **tuples})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


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
        Path(os.path.relpath(file, dataset.root)).as_posix(): [file.stat().st_size, _sha256(file)]
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
    about = {**about, "digest": digest_of([sha for _, sha in about["files"].values()])}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"prepared": json.dumps(about)}))
    prepared = open_prepared(path)
    if prepared is None:
        raise OSError(f"{path}: written, but cannot be read back")
    return prepared


def prepare_scan(scan: Scan, volume: VolumeConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Prepares a scan in memory.

    Returns:
        The tensors of `Prepared`, and what is known of them.
    """
    voxels = hashlib.sha256(np.ascontiguousarray(scan.image).data).hexdigest()
    nonzero = (scan.image != 0).any(0)
    # The box takes in the labels too, so that no labelled voxel is ever lost; within a brain it adds nothing.
    box = _box(nonzero | (scan.label > 0)) if volume.crop == "brain" else tuple(slice(0, n) for n in scan.label.shape)
    image = torch.from_numpy(scan.image[(slice(None), *box)].copy())  # scaled in place below
    native = torch.from_numpy(np.ascontiguousarray(scan.label[box]))
    brain = torch.from_numpy(np.ascontiguousarray(nonzero[box]))
    shape = resampled_shape(tuple(native.shape), scan.spacing, volume.spacing)
    spacing = tuple(n * s / m for n, s, m in zip(native.shape, scan.spacing, shape, strict=True))
    tensors = {}
    label = native
    if shape != tuple(native.shape):
        tensors["native"] = native
        label = resample_label(native, shape)
        image = resample(image, shape)
        brain = resample(brain[None].float(), shape)[0] >= 0.5
    for channel in image:  # one at a time, to keep memory low
        channel.copy_(_scaled(channel, brain, volume.intensity))
    tensors |= {"image": image.clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST).half(), "label": label, "brain": brain}
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    about = {
        "voxels": voxels,
        "modalities": list(scan.modalities),
        "shape": list(shape),
        "spacing": list(spacing),
        "native_spacing": list(scan.spacing),
        "diagonal": float(np.linalg.norm(np.array(scan.label.shape) * scan.spacing)),
        "affine": affine.tolist(),
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, about


def resampled_shape(
    shape: tuple[int, ...], spacing: Sequence[float], wanted: Sequence[float] | None
) -> tuple[int, int, int]:
    """The grid with the wanted spacing that fills the same box; at least 1 voxel along each axis."""
    if wanted is None:
        x, y, z = shape
    else:
        x, y, z = (max(1, round(n * s / w)) for n, s, w in zip(shape, spacing, wanted, strict=True))
    return x, y, z


def resample(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Linear resampling of (C, X, Y, Z) to another grid over the same box, axis by axis.

    Output voxel j lies at c_j = (j + 1/2) n/m - 1/2 of the n input voxels and gets the mean of them under a triangle
    of half width max(1, n/m), so that an axis that shrinks is smoothed enough not to alias; where it grows, this is
    linear interpolation. Matrices are small, volumes are not: one product per axis.
    """
    for axis, m in enumerate(shape, start=1):
        n = image.shape[axis]
        if n == m:
            continue
        centre = (torch.arange(m, dtype=torch.float64) + 0.5) * n / m - 0.5
        distance = (torch.arange(n, dtype=torch.float64) - centre[:, None]).abs()
        weights = (1 - distance / max(1.0, n / m)).clamp(min=0)
        matrix = (weights / weights.sum(1, keepdim=True)).to(image.dtype)
        image = torch.tensordot(image, matrix, dims=([axis], [1])).movedim(-1, axis)
    return image.contiguous()


def resample_label(label: Tensor, shape: Sequence[int]) -> Tensor:
    """Resamples every label value as a soft mask and takes the largest, one value at a time."""
    best = torch.full(tuple(shape), -1.0)
    out = torch.zeros(tuple(shape), dtype=label.dtype)
    for value in label.unique():  # ascending, so that ties go to the smaller value
        share = resample((label == value)[None].float(), shape)[0]
        better = share > best
        out[better], best[better] = value, share[better]
    return out


def to_classes(label: Tensor, label_map: LabelMap) -> Tensor:
    """Raw label values to class indices, uint8."""
    table = torch.zeros(256, dtype=torch.uint8)
    for value, index in label_map.values.items():
        table[value] = index
    return table.to(label.device)[label.long()]


def _scaled(channel: Tensor, brain: Tensor, intensity: str) -> Tensor:
    inside = channel[brain] if intensity != "zscore" else channel.flatten()
    if inside.numel() == 0:
        return torch.zeros_like(channel)
    if intensity == "percentile":
        low, high = np.percentile(inside.double().numpy(), [0.5, 99.5])
        return ((channel.double() - low) / max(high - low, 1e-8)).clamp(0, 1).float() * brain
    mean, deviation = inside.mean(dtype=torch.float64), inside.double().std(correction=0)
    scaled = (channel - mean.float()) / deviation.float().clamp(min=1e-8)
    return scaled * brain if intensity == "zscore_brain" else scaled


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, mask.shape[axis]))
    return tuple(box)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
