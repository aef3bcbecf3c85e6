"""iSeg-2019: T1 and T2 MR of six-month-old infants with brain tissues."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from trm_bench.datasets.base import LabelMap, NiftiDataset, Subject
from trm_bench.errors import UserError
from trm_bench.inputs import is_file

SUFFIXES = (".hdr", ".nii.gz", ".nii")


class Iseg2019(NiftiDataset):
    """The ten training subjects of the iSeg-2019 challenge; the others have no public labels.

    Files ``subject-{n}-{T1,T2,label}.hdr`` and ``.img`` (Analyze; NIfTI is read as well) in the
    root or in its folder ``iSeg-2019-Training``: 144x192x256x1 voxels of 1 mm, skull-stripped. Raw
    label values: 10 cerebrospinal fluid (CSF), 150 grey matter (GM), 250 white matter (WM). Analyze
    states no orientation, so the voxels stay in file order.

    Source: Y. Sun et al., "Multi-Site Infant Brain Segmentation Algorithms: The iSeg-2019
    Challenge", IEEE Transactions on Medical Imaging 40(5), 2021.
    """

    name = "iseg2019"
    title = "iSeg-2019: T1 and T2 MR of six-month-old infants"
    licence = "The organisers' terms of use; no redistribution"
    citation = (
        "Y. Sun et al., Multi-Site Infant Brain Segmentation Algorithms: The iSeg-2019 Challenge, "
        "IEEE Transactions on Medical Imaging 40(5):1363-1376, 2021"
    )
    access = "registration"
    url = "https://iseg2019.web.unc.edu"
    layout = """\
iSeg-2019-Training/            data.root
  subject-1-T1.hdr             with its .img; .nii.gz and .nii too
  subject-1-T2.hdr
  subject-1-label.hdr"""
    modalities = ("t1", "t2")
    label_maps: Mapping[str, LabelMap] = {
        "tissues": LabelMap(("background", "CSF", "GM", "WM"), {0: 0, 10: 1, 150: 2, 250: 3}),
        "brain": LabelMap(("background", "brain"), {0: 0, 10: 1, 150: 1, 250: 1}),
        "white_matter": LabelMap(("background", "white_matter"), {0: 0, 10: 0, 150: 0, 250: 1}),
        "gray_matter": LabelMap(("background", "gray_matter"), {0: 0, 10: 0, 150: 1, 250: 0}),
    }

    def subjects(self) -> list[Subject]:
        """Lists the subjects ``subject-{n}``, sorted by id; raises `UserError` for none."""
        nested = self.root / "iSeg-2019-Training"
        folder = nested if nested.is_dir() else self.root
        pattern = re.compile(r"(subject-\d+)-(?:T1|T2|label)\.(?:hdr|img|nii|nii\.gz)")
        matches = [pattern.fullmatch(file.name) for file in folder.iterdir()]
        names = sorted({match[1] for match in matches if match})
        if not any(_file(folder / f"{name}-label") for name in names):
            raise UserError(
                "no subject: no file subject-{n}-label.hdr",
                folder,
                "point data.root at the folder iSeg-2019-Training",
            )
        subjects = []
        for name in names:
            files = {m: _file(folder / f"{name}-{m.upper()}") for m in self.modalities}
            images = {m: file for m, file in files.items() if file}
            label = _file(folder / f"{name}-label") or folder / f"{name}-label.hdr"
            subjects.append(Subject(name, images, label))
        return subjects

    def expected_file(self, subject: Subject, modality: str) -> Path:
        """The file's name in the format that the subject's label file has."""
        name = subject.label.name.replace("-label.", f"-{modality.upper()}.")
        return subject.label.with_name(name)


def _file(stem: Path) -> Path | None:
    """The file with that stem.

    It is the .hdr also where only its .img exists, so that `read` says what is missing.
    """
    for suffix in SUFFIXES:
        file = stem.with_name(stem.name + suffix)
        if is_file(file) or (suffix == ".hdr" and is_file(file.with_suffix(".img"))):
            return file
    return None
