"""A glioma: where it lies, and how far its core and its oedema reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trm_bench.phantom.anatomy import Anatomy
from trm_bench.phantom.geometry import Field, Grid


@dataclass(frozen=True)
class Tumour:
    """A core around `seed`, a rim of enhancing tumour around necrosis, and oedema around it.

    Lengths are in mm.

    Attributes:
        seed: The place of the first cell, shape (3, 1).
        radius: Of the core.
        rim: Thickness of the enhancing rim; there is no necrosis where it exceeds the radius.
        reach: How far oedema spreads beyond the core in white matter.
        enhances: A high-grade tumour; otherwise the core is non-enhancing tumour throughout.
        push: The mass effect: displacement relative to the distance from the seed.
        stretch: Makes the core an ellipsoid, before `fields` make it irregular.
    """

    seed: np.ndarray
    radius: float
    rim: float
    reach: float
    enhances: bool
    push: float
    stretch: np.ndarray
    fields: Mapping[str, Field]

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: Grid, places: np.ndarray) -> Tumour:
        from scipy.spatial.transform import Rotation

        seed = places[:, rng.integers(places.shape[1])][:, None]
        enhances = bool(rng.random() < 0.82)
        radius = float(np.clip(np.exp(rng.normal(np.log(15), 0.42)), 7, 27))
        rim = float(rng.uniform(0.22, 0.5) if rng.random() < 0.8 else 1.2) * radius
        reach = float(rng.uniform(6, 26) if enhances else rng.uniform(4, 12))
        axes = Rotation.from_quat(rng.standard_normal(4)).as_matrix()
        stretch = axes @ np.diag(np.exp(rng.normal(0, 0.2, 3))) @ axes.T
        stretch = stretch.astype(np.float32)
        scales = {"lobes": 18, "detail": 8, "rim": 10, "grain": 6, "path": 14, "fringe": 7}
        fields = {name: Field.draw(rng, grid, float(scale)) for name, scale in scales.items()}
        return cls(seed, radius, rim, reach, enhances, rng.uniform(0.15, 0.4), stretch, fields)

    def pushed(self, points: np.ndarray) -> np.ndarray:
        """Where the tissue at each point comes from: the mass pushes outwards, less farther off."""
        offset = points - self.seed
        fading = np.exp((offset**2).sum(0) / (-2 * (1.5 * self.radius) ** 2))
        return points - self.push * fading * offset

    def distance(self, grid: Grid, where: np.ndarray) -> np.ndarray:
        """Distance from the seed, distorted so that its level sets are irregular, lobed bodies."""
        length = np.sqrt(((self.stretch @ (grid.points(where) - self.seed)) ** 2).sum(0))
        lobes, detail = (self.fields[name].on(grid, where) for name in ("lobes", "detail"))
        return length * np.exp(0.38 * lobes + 0.20 * detail)


def _arrival(source: np.ndarray, slowness: np.ndarray, spacing: float, limit: float) -> np.ndarray:
    """When a front that starts at `source` arrives.

    It solves the eikonal equation |grad T| = slowness by shortest paths over the 26 neighbours.
    Voxels of infinite slowness are not crossed, and T is cut off at `limit`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    free = np.isfinite(slowness)
    number = np.cumsum(free).reshape(free.shape) - 1
    edges = []
    for step in list(np.ndindex(3, 3, 3))[14:]:  # one of each pair of opposite directions
        shift = np.array(step) - 1
        axes = list(zip(shift, free.shape, strict=True))
        here = tuple(slice(max(0, -d), n - max(0, d)) for d, n in axes)
        there = tuple(slice(max(0, d), n - max(0, -d)) for d, n in axes)
        both = free[here] & free[there]
        cost = spacing * np.linalg.norm(shift) * (slowness[here][both] + slowness[there][both]) / 2
        edges.append((cost, number[here][both], number[there][both]))
    costs, rows, columns = (np.concatenate(part) for part in zip(*edges, strict=True))
    graph = coo_array((costs, (rows, columns)), shape=(free.sum(), free.sum())).tocsr()
    starts = number[source & free]
    reached = dijkstra(graph, directed=False, indices=starts, limit=limit, min_only=True)
    times = np.full(free.shape, limit, dtype=np.float32)
    times[free] = np.minimum(reached, limit)
    return times


def grow(
    rng: np.random.Generator, anatomy: Anatomy, grid: Grid, brain: np.ndarray
) -> tuple[Tumour, np.ndarray, np.ndarray]:
    """Draws a tumour and lets it spread, on a grid of 3 mm whatever the voxel size.

    Returns:
        The tumour; the distance of its core from the seed and of its oedema from the core, both
        measured along the ways that tissue leaves open (the falx and the ventricles are in the
        way), at the brain's voxels.
    """
    from scipy import ndimage

    coarse = Grid(grid.layout, 3.0)
    inside = brain if coarse == grid else anatomy.brain(coarse)
    points = coarse.points(inside)
    mni = anatomy.to_mni(coarse, inside, points)
    white = anatomy.tissues(coarse, inside, mni)[1] > 0.7
    deep = white & (np.abs(mni[0]) > 14) & (mni[2] > -8) & (mni[2] < 52)
    tumour = Tumour.draw(rng, coarse, points[:, deep])
    mni = anatomy.to_mni(coarse, inside, tumour.pushed(points))
    gm, wm, csf = anatomy.tissues(coarse, inside, mni)
    centre = np.zeros(coarse.shape, dtype=bool)
    slowness = np.full(coarse.shape, np.inf, dtype=np.float32)
    centre[inside] = (points == tumour.seed).all(0)
    slowness[inside] = np.where(csf > 0.6, np.inf, 1 + csf)
    slowness[centre] = 1
    body = _arrival(centre, slowness, coarse.spacing, 80.0)
    body[inside] = (body[inside] + 2 * tumour.distance(coarse, inside)) / 3
    core = centre | (body < tumour.radius)
    path, fringe = (tumour.fields[name].on(coarse, inside) for name in ("path", "fringe"))
    tissue = (wm + 3 * gm + 4 * csf) * np.exp(0.4 * path + 0.3 * fringe)
    slowness[inside] = np.where(csf > 0.6, np.inf, tissue)
    slowness[core] = 1
    front = _arrival(core, slowness, coarse.spacing, tumour.reach + 15)
    index = (np.argwhere(brain).T + 0.5) * (grid.spacing / coarse.spacing) - 0.5
    smooth = [ndimage.gaussian_filter(distance, 0.6) for distance in (body, front)]
    body, front = (ndimage.map_coordinates(d, index, order=1, mode="nearest") for d in smooth)
    return tumour, body, front
