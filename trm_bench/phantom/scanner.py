"""MR scanners: relaxation times, the signal of a tissue, and what a scanner makes of it.

The sources of the numbers are in `docs/phantom.md`; times are in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trm_bench.phantom.geometry import Grid

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
TISSUES = {  # proton density, T1, T2
    "1.5T": {name: values[:3] for name, values in _ADULT.items()},
    "3T": {name: (values[0], *values[3:]) for name, values in _ADULT.items()},
    "infant": {
        "csf": (1.00, _CSF_T1, 2000.0),
        "gm": (0.90, 1600.0, 115.0),
        "wm": (0.90, 1850.0, 155.0),
        "myelin": (0.84, 1200.0, 92.0),
    },
}
# of T1 and T2 within a tissue; else 0.03
SPREAD = {"oedema": 0.09, "enhancing": 0.07, "core": 0.06, "necrosis": 0.04}
_RELAXIVITY = 4.9  # of gadobutrol in plasma, l/(mmol s)


@dataclass(frozen=True)
class Scanner:
    """One institution's protocol."""

    tissues: str  # the field strength, as a key of TISSUES
    t1: tuple[float, float]  # TR, TE
    t2: tuple[float, float]
    flair: tuple[float, float] = (9000, 120)
    null: float = 1.0  # TI relative to the one that nulls CSF
    noise: float = 0.03  # standard deviation relative to white matter's signal
    bias: float = 0.10
    slices: float = 1.0  # thickness of T2w and FLAIR slices
    gain: float = 1500.0


SCANNERS = (
    Scanner("3T", (650, 9), (4500, 98), (9000, 118), 1.00, 0.030, 0.08, 1.0, 1400),
    Scanner("1.5T", (430, 11), (3800, 95), (8500, 125), 0.96, 0.035, 0.05, 4.0, 900),
    Scanner("3T", (800, 8), (6000, 108), (10000, 105), 1.04, 0.035, 0.15, 3.0, 2600),
    Scanner("1.5T", (520, 9), (5200, 112), (9500, 135), 1.03, 0.025, 0.08, 3.0, 500),
    Scanner("3T", (550, 13), (3400, 84), (8000, 95), 0.95, 0.050, 0.12, 5.0, 1900),
)
INFANT_SCANNER = Scanner("infant", (900, 5), (7000, 119), bias=0.08, gain=700)


def institution_of(s: int) -> int:
    """The institution of the adult subject s, an index into `SCANNERS`; few of them have many."""
    institutions = (0, 1, 0, 2, 0, 1, 3, 0, 1, 2, 0, 4)
    return institutions[s % len(institutions)]


def signal_of(
    modality: str, scanner: Scanner, pd: Any, t1: Any, t2: Any, gadolinium: Any = 0.0
) -> Any:
    """Signal of a tissue, relative to fully relaxed CSF.

    Spin echo (t1, t1ce, t2): S = PD (1 - exp(-TR/T1)) exp(-TE/T2).
    For t1ce 1/T1 becomes 1/T1 + r1 C.
    Inversion recovery (flair): S = PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2).
    """
    if modality == "flair":
        tr, te = scanner.flair
        # nulls CSF where null is 1
        ti = scanner.null * _CSF_T1 * np.log(2 / (1 + np.exp(-tr / _CSF_T1)))
        return pd * np.abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)
    if modality == "t1ce":
        t1 = 1 / (1 / t1 + _RELAXIVITY * gadolinium / 1000)
    tr, te = scanner.t2 if modality == "t2" else scanner.t1
    return pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def scan(
    rng: np.random.Generator,
    grid: Grid,
    brain: np.ndarray,
    signal: np.ndarray,
    thickness: float,
    bias: np.ndarray,
    noise: float,
    gain: float,
) -> np.ndarray:
    """What the scanner makes of a signal: point spread, receive bias, Rician noise, gain, integers.

    M = g |S b + n1 + i n2|, n1 and n2 normal with standard deviation `noise`; at least 1 in the
    brain, 0 elsewhere.
    """
    from scipy import ndimage

    sigma = np.array([0.5, 0.5, 0.35 * thickness]) / grid.spacing
    volume = np.zeros((2, *grid.shape), dtype=np.float32)
    volume[:, brain] = signal, np.ones_like(signal)
    blurred, weight = (ndimage.gaussian_filter(v, sigma)[brain] for v in volume)
    # divided by the weight: brains are stripped after the scan, so nothing outside may be drawn in
    real, imaginary = rng.standard_normal((2, signal.size), dtype=np.float32) * np.float32(noise)
    magnitude = np.hypot(blurred / weight * bias + real, imaginary)
    image = np.zeros(grid.shape, dtype=np.int16)
    image[brain] = np.clip(np.rint(gain * magnitude), 1, 32767)
    return image
