"""A physics-based MR phantom, written as FeTS2021 and iSeg-2019 lay out their files.

It stands in for the real data where those cannot be had: the same loaders read it, modalities differ as they do in MR,
institutions differ, tumours look like tumours. `docs/phantom.md` says what is modelled, from which sources, and what is
not. It is no evidence about any paper: its folder holds `PHANTOM.json`, and whatever is computed from it is marked.

One subject, in order: anatomy (`_Anatomy`), tumour (`_Tumour`), tissue fractions (`_glioma`, `_infant`), signals
(`_signal`), scanner (`_scan`), files. Lengths are in millimetres and times in milliseconds throughout.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from trm_bench.errors import UserError, nearest
from trm_bench.files import write_atomically, write_json, write_text

LAYOUTS = ("fets2021", "iseg2019")
MARKER = "PHANTOM.json"
VERSION = 1
"""Of what is drawn: raise it when the same arguments no longer give the same files."""

_ROOTS = {"fets2021": "MICCAI_FeTS2021_TrainingData", "iseg2019": "iSeg-2019-Training"}
_FOV = {"fets2021": (240.0, 240.0, 155.0), "iseg2019": (144.0, 192.0, 256.0)}
_SIGNS = {"fets2021": (-1, -1, 1), "iseg2019": (-1, 1, 1)}  # voxel axes run left-posterior-superior, left-anterior-s.

# sources in docs/phantom.md
_CSF_T1 = 4300.0
_ADULT = {  # proton density relative to CSF; T1 and T2 at 1.5 T; T1 and T2 at 3 T
    "csf": (1.00, _CSF_T1, 2000.0, _CSF_T1, 2000.0),
    "gm": (0.86, 833.0, 83.0, 1331.0, 110.0),
    "wm": (0.77, 500.0, 70.0, 832.0, 79.0),
    "blood": (0.80, 1440.0, 120.0, 1932.0, 120.0),
    "oedema": (0.88, 1050.0, 170.0, 1450.0, 180.0),
    "enhancing": (0.86, 1150.0, 130.0, 1600.0, 135.0),
    "core": (0.90, 1400.0, 190.0, 1900.0, 190.0),
    "necrosis": (0.95, 2300.0, 330.0, 2900.0, 330.0),
}
_TISSUES = {  # proton density, T1, T2
    "1.5T": {name: values[:3] for name, values in _ADULT.items()},
    "3T": {name: (values[0], *values[3:]) for name, values in _ADULT.items()},
    "infant": {
        "csf": (1.00, _CSF_T1, 2000.0),
        "gm": (0.90, 1600.0, 115.0),
        "wm": (0.90, 1850.0, 155.0),
        "myelin": (0.84, 1200.0, 92.0),
    },
}
_SPREAD = {"oedema": 0.09, "enhancing": 0.07, "core": 0.06, "necrosis": 0.04}  # of T1 and T2 within a tissue; else 0.03
_RELAXIVITY = 4.9  # of gadobutrol in plasma, l/(mmol s)
_VENTRICLES = np.array([[0], [-18], [14]], dtype=np.float32)  # their middle in MNI space


@dataclass(frozen=True)
class _Scanner:
    """One institution's protocol."""

    tissues: str  # the field strength, as a key of _TISSUES
    t1: tuple[float, float]  # TR, TE
    t2: tuple[float, float]
    flair: tuple[float, float] = (9000, 120)
    null: float = 1.0  # TI relative to the one that nulls CSF
    noise: float = 0.03  # standard deviation relative to white matter's signal
    bias: float = 0.10
    slices: float = 1.0  # thickness of T2w and FLAIR slices
    gain: float = 1500.0


_SCANNERS = (
    _Scanner("3T", (650, 9), (4500, 98), (9000, 118), 1.00, 0.030, 0.08, 1.0, 1400),
    _Scanner("1.5T", (430, 11), (3800, 95), (8500, 125), 0.96, 0.035, 0.05, 4.0, 900),
    _Scanner("3T", (800, 8), (6000, 108), (10000, 105), 1.04, 0.035, 0.15, 3.0, 2600),
    _Scanner("1.5T", (520, 9), (5200, 112), (9500, 135), 1.03, 0.025, 0.08, 3.0, 500),
    _Scanner("3T", (550, 13), (3400, 84), (8000, 95), 0.95, 0.050, 0.12, 5.0, 1900),
)
_INSTITUTION = (0, 1, 0, 2, 0, 1, 3, 0, 1, 2, 0, 4)  # of subject s: entry s % 12
_INFANT_SCANNER = _Scanner("infant", (900, 5), (7000, 119), bias=0.08, gain=700)


