"""Where voxels lie, and smooth random fields over them, in millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LAYOUTS = ("fets2021", "iseg2019")
_FOV = {"fets2021": (240.0, 240.0, 155.0), "iseg2019": (144.0, 192.0, 256.0)}
# voxel axes run left-posterior-superior and left-anterior-superior
SIGNS = {"fets2021": (-1, -1, 1), "iseg2019": (-1, 1, 1)}


@dataclass(frozen=True)
class Grid:
    """Isotropic voxels over a layout's field of view.

    Most functions take it with a mask of the voxels they are for.
    """

    layout: str
    spacing: float

    @property
    def fov(self) -> tuple[float, float, float]:
        return _FOV[self.layout]

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = (round(length / self.spacing) for length in self.fov)
        return x, y, z

    def points(self, where: np.ndarray) -> np.ndarray:
        """Right-anterior-superior position of voxel centres, shape (3, n).

        It is counted from the centre of the field of view.
        """
        corner = (self.spacing - np.array(self.fov)) / 2
        points = (np.argwhere(where) * self.spacing + corner) * SIGNS[self.layout]
        return points.T.astype(np.float32)


@dataclass(frozen=True)
class Field:
    """A smooth random field of about unit variance.

    It is a cubic B-spline over normal coefficients that lie `scale` mm apart. It is defined in
    millimetres, so that a subject has the same fields whatever the voxel size.
    """

    scale: float
    coefficients: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: Grid, scale: float) -> Field:
        shape = [int(f / scale) + 5 for f in grid.fov]
        return cls(scale, 3 * rng.standard_normal(shape, dtype=np.float32))

    def on(self, grid: Grid, where: np.ndarray) -> np.ndarray:
        from scipy.sparse import csr_array

        values = self.coefficients
        for n in grid.shape:
            ratio = np.float32(grid.spacing / self.scale)
            position = (np.arange(n, dtype=np.float32)[:, None] + 0.5) * ratio + 1.5
            u = np.abs(position - np.arange(values.shape[0], dtype=np.float32))
            basis = np.where(u < 1, (4 - 6 * u**2 + 3 * u**3) / 6, np.clip(2 - u, 0, None) ** 3 / 6)
            product = csr_array(basis) @ values.reshape(len(values), -1)
            values = np.ascontiguousarray(np.moveaxis(product.reshape(n, *values.shape[1:]), 0, -1))
        return values[where]
