"""The phantom: layouts, determinism, MR contrasts, and what it refuses."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trm_bench.datasets.fets2021 import Fets2021
from trm_bench.datasets.iseg2019 import Iseg2019
from trm_bench.errors import UserError
from trm_bench.phantom import LAYOUTS, MARKER, damaged_files, is_phantom, write_phantom

MODALITIES = ("flair", "t1", "t1ce", "t2")


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def fets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(
        "fets2021", tmp_path_factory.mktemp("fets"), subjects=12, spacing=5.0, seed=3
    )


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """One subject with all labels, at the coarsest voxels that tissues still fill."""
    root = write_phantom(
        "fets2021", tmp_path_factory.mktemp("fine"), subjects=2, spacing=3.0, seed=0
    )
    name = "FeTS21_Training_002"
    return {m: voxels(root / name / f"{name}_{m}.nii.gz") for m in (*MODALITIES, "seg")}


@pytest.fixture(scope="module")
def iseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(
        "iseg2019", tmp_path_factory.mktemp("iseg"), subjects=2, spacing=4.0, seed=3
    )


def test_fets_layout(fets: Path) -> None:
    assert fets.name == "MICCAI_FeTS2021_TrainingData"
    folders = sorted(path.name for path in fets.iterdir() if path.is_dir())
    assert folders == [f"FeTS21_Training_{i:03d}" for i in range(1, 13)]
    for name in folders:
        assert {p.name for p in (fets / name).iterdir()} == {
            f"{name}_{m}.nii.gz" for m in (*MODALITIES, "seg")
        }
        seg = nib.load(fets / name / f"{name}_seg.nii.gz")
        assert seg.get_data_dtype() == np.uint8
        assert seg.shape == (48, 48, 31)
        assert set(np.unique(voxels(fets / name / f"{name}_seg.nii.gz"))) <= {0, 1, 2, 4}
        for m in MODALITIES:
            image = nib.load(fets / name / f"{name}_{m}.nii.gz")
            assert image.get_data_dtype() == np.int16
            assert image.shape == seg.shape
            assert np.array_equal(image.affine, seg.affine)
            assert np.allclose(image.header.get_zooms(), 5.0)
            assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


def test_every_subject_has_a_tumour_in_its_brain_on_a_zero_background(fets: Path) -> None:
    sizes = []
    for folder in sorted(path for path in fets.iterdir() if path.is_dir()):
        images = {m: voxels(folder / f"{folder.name}_{m}.nii.gz") for m in (*MODALITIES, "seg")}
        brain = images["t1"] > 0
        assert 0.05 < brain.mean() < 0.35
        assert (
            not brain[0].any()
            and not brain[-1].any()
            and not brain[:, 0].any()
            and not brain[:, -1].any()
        )
        for m in MODALITIES:
            assert np.array_equal(images[m] > 0, brain)
            assert images[m].min() == 0
        assert (images["seg"] > 0).any()
        assert brain[images["seg"] > 0].all()
        sizes.append((images["seg"] > 0).sum())
    assert max(sizes) > 4 * min(sizes)


def test_affine_keeps_the_field_of_view(fets: Path, fine: dict[str, np.ndarray]) -> None:
    image = nib.load(fets / "FeTS21_Training_001" / "FeTS21_Training_001_t1.nii.gz")
    # the outer corner of the first voxel lies where that of the real data lies: half a millimetre
    # outside its centre
    assert np.allclose(image.affine @ [-0.5, -0.5, -0.5, 1], [0.5, 239.5, -0.5, 1])
    assert fine["t1"].shape == (80, 80, 52)


def test_institutions(fets: Path) -> None:
    with (fets / "partitioning_1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["Partition_ID", "Subject_ID"]
    assert sorted(row["Subject_ID"] for row in rows) == [
        f"FeTS21_Training_{i:03d}" for i in range(1, 13)
    ]
    sizes = [sum(row["Partition_ID"] == str(i) for row in rows) for i in range(1, 6)]
    assert sum(sizes) == 12
    assert min(sizes) >= 1
    assert max(sizes) >= 3 * min(sizes)


def test_iseg_layout(iseg: Path) -> None:
    assert iseg.name == "iSeg-2019-Training"
    parts = {
        f"subject-{i}-{n}.{e}"
        for i in (1, 2)
        for n in ("T1", "T2", "label")
        for e in ("hdr", "img")
    }
    assert {path.name for path in iseg.iterdir()} == parts | {MARKER}
    for i in (1, 2):
        label = nib.load(iseg / f"subject-{i}-label.hdr")
        assert label.get_data_dtype() == np.uint8
        assert set(np.unique(label.dataobj)) == {0, 10, 150, 250}
        for n in ("T1", "T2"):
            image = nib.load(iseg / f"subject-{i}-{n}.hdr")
            assert image.shape == label.shape == (36, 48, 64, 1)
            assert image.get_data_dtype() == np.int16
            assert np.allclose(image.header.get_zooms()[:3], 4.0)
            assert np.array_equal(np.asarray(image.dataobj) > 0, np.asarray(label.dataobj) > 0)


def test_the_datasets_read_it(fets: Path, iseg: Path) -> None:
    dataset = Fets2021(fets)
    assert len(dataset.subjects()) == 12
    assert len({subject.institution for subject in dataset.subjects()}) == 5
    scan = dataset.read(dataset.subjects()[0], ("flair", "t1"))
    assert scan.image.shape == (2, 48, 48, 31)
    assert np.allclose(scan.spacing, 5.0)
    infants = Iseg2019(iseg)
    assert [subject.id for subject in infants.subjects()] == ["subject-1", "subject-2"]
    assert infants.read(infants.subjects()[0], ("t1", "t2")).label.shape == (36, 48, 64)


def normal_tissues(images: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """White matter and CSF far from the tumour, taken from T1w and T2w intensities."""
    healthy = (images["t1"] > 0) & (images["seg"] == 0)
    white = healthy & (images["t1"] > np.quantile(images["t1"][healthy], 0.8))
    return white, healthy & (images["t2"] > np.quantile(images["t2"][healthy], 0.98))


def test_contrasts_are_those_of_mr(fine: dict[str, np.ndarray]) -> None:
    white, csf = normal_tissues(fine)
    mean = {
        m: {
            "white": fine[m][white].mean(),
            "csf": fine[m][csf].mean(),
            "oedema": fine[m][fine["seg"] == 2].mean(),
            "rim": fine[m][fine["seg"] == 4].mean(),
            "necrosis": fine[m][fine["seg"] == 1].mean(),
        }
        for m in MODALITIES
    }
    relative = {
        m: {tissue: value / means["white"] for tissue, value in means.items()}
        for m, means in mean.items()
    }
    assert relative["flair"]["oedema"] > 1.3
    assert relative["t2"]["oedema"] > 1.4
    assert relative["t1"]["oedema"] < 1
    assert relative["flair"]["csf"] < 0.8
    assert relative["t2"]["csf"] > 1.8
    assert relative["t1"]["csf"] < 0.7
    assert relative["t1ce"]["rim"] > 1.3 * relative["t1"]["rim"]
    assert relative["t1"]["necrosis"] < relative["t1"]["oedema"]
    assert relative["t2"]["necrosis"] > relative["t2"]["oedema"]
    assert relative["flair"]["necrosis"] < relative["flair"]["oedema"]


def test_infants_have_little_grey_white_contrast(fets: Path, iseg: Path) -> None:
    def contrast(image: np.ndarray, grey: np.ndarray, white: np.ndarray) -> float:
        return abs(float(image[white].mean() / image[grey].mean()) - 1)

    t1, label = voxels(iseg / "subject-1-T1.img"), voxels(iseg / "subject-1-label.img")
    infant = contrast(t1, label == 150, label == 250)
    name = "FeTS21_Training_001"
    adult_t1, seg = (voxels(fets / name / f"{name}_{m}.nii.gz") for m in ("t1", "seg"))
    healthy = (adult_t1 > 0) & (seg == 0)
    levels = adult_t1[healthy]
    # FeTS has no tissue labels; most of the brain is grey or white matter, so the median parts them
    adult = contrast(
        adult_t1,
        healthy & (adult_t1 <= np.median(levels)),
        healthy & (adult_t1 > np.median(levels)),
    )
    assert infant < 0.06 < 0.12 < adult
    assert t1[label == 10].mean() < 0.8 * t1[label == 150].mean()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bitwise_deterministic_and_independent_of_the_number_of_subjects(
    layout: str, tmp_path: Path
) -> None:
    first = digests(write_phantom(layout, tmp_path / "a", 1, 6.0, seed=7))
    again = digests(write_phantom(layout, tmp_path / "b", 1, 6.0, seed=7))
    more = digests(write_phantom(layout, tmp_path / "c", 2, 6.0, seed=7))
    other = digests(write_phantom(layout, tmp_path / "d", 1, 6.0, seed=8))
    images = [name for name in first if name.endswith((".nii.gz", ".img"))]
    assert first == again
    assert images and all(first[name] == more[name] for name in images)
    assert not any(first[name] == other[name] for name in images)


def test_complete_phantom_is_left_alone(tmp_path: Path) -> None:
    root = write_phantom("iseg2019", tmp_path, 1, 6.0)
    before = {path.name: path.stat().st_mtime_ns for path in root.iterdir()}
    assert write_phantom("iseg2019", tmp_path, 1, 6.0) == root
    assert {path.name: path.stat().st_mtime_ns for path in root.iterdir()} == before


def test_interrupted_phantom_is_resumed(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    whole = digests(write_phantom("iseg2019", tmp_path / "whole", 2, 6.0))
    with pytest.raises(KeyboardInterrupt):
        write_phantom("iseg2019", tmp_path / "broken", 2, 6.0, progress=stop)
    root = tmp_path / "broken" / "iSeg-2019-Training"
    assert not is_phantom(root)
    with pytest.raises(UserError, match="another phantom"):  # else two seeds would be mixed
        write_phantom("iseg2019", tmp_path / "broken", 2, 6.0, seed=1)
    (root / "subject-1-T2.hdr").unlink()
    seen: list[tuple[int, int]] = []
    assert (
        write_phantom("iseg2019", tmp_path / "broken", 2, 6.0, progress=lambda *p: seen.append(p))
        == root
    )
    assert seen == [(1, 2), (2, 2)]
    assert digests(root) == whole


def test_marker(iseg: Path, tmp_path: Path) -> None:
    assert is_phantom(iseg)
    assert not is_phantom(tmp_path)
    assert not is_phantom(tmp_path / "missing")
    marker = json.loads((iseg / MARKER).read_text())
    written = {path.name for path in iseg.iterdir()} - {MARKER}
    assert marker.pop("files").keys() == written and len(marker.pop("sha256")) == 64
    expected = {
        "phantom": True,
        "layout": "iseg2019",
        "subjects": 2,
        "spacing": 4.0,
        "seed": 3,
        "version": 1,
    }
    assert marker == expected


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_what_is_damaged_is_drawn_again(tmp_path: Path, damage: str) -> None:
    root = write_phantom("iseg2019", tmp_path, 2, 6.0)
    before = digests(root)
    file = root / "subject-2-T1.img"  # of a format without a checksum of its own
    assert damaged_files(root) == []
    if damage == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert damaged_files(root) == [file]
    write_phantom("iseg2019", tmp_path, 2, 6.0)
    assert digests(root) == before and damaged_files(root) == []


def test_refuses_other_arguments_and_foreign_folders(tmp_path: Path) -> None:
    root = write_phantom("iseg2019", tmp_path, 1, 6.0)
    before = digests(root)
    for subjects, spacing, seed in ((2, 6.0, 0), (1, 5.0, 0), (1, 6.0, 1)):
        with pytest.raises(UserError, match="another phantom"):
            write_phantom("iseg2019", tmp_path, subjects, spacing, seed)
    (root / MARKER).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        write_phantom("iseg2019", tmp_path, 1, 6.0)
    (root / MARKER).unlink()
    with pytest.raises(UserError, match="not empty and not a phantom"):
        write_phantom("iseg2019", tmp_path, 1, 6.0)
    assert {name: value for name, value in before.items() if name != MARKER} == digests(root)
    file = tmp_path / "file" / "iSeg-2019-Training"
    file.parent.mkdir()
    file.write_text("")
    with pytest.raises(UserError, match="a file lies"):
        write_phantom("iseg2019", file.parent, 1, 6.0)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"layout": "fets2020"}, "layout"),
        ({"subjects": 0}, "subjects"),
        ({"spacing": 0.5}, "spacing"),
        ({"spacing": 6.5}, "spacing"),
        ({"spacing": float("nan")}, "spacing"),
        ({"seed": -1}, "seed"),
    ],
)
def test_invalid_arguments(arguments: dict, where: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        write_phantom(
            **{"layout": "fets2021", "out": tmp_path / "out", "subjects": 1, "spacing": 6.0}
            | arguments
        )
    assert caught.value.where == where
    assert caught.value.fix
    assert not (tmp_path / "out").exists()
