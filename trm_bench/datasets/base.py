"""What a dataset is: its subjects, their files, and what the label values mean.

A dataset says nothing about training. To add one whose subjects are NIfTI, Analyze, NRRD or
MetaImage files, subclass `NiftiDataset`, list its `modalities` and `label_maps`, and write
`subjects`. For other formats subclass `Dataset` and write `files` and `read` as well; `check_image`
and `check_label` hold the checks that every format shares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from trm_bench.datasets.itk import READERS, ItkVolume
from trm_bench.datasets.nifti import NiftiVolume
from trm_bench.datasets.subjects import LabelMap, Scan, Subject
from trm_bench.datasets.volume import REPLACE, UNLIKE, Volume, parts, stated_affine
from trm_bench.errors import BadSubject, UserError, nearest
from trm_bench.inputs import exists, is_file, is_folder

AFFINE_TOLERANCE = 1e-3
"""How far two affines of one subject may differ, in units of the voxel size."""


@dataclass(frozen=True)
class Archive:
    """A tar file that anybody may download; it holds one folder, called as the archive is.

    Attributes:
        url: Where it is.
        checksum: As it is published, with the name of the algorithm: ``md5:240a...``.
    """

    url: str
    checksum: str


class Dataset(ABC):
    """A folder of subjects in a public dataset's own layout.

    Args:
        root: The folder as it comes out of the dataset's archive.

    Attributes:
        name: What a protocol calls it.
        title: What it is, in a line.
        modalities: Of its subjects; known to some classes before a folder is opened.
        label_maps: Name to segmentation task; likewise.
        licence: Under which it may be used.
        citation: What to cite.
        access: How to get it: `free`, `registration` and such.
        url: Where to get it.
        layout: The folders and files that are expected, as a small tree.
        archives: What `trm-bench data download` gets of it: the extracted folder's name to where
            it is.
        distance_unit: What distances in a scan's affine are in: `mm`, or `voxels` where the files
            do not state the voxel size.
        allow_links: Whether a file may be a symbolic link to one outside the root.

    Raises:
        UserError: The folder does not exist or does not hold this dataset.
    """

    name: ClassVar[str]
    modalities: tuple[str, ...]
    label_maps: Mapping[str, LabelMap]
    title: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    access: ClassVar[str] = ""
    url: ClassVar[str] = ""
    layout: ClassVar[str] = ""
    archives: ClassVar[Mapping[str, Archive]] = {}
    distance_unit: Literal["mm", "voxels"] = "mm"

    allow_links = False

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not is_folder(self.root):
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

    def check_file(self, subject: Subject, role: str, file: Path, fix: str) -> None:
        """Checks a file before it is opened, so that no pipe and no device ever is.

        Args:
            subject: Whose file it is.
            role: What it is to the subject, for messages.
            file: The file.
            fix: What to do where it is missing.

        Raises:
            BadSubject: It is missing, empty, no regular file, or lies outside the root by a
                symbolic link.
        """
        if not is_file(file):
            state = "is no regular file" if exists(file) else "is missing"
            raise BadSubject(subject.id, f"the {role} {state}", file, fix)
        if file.stat().st_size == 0:
            raise BadSubject(subject.id, f"the {role} is an empty file", file, fix)
        if self.leads_outside(file):
            what = f"the {role} leads outside the dataset's folder by a symbolic link"
            raise BadSubject(subject.id, what, file, "copy it, or set data.allow_links: true")

    def leads_outside(self, file: Path) -> bool:
        """Whether a file lies outside the root by a symbolic link that is not allowed."""
        return not self.allow_links and not file.resolve().is_relative_to(self.root.resolve())

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
                UNLIKE,
            )
        if image.size == 0 or image.min() == image.max():
            raise BadSubject(subject.id, "the image is constant: it shows nothing", file, UNLIKE)

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
                subject.id, f"the label value {odd} is no whole number from 0 to 255", file, UNLIKE
            )
        maps = [label_map.values for label_map in self.label_maps.values()]
        known = self.label_values
        foreground = {value for values in maps for value, index in values.items() if index > 0}
        present = set(np.unique(label).tolist())
        if present - known:
            odd, allowed = (", ".join(map(str, sorted(v))) for v in (present - known, known))
            what = f"the label holds {odd}; the dataset '{self.name}' has {allowed}"
            raise BadSubject(subject.id, what, file, UNLIKE)
        if not present & foreground:
            raise BadSubject(subject.id, "no voxel is labelled: the mask is empty", file, UNLIKE)
        return label

    def label_map(self, labels: str | Mapping[str, Sequence[int]]) -> LabelMap:
        """A segmentation task on this dataset.

        Args:
            labels: The name of a label map, or classes with their label values; see `LabelMap.of`.

        Raises:
            UserError: There is no such label map (with the nearest name), or the classes do not fit
                the dataset's label values.
        """
        if not isinstance(labels, str):
            return LabelMap.of(labels, self.label_values)
        if labels not in self.label_maps:
            raise UserError(
                f"the dataset '{self.name}' has no label map '{labels}'",
                "data.labels",
                nearest(labels, list(self.label_maps)),
            )
        return self.label_maps[labels]

    @property
    def label_values(self) -> set[int]:
        """The values that label files may hold."""
        return {value for label_map in self.label_maps.values() for value in label_map.values}


class NiftiDataset(Dataset):
    """A dataset whose subjects are NIfTI (.nii, .nii.gz) or Analyze (.hdr with .img) files.

    NRRD (.nrrd) and MetaImage (.mha) are read as well where the extra `sitk` is installed. One file
    holds one modality, unless `channels` says that one 4D file holds all of them. Trailing axes of
    size 1 are dropped. All files of a subject lie on one grid. A file that states no affine
    (Analyze, NIfTI with sform_code = qform_code = 0, NRRD and MetaImage without axes) is taken to
    lie on the grid of the subject's first file that states one, and only its shape and voxel size
    are compared; where no file states one, the voxels stay in file order and the affine is the
    voxel size on the diagonal.

    Attributes:
        channels: Modality name to its index on the fourth axis; empty for one 3D file per modality.
    """

    channels: Mapping[str, int] = {}

    def expected_file(self, subject: Subject, modality: str) -> Path:
        """Where an image that `subject.images` lacks should be, for the message."""
        return subject.label.parent

    def files(self, subject: Subject) -> list[Path]:
        """All files of a subject, the .img beside each .hdr included."""
        return [part for file in super().files(subject) for part in parts(file)]

    def read(self, subject: Subject, modalities: tuple[str, ...]) -> Scan:
        """Reads and validates one subject; see `Dataset.read`.

        Besides the result, memory holds one volume as the file has it and one in float32.
        """
        self.check_modalities(modalities)
        volumes = []
        for modality in modalities:
            if modality not in subject.images:
                where = self.expected_file(subject, modality)
                state = "is no regular file" if where.suffix and exists(where) else "is missing"
                raise BadSubject(subject.id, f"the {modality} image {state}", where, REPLACE)
            channel = self.channels.get(modality)
            path, channels = subject.images[modality], len(self.channels)
            volumes.append(self._volume(subject, f"{modality} image", path, channel, channels))
        volumes.append(self._volume(subject, "label", subject.label))
        stated = stated_affine(volumes)
        grids = [volume.grid(stated) for volume in volumes]
        shape, affine = grids[0]
        tolerance = AFFINE_TOLERANCE * np.linalg.norm(affine[:3, :3], axis=0).min()
        for volume, (other_shape, other_affine) in zip(volumes, grids, strict=True):
            if other_shape != shape:
                first = volumes[0].path.name
                what = f"the {volume.role} has shape {other_shape}, {first} has {shape}"
                raise BadSubject(subject.id, what, volume.path, UNLIKE)
            apart = np.abs(other_affine - affine).max()
            if apart > tolerance:
                first = volumes[0].path.name
                both = f"the affine of the {volume.role} differs from that of {first}"
                what = f"{both} by {apart:.3g} mm"
                raise BadSubject(subject.id, what, volume.path, UNLIKE)
        image = np.empty((len(modalities), *shape), np.float32)
        for channel, volume in zip(image, volumes, strict=False):
            channel[...] = volume.voxels(stated)
            self.check_image(subject, volume.path, channel)
        label = self.check_label(subject, subject.label, volumes[-1].voxels(stated))
        file_grid = volumes[0].file_grid(stated)
        return Scan(image, np.ascontiguousarray(label), affine, tuple(modalities), file_grid)

    def _volume(
        self, subject: Subject, role: str, path: Path, channel: int | None = None, channels: int = 0
    ) -> Volume:
        for part in parts(path):
            self.check_file(subject, role, part, REPLACE)
        kind = ItkVolume if path.suffix in READERS else NiftiVolume
        return kind(subject, role, path, channel, channels)


__all__ = [
    "AFFINE_TOLERANCE",
    "Archive",
    "BadSubject",
    "Dataset",
    "LabelMap",
    "NiftiDataset",
    "Scan",
    "Subject",
]
