"""FeTS2021, FeTS2022 and BraTS: multi-parametric MR of glioma with tumour subregions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trm_bench.datasets.base import LabelMap, NiftiDataset, Subject
from trm_bench.datasets.columns import read_column
from trm_bench.errors import UserError
from trm_bench.inputs import is_file, is_folder

MOST_FILES = 50_000  # that are looked at to find the subjects
DEPTH = 4
"""How many levels below the root subjects' folders are looked for."""


class Fets2021(NiftiDataset):
    """The training data of the Federated Tumor Segmentation challenge, and of its source, BraTS.

    FeTS2021 has 341 subjects with four co-registered, skull-stripped volumes of 240x240x155 voxels
    of 1 mm. Raw label values: 1 necrotic and non-enhancing core (NCR), 2 oedema (ED), 4 enhancing
    tumour (ET).

    A subject is a folder NAME with ``NAME_{t1,t1ce,t2,flair,seg}.nii.gz`` (or ``.nii``), for
    example ``MICCAI_FeTS2021_TrainingData/FeTS21_Training_001``, ``FeTS2022_01341``,
    ``BraTS20_Training_001`` or ``BraTS2021_00000``. The root is the training folder or one above
    it. A folder without ``NAME_seg`` is listed (and fails to be read) where folders beside it have
    theirs; elsewhere it is unlabelled validation data and left out.

    ``partitioning_1.csv`` (columns Partition_ID, Subject_ID) names each subject's institution. It
    is read from the training folder, the root and the folder that holds the root; where they
    disagree, the first of these counts.

    Source: S. Pati et al., "The Federated Tumor Segmentation (FeTS) Challenge", arXiv:2105.05874.
    """

    name = "fets2021"
    title = "FeTS2021, FeTS2022 and BraTS: multi-parametric MR of glioma"
    licence = "The organisers' terms of use; no redistribution"
    citation = (
        "S. Pati et al., The Federated Tumor Segmentation (FeTS) Challenge, arXiv:2105.05874, 2021"
    )
    access = "registration"
    url = "https://www.med.upenn.edu/cbica/fets/"
    layout = """\
MICCAI_FeTS2021_TrainingData/  data.root
  partitioning_1.csv           optional: Partition_ID,Subject_ID
  NAME/NAME_t1.nii.gz          and _t1ce, _t2, _flair
  NAME/NAME_seg.nii.gz"""
    modalities = ("t1", "t1ce", "t2", "flair")
    label_maps: Mapping[str, LabelMap] = {
        "whole_tumor": LabelMap(("background", "whole_tumor"), {0: 0, 1: 1, 2: 1, 4: 1}),
        "tumor_core": LabelMap(("background", "tumor_core"), {0: 0, 1: 1, 2: 0, 4: 1}),
        "enhancing": LabelMap(("background", "enhancing"), {0: 0, 1: 0, 2: 0, 4: 1}),
        "subregions": LabelMap(
            ("background", "NCR", "ED", "ET"),
            {0: 0, 1: 1, 2: 2, 4: 3},
            {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)},
        ),
    }

    def subjects(self) -> list[Subject]:
        """Lists the subjects, sorted by id.

        Raises:
            UserError: No subject is below the root, two folders have the same name, or the csv is
                malformed.
        """
        folders: dict[str, Path] = {}
        for folder in self._folders():
            if folder.name in folders:
                other = folders[folder.name].parent
                what = f"the subject {folder.name} is in two folders, here and in {other}"
                raise UserError(what, folder, "point data.root at one training folder")
            folders[folder.name] = folder
        if not folders:
            raise UserError(
                "no subject: no folder NAME holds NAME_seg.nii.gz",
                self.root,
                "point data.root at the training folder, such as MICCAI_FeTS2021_TrainingData",
            )
        institutions = self._institutions({folder.parent for folder in folders.values()})
        subjects = []
        for name, folder in sorted(folders.items()):
            files = {m: _nifti(folder / f"{name}_{m}") for m in self.modalities}
            images = {m: file for m, file in files.items() if is_file(file)}
            label = _nifti(folder / f"{name}_seg")
            subjects.append(Subject(name, images, label, institution=institutions.get(name, "")))
        return subjects

    def expected_file(self, subject: Subject, modality: str) -> Path:
        """The file's name in the layout that the subject's label file has."""
        return subject.label.with_name(subject.label.name.replace("_seg.nii", f"_{modality}.nii"))

    def _folders(self) -> list[Path]:
        """The subjects' folders: those with images, where at least one beside them has a label."""
        folders: list[Path] = []
        level, seen = [self.root], 0
        for _ in range(DEPTH):
            below: list[Path] = []
            for parent in level:
                inside = _inside(parent)
                seen += len(inside)
                if seen > MOST_FILES:
                    fix = "point data.root at the training folder"
                    raise UserError(f"more than {MOST_FILES} files and folders", self.root, fix)
                children = [c for c in inside if is_folder(c) and not c.name.startswith(".")]
                imaged = [c for c in children if self._has_an_image(c)]
                labelled = [c for c in children if is_file(_nifti(c / f"{c.name}_seg"))]
                if labelled:
                    folders += sorted({*imaged, *labelled})
                below += sorted({*children} - {*imaged, *labelled})
            level = below
        return folders

    def _has_an_image(self, folder: Path) -> bool:
        return any(is_file(_nifti(folder / f"{folder.name}_{m}")) for m in self.modalities)

    def _institutions(self, training: set[Path]) -> dict[str, str]:
        """Subject to institution, from each csv there is."""
        institutions: dict[str, str] = {}
        fix = "use the partitioning_1.csv of the challenge, or remove it to go without institutions"
        for folder in dict.fromkeys([self.root.resolve().parent, self.root, *sorted(training)]):
            file = folder / "partitioning_1.csv"
            if not is_file(file):
                continue
            if file.is_symlink() and self.leads_outside(file):
                what = "leads outside the dataset's folder by a symbolic link"
                raise UserError(what, file, "copy it, or set data.allow_links: true")
            institutions |= read_column(file, "Subject_ID", "Partition_ID", fix)
        return institutions


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        fix = "change its permissions, or move it out of data.root"
        raise UserError(f"cannot be read: {error.strerror}", folder, fix) from error


def _nifti(stem: Path) -> Path:
    """``stem.nii.gz``, or ``stem.nii`` where that is the one that exists."""
    plain = stem.with_name(f"{stem.name}.nii")
    compressed = stem.with_name(f"{stem.name}.nii.gz")
    return plain if is_file(plain) and not is_file(compressed) else compressed
