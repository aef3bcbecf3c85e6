"""What a dataset gives: subjects with their files, scans in memory, the meaning of labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trm_bench.datasets.grid import Grid
from trm_bench.errors import UserError

LONGEST_ID = 200
"""Bytes of a subject's id."""
BACKGROUND = "background"


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

    @classmethod
    def of(cls, classes: Mapping[str, Sequence[int]], known: Iterable[int]) -> LabelMap:
        """The task that a person writes down, e.g. ``{"lesion": [1, 2]}``.

        Args:
            classes: Class to its label values, in the order of the classes. Every other value that
                is known is background.
            known: The label values that the files may hold.

        Raises:
            UserError: There is no class, one has no values or is called "background", a value is 0
                (the background), is not known, or is in two classes.
        """
        values = dict.fromkeys(sorted({0, *known}), 0)
        foreground = ", ".join(str(value) for value in values if value)
        where, fix = "data.labels", f"the label values of this dataset are {foreground}"
        if not classes:
            raise UserError("no class is named", where, fix)
        for index, (name, members) in enumerate(classes.items(), start=1):
            if name == BACKGROUND:
                what = f"no class can be called '{BACKGROUND}', which is all that no class has"
                raise UserError(what, where, "leave it out")
            if not members:
                raise UserError(f"the class '{name}' has no label value", where, fix)
            for value in members:
                if value == 0 or value not in values:
                    what = "is background" if value == 0 else "is unknown to this dataset"
                    raise UserError(f"the label value {value} of '{name}' {what}", where, fix)
                if values[value]:
                    owner = list(classes)[values[value] - 1]
                    what = f"the label value {value} is in '{owner}' and in '{name}'"
                    raise UserError(what, where, "let each value be in one class, once")
                values[value] = index
        return cls((BACKGROUND, *classes), values)


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
            raise UserError(what, self.label, f"{fix}, not beginning with a dot")
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
