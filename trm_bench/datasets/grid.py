"""The voxel grid of a scan's file, and the way back to it from a volume cut out of the scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from nibabel.orientations import apply_orientation, ornt_transform

CANONICAL = ((0, 1), (1, 1), (2, 1))
"""The orientation of a file whose axes are the canonical (RAS+) ones already."""


@dataclass(frozen=True)
class Grid:
    """The grid of a scan's first image file, and where on it a volume lies that was cut out.

    Everything is plain, so that it can be written as JSON.

    Attributes:
        shape: Of the file, (X, Y, Z).
        affine: Of the file, voxel index to mm, (4, 4).
        orientation: To each axis of the file, the canonical axis that it becomes, and 1 or, where
            it is reversed, -1; as nibabel has it.
        box: Of the volume, on the canonical axes: the first voxel along each, and the one after the
            last; the whole scan where it is empty.
    """

    shape: Sequence[int]
    affine: Sequence[Sequence[float]]
    orientation: Sequence[Sequence[int]] = CANONICAL
    box: Sequence[Sequence[int]] = ()

    def cropped(self, box: Sequence[slice]) -> Grid:
        """The same file's grid, for what lies in a box on the canonical axes."""
        return replace(self, box=[[int(part.start), int(part.stop)] for part in box])

    def put_back(self, volume: np.ndarray) -> np.ndarray:
        """A volume on the canonical axes, of the box's shape, on the file's grid; 0 outside."""
        turned = [0, 0, 0]
        for size, (axis, _) in zip(self.shape, self.orientation, strict=True):
            turned[int(axis)] = size
        whole = np.zeros(turned, volume.dtype)
        whole[self._box] = volume
        back = ornt_transform(np.array(CANONICAL), np.array(self.orientation))
        return apply_orientation(whole, back)

    def cut_out(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `put_back`.

        Raises:
            ValueError: The array does not have the file's shape.
        """
        if array.shape != tuple(self.shape):
            raise ValueError(f"shape {array.shape}, not {tuple(self.shape)}")
        turned = apply_orientation(array, np.array(self.orientation))
        return np.ascontiguousarray(turned[self._box])

    @property
    def _box(self) -> tuple[slice, ...]:
        return tuple(slice(start, stop) for start, stop in self.box) or (slice(None),) * 3
