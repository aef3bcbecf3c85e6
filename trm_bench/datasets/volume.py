"""One volume in a file, of any format: its header at once, its voxels when they are wanted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
)

from trm_bench.datasets.grid import Grid
from trm_bench.datasets.subjects import Subject
from trm_bench.errors import BadSubject, UserError

MOST_VOXELS = 2**30
"""Of one volume, 4 GiB in float32."""
REPLACE = "download the file again, or set data.on_bad_subject: skip to leave this subject out"
UNLIKE = (
    "use the files as the dataset publishes them, "
    "or set data.on_bad_subject: skip to leave this subject out"
)

# the most bytes that one byte of a file can become
_EXPANSION = {".nii": 1, ".hdr": 1, ".gz": 1032, ".nrrd": 1032, ".mha": 1032}


@dataclass(frozen=True)
class Header:
    """What a file says before its voxels.

    Attributes:
        shape: Of all axes.
        kind: Of a voxel in the file.
        affine: Shape (4, 4), voxel index to RAS+ millimetres; where `stated` is False, what the
            format's library makes up.
        stated: Whether the file itself says where its voxels lie.
        spacing: Voxel edge lengths along the first three axes, mm.
    """

    shape: tuple[int, ...]
    kind: np.dtype
    affine: np.ndarray
    stated: bool
    spacing: np.ndarray


class Volume(ABC):
    """One 3D volume of a subject in a file: the header at once, the voxels on request.

    Args:
        subject: The subject, for messages.
        role: What the file is to the subject, for messages.
        path: The file.
        channel: The index on the fourth axis; None for a 3D file.
        channels: The length that the fourth axis must have.

    Raises:
        BadSubject: The header cannot be used.
    """

    def __init__(
        self, subject: Subject, role: str, path: Path, channel: int | None = None, channels: int = 0
    ) -> None:
        self.subject, self.role, self.path, self.channel = subject, role, path, channel
        try:
            header = self.open()
            if header.kind.kind not in "iuf":  # NumPy would drop the imaginary part, and warn
                raise TypeError(f"its voxels are {header.kind}, not numbers")
            self.promised = math.prod(header.shape) * header.kind.itemsize
        except UserError:
            raise
        except Exception as error:  # of any kind for a damaged header; the message keeps the kind
            raise self.unreadable(error) from error
        held, most = parts(path)[-1].stat().st_size, _EXPANSION.get(path.suffix)
        # before memory is reserved for a damaged header's sizes
        if most is not None and self.promised > held * most:
            sizes = f"shape {header.shape} needs {self.promised} bytes, the file has {held}"
            what = f"the {role} is truncated: {sizes}"
            raise BadSubject(subject.id, what, parts(path)[-1], REPLACE)
        self.header, self.shape = header, self._grid_shape(header.shape, channels)
        # where a file states none, nibabel flips x: take the voxel size alone
        self.affine = header.affine if header.stated else None
        affine, spacing = header.affine, header.spacing
        with np.errstate(
            all="ignore"
        ):  # a column of zeros gives NaN, which is greater than nothing
            axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
            apart = abs(np.linalg.det(axes)) > 1e-3  # 1 for right angles, 0 where two axes coincide
        finite = np.isfinite(affine).all() and np.isfinite(spacing).all()
        if not (apart and finite and spacing.min() > 0):
            raise BadSubject(
                subject.id, f"the header of the {role} has no usable affine", path, UNLIKE
            )

    @abstractmethod
    def open(self) -> Header:
        """Reads the header; raises anything where it cannot be."""

    @abstractmethod
    def load(self) -> np.ndarray:
        """The voxels of the channel in float32, in file order; raises anything for damaged ones."""

    def unreadable(self, error: Exception) -> BadSubject:
        """What says that the file is damaged."""
        what = f"the {self.role} cannot be read ({type(error).__name__}: {error})"
        return BadSubject(self.subject.id, what, self.path, REPLACE)

    def grid(self, stated: np.ndarray | None) -> tuple[tuple[int, ...], np.ndarray]:
        """Shape and affine in the closest canonical orientation."""
        affine = self._affine(stated)
        orientation = io_orientation(affine)
        shape = tuple(self.shape[int(axis)] for axis in np.argsort(orientation[:, 0]))
        return shape, affine @ inv_ornt_aff(orientation, self.shape)

    def voxels(self, stated: np.ndarray | None) -> np.ndarray:
        """float32 of `grid(stated)`'s shape; raises `BadSubject` where the data are damaged."""
        try:
            array = self.load().reshape(self.shape)
        except Exception as error:  # of zlib, gzip, ITK, OS or NumPy; the message keeps the kind
            raise self.unreadable(error) from error
        return apply_orientation(array, io_orientation(self._affine(stated)))

    def file_grid(self, stated: np.ndarray | None) -> Grid:
        """The file's own grid, and how its axes become those of `grid(stated)`."""
        orientation = io_orientation(self._affine(stated)).astype(int).tolist()
        return Grid(self.shape, self.header.affine.tolist(), orientation)

    def _grid_shape(self, shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
        """The three axes of the channel; raises `BadSubject` where there are others."""
        if self.channel is not None and (len(shape) < 4 or shape[3] != channels):
            what = f"the file has shape {shape}, not {channels} channels"
            raise BadSubject(self.subject.id, what, self.path, UNLIKE)
        grid = shape if self.channel is None else (*shape[:3], *shape[4:])
        while len(grid) > 3 and grid[-1] == 1:
            grid = grid[:-1]
        what = f"the {self.role} has shape {shape}"
        if len(grid) == 4 and min(grid) > 0:
            fourth = "not one 3D volume: split its fourth axis into a file for each channel"
            raise BadSubject(self.subject.id, f"{what}, {fourth}", self.path, UNLIKE)
        if len(grid) != 3 or min(grid) < 1:
            raise BadSubject(self.subject.id, f"{what}, not one 3D volume", self.path, UNLIKE)
        if math.prod(grid) > MOST_VOXELS:
            what = f"{what}, more than {MOST_VOXELS} voxels"
            raise BadSubject(self.subject.id, what, self.path, UNLIKE)
        return grid

    def _affine(self, stated: np.ndarray | None) -> np.ndarray:
        """The file's affine, else `stated` with the file's voxel size, else that size alone."""
        if self.affine is not None:
            return self.affine
        affine = np.eye(4) if stated is None else stated.copy()
        affine[:3, :3] *= self.header.spacing / np.linalg.norm(affine[:3, :3], axis=0)
        return affine


def stated_affine(volumes: list[Volume]) -> np.ndarray | None:
    """The first affine that a file states."""
    return next((volume.affine for volume in volumes if volume.affine is not None), None)


def parts(file: Path) -> list[Path]:
    """The files that one image consists of: .hdr and .img for Analyze and NIfTI pairs."""
    return [file, file.with_suffix(".img")] if file.suffix == ".hdr" else [file]