def write_phantom(
    layout: str,
    out: Path,
    subjects: int,
    spacing: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the phantom dataset under `out` and returns the folder to be used as data.root.

    Subject s depends on (seed, layout, s) alone. A call that was interrupted goes on where it stopped; a complete
    phantom with the same arguments is left as it is.

    Args:
        layout: One of `LAYOUTS`.
        out: The folder in which the dataset's own folder is made.
        subjects: How many; at least 1.
        spacing: Edge of the isotropic voxels in mm, 1 to 6; the field of view is that of the real dataset.
        seed: Not negative.
        progress: Called with (subjects done, subjects) after each subject.

    Raises:
        UserError: An argument is out of range, or the folder holds something else than this very phantom.
    """
    if layout not in LAYOUTS:
        raise UserError(f"no phantom has the layout '{layout}'", "layout", nearest(str(layout), LAYOUTS))
    if subjects < 1:
        raise UserError(f"a phantom of {subjects} subjects", "subjects", "ask for at least 1")
    if not 1 <= spacing <= 6:
        raise UserError(f"a phantom with voxels of {spacing} mm", "spacing", "take a spacing from 1 to 6 mm")
    if seed < 0:
        raise UserError(f"a negative seed ({seed})", "seed", "take 0 or more")
    root = Path(out) / _ROOTS[layout]
    wanted = {
        "phantom": True,
        "layout": layout,
        "subjects": int(subjects),
        "spacing": float(spacing),
        "seed": int(seed),
    }
    started = _claim(root, wanted | {"version": VERSION})
    for s in range(subjects):
        files = _files(layout, root, s)
        if not all(file.exists() for parts in files.values() for file in parts):
            for name, voxels in _subject(layout, s, float(spacing), int(seed)).items():
                for file, content in zip(files[name], _encode(layout, voxels, float(spacing)), strict=True):
                    write_atomically(file, partial(Path.write_bytes, data=content))
        if progress is not None:
            progress(s + 1, subjects)
    if layout == "fets2021":
        names = [_files(layout, root, s)["seg"][0].parent.name for s in range(subjects)]
        rows = sorted((_INSTITUTION[s % len(_INSTITUTION)] + 1, name) for s, name in enumerate(names))
        table = "".join(f"{institution},{name}\n" for institution, name in rows)
        write_text(root / "partitioning_1.csv", f"Partition_ID,Subject_ID\n{table}")
    if not is_phantom(root):
        started.replace(root / MARKER)
    return root


def is_phantom(root: Path) -> bool:
    """Whether the folder that serves as data.root is a complete phantom of `write_phantom`."""
    return (Path(root) / MARKER).is_file()


# ------------------------------------------------------------------------------------------------------------- files


def _claim(root: Path, wanted: Mapping[str, Any]) -> Path:
    """Makes the folder this phantom's and returns the file to rename to `MARKER` when all subjects are written.

    Raises:
        UserError: The folder is something else's.
    """
    started = root / f".{MARKER}.started"  # so that a resumed call cannot mix two phantoms
    if root.exists() and not root.is_dir():
        raise UserError("a file lies where the phantom's folder would be", root, "choose another folder")
    known = [file for file in (root / MARKER, started) if file.is_file()]
    if known:
        try:
            found = json.loads(known[0].read_text(encoding="utf-8"))
        except ValueError:
            found = "one whose marker cannot be read"
        if found != wanted:
            raise UserError(
                f"the folder holds another phantom: {found}, not {dict(wanted)}",
                known[0],
                "delete this folder, choose another one, or ask for the same layout, subjects, spacing and seed",
            )
    elif root.exists() and (foreign := sorted(path.name for path in root.iterdir())):
        raise UserError(
            f"the folder is not empty and not a phantom: it holds {', '.join(foreign[:3])}",
            root,
            "choose another folder; nothing was written here",
        )
    else:
        write_json(started, dict(wanted))
    return started


def _files(layout: str, root: Path, s: int) -> dict[str, tuple[Path, ...]]:
    """Image name to the files that make it up, of subject s; subjects are counted from 0 and named from 1."""
    if layout == "fets2021":
        name = f"FeTS21_Training_{s + 1:03d}"
        return {m: (root / name / f"{name}_{m}.nii.gz",) for m in ("flair", "t1", "t1ce", "t2", "seg")}
    stems = {"t1": "T1", "t2": "T2", "seg": "label"}
    return {m: tuple(root / f"subject-{s + 1}-{stem}.{end}" for end in ("hdr", "img")) for m, stem in stems.items()}


def _encode(layout: str, voxels: np.ndarray, spacing: float) -> tuple[bytes, ...]:
    """The contents of an image's files: compressed NIfTI, or header and voxels of Analyze with a trailing axis."""
    import nibabel as nib

    if layout == "iseg2019":
        header = nib.AnalyzeHeader()
        header.set_data_dtype(voxels.dtype)
        header.set_data_shape((*voxels.shape, 1))
        header.set_zooms((spacing, spacing, spacing, 1))
        return header.binaryblock, voxels.tobytes(order="F")
    affine = np.diag([*(spacing * np.array(_SIGNS[layout])), 1.0])
    shift = (spacing - 1) / 2  # BraTS's own affine at 1 mm; otherwise the field of view stays where it is
    affine[:3, 3] = (-shift, 239 - shift, shift)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    return (gzip.compress(image.to_bytes(), compresslevel=3, mtime=0),)


# ---------------------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class _Grid:
    """Isotropic voxels over a layout's field of view; most functions take it with a mask of the voxels they are for."""

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
        """Right-anterior-superior position of voxel centres, from the centre of the field of view; shape (3, n)."""
        corner = (self.spacing - np.array(self.fov)) / 2
        points = (np.argwhere(where) * self.spacing + corner) * _SIGNS[self.layout]
        return points.T.astype(np.float32)


@dataclass(frozen=True)
class _Field:
    """A smooth random field of about unit variance: a cubic B-spline over normal coefficients `scale` mm apart.

    It is defined in millimetres, so that a subject has the same fields whatever the voxel size.
    """

    scale: float
    coefficients: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: _Grid, scale: float) -> _Field:
        return cls(scale, 3 * rng.standard_normal([int(f / scale) + 5 for f in grid.fov], dtype=np.float32))

    def on(self, grid: _Grid, where: np.ndarray) -> np.ndarray:
        from scipy.sparse import csr_array

        values = self.coefficients
        for n in grid.shape:
            position = (np.arange(n, dtype=np.float32)[:, None] + 0.5) * np.float32(grid.spacing / self.scale) + 1.5
            u = np.abs(position - np.arange(values.shape[0], dtype=np.float32))
            basis = np.where(u < 1, (4 - 6 * u**2 + 3 * u**3) / 6, np.clip(2 - u, 0, None) ** 3 / 6)
            product = csr_array(basis) @ values.reshape(len(values), -1)
            values = np.ascontiguousarray(np.moveaxis(product.reshape(n, *values.shape[1:]), 0, -1))
        return values[where]


