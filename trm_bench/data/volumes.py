"""From a scan to tensors: crop, spacing, intensity; and label values to classes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trm_bench.datasets.base import LabelMap, Scan
from trm_bench.datasets.volume import MOST_VOXELS

if TYPE_CHECKING:
    from trm_bench.protocol.schema import VolumeConfig

FLOAT16_LARGEST = 65504.0


def prepare_scan(scan: Scan, volume: VolumeConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Prepares a scan in memory.

    Returns:
        The tensors of `Prepared`, and what is known of them.
    """
    voxels = [hashlib.sha256(np.ascontiguousarray(c).data).hexdigest() for c in scan.image]
    nonzero = (scan.image != 0).any(0)
    # The box takes in the labels too, so that no labelled voxel is ever lost; within a brain it
    # adds nothing.
    box = (
        bounding_box(nonzero | (scan.label > 0))
        if volume.crop == "brain"
        else tuple(slice(0, n) for n in scan.label.shape)
    )
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
    tensors |= {
        "image": image.clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST).half(),
        "label": label,
        "brain": brain,
    }
    about = {
        "voxels": voxels,
        "modalities": list(scan.modalities),
        "shape": list(shape),
        "spacing": list(spacing),
        "native_spacing": list(scan.spacing),
        "diagonal": float(np.linalg.norm(np.array(scan.label.shape) * scan.spacing)),
        "grid": asdict(scan.grid.cropped(box)),
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, about


def resampled_shape(
    shape: tuple[int, ...], spacing: Sequence[float], wanted: Sequence[float] | None
) -> tuple[int, int, int]:
    """The grid with the wanted spacing that fills the same box.

    At least 1 voxel along each axis.

    Raises:
        ValueError: It would have more than `MOST_VOXELS`.
    """
    if wanted is None:
        x, y, z = shape
    else:
        x, y, z = (max(1, round(n * s / w)) for n, s, w in zip(shape, spacing, wanted, strict=True))
    if x * y * z > MOST_VOXELS:
        raise ValueError(f"resampled it has {x} x {y} x {z} voxels, more than {MOST_VOXELS}")
    return x, y, z


def resample(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Linear resampling of (C, X, Y, Z) to another grid over the same box, axis by axis.

    Output voxel j lies at c_j = (j + 1/2) n/m - 1/2 of the n input voxels and gets the mean of them
    under a triangle of half width max(1, n/m), so that an axis that shrinks is smoothed enough not
    to alias; where it grows, this is linear interpolation. Matrices are small, volumes are not: one
    product per axis.
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
    return table.to(label.device).index_select(0, label.flatten().int()).reshape(label.shape)


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


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds a mask; all of the volume where the mask is empty."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, mask.shape[axis]))
    return tuple(box)
