"""What a dataset is: its subjects, their files, and what the label values mean.

A dataset says nothing about training. To add one whose subjects are NIfTI or Analyze files,
subclass `NiftiDataset`, list its `modalities` and `label_maps`, and write `subjects`. For other
formats subclass `Dataset` and write `files` and `read` as well; `check_image` and `check_label`
hold the checks that every format shares.
"""

from __future__ import annotations

import gzip
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import SerializableImage
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import SpatialImage

from trm_bench.errors import BadSubject, UserError, nearest

AFFINE_TOLERANCE = 1e-3
"""How far two affines of one subject may differ, in units of the voxel size."""

# the most bytes that one byte of a file can become
_EXPANSION = {".nii": 1, ".hdr": 1, ".gz": 1032}
_REPLACE = "download the file again, or set data.on_bad_subject: skip to leave this subject out"
_UNLIKE = (
    "use the files as the dataset publishes them, "
    "or set data.on_bad_subject: skip to leave this subject out"
)


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
        id: The subject's name, unique in its dataset.
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
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    modalities: tuple[str, ...]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


class Dataset(ABC):
    """A folder of subjects in a public dataset's own layout.

    Args:
        root: The folder as it comes out of the dataset's archive.

    Attributes:
        distance_unit: What distances in a scan's affine are in: `mm`, or `voxels` where the files
            do not state the voxel size.

    Raises:
        UserError: The folder does not exist or does not hold this dataset.
    """

    name: ClassVar[str]
    modalities: tuple[str, ...]
    label_maps: Mapping[str, LabelMap]
    licence: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    distance_unit: ClassVar[Literal["mm", "voxels"]] = "mm"

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(
                f"no folder with the dataset '{self.name}'",
                self.root,
                "point data.root at the extracted dataset, "
                "or add --phantom where the dataset has a phantom",
            )

    @abstractmethod
    def subjects(self) -> list[Subject]:
        """Lists the subjects, sorted by id; raises `UserError` where the layout is another.

        A subject whose files are incomplete is listed all the same: `read` says what is missing.
        """

    def files(self, subject: Subject) -> list[Path]:
        """All files of a subject, each once, for the data manifest; a missing label file too."""
        return list(dict.fromkeys([*subject.images.values(), subject.label]))

    @abstractmethod
    def read(self, subject: Subject, modalities: tuple[str, ...]) -> Scan:
        """Reads and validates one subject.

        Args:
            subject: One of `subjects()`.
            modalities: The channels wanted, in this order.

        Raises:
            UserError: The dataset has no such modality.
            BadSubject: A file is missing, truncated, holds NaN, does not fit the others in shape or
                affine, has label values that no label map knows, or has no labelled voxel.
        """

    def check_modalities(self, modalities: tuple[str, ...]) -> None:
        """Raises `UserError` with the nearest name where a modality is not one of the dataset's."""
        for modality in modalities:
            if modality not in self.modalities:
                raise UserError(
                    f"the dataset '{self.name}' has no modality '{modality}'",
                    "modality",
                    nearest(modality, self.modalities),
                )

    def check_image(self, subject: Subject, file: Path, image: np.ndarray) -> None:
        """Raises `BadSubject` where a channel, of any shape, has NaN or infinity or is constant."""
        finite = np.isfinite(image)
        if not finite.all():
            raise BadSubject(
                subject.id,
                f"{finite.size - np.count_nonzero(finite)} voxels are NaN or infinite",
                file,
                _UNLIKE,
            )
        if image.size == 0 or image.min() == image.max():
            raise BadSubject(subject.id, "the image is constant: it shows nothing", file, _UNLIKE)

    def check_label(self, subject: Subject, file: Path, values: np.ndarray) -> np.ndarray:
        """Checks label values of any dtype and returns them as uint8 in the same shape.

        Raises:
            BadSubject: Values are not whole numbers from 0 to 255, are in no label map of the
                dataset, or no voxel is foreground in any label map.
        """
        with np.errstate(invalid="ignore"):  # NaN becomes some number, which then differs from NaN
            label = values.astype(np.uint8)
        if not np.array_equal(label, values):
            odd = values[label != values].flat[0]
            raise BadSubject(
                subject.id, f"the label value {odd} is no whole number from 0 to 255", file, _UNLIKE
            )
        maps = [label_map.values for label_map in self.label_maps.values()]
        known = {value for values in maps for value in values}
        foreground = {value for values in maps for value, index in values.items() if index > 0}
        present = set(np.unique(label).tolist())
        if present - known:
            odd, allowed = (", ".join(map(str, sorted(v))) for v in (present - known, known))
            what = f"the label holds {odd}; the dataset '{self.name}' has {allowed}"
            raise BadSubject(subject.id, what, file, _UNLIKE)
        if not present & foreground:
            raise BadSubject(subject.id, "no voxel is labelled: the mask is empty", file, _UNLIKE)
        return label

    def label_map(self, name: str) -> LabelMap:
        """The label map of that name; raises `UserError` with the nearest name."""
        if name not in self.label_maps:
            raise UserError(
                f"the dataset '{self.name}' has no label map '{name}'",
                "data.labels",
                nearest(name, list(self.label_maps)),
            )
        return self.label_maps[name]