@lru_cache(maxsize=4)
def _template(spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Grey matter, white matter, CSF and brain mask of MNI152 at 1 mm, blurred for sampling at `spacing`.

    Returns:
        The maps, float32, shape (4, X, Y, Z), and the position of voxel (0, 0, 0) in MNI space.
    """
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template
    from scipy import ndimage

    images = [load(resolution=1) for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)]
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
class _Anatomy:
    """A subject's brain: MNI152 under a random affine map and a smooth elastic field.

    Attributes:
        matrix: The affine part, from the subject's millimetres to MNI's.
        elastic: Amplitude in mm, and a field for each axis.
        ventricles: How much the region around the ventricles is magnified (> 0) or shrunk.
        atrophy: How much CSF outweighs tissue where they meet (a logarithm).
        folds: Amplitude (a logarithm), and a field for each tissue: no two cortices are alike.
    """

    matrix: np.ndarray
    elastic: tuple[tuple[float, list[_Field]], ...]
    ventricles: float
    atrophy: float
    folds: tuple[tuple[float, list[_Field]], ...]

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: _Grid, size: float) -> _Anatomy:
        from scipy.spatial.transform import Rotation

        sizes = size * rng.normal(1, 0.025) * rng.normal(1, 0.02, 3)
        matrix = Rotation.from_euler("xyz", rng.normal(0, (2.5, 2.0, 2.0)), degrees=True).as_matrix() / sizes

        def fields(amplitude: float, scale: float) -> tuple[float, list[_Field]]:
            return amplitude, [_Field.draw(rng, grid, scale) for _ in range(3)]

        elastic = fields(2.4, 50.0), fields(1.5, 16.0)
        ventricles, atrophy = float(rng.uniform(-0.15, 0.35)), float(rng.uniform(-0.2, 0.9))
        return cls(matrix.astype(np.float32), elastic, ventricles, atrophy, (fields(0.35, 30.0), fields(0.45, 7.0)))

    def to_mni(self, grid: _Grid, where: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Position in MNI space of what lies at each voxel, where `points` says from where it was pushed there."""
        mni = self.matrix @ points + np.array([[0], [-18], [6]], dtype=np.float32)  # the middle of the brain mask
        for amplitude, fields in self.elastic:
            for axis, one in enumerate(fields):
                mni[axis] += amplitude * one.on(grid, where)
        offset = mni - _VENTRICLES
        return mni - self.ventricles * np.exp((offset**2).sum(0) / (-2 * 26.0**2)) * offset

    def brain(self, grid: _Grid) -> np.ndarray:
        """The brain mask, bool."""
        from scipy import ndimage

        brain = np.ones(grid.shape, dtype=bool)
        points = grid.points(brain)
        near = ((points / np.array([[90], [110], [100]], dtype=np.float32)) ** 4).sum(0) < 1  # no brain reaches further
        brain[brain] = near
        maps, origin = _template(grid.spacing)
        mni = self.to_mni(grid, brain, points[:, near])
        brain[brain] = ndimage.map_coordinates(maps[3], mni - origin, order=1) > 0.5
        return brain

    def tissues(self, grid: _Grid, brain: np.ndarray, mni: np.ndarray) -> np.ndarray:
        """Fractions of grey matter, white matter and CSF in the brain's voxels, shape (3, n); they sum to 1."""
        from scipy import ndimage

        maps, origin = _template(grid.spacing)
        fractions = np.stack([ndimage.map_coordinates(m, mni - origin, order=1) for m in maps[:3]])
        for amplitude, fields in self.folds:
            for fraction, one in zip(fractions, fields, strict=True):
                fraction *= np.exp(amplitude * one.on(grid, brain))
        fractions[2] = fractions[2] * np.exp(self.atrophy) + 1e-4  # what no map covers is CSF
        return fractions / fractions.sum(0)


# ------------------------------------------------------------------------------------------------------------ tumour


@dataclass(frozen=True)
class _Tumour:
    """A core around `seed`, with a rim of enhancing tumour around necrosis, and oedema around it; lengths in mm.

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
    fields: Mapping[str, _Field]

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: _Grid, places: np.ndarray) -> _Tumour:
        from scipy.spatial.transform import Rotation

        seed = places[:, rng.integers(places.shape[1])][:, None]
        enhances = bool(rng.random() < 0.82)
        radius = float(np.clip(np.exp(rng.normal(np.log(15), 0.42)), 7, 27))
        rim = float(rng.uniform(0.22, 0.5) if rng.random() < 0.8 else 1.2) * radius
        reach = float(rng.uniform(6, 26) if enhances else rng.uniform(4, 12))
        axes = Rotation.from_quat(rng.standard_normal(4)).as_matrix()
        stretch = axes @ np.diag(np.exp(rng.normal(0, 0.2, 3))) @ axes.T
        scales = {"lobes": 18.0, "detail": 8.0, "rim": 10.0, "grain": 6.0, "path": 14.0, "fringe": 7.0}
        fields = {name: _Field.draw(rng, grid, scale) for name, scale in scales.items()}
        return cls(seed, radius, rim, reach, enhances, rng.uniform(0.15, 0.4), stretch.astype(np.float32), fields)

    def pushed(self, points: np.ndarray) -> np.ndarray:
        """Where the tissue at each point comes from: the mass presses outwards, less so farther off."""
        offset = points - self.seed
        return points - self.push * np.exp((offset**2).sum(0) / (-2 * (1.5 * self.radius) ** 2)) * offset

    def distance(self, grid: _Grid, where: np.ndarray) -> np.ndarray:
        """Distance from the seed, distorted so that its level sets are irregular, lobed bodies."""
        length = np.sqrt(((self.stretch @ (grid.points(where) - self.seed)) ** 2).sum(0))
        lobes, detail = (self.fields[name].on(grid, where) for name in ("lobes", "detail"))
        return length * np.exp(0.38 * lobes + 0.20 * detail)


def _arrival(source: np.ndarray, slowness: np.ndarray, spacing: float, limit: float) -> np.ndarray:
    """When a front that starts at `source` arrives: solves the eikonal equation |grad T| = slowness.

    Shortest paths over the 26 neighbours; voxels of infinite slowness are not crossed, and T is cut off at `limit`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    free = np.isfinite(slowness)
    number = np.cumsum(free).reshape(free.shape) - 1
    edges = []
    for step in list(np.ndindex(3, 3, 3))[14:]:  # one of each pair of opposite directions
        shift = np.array(step) - 1
        here = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(shift, free.shape, strict=True))
        there = tuple(slice(max(0, d), n - max(0, -d)) for d, n in zip(shift, free.shape, strict=True))
        both = free[here] & free[there]
        cost = spacing * np.linalg.norm(shift) * (slowness[here][both] + slowness[there][both]) / 2
        edges.append((cost, number[here][both], number[there][both]))
    costs, rows, columns = (np.concatenate(part) for part in zip(*edges, strict=True))
    graph = coo_array((costs, (rows, columns)), shape=(free.sum(), free.sum())).tocsr()
    found = dijkstra(graph, directed=False, indices=number[source & free], limit=limit, min_only=True)
    times = np.full(free.shape, limit, dtype=np.float32)
    times[free] = np.minimum(found, limit)
    return times


