"""LGG (kaggle_3m): slices of lower-grade glioma with FLAIR abnormality, from five institutions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from trm_bench.datasets.base import BadSubject, Dataset, LabelMap, Scan, Subject
from trm_bench.errors import UserError

MOST_PIXELS = 4096  # along an axis of a slice
_FIX = "extract the patient's folder from the archive again, or set data.on_bad_subject: skip"


class Lgg(Dataset):
    """Lower-grade glioma patients of The Cancer Genome Atlas, one folder of TIFF slices each.

    ``kaggle_3m/TCGA_<institution>_<id>_<date>/`` holds RGB slices ``<folder>_<n>.tif`` of 256x256
    pixels, n = 1, 2 and so on from the neck up, whose channels are pre-contrast T1, FLAIR and
    post-contrast T1, and a mask ``<folder>_<n>_mask.tif`` of each (0 or 255, read as 0 or 1). The
    root is ``kaggle_3m`` or the folder that holds it.

    A subject is a whole patient. Its axes are x from columns and y from rows, both reversed, so
    that y points to the front and, in the radiological convention, x to the right (the files do not
    state the side). The files do not state the voxel size either: the affine is the identity, and
    distances are in voxels, not in millimetres.

    Of the 110 patients, 9 have no post-contrast and 6 no pre-contrast image, as the dataset's
    README says: that channel repeats FLAIR, and asking for it is a `BadSubject`.

    Source: M. Buda, A. Saha, M. A. Mazurowski, "Association of genomic subtypes of lower-grade
    gliomas with shape features automatically extracted by a deep learning algorithm", Computers in
    Biology and Medicine 109, 2019.
    """

    name = "lgg"
    title = "LGG: MR slices of lower-grade glioma from five institutions"
    licence = "CC BY-NC-SA 4.0"
    citation = (
        "M. Buda, A. Saha, M. A. Mazurowski, Association of genomic subtypes of lower-grade "
        "gliomas with shape features automatically extracted by a deep learning algorithm, "
        "Computers in Biology and Medicine 109:218-225, 2019"
    )
    access = "free, with a Kaggle account"
    url = "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation"
    layout = """\
kaggle_3m/                     data.root
  TCGA_CS_4941_19960909/       TCGA_<institution>_<id>_<date>
    TCGA_CS_4941_19960909_1.tif
    TCGA_CS_4941_19960909_1_mask.tif"""
    distance_unit = "voxels"
    modalities = ("t1", "flair", "t1ce")
    label_maps: Mapping[str, LabelMap] = {
        "abnormality": LabelMap(("background", "abnormality"), {0: 0, 1: 1})
    }

    def subjects(self) -> list[Subject]:
        """Lists the patients, sorted by id; raises `UserError` where there are none."""
        nested = self.root / "kaggle_3m"
        root = nested if nested.is_dir() else self.root
        subjects = []
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            match = re.fullmatch(r"(TCGA_([A-Z0-9]+)_[A-Z0-9]+)_\d+", folder.name)
            if match:
                images = dict.fromkeys(self.modalities, folder)
                subjects.append(
                    Subject(folder.name, images, folder, patient=match[1], institution=match[2])
                )
        if not subjects:
            fix = "point data.root at the folder kaggle_3m"
            raise UserError("no folder TCGA_<institution>_<id>_<date>", root, fix)
        return subjects

    def files(self, subject: Subject) -> list[Path]:
        """The slices from the lowest up, each followed by its mask."""
        images, masks = _slices(subject)
        return [part[n] for n in sorted({*images, *masks}) for part in (images, masks) if n in part]

    def read(self, subject: Subject, modalities: tuple[str, ...]) -> Scan:
        """Reads and validates one patient; see `Dataset.read`.

        Raises:
            BadSubject: Besides the usual faults: a slice or a mask is missing in 1, 2, ..., or a
                modality asked for is a copy of FLAIR.
        """
        self.check_modalities(modalities)
        folder = subject.label
        images, masks = _slices(subject)
        if not images:
            raise BadSubject(subject.id, "no slices", folder, _FIX)
        for n in range(1, max(*images, *masks, 1) + 1):
            for kind, files, ending in (("slice", images, ""), ("mask", masks, "_mask")):
                if n not in files:
                    file = folder / f"{folder.name}_{n}{ending}.tif"
                    raise BadSubject(subject.id, f"the {kind} {n} is missing", file, _FIX)
        for n, file in (*images.items(), *masks.items()):
            self.check_file(subject, f"slice {n}", file, _FIX)
        size = _pixels(subject, images[1], "RGB").shape[:2]
        volume = np.empty((3, size[1], size[0], len(images)), np.float32)
        label = np.empty(volume.shape[1:], np.uint8)
        for n in sorted(images):
            pixels = _pixels(subject, images[n], "RGB", size)
            volume[..., n - 1] = pixels[::-1, ::-1].transpose(2, 1, 0)
            mask = _pixels(subject, masks[n], "L", size)
            if not np.isin(mask, (0, 255)).all():
                odd = mask[~np.isin(mask, (0, 255))][0]
                what = f"the mask holds {odd}, not only 0 and 255"
                raise BadSubject(subject.id, what, masks[n], _FIX)
            label[..., n - 1] = mask[::-1, ::-1].T // 255
        flair = volume[self.modalities.index("flair")]
        for modality in modalities:
            channel = volume[self.modalities.index(modality)]
            if modality != "flair" and np.array_equal(channel, flair):
                what = f"its {modality} channel is a copy of FLAIR: the sequence was not acquired"
                fix = "set data.on_bad_subject: skip to leave this patient out"
                raise BadSubject(subject.id, what, folder, fix)
            self.check_image(subject, folder, channel)
        label = self.check_label(subject, folder, label)
        image = volume[[self.modalities.index(modality) for modality in modalities]]
        return Scan(image, label, np.eye(4), tuple(modalities))


def _slices(subject: Subject) -> tuple[dict[int, Path], dict[int, Path]]:
    """Slice number to file, of the images and of the masks."""
    folder = subject.label
    pattern = re.compile(rf"{re.escape(folder.name)}_([1-9]\d*)(_mask)?\.tif", re.ASCII)
    images: dict[int, Path] = {}
    masks: dict[int, Path] = {}
    for file in folder.iterdir():
        if match := pattern.fullmatch(file.name):
            (masks if match[2] else images)[int(match[1])] = file
    return images, masks


def _pixels(
    subject: Subject, file: Path, mode: str, size: tuple[int, ...] | None = None
) -> np.ndarray:
    """uint8, shape (rows, columns) or (rows, columns, 3); raises `BadSubject` for another file."""
    try:
        with Image.open(file, formats=("TIFF",)) as image:
            if max(image.size) > MOST_PIXELS:
                raise ValueError(f"{image.size} pixels, more than {MOST_PIXELS} along an axis")
            stored, pixels = image.mode, np.asarray(image)
    except Exception as error:  # of many kinds for a damaged TIFF; the message keeps the kind
        what = f"the file cannot be read as TIFF ({type(error).__name__}: {error})"
        raise BadSubject(subject.id, what, file, _FIX) from error
    if stored != mode:
        raise BadSubject(subject.id, f"the pixels are of mode {stored}, not {mode}", file, _FIX)
    if size is not None and pixels.shape[:2] != size:
        what = f"the slice has {pixels.shape[:2]} pixels, the first has {size}"
        raise BadSubject(subject.id, what, file, _FIX)
    return pixels
