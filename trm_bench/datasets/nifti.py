"""One volume in a NIfTI or Analyze file: its header at once, its voxels when they are wanted."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import SerializableImage
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import SpatialImage

from trm_bench.datasets.grid import Grid
from trm_bench.datasets.subjects import Subject
from trm_bench.errors import BadSubject

MOST_VOXELS = 2**30
"""Of one volume, 4 GiB in float32."""
SLACK = 2**26  # bytes that a compressed file may hold beside its voxels
REPLACE = "download the file again, or set data.on_bad_subject: skip to leave this subject out"
UNLIKE = (
    "use the files as the dataset publishes them, "
    "or set data.on_bad_subject: skip to leave this subject out"
)

# the most bytes that one byte of a file can become
_EXPANSION = {".nii": 1, ".hdr": 1, ".gz": 1032}


class Volume:
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
            file = nib.load(path, mmap=False)
            if not isinstance(file, SpatialImage):
                raise TypeError(f"{type(file).__name__} is no volume")
            shape = tuple(int(size) for size in file.shape)
            header, affine = file.header, np.asarray(file.affine, np.float64)
            kind = np.dtype(header.get_data_dtype())
            if kind.kind not in "iuf":  # NumPy would drop the imaginary part, and warn
                raise TypeError(f"its voxels are {kind}, not numbers")
            promised = math.prod(shape) * kind.itemsize
        except Exception as error:  # of any kind for a damaged header; the message keeps the kind
            raise self._unreadable(error) from error
        held, most = parts(path)[-1].stat().st_size, _EXPANSION.get(path.suffix)
        # before memory is reserved for a damaged header's sizes
        if most is not None and promised > held * most:
            sizes = f"shape {shape} needs {promised} bytes, the file has {held}"
            what = f"the {role} is truncated: {sizes}"
            raise BadSubject(subject.id, what, parts(path)[-1], REPLACE)
        if channel is not None and (len(shape) < 4 or shape[3] != channels):
            raise BadSubject(
                subject.id, f"the file has shape {shape}, not {channels} channels", path, UNLIKE
            )
        grid = shape if channel is None else (*shape[:3], *shape[4:])
        while len(grid) > 3 and grid[-1] == 1:
            grid = grid[:-1]
        if len(grid) != 3 or min(grid) < 1:
            raise BadSubject(
                subject.id, f"the {role} has shape {shape}, not one 3D volume", path, UNLIKE
            )
        if math.prod(grid) > MOST_VOXELS:
            what = f"the {role} has shape {shape}, more than {MOST_VOXELS} voxels"
            raise BadSubject(subject.id, what, path, UNLIKE)
        self._file, self.shape, self._bytes = file, grid, promised
        analyze = isinstance(header, nib.AnalyzeHeader)
        coded = isinstance(header, nib.Nifti1Header) and (
            header["sform_code"] > 0 or header["qform_code"] > 0
        )
        # nibabel makes up an affine (x flipped) where a file states none: take the voxel size alone
        self.affine = affine if coded or not analyze else None
        self.spacing = np.abs(np.asarray(header.get_zooms()[:3], np.float64))
        with np.errstate(
            all="ignore"
        ):  # a column of zeros gives NaN, which is greater than nothing
            axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
            apart = abs(np.linalg.det(axes)) > 1e-3  # 1 for right angles, 0 where two axes coincide
        if not (
            apart
            and np.isfinite(affine).all()
            and np.isfinite(self.spacing).all()
            and self.spacing.min() > 0
        ):
            raise BadSubject(
                subject.id, f"the header of the {role} has no usable affine", path, UNLIKE
            )

    def _unreadable(self, error: Exception) -> BadSubject:
        what = f"the {self.role} cannot be read ({type(error).__name__}: {error})"
        return BadSubject(self.subject.id, what, self.path, REPLACE)

    def _affine(self, stated: np.ndarray | None) -> np.ndarray:
        """The file's affine, else `stated` with the file's voxel size, else that size alone."""
        if self.affine is not None:
            return self.affine
        affine = np.eye(4) if stated is None else stated.copy()
        affine[:3, :3] *= self.spacing / np.linalg.norm(affine[:3, :3], axis=0)
        return affine

    def grid(self, stated: np.ndarray | None) -> tuple[tuple[int, ...], np.ndarray]:
        """Shape and affine in the closest canonical orientation."""
        affine = self._affine(stated)
        orientation = io_orientation(affine)
        shape = tuple(self.shape[int(axis)] for axis in np.argsort(orientation[:, 0]))
        return shape, affine @ inv_ornt_aff(orientation, self.shape)

    def voxels(self, stated: np.ndarray | None) -> np.ndarray:
        """float32 of `grid(stated)`'s shape; raises `BadSubject` where the data are damaged."""
        try:
            if self.path.suffix == ".gz" and isinstance(self._file, SerializableImage):
                with gzip.open(self.path) as stream:
                    array = self._array(type(self._file).from_stream(stream).dataobj)
                    # to the end, where the length and the checksum are verified
                    while stream.read(1 << 20):
                        if stream.tell() > self._bytes + SLACK:
                            raise ValueError("it goes on long after its last voxel")
            else:
                array = self._array(self._file.dataobj)
        except Exception as error:  # of zlib, gzip, OS or NumPy; the message keeps the kind
            raise self._unreadable(error) from error
        return apply_orientation(array.reshape(self.shape), io_orientation(self._affine(stated)))

    def file_grid(self, stated: np.ndarray | None) -> Grid:
        """The file's own grid, and how its axes become those of `grid(stated)`."""
        orientation = io_orientation(self._affine(stated)).astype(int).tolist()
        return Grid(self.shape, self._file.affine.tolist(), orientation)

    def _array(self, data: Any) -> np.ndarray:
        slope, inter = 1.0, 0.0
        # scaled here, in place: under NumPy 2 nibabel does it in float64
        if isinstance(data, ArrayProxy):
            slope, inter = float(data.slope), float(data.inter)
            data = ArrayProxy(data.file_like, (data.shape, data.dtype, data.offset), mmap=False)
        # what does not fit into float32 becomes infinite, and is reported so
        with np.errstate(over="ignore"):
            array = np.asarray(
                data if self.channel is None else data[:, :, :, self.channel], np.float32
            )
            if (slope, inter) != (1, 0):
                array *= slope
                array += inter
        return array


def stated_affine(volumes: list[Volume]) -> np.ndarray | None:
    """The first affine that a file states."""
    return next((volume.affine for volume in volumes if volume.affine is not None), None)


def parts(file: Path) -> list[Path]:
    """The files that one image consists of: .hdr and .img for Analyze and NIfTI pairs."""
    return [file, file.with_suffix(".img")] if file.suffix == ".hdr" else [file]