def _grow(
    rng: np.random.Generator, anatomy: _Anatomy, grid: _Grid, brain: np.ndarray
) -> tuple[_Tumour, np.ndarray, np.ndarray]:
    """Draws a tumour and lets it spread, on a grid of 3 mm whatever the voxel size.

    Returns:
        The tumour; the distance of its core from the seed and of its oedema from the core, both measured along the
        ways that tissue leaves open (the falx and the ventricles are in the way), at the brain's voxels.
    """
    from scipy import ndimage

    coarse = _Grid(grid.layout, 3.0)
    inside = brain if coarse == grid else anatomy.brain(coarse)
    points = coarse.points(inside)
    mni = anatomy.to_mni(coarse, inside, points)
    deep = (anatomy.tissues(coarse, inside, mni)[1] > 0.7) & (np.abs(mni[0]) > 14) & (mni[2] > -8) & (mni[2] < 52)
    tumour = _Tumour.draw(rng, coarse, points[:, deep])
    gm, wm, csf = anatomy.tissues(coarse, inside, anatomy.to_mni(coarse, inside, tumour.pushed(points)))
    centre, slowness = np.zeros(coarse.shape, dtype=bool), np.full(coarse.shape, np.inf, dtype=np.float32)
    centre[inside] = (points == tumour.seed).all(0)
    slowness[inside] = np.where(csf > 0.6, np.inf, 1 + csf)
    slowness[centre] = 1
    body = _arrival(centre, slowness, coarse.spacing, 80.0)
    body[inside] = (body[inside] + 2 * tumour.distance(coarse, inside)) / 3
    core = centre | (body < tumour.radius)
    path, fringe = (tumour.fields[name].on(coarse, inside) for name in ("path", "fringe"))
    slowness[inside] = np.where(csf > 0.6, np.inf, (wm + 3 * gm + 4 * csf) * np.exp(0.4 * path + 0.3 * fringe))
    slowness[core] = 1
    front = _arrival(core, slowness, coarse.spacing, tumour.reach + 15)
    index = (np.argwhere(brain).T + 0.5) * (grid.spacing / coarse.spacing) - 0.5
    body, front = (ndimage.gaussian_filter(distance, 0.6) for distance in (body, front))
    body, front = (ndimage.map_coordinates(distance, index, order=1, mode="nearest") for distance in (body, front))
    return tumour, body, front


