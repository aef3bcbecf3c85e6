"""Tiny datasets in the built-in datasets' own on-disk layouts, and where the real ones are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

SHAPE = (4, 5, 6)
LPS = np.array([[-1.0, 0, 0, 10], [0, -1, 0, 20], [0, 0, 1, -30], [0, 0, 0, 1]])
LGG_SHAPE = (8, 6)  # rows, columns


def real_data(name: str) -> Path:
    """The folder of a real dataset; skips the test where it is not on this machine."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TRM_DATA", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"the real dataset {name} is not in {folder.parent} (set TRM_DATA)")
    return folder


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32)


def labels(values: Sequence[int], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """uint8, each value in at least one voxel, the last of them in the far corner."""
    flat = np.resize(np.asarray(values, np.uint8), int(np.prod(shape)))
    flat[-1] = values[-1]
    return flat.reshape(shape)


def write_nifti(file: Path, array: np.ndarray, affine: np.ndarray = LPS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), file)
    return file


def write_analyze(file: Path, array: np.ndarray, spacing: Sequence[float] = (1, 1, 1)) -> Path:
    image = nib.AnalyzeImage(array, None)
    image.header.set_zooms((*spacing, *(1.0,) * (array.ndim - 3)))
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, file)
    return file


def write_itk(file: Path, array: np.ndarray, affine: np.ndarray = LPS) -> Path:
    """By SimpleITK, whose world is LPS; skips the test where it is not installed."""
    sitk = pytest.importorskip("SimpleITK", reason="the extra sitk is not installed")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    world = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(world[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((world[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(world[:3, 3].tolist())
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file), useCompression=True)
    return file


def fets(
    root: Path,
    names: Sequence[str] = ("FeTS21_Training_001", "FeTS21_Training_002"),
    partitions: str
    | None = "Partition_ID,Subject_ID\n1,FeTS21_Training_001\n2,FeTS21_Training_002\n",
    suffix: str = ".nii.gz",
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        for channel, modality in enumerate(("t1", "t1ce", "t2", "flair")):
            write_nifti(root / name / f"{name}_{modality}{suffix}", noise(10 * index + channel))
        write_nifti(root / name / f"{name}_seg{suffix}", labels((0, 1, 2, 4)))
    if partitions is not None:
        (root / "partitioning_1.csv").write_text(partitions)
    return root


def iseg(root: Path, numbers: Sequence[int] = (1, 2, 10), suffix: str = ".hdr") -> Path:
    for n in numbers:
        for part in ("T1", "T2", "label"):
            array = labels((0, 10, 150, 250)) if part == "label" else noise(ord(part[1]) + n)
            file = root / f"subject-{n}-{part}{suffix}"
            if suffix == ".hdr":
                write_analyze(file, array[..., None])
            else:
                write_nifti(file, array[..., None])
    return root


def decathlon(
    root: Path,
    modality: Sequence[str] = ("FLAIR", "T1w", "T1gd", "T2w"),
    names: Sequence[str] = ("edema", "Non-enhancing tumor", "enhancing tumour"),
    subjects: Sequence[str] = ("BRATS_001", "BRATS_002"),
) -> Path:
    for index, subject in enumerate(subjects):
        shape = SHAPE if len(modality) == 1 else (*SHAPE, len(modality))
        write_nifti(root / "imagesTr" / f"{subject}.nii.gz", noise(index, shape))
        write_nifti(root / "labelsTr" / f"{subject}.nii.gz", labels(range(len(names) + 1)))
    content = {
        "name": "Tiny",
        "modality": {str(i): name for i, name in enumerate(modality)},
        "labels": {str(i): name for i, name in enumerate(("background", *names))},
        "training": [
            {"image": f"./imagesTr/{s}.nii.gz", "label": f"./labelsTr/{s}.nii.gz"} for s in subjects
        ],
        "test": ["./imagesTs/BRATS_003.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def nnunet(
    root: Path,
    channels: Sequence[str] = ("T1", "T2 FLAIR"),
    labels_: Mapping[str, object] | None = None,
    cases: Sequence[str] = ("case_001", "case_002"),
    ending: str = ".nii.gz",
    **more: object,
) -> Path:
    """The values of `labels_` are 0 to 3, and all of them are in each case."""
    write = write_nifti if ending.startswith(".nii") else write_itk
    for index, case in enumerate(cases):
        for channel in range(len(channels)):
            file = root / "imagesTr" / f"{case}_{channel:04}{ending}"
            write(file, noise(10 * index + channel))
        write(root / "labelsTr" / f"{case}{ending}", labels((0, 1, 2, 3)))
    content = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": labels_ or {"background": 0, "LV": 1, "Myo cardium": 2, "RV": 3},
        "numTraining": len(cases),
        "file_ending": ending,
    }
    (root / "dataset.json").write_text(json.dumps(content | more))
    return root


def change(root: Path, **values: Any) -> Path:
    """Replaces keys of a folder's dataset.json; None removes one."""
    file = root / "dataset.json"
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return root


def lgg(
    root: Path,
    folders: Sequence[str] = ("TCGA_CS_4941_19960909", "TCGA_DU_A5TP_19970614"),
    slices: int = 3,
) -> Path:
    rows, columns = LGG_SHAPE
    for index, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for n in range(1, slices + 1):
            pixels = np.random.default_rng(100 * index + n).integers(
                0, 200, (rows, columns, 3), np.uint8
            )
            pixels[0, 0] = n, n + 50, n + 100  # so that a test can tell slices and channels apart
            mask = np.zeros((rows, columns), np.uint8)
            mask[1, 2] = 255
            Image.fromarray(pixels).save(root / folder / f"{folder}_{n}.tif")
            Image.fromarray(mask).save(root / folder / f"{folder}_{n}_mask.tif")
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "fets2021": fets,
    "iseg2019": iseg,
    "decathlon": decathlon,
    "lgg": lgg,
    "nnunet": nnunet,
}
"""One tiny, valid folder for each built-in dataset."""
