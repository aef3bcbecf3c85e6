"""A brain: the MNI152 tissue maps under a random deformation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from trm_bench.phantom.geometry import Field, Grid

VENTRICLES = np.array([[0], [-18], [14]], dtype=np.float32)  # their middle in MNI space


@lru_cache(maxsize=4)
def _template(spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Grey matter, white matter, CSF and brain mask of MNI152, blurred for sampling at `spacing`.

    Returns:
        The maps, float32, shape (4, X, Y, Z), and the position of voxel (0, 0, 0) in MNI space.
    """
    from nilearn import datasets as mni
    from scipy import ndimage

    loaders = mni.load_mni152_gm_template, mni.load_mni152_wm_template, mni.load_mni152_brain_mask
    images = [load(resolution=1) for load in loaders]
    gm, wm, mask = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    csf = np.clip(mask - gm - wm, 0, 1)
    # the maps are averages over 152 brains; powers make them as crisp as one brain's
    maps = np.stack([gm**2.2, wm**2.2, 1.8 * csf**1.6])
    maps = np.concatenate([maps / np.maximum(maps.sum(0), 1e-3), mask[None]])
    sigma = 0.45 * float(np.sqrt(spacing**2 - 1))
    if sigma > 0:
        maps = np.stack([ndimage.gaussian_filter(m, sigma) for m in maps])
    return maps, images[0].affine[:3, 3].astype(np.float32)[:, None]


@dataclass(frozen=True)
class Anatomy:
    """A subject's brain: MNI152 under a random affine map and a smooth elastic field.

    Attributes:
        matrix: The affine part, from the subject's millimetres to MNI's.
        elastic: Amplitude in mm, and a field for each axis.
        ventricles: How much the region around the ventricles is magnified (> 0) or shrunk.
        atrophy: How much CSF outweighs tissue where they meet (a logarithm).
        folds: Amplitude (a logarithm), and a field for each tissue: no two cortices are alike.
    """

    matrix: np.ndarray
    elastic: tuple[tuple[float, list[Field]], ...]
    ventricles: float
    atrophy: float
    folds: tuple[tuple[float, list[Field]], ...]

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: Grid, size: float) -> Anatomy:
        from scipy.spatial.transform import Rotation

        sizes = size * rng.normal(1, 0.025) * rng.normal(1, 0.02, 3)
        turned = Rotation.from_euler("xyz", rng.normal(0, (2.5, 2.0, 2.0)), degrees=True)
        matrix = (turned.as_matrix() / sizes).astype(np.float32)

        def fields(amplitude: float, scale: float) -> tuple[float, list[Field]]:
            return amplitude, [Field.draw(rng, grid, scale) for _ in range(3)]

        elastic = fields(2.4, 50.0), fields(1.5, 16.0)
        ventricles, atrophy = float(rng.uniform(-0.15, 0.35)), float(rng.uniform(-0.2, 0.9))
        return cls(matrix, elastic, ventricles, atrophy, (fields(0.35, 30.0), fields(0.45, 7.0)))

    def to_mni(self, grid: Grid, where: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Position in MNI space of what lies at each voxel; `points` says where it came from."""
        middle = np.array([[0], [-18], [6]], dtype=np.float32)  # of the brain mask
        mni = self.matrix @ points + middle
        for amplitude, fields in self.elastic:
            for axis, one in enumerate(fields):
                mni[axis] += amplitude * one.on(grid, where)
        offset = mni - VENTRICLES
        return mni - self.ventricles * np.exp((offset**2).sum(0) / (-2 * 26.0**2)) * offset

    def brain(self, grid: Grid) -> np.ndarray:
        """The brain mask, bool."""
        from scipy import ndimage

        brain = np.ones(grid.shape, dtype=bool)
        points = grid.points(brain)
        reach = np.array([[90], [110], [100]], dtype=np.float32)  # no brain reaches further
        near = ((points / reach) ** 4).sum(0) < 1
        brain[brain] = near
        maps, origin = _template(grid.spacing)
        mni = self.to_mni(grid, brain, points[:, near])
        brain[brain] = ndimage.map_coordinates(maps[3], mni - origin, order=1) > 0.5
        return brain

    def tissues(self, grid: Grid, brain: np.ndarray, mni: np.ndarray) -> np.ndarray:
        """Fractions of grey matter, white matter and CSF in the brain's voxels, summing to 1.

        Returns:
            Shape (3, n).
        """
        from scipy import ndimage

        maps, origin = _template(grid.spacing)
        fractions = np.stack([ndimage.map_coordinates(m, mni - origin, order=1) for m in maps[:3]])
        for amplitude, fields in self.folds:
            for fraction, one in zip(fractions, fields, strict=True):
                fraction *= np.exp(amplitude * one.on(grid, brain))
        fractions[2] = fractions[2] * np.exp(self.atrophy) + 1e-4  # what no map covers is CSF
        return fractions / fractions.sum(0)