# ------------------------------------------------------------------------------------------------------------ images


@dataclass(frozen=True)
class _Model:
    """What is in the brain's voxels: the mask, and for each of its n voxels tissue fractions, gadolinium and label."""

    brain: np.ndarray
    fractions: Mapping[str, np.ndarray]
    label: np.ndarray
    gadolinium: Mapping[str, np.ndarray] = field(default_factory=dict)  # mmol/l after injection


def _glioma(rng: np.random.Generator, grid: _Grid) -> _Model:
    """An adult with a glioma; labels 1 necrosis and non-enhancing core, 2 oedema, 4 enhancing tumour."""
    anatomy = _Anatomy.draw(rng, grid, 0.92)
    brain = anatomy.brain(grid)  # as it was: the skull does not give way to the mass
    tumour, body, front = _grow(rng, anatomy, grid, brain)
    mni = anatomy.to_mni(grid, brain, tumour.pushed(grid.points(brain)))
    gm, wm, csf = anatomy.tissues(grid, brain, mni)
    noise = {name: one.on(grid, brain) for name, one in tumour.fields.items()}

    def ramp(inside: np.ndarray, width: float) -> np.ndarray:
        return np.clip(0.5 + inside / (2 * width), 0, 1)

    core = ramp(tumour.radius - body + 0.6 * noise["grain"], 0.8)
    dead = ramp(tumour.radius - body - tumour.rim * np.exp(0.45 * noise["rim"]) + 1.2 * noise["grain"], 0.7)
    wet = ramp(tumour.reach - front - 5 * gm - 1.5 * noise["fringe"], 3.0)  # of white matter; grey matter holds less
    # vessels: where two smooth fields both cross zero, in the CSF outside the ventricles
    outside = (csf > 0.3) & (((mni - _VENTRICLES) ** 2).sum(0) > 42**2)
    vessels = sum(_Field.draw(rng, grid, 12.0).on(grid, brain) ** 2 for _ in range(2))
    vessels = np.exp(vessels / (-2 * 0.15**2)) * outside
    around = {"gm": gm * (1 - 0.6 * wet), "wm": wm * (1 - wet), "oedema": (wm + 0.6 * gm) * wet}
    around |= {"csf": csf * (1 - vessels), "blood": csf * vessels}
    fractions = {name: fraction * (1 - core) for name, fraction in around.items()}
    label = np.where(fractions["oedema"] > 0.4, 2, 0)
    if tumour.enhances:
        fractions |= {"enhancing": core * (1 - dead), "necrosis": core * dead}
        label[core > 0.5] = np.where(dead[core > 0.5] > 0.5, 1, 4)
    else:
        fractions |= {"core": core}
        label[core > 0.5] = 1
    leak = rng.uniform(0.18, 0.4) * np.exp(0.35 * noise["grain"] + 0.35 * noise["detail"])
    return _Model(brain, fractions, label, {"enhancing": leak, "blood": np.full_like(leak, 0.5)})