class NiftiDataset(Dataset):
    """A dataset whose subjects are NIfTI (.nii, .nii.gz) or Analyze (.hdr with .img) files.

    One file holds one modality, unless `channels` says that one 4D file holds all of them. Trailing
    axes of size 1 are dropped. All files of a subject lie on one grid. A file that states no affine
    (Analyze, or NIfTI with sform_code = qform_code = 0) is taken to lie on the grid of the
    subject's first file that states one, and only its shape and voxel size are compared; where no
    file states one, the voxels stay in file order and the affine is the voxel size on the diagonal.

    Attributes:
        channels: Modality name to its index on the fourth axis; empty for one 3D file per modality.
    """

    channels: Mapping[str, int] = {}

    def expected_file(self, subject: Subject, modality: str) -> Path:
        """Where an image that `subject.images` lacks should be, for the message."""
        return subject.label.parent

    def files(self, subject: Subject) -> list[Path]:
        """All files of a subject, the .img beside each .hdr included."""
        return [part for file in super().files(subject) for part in _parts(file)]

    def read(self, subject: Subject, modalities: tuple[str, ...]) -> Scan:
        """Reads and validates one subject; see `Dataset.read`.

        Besides the result, memory holds one volume as the file has it and one in float32.
        """
        self.check_modalities(modalities)
        volumes = []
        for modality in modalities:
            if modality not in subject.images:
                where = self.expected_file(subject, modality)
                raise BadSubject(subject.id, f"the {modality} image is missing", where, _REPLACE)
            channel = self.channels.get(modality)
            path, channels = subject.images[modality], len(self.channels)
            volumes.append(_Volume(subject, f"{modality} image", path, channel, channels))
        volumes.append(_Volume(subject, "label", subject.label))
        stated = next((volume.affine for volume in volumes if volume.affine is not None), None)
        grids = [volume.grid(stated) for volume in volumes]
        shape, affine = grids[0]
        tolerance = AFFINE_TOLERANCE * np.linalg.norm(affine[:3, :3], axis=0).min()
        for volume, (other_shape, other_affine) in zip(volumes, grids, strict=True):
            if other_shape != shape:
                first = volumes[0].path.name
                what = f"the {volume.role} has shape {other_shape}, {first} has {shape}"
                raise BadSubject(subject.id, what, volume.path, _UNLIKE)
            apart = np.abs(other_affine - affine).max()
            if apart > tolerance:
                first = volumes[0].path.name
                both = f"the affine of the {volume.role} differs from that of {first}"
                what = f"{both} by {apart:.3g} mm"
                raise BadSubject(subject.id, what, volume.path, _UNLIKE)
        image = np.empty((len(modalities), *shape), np.float32)
        for channel, volume in zip(image, volumes, strict=False):
            channel[...] = volume.voxels(stated)
            self.check_image(subject, volume.path, channel)
        label = self.check_label(subject, subject.label, volumes[-1].voxels(stated))
        return Scan(image, np.ascontiguousarray(label), affine, tuple(modalities))


class _Volume:
    """One 3D volume of a subject in a file: the header at once, the voxels on request.

    Args:
        subject: The subject, for messages.
        role: What the file is to the subject, for messages.
        path: The file.
        channel: The index on the fourth axis; None for a 3D file.
        channels: The length that the fourth axis must have.

    Raises:
        BadSubject: The file is missing or empty, or its header cannot be used.
    """

    def __init__(
        self, subject: Subject, role: str, path: Path, channel: int | None = None, channels: int = 0
    ) -> None:
        self.subject, self.role, self.path, self.channel = subject, role, path, channel
        for part in _parts(path):
            if not part.is_file():
                raise BadSubject(subject.id, f"the {role} is missing", part, _REPLACE)
            if part.stat().st_size == 0:
                raise BadSubject(subject.id, f"the {role} is an empty file", part, _REPLACE)
        try:
            file = nib.load(path, mmap=False)
            if not isinstance(file, SpatialImage):
                raise TypeError(f"{type(file).__name__} is no volume")
            shape = tuple(int(size) for size in file.shape)
            header, affine = file.header, np.asarray(file.affine, np.float64)
            promised = math.prod(shape) * header.get_data_dtype().itemsize
        except Exception as error:  # of any kind for a damaged header; the message keeps the kind
            raise self._unreadable(error) from error
        held, most = _parts(path)[-1].stat().st_size, _EXPANSION.get(path.suffix)
        # before memory is reserved for a damaged header's sizes
        if most is not None and promised > held * most:
            sizes = f"shape {shape} needs {promised} bytes, the file has {held}"
            what = f"the {role} is truncated: {sizes}"
            raise BadSubject(subject.id, what, _parts(path)[-1], _REPLACE)
        if channel is not None and (len(shape) < 4 or shape[3] != channels):
            raise BadSubject(
                subject.id, f"the file has shape {shape}, not {channels} channels", path, _UNLIKE
            )
        grid = shape if channel is None else (*shape[:3], *shape[4:])
        while len(grid) > 3 and grid[-1] == 1:
            grid = grid[:-1]
        if len(grid) != 3 or min(grid) < 1:
            raise BadSubject(
                subject.id, f"the {role} has shape {shape}, not one 3D volume", path, _UNLIKE
            )
        self._file, self.shape = file, grid
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
                subject.id, f"the header of the {role} has no usable affine", path, _UNLIKE
            )

    def _unreadable(self, error: Exception) -> BadSubject:
        what = f"the {self.role} cannot be read ({type(error).__name__}: {error})"
        return BadSubject(self.subject.id, what, self.path, _REPLACE)

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
                        pass
            else:
                array = self._array(self._file.dataobj)
        except Exception as error:  # of zlib, gzip, OS or NumPy; the message keeps the kind
            raise self._unreadable(error) from error
        return apply_orientation(array.reshape(self.shape), io_orientation(self._affine(stated)))

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


def _parts(file: Path) -> list[Path]:
    """The files that one image consists of: .hdr and .img for Analyze and NIfTI pairs."""
    return [file, file.with_suffix(".img")] if file.suffix == ".hdr" else [file]


__all__ = [
    "AFFINE_TOLERANCE",
    "BadSubject",
    "Dataset",
    "LabelMap",
    "NiftiDataset",
    "Scan",
    "Subject",
]
