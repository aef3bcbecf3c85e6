"""One subject: the tissue fractions in its voxels, and its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from trm_bench.phantom.anatomy import VENTRICLES, Anatomy
from trm_bench.phantom.geometry import LAYOUTS, Field, Grid
from trm_bench.phantom.scanner import (
    INFANT_SCANNER,
    SCANNERS,
    SPREAD,
    TISSUES,
    institution_of,
    scan,
    signal_of,
)
from trm_bench.phantom.tumour import grow


@dataclass(frozen=True)
class _Model:
    """What is in the brain's voxels: the mask, and for each of its n voxels all the rest."""

    brain: np.ndarray
    fractions: Mapping[str, np.ndarray]
    label: np.ndarray
    gadolinium: Mapping[str, np.ndarray] = field(default_factory=dict)  # mmol/l after injection


def _glioma(rng: np.random.Generator, grid: Grid) -> _Model:
    """An adult with a glioma; labels 1 necrosis, other core; 2 oedema; 4 enhancing tumour."""
    anatomy = Anatomy.draw(rng, grid, 0.92)
    brain = anatomy.brain(grid)  # as it was: the skull does not give way to the mass
    tumour, body, front = grow(rng, anatomy, grid, brain)
    mni = anatomy.to_mni(grid, brain, tumour.pushed(grid.points(brain)))
    gm, wm, csf = anatomy.tissues(grid, brain, mni)
    noise = {name: one.on(grid, brain) for name, one in tumour.fields.items()}

    def ramp(inside: np.ndarray, width: float) -> np.ndarray:
        return np.clip(0.5 + inside / (2 * width), 0, 1)

    core = ramp(tumour.radius - body + 0.6 * noise["grain"], 0.8)
    rim = tumour.rim * np.exp(0.45 * noise["rim"])
    dead = ramp(tumour.radius - body - rim + 1.2 * noise["grain"], 0.7)
    # of white matter; grey matter holds less
    wet = ramp(tumour.reach - front - 5 * gm - 1.5 * noise["fringe"], 3.0)
    # vessels: where two smooth fields both cross zero, in the CSF outside the ventricles
    outside = (csf > 0.3) & (((mni - VENTRICLES) ** 2).sum(0) > 42**2)
    vessels = sum(Field.draw(rng, grid, 12.0).on(grid, brain) ** 2 for _ in range(2))
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


def _infant(rng: np.random.Generator, grid: Grid) -> _Model:
    """A six-month-old, with myelin near the centre only; labels 10 CSF, 150 grey, 250 white."""
    anatomy = Anatomy.draw(rng, grid, 0.76)
    brain = anatomy.brain(grid)
    mni = anatomy.to_mni(grid, brain, grid.points(brain))
    gm, wm, csf = anatomy.tissues(grid, brain, mni)
    centre = np.array([[0], [-26], [4]], dtype=np.float32)
    patches = Field.draw(rng, grid, 12.0).on(grid, brain)
    myelin = np.exp(((mni - centre) ** 2).sum(0) / (-2 * 28.0**2) + 0.3 * patches)
    myelin = np.clip(0.1 + 0.75 * myelin, 0, 0.9)
    label = np.array([150, 250, 10])[np.argmax([gm, wm, csf], axis=0)]
    fractions = {"gm": gm, "wm": wm * (1 - myelin), "myelin": wm * myelin, "csf": csf}
    return _Model(brain, fractions, label)


def draw_subject(layout: str, s: int, spacing: float, seed: int) -> dict[str, np.ndarray]:
    """All images of one subject, with the layout's axes: int16, and `seg` uint8."""
    streams = np.random.SeedSequence([seed, LAYOUTS.index(layout), s]).spawn(2)
    # the draws of the first are the same for any voxel size
    rng, voxelwise = (np.random.default_rng(stream) for stream in streams)
    grid = Grid(layout, spacing)
    adult = layout == "fets2021"
    model = _glioma(rng, grid) if adult else _infant(rng, grid)
    scanner = SCANNERS[institution_of(s)] if adult else INFANT_SCANNER
    coarse, fine = (
        [Field.draw(rng, grid, scale).on(grid, model.brain) for _ in range(2)]
        for scale in (14.0, 4.0)
    )
    texture = [0.6 * c + 0.8 * f for c, f in zip(coarse, fine, strict=True)]
    tissues = {
        name: np.array(v) * rng.normal(1, (0.01, 0.03, 0.03))
        for name, v in TISSUES[scanner.tissues].items()
    }
    images = {}
    for modality in ("flair", "t1", "t1ce", "t2") if adult else ("t1", "t2"):
        signal = np.zeros(model.label.size, dtype=np.float32)
        for name, fraction in model.fractions.items():
            here = fraction > 0
            pd, t1, t2 = tissues[name]
            spread = SPREAD.get(name, 0.03)
            t1, t2 = (t * np.exp(spread * x[here]) for t, x in zip((t1, t2), texture, strict=True))
            gadolinium = model.gadolinium[name][here] if name in model.gadolinium else 0.0
            signal[here] += fraction[here] * signal_of(modality, scanner, pd, t1, t2, gadolinium)
        noise = scanner.noise * float(signal_of(modality, scanner, *tissues["wm"]))
        bias = np.exp(scanner.bias * Field.draw(rng, grid, 90.0).on(grid, model.brain))
        thickness = scanner.slices if modality in ("t2", "flair") else 1.0
        gain = scanner.gain / 0.3 * float(np.exp(rng.normal(0, 0.12)))
        images[modality] = scan(voxelwise, grid, model.brain, signal, thickness, bias, noise, gain)
    images["seg"] = np.zeros(grid.shape, dtype=np.uint8)
    images["seg"][model.brain] = model.label
    return images