def _infant(rng: np.random.Generator, grid: _Grid) -> _Model:
    """A six-month-old, whose white matter is myelinated near the centre only; labels 10 CSF, 150 grey, 250 white."""
    anatomy = _Anatomy.draw(rng, grid, 0.76)
    brain = anatomy.brain(grid)
    mni = anatomy.to_mni(grid, brain, grid.points(brain))
    gm, wm, csf = anatomy.tissues(grid, brain, mni)
    centre = np.array([[0], [-26], [4]], dtype=np.float32)
    patches = _Field.draw(rng, grid, 12.0).on(grid, brain)
    myelin = np.exp(((mni - centre) ** 2).sum(0) / (-2 * 28.0**2) + 0.3 * patches)
    myelin = np.clip(0.1 + 0.75 * myelin, 0, 0.9)
    label = np.array([150, 250, 10])[np.argmax([gm, wm, csf], axis=0)]
    return _Model(brain, {"gm": gm, "wm": wm * (1 - myelin), "myelin": wm * myelin, "csf": csf}, label)


def _signal(modality: str, scanner: _Scanner, pd: Any, t1: Any, t2: Any, gadolinium: Any = 0.0) -> Any:
    """Signal of a tissue, relative to fully relaxed CSF.

    Spin echo (t1, t1ce, t2): S = PD (1 - exp(-TR/T1)) exp(-TE/T2); for t1ce with 1/T1' = 1/T1 + r1 C.
    Inversion recovery (flair): S = PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2).
    """
    if modality == "flair":
        tr, te = scanner.flair
        ti = scanner.null * _CSF_T1 * np.log(2 / (1 + np.exp(-tr / _CSF_T1)))  # nulls CSF where null is 1
        return pd * np.abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)
    if modality == "t1ce":
        t1 = 1 / (1 / t1 + _RELAXIVITY * gadolinium / 1000)
    tr, te = scanner.t2 if modality == "t2" else scanner.t1
    return pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def _subject(layout: str, s: int, spacing: float, seed: int) -> dict[str, np.ndarray]:
    """All images of one subject, with the layout's axes: int16, and `seg` uint8."""
    streams = np.random.SeedSequence([seed, LAYOUTS.index(layout), s]).spawn(2)
    rng, voxelwise = (np.random.default_rng(stream) for stream in streams)  # the first is the same for any voxel size
    grid = _Grid(layout, spacing)
    adult = layout == "fets2021"
    model = _glioma(rng, grid) if adult else _infant(rng, grid)
    scanner = _SCANNERS[_INSTITUTION[s % len(_INSTITUTION)]] if adult else _INFANT_SCANNER
    coarse, fine = ([_Field.draw(rng, grid, scale).on(grid, model.brain) for _ in range(2)] for scale in (14.0, 4.0))
    texture = [0.6 * c + 0.8 * f for c, f in zip(coarse, fine, strict=True)]
    tissues = {name: np.array(v) * rng.normal(1, (0.01, 0.03, 0.03)) for name, v in _TISSUES[scanner.tissues].items()}
    images = {}
    for modality in ("flair", "t1", "t1ce", "t2") if adult else ("t1", "t2"):
        signal = np.zeros(model.label.size, dtype=np.float32)
        for name, fraction in model.fractions.items():
            here = fraction > 0
            pd, t1, t2 = tissues[name]
            t1, t2 = (t * np.exp(_SPREAD.get(name, 0.03) * x[here]) for t, x in zip((t1, t2), texture, strict=True))
            gadolinium = model.gadolinium[name][here] if name in model.gadolinium else 0.0
            signal[here] += fraction[here] * _signal(modality, scanner, pd, t1, t2, gadolinium)
        noise = scanner.noise * float(_signal(modality, scanner, *tissues["wm"]))
        bias = np.exp(scanner.bias * _Field.draw(rng, grid, 90.0).on(grid, model.brain))
        thickness = scanner.slices if modality in ("t2", "flair") else 1.0
        gain = scanner.gain / 0.3 * float(np.exp(rng.normal(0, 0.12)))
        images[modality] = _scan(voxelwise, grid, model.brain, signal, thickness, bias, noise, gain)
    images["seg"] = np.zeros(grid.shape, dtype=np.uint8)
    images["seg"][model.brain] = model.label
    return images


def _scan(
    rng: np.random.Generator,
    grid: _Grid,
    brain: np.ndarray,
    signal: np.ndarray,
    thickness: float,
    bias: np.ndarray,
    noise: float,
    gain: float,
) -> np.ndarray:
    """What the scanner makes of a signal: point spread, receive bias, Rician noise, gain, integers.

    M = g |S b + n1 + i n2|, n1 and n2 normal with standard deviation `noise`; at least 1 in the brain, 0 elsewhere.
    """
    from scipy import ndimage

    sigma = np.array([0.5, 0.5, 0.35 * thickness]) / grid.spacing
    volume = np.zeros((2, *grid.shape), dtype=np.float32)
    volume[:, brain] = signal, np.ones_like(signal)
    blurred, weight = (ndimage.gaussian_filter(v, sigma)[brain] for v in volume)
    # divided by the weight since brains are stripped after the scan: the empty outside must not be drawn in
    real, imaginary = rng.standard_normal((2, signal.size), dtype=np.float32) * np.float32(noise)
    magnitude = np.hypot(blurred / weight * bias + real, imaginary)
    image = np.zeros(grid.shape, dtype=np.int16)
    image[brain] = np.clip(np.rint(gain * magnitude), 1, 32767)
    return image
