"""What a dataset gives: subjects with their files, scans in memory, the meaning of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trm_bench.datasets.grid import Grid
from trm_bench.errors import UserError

LONGEST_ID = 200
"""Bytes of a subject's id."""


@dataclass(frozen=True)
class LabelMap:
    """A segmentation task: how the label values of the files become classes.

    Attributes:
        classes: Names of the classes from index 0 on; index 0 is the background.
        values: Every label value that the files may hold, with the class index it becomes.
        regions: What is scored, as unions of class indices, e.g. ``{"WT": (1, 2, 3)}``; every
            foreground class by itself when empty.
    """

    classes: tuple[str, ...]
    values: Mapping[int, int]
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.regions:
            regions = {name: (index,) for index, name in enumerate(self.classes) if index > 0}
            object.__setattr__(self, "regions", regions)


@dataclass(frozen=True)
class Subject:
    """One subject's files.

    Attributes:
        id: The subject's name, unique in its dataset, which names files: `UserError` for one that
            cannot.
        images: Modality name to image file; only the modalities that this subject really has.
        label: The label file.
        patient: Who was scanned. Two scans of one patient never lie on both sides of a split.
        institution: Where the images come from; "" where it is not known.
    """

    id: str
    images: Mapping[str, Path]
    label: Path
    patient: str = ""
    institution: str = ""

    def __post_init__(self) -> None:
        name = self.id.encode(errors="replace")
        plain = self.id.isprintable() and not any(c in self.id for c in "/\\")
        if not plain or self.id.startswith(".") or not 0 < len(name) <= LONGEST_ID:
            what = f"the subject id {self.id[:100]!r} is no plain file name"
            fix = f"rename its files: up to {LONGEST_ID} printable bytes, without / and \\"
            raise UserError(what, None, f"{fix}, not beginning with a dot")
        if not self.patient:
            object.__setattr__(self, "patient", self.id)


@dataclass(frozen=True)
class Scan:
    """A subject in memory, as its files have it, reoriented to the closest canonical (RAS+) axes.

    Attributes:
        image: float32, shape (C, X, Y, Z), in the order of `modalities`.
        label: uint8, shape (X, Y, Z), the files' own values (not classes).
        affine: float64, shape (4, 4), voxel index to millimetres.
        modalities: Names of the channels.
        file_grid: Of the first image file, which predictions go back to; by default the scan's own.
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    modalities: tuple[str, ...]
    file_grid: Grid | None = None

    @property
    def grid(self) -> Grid:
        """`file_grid`, or that of the scan as it is here."""
        return self.file_grid or Grid(self.label.shape, self.affine.tolist())

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)
