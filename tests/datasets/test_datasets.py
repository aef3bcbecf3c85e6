"""The datasets: what their layouts mean, how each fault is reported, what all of them promise."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import layouts
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, LPS, SHAPE, labels, noise, real_data, write_analyze, write_nifti
from PIL import Image

from trm_bench import datasets
from trm_bench.datasets import Dataset, LabelMap, NiftiDataset, Subject, open_dataset
from trm_bench.datasets.decathlon import Decathlon
from trm_bench.datasets.fets2021 import Fets2021
from trm_bench.datasets.iseg2019 import Iseg2019
from trm_bench.datasets.lgg import Lgg
from trm_bench.errors import BadSubject, UserError

RAS = np.eye(4)


def read_first(dataset: Dataset, modalities: tuple[str, ...] | None = None):
    return dataset.read(dataset.subjects()[0], modalities or dataset.modalities)


def fault(dataset: Dataset, modalities: tuple[str, ...] | None = None) -> BadSubject:
    """What reading the first subject reports."""
    with pytest.raises(BadSubject) as caught:
        read_first(dataset, modalities)
    assert caught.value.subject == dataset.subjects()[0].id
    assert caught.value.fix
    return caught.value


# All datasets


@pytest.mark.parametrize("name", sorted(datasets.REGISTRY.builtin))
def test_every_dataset_keeps_the_contract(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(name, LAYOUTS[name](tmp_path / "data"))
    assert dataset.name == name and dataset.licence and dataset.citation and type(dataset).__doc__
    subjects = dataset.subjects()
    ids = [subject.id for subject in subjects]
    assert len(ids) >= 2 and ids == sorted(set(ids))
    for subject in subjects:
        files = dataset.files(subject)
        assert files and len(files) == len(set(files)) and all(file.is_file() for file in files)
        assert set(subject.images) == set(dataset.modalities) and subject.patient
        scan = dataset.read(subject, dataset.modalities)
        assert scan.modalities == dataset.modalities
        assert scan.image.dtype == np.float32 and scan.image.shape == (
            len(dataset.modalities),
            *scan.label.shape,
        )
        assert scan.label.dtype == np.uint8 and scan.label.ndim == 3 and scan.label.any()
        assert scan.affine.dtype == np.float64 and scan.affine.shape == (4, 4)
        assert "".join(nib.aff2axcodes(scan.affine)) == "RAS" and min(scan.spacing) > 0
        for modality in dataset.modalities:
            alone = dataset.read(subject, (modality,))
            np.testing.assert_array_equal(
                alone.image[0], scan.image[dataset.modalities.index(modality)]
            )
            np.testing.assert_array_equal(alone.label, scan.label)
        back = dataset.read(subject, dataset.modalities[::-1])
        np.testing.assert_array_equal(back.image, scan.image[::-1])
        raw = set(np.unique(scan.label).tolist())
        for label_map in dataset.label_maps.values():
            assert raw <= set(label_map.values)
            assert label_map.classes[0] == "background"
            assert set(label_map.values.values()) == set(range(len(label_map.classes)))
            assert all(
                0 < index < len(label_map.classes)
                for region in label_map.regions.values()
                for index in region
            )


@pytest.mark.parametrize("name", sorted(datasets.REGISTRY.builtin))
def test_a_wrong_folder_is_reported(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder with the dataset") as caught:
        open_dataset(name, tmp_path / "absent")
    assert caught.value.where == str(tmp_path / "absent")
    (tmp_path / "something else").mkdir()
    with pytest.raises(UserError, match=r"data\.root") as caught:
        open_dataset(name, tmp_path).subjects()
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize("name", sorted(datasets.REGISTRY.builtin))
def test_unknown_modalities_and_label_maps_name_the_nearest(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(name, LAYOUTS[name](tmp_path / "data"))
    with pytest.raises(UserError, match=f"did you mean '{dataset.modalities[0]}'") as caught:
        read_first(dataset, (dataset.modalities[0] + "x",))
    assert not isinstance(caught.value, BadSubject)
    first = next(iter(dataset.label_maps))
    with pytest.raises(UserError, match=f"did you mean '{first}'"):
        dataset.label_map(first + "x")
    assert dataset.label_map(first) is dataset.label_maps[first]


def test_a_fault_crosses_process_boundaries(tmp_path: Path) -> None:
    root = layouts.fets(tmp_path)
    (root / "FeTS21_Training_001" / "FeTS21_Training_001_t2.nii.gz").unlink()
    error = fault(Fets2021(root))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 (what multiprocessing does)
    assert (again.subject, str(again)) == (error.subject, str(error))


# NIfTI


class Plain(NiftiDataset):
    """The least that a NIfTI dataset needs: one image and one label file in the root."""

    name = "plain"
    modalities = ("mr",)
    label_maps = {"all": LabelMap(("background", "thing"), {0: 0, 1: 1, 255: 0})}  # noqa: RUF012

    def subjects(self) -> list[Subject]:
        return [Subject("s1", {"mr": self.root / "mr.nii.gz"}, self.root / "label.nii.gz")]


def plain(root: Path, image: np.ndarray | None = None, label: np.ndarray | None = None) -> Plain:
    write_nifti(root / "mr.nii.gz", noise(0) if image is None else image)
    write_nifti(root / "label.nii.gz", labels((0, 1)) if label is None else label)
    return Plain(root)


def test_voxels_land_where_ras_says(tmp_path: Path) -> None:
    image, label = noise(0), np.zeros(SHAPE, np.uint8)
    label[0, 0, 0] = 1  # in LPS: the right, front, lower corner
    scan = read_first(plain(tmp_path, image, label))
    np.testing.assert_array_equal(scan.image[0], image[::-1, ::-1])
    assert np.argwhere(scan.label).tolist() == [[SHAPE[0] - 1, SHAPE[1] - 1, 0]]
    np.testing.assert_allclose(scan.affine @ [SHAPE[0] - 1, SHAPE[1] - 1, 0, 1], LPS @ [0, 0, 0, 1])


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "ILA", "SAL"])
def test_every_orientation_keeps_each_voxel_at_its_place(axes: str, tmp_path: Path) -> None:
    image, label = noise(0), labels((0, 1))
    affine = np.array([[1.0, 0, 0, -7], [0, 2, 0, 8], [0, 0, 3, 9], [0, 0, 0, 1]])
    turn = nib.orientations.ornt_transform(
        *(nib.orientations.axcodes2ornt(a) for a in ("RAS", axes))
    )
    for file, array in (("mr.nii.gz", image), ("label.nii.gz", label)):
        turned = nib.Nifti1Image(array, affine).as_reoriented(turn)
        assert "".join(nib.aff2axcodes(turned.affine)) == axes
        nib.save(turned, tmp_path / file)
    scan = read_first(Plain(tmp_path))
    np.testing.assert_array_equal(scan.image[0], image)
    np.testing.assert_array_equal(scan.label, label)
    np.testing.assert_allclose(scan.affine, affine)
    assert scan.spacing == (1, 2, 3)


def test_files_of_one_grid_may_differ_in_orientation(tmp_path: Path) -> None:
    image, label = noise(0), labels((0, 1))
    flip = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt("LPS"), SHAPE)
    write_nifti(tmp_path / "mr.nii.gz", image, RAS)
    write_nifti(tmp_path / "label.nii.gz", label[::-1, ::-1], RAS @ flip)
    scan = read_first(Plain(tmp_path))
    np.testing.assert_array_equal(scan.image[0], image)
    np.testing.assert_array_equal(scan.label, label)


def test_a_label_without_affine_lies_on_the_image_grid(tmp_path: Path) -> None:
    label = labels((0, 1))
    plain(tmp_path, label=label)
    bare = nib.Nifti1Image(label, None)
    nib.save(bare, tmp_path / "label.nii.gz")
    assert nib.load(tmp_path / "label.nii.gz").header["sform_code"] == 0
    np.testing.assert_array_equal(read_first(Plain(tmp_path)).label, label[::-1, ::-1])
    bare.header.set_zooms((1, 1, 2))
    nib.save(bare, tmp_path / "label.nii.gz")
    assert "affine" in fault(Plain(tmp_path)).what


def test_scaled_integers_are_read_in_float32_without_a_float64_copy(tmp_path: Path) -> None:
    shape = (100, 100, 100)
    values = (np.arange(1_000_000) % 30_000).astype(np.int16).reshape(shape)
    image = nib.Nifti1Image(values, LPS)
    image.header.set_slope_inter(2, 1)
    nib.save(image, tmp_path / "mr.nii.gz")
    assert nib.load(tmp_path / "mr.nii.gz").dataobj.slope == 2
    write_nifti(tmp_path / "label.nii.gz", labels((0, 1), shape))
    read_first(Plain(tmp_path))
    tracemalloc.start()
    scan = read_first(Plain(tmp_path))
    peak = tracemalloc.get_traced_memory()[1] / values.size
    tracemalloc.stop()
    np.testing.assert_array_equal(scan.image[0], 2.0 * values[::-1, ::-1] + 1)
    assert peak < 12, f"{peak:.1f} bytes a voxel"


def test_the_label_dtype_does_not_matter(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.int16, np.float32, np.float64):
        scan = read_first(plain(tmp_path, label=labels((0, 1, 255)).astype(dtype)))
        assert scan.label.dtype == np.uint8 and np.unique(scan.label).tolist() == [0, 1, 255]


def put(file: str, array: np.ndarray, affine: np.ndarray = LPS) -> Callable[[Path], None]:
    return lambda root: write_nifti(root / file, array, affine) and None


def cut(file: str, keep: float) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        data = (root / file).read_bytes()
        (root / file).write_bytes(data[: int(len(data) * keep)])

    return apply


def moved(by: float) -> np.ndarray:
    affine = LPS.copy()
    affine[0, 3] += by
    return affine


def with_one(value: float, index: tuple[int, ...] = (1, 1, 1)) -> np.ndarray:
    image = noise(0)
    image[index] = value
    return image


FAULTS = {
    "missing image": (
        "mr.nii.gz",
        lambda root: (root / "mr.nii.gz").unlink(),
        "the mr image is missing",
    ),
    "missing label": (
        "label.nii.gz",
        lambda root: (root / "label.nii.gz").unlink(),
        "the label is missing",
    ),
    "empty file": (
        "mr.nii.gz",
        lambda root: (root / "mr.nii.gz").write_bytes(b""),
        "is an empty file",
    ),
    "truncated image": ("mr.nii.gz", cut("mr.nii.gz", 0.6), "cannot be read"),
    "truncated label": ("label.nii.gz", cut("label.nii.gz", 0.6), "cannot be read"),
    "truncated header": ("mr.nii.gz", cut("mr.nii.gz", 0.05), "cannot be read"),
    "not gzip": (
        "mr.nii.gz",
        lambda root: (root / "mr.nii.gz").write_bytes(b"<html>" * 99),
        "cannot be read",
    ),
    "gzip of text": (
        "mr.nii.gz",
        lambda r: (r / "mr.nii.gz").write_bytes(gzip.compress(b"x" * 999)),
        "cannot be read",
    ),
    "nan": ("mr.nii.gz", put("mr.nii.gz", with_one(np.nan)), "1 voxels are NaN or infinite"),
    "infinity": ("mr.nii.gz", put("mr.nii.gz", with_one(np.inf)), "1 voxels are NaN or infinite"),
    "too large": (
        "mr.nii.gz",
        put("mr.nii.gz", noise(0).astype(float) * 1e300),
        "120 voxels are NaN or infinite",
    ),
    "constant": ("mr.nii.gz", put("mr.nii.gz", np.full(SHAPE, 7.0)), "constant"),
    "shape": (
        "label.nii.gz",
        put("label.nii.gz", labels((0, 1), (4, 5, 7))),
        "has shape (4, 5, 7), mr.nii.gz has",
    ),
    "affine": (
        "label.nii.gz",
        put("label.nii.gz", labels((0, 1)), moved(0.002)),
        "differs from that of mr.nii.gz by",
    ),
    "spacing": (
        "label.nii.gz",
        put("label.nii.gz", labels((0, 1)), LPS @ np.diag([1, 1, 2, 1])),
        "differs from",
    ),
    "4D": ("mr.nii.gz", put("mr.nii.gz", noise(0, (4, 5, 6, 2))), "not one 3D volume"),
    "2D": ("mr.nii.gz", put("mr.nii.gz", noise(0, (4, 5))), "not one 3D volume"),
    "unknown label": (
        "label.nii.gz",
        put("label.nii.gz", labels((0, 1, 3))),
        "the label holds 3; the dataset 'plain'",
    ),
    "fraction": (
        "label.nii.gz",
        put("label.nii.gz", labels((0, 1)) * np.float32(0.5)),
        "0.5 is no whole number",
    ),
    "negative": (
        "label.nii.gz",
        put("label.nii.gz", labels((0, 1)) * np.int16(-1)),
        "-1.0 is no whole number",
    ),
    "large label": (
        "label.nii.gz",
        put("label.nii.gz", labels((0, 1)) * np.int16(257)),
        "257.0 is no whole number",
    ),
    "nan label": (
        "label.nii.gz",
        put("label.nii.gz", labels((0, 1)) * np.float32(np.nan)),
        "nan is no whole number",
    ),
    "no label": ("label.nii.gz", put("label.nii.gz", labels((0, 0))), "the mask is empty"),
    "background only": ("label.nii.gz", put("label.nii.gz", labels((0, 255))), "the mask is empty"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_a_nifti_file_is_named_with_the_file(name: str, tmp_path: Path) -> None:
    file, spoil, says = FAULTS[name]
    dataset = plain(tmp_path)
    read_first(dataset)
    spoil(tmp_path)
    error = fault(dataset)
    assert says in error.what
    assert error.where == str(tmp_path / file)


def test_a_small_disagreement_of_affines_is_rounding(tmp_path: Path) -> None:
    plain(tmp_path)
    write_nifti(tmp_path / "label.nii.gz", labels((0, 1)), moved(5e-4))
    np.testing.assert_array_equal(read_first(Plain(tmp_path)).affine[:3, :3], np.eye(3))


def test_an_unusable_affine_is_a_fault(tmp_path: Path) -> None:
    dataset = plain(tmp_path)
    data = bytearray(gzip.decompress((tmp_path / "mr.nii.gz").read_bytes()))
    nearly = LPS[:3] + np.array(
        [[0, 0, 2e15, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    )  # x and z coincide after rounding
    for rows in (
        np.zeros((3, 4)),
        np.full((3, 4), np.nan),
        np.full((3, 4), np.inf),
        np.ones((3, 4)),
        nearly,
    ):
        data[280:328] = rows.astype("<f4").tobytes()  # srow_x, srow_y, srow_z
        (tmp_path / "mr.nii.gz").write_bytes(gzip.compress(bytes(data)))
        error = fault(dataset)
        assert "no usable affine" in error.what and error.where == str(tmp_path / "mr.nii.gz")


def test_a_plain_nii_that_is_too_short_is_truncated(tmp_path: Path) -> None:
    root = layouts.fets(tmp_path, suffix=".nii")
    file = root / "FeTS21_Training_001" / "FeTS21_Training_001_t1.nii"
    whole = file.read_bytes()
    for size, says in (
        (len(whole) - 1, "cannot be read"),
        (400, "truncated: shape (4, 5, 6) needs 480 bytes"),
    ):
        file.write_bytes(whole[:size])
        error = fault(Fets2021(root))
        assert says in error.what and error.where == str(file)


def test_the_end_and_the_checksum_of_a_gzip_file_are_verified(tmp_path: Path) -> None:
    dataset = plain(tmp_path, noise(0, (16, 16, 16)), labels((0, 1), (16, 16, 16)))
    file = tmp_path / "mr.nii.gz"
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[-6] ^= 1  # in the checksum
    for content, says in ((whole[:-1], "EOFError"), (bytes(damaged), "CRC")):
        file.write_bytes(content)
        error = fault(dataset)
        assert says in error.what and error.where == str(file)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 359), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_header_is_a_bad_subject_or_harmless(
    tmp_path: Path, damage: list[tuple[int, int]]
) -> None:
    if not (tmp_path / "good").is_file():
        plain(tmp_path)
        (tmp_path / "good").write_bytes(gzip.decompress((tmp_path / "mr.nii.gz").read_bytes()))
    data = bytearray((tmp_path / "good").read_bytes())
    for position, value in damage:
        data[position] = value
    (tmp_path / "mr.nii.gz").write_bytes(gzip.compress(bytes(data), 1))
    try:
        scan = read_first(Plain(tmp_path))
    except BadSubject as error:
        assert error.where in (str(tmp_path / "mr.nii.gz"), str(tmp_path / "label.nii.gz"))
    else:
        assert scan.image.shape == (1, *scan.label.shape) and np.isfinite(scan.image).all()


# FeTS and BraTS


def test_fets_channels_and_values(tmp_path: Path) -> None:
    dataset = Fets2021(layouts.fets(tmp_path))
    scan = read_first(dataset, ("flair", "t1"))
    np.testing.assert_array_equal(scan.image[0], noise(3)[::-1, ::-1])
    np.testing.assert_array_equal(scan.image[1], noise(0)[::-1, ::-1])
    np.testing.assert_array_equal(scan.label, labels((0, 1, 2, 4))[::-1, ::-1])


def test_fets_label_maps_and_regions() -> None:
    maps = Fets2021.label_maps
    tumour = {name: {v for v, c in maps[name].values.items() if c} for name in maps}
    assert tumour == {
        "whole_tumor": {1, 2, 4},
        "tumor_core": {1, 4},
        "enhancing": {4},
        "subregions": {1, 2, 4},
    }
    subregions = maps["subregions"]
    for region, name in (("WT", "whole_tumor"), ("TC", "tumor_core"), ("ET", "enhancing")):
        assert {
            v for v, c in subregions.values.items() if c in subregions.regions[region]
        } == tumour[name]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize(
    "name",
    [
        "FeTS21_Training_001",
        "FeTS2022_01341",
        "BraTS20_Training_001",
        "BraTS2021_00000",
        "Brats18_CBICA_AAB_1",
    ],
)
@pytest.mark.parametrize("below", [".", "Training", "MICCAI/HGG"])
def test_fets_and_brats_prefixes_at_any_depth(
    name: str, suffix: str, below: str, tmp_path: Path
) -> None:
    layouts.fets(tmp_path / "root" / below, [name], None, suffix)
    dataset = Fets2021(tmp_path / "root")
    assert [subject.id for subject in dataset.subjects()] == [name]
    assert read_first(dataset).image.shape == (4, *SHAPE)
    assert all(file.name.endswith(suffix) for file in dataset.files(dataset.subjects()[0]))


@pytest.mark.parametrize("place", ["root", "beside", "training"])
def test_fets_institutions_come_from_the_csv(place: str, tmp_path: Path) -> None:
    training = layouts.fets(tmp_path / "all" / "training", ["A_1", "A_2", "A_3"], None)
    csv = "Partition_ID,Subject_ID\r\n3,A_1\r\n 17 ,A_2\r\n"
    (tmp_path / "all" if place != "training" else training).joinpath(
        "partitioning_1.csv"
    ).write_text("\ufeff" + csv)
    dataset = Fets2021(tmp_path / "all" if place == "root" else training)
    institutions = {subject.id: subject.institution for subject in dataset.subjects()}
    assert institutions == {"A_1": "3", "A_2": "17", "A_3": ""}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column Partition_ID and no column Subject_ID"),
        ("Partition,Subject_ID\n1,A_1\n", "no column Partition_ID"),
        ("Partition_ID,Subject_ID\n1,A_1\n2\n", "csv:3: the row"),
        ("Partition_ID,Subject_ID\n1,A_1,9\n", "csv:2: the row"),
        ("Partition_ID,Subject_ID\n,A_1\n", "csv:2: the row"),
        (
            "Partition_ID,Subject_ID\n1,A_1\n2,A_1\n",
            "A_1 has the Partition_ID 1 and the Partition_ID 2",
        ),
        ('Partition_ID,Subject_ID\n1,"A_1', "no csv table"),
        ("Partition_ID,Subject_ID\n1,\udcff\n", "not text in UTF-8"),
    ],
)
def test_fets_malformed_csv(text: str, says: str, tmp_path: Path) -> None:
    root = layouts.fets(tmp_path / "root", ["A_1"], None)
    (root / "partitioning_1.csv").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError) as caught:
        Fets2021(root).subjects()
    assert says in str(caught.value) and str(root / "partitioning_1.csv") in str(caught.value)


@pytest.mark.parametrize("modality", ["t1", "t1ce", "t2", "flair"])
def test_fets_missing_modality_is_named_and_the_rest_is_usable(
    modality: str, tmp_path: Path
) -> None:
    root = layouts.fets(tmp_path)
    file = root / "FeTS21_Training_001" / f"FeTS21_Training_001_{modality}.nii.gz"
    file.unlink()
    dataset = Fets2021(root)
    subject = dataset.subjects()[0]
    others = tuple(m for m in dataset.modalities if m != modality)
    assert tuple(subject.images) == others and file not in dataset.files(subject)
    assert dataset.read(subject, others).modalities == others
    error = fault(dataset)
    assert error.what == f"the {modality} image is missing" and error.where == str(file)


def test_fets_subject_without_label_is_listed_among_labelled_ones(tmp_path: Path) -> None:
    root = layouts.fets(tmp_path / "training")
    layouts.fets(tmp_path / "validation", ["FeTS21_Validation_001"], None)
    (
        tmp_path / "validation" / "FeTS21_Validation_001" / "FeTS21_Validation_001_seg.nii.gz"
    ).unlink()
    label = root / "FeTS21_Training_001" / "FeTS21_Training_001_seg.nii.gz"
    label.unlink()
    dataset = Fets2021(tmp_path)
    assert [subject.id for subject in dataset.subjects()] == [
        "FeTS21_Training_001",
        "FeTS21_Training_002",
    ]
    error = fault(dataset)
    assert error.what == "the label is missing" and error.where == str(label)


def test_fets_affine_and_shape_faults_name_the_modality(tmp_path: Path) -> None:
    dataset = Fets2021(layouts.fets(tmp_path))
    file = dataset.subjects()[0].images["t2"]
    write_nifti(file, noise(0), moved(1))
    error = fault(dataset)
    assert "t2 image" in error.what and "by 1 mm" in error.what and error.where == str(file)
    write_nifti(file, noise(0, (4, 5, 7)))
    error = fault(dataset)
    assert "t2 image has shape (4, 5, 7)" in error.what and error.where == str(file)
    assert dataset.read(dataset.subjects()[0], ("t1", "flair")).image.shape == (2, *SHAPE)


def test_fets_twice_the_same_subject(tmp_path: Path) -> None:
    layouts.fets(tmp_path / "one", ["A_1"], None)
    layouts.fets(tmp_path / "two", ["A_1"], None)
    with pytest.raises(UserError, match="A_1 is in two folders"):
        Fets2021(tmp_path).subjects()


def test_fets_ignores_macos_companions(tmp_path: Path) -> None:
    root = layouts.fets(tmp_path)
    ids = [subject.id for subject in Fets2021(root).subjects()]
    (root / ".DS_Store").write_bytes(b"x")
    (root / "FeTS21_Training_001" / "._FeTS21_Training_001_seg.nii.gz").write_bytes(b"x")
    (root / "._FeTS21_Training_003").mkdir()
    (root / "._FeTS21_Training_003" / "._FeTS21_Training_003_seg.nii.gz").write_bytes(b"x")
    assert [subject.id for subject in Fets2021(root).subjects()] == ids


# iSeg


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("suffix", [".hdr", ".nii.gz", ".nii"])
def test_iseg_layouts(nested: bool, suffix: str, tmp_path: Path) -> None:
    layouts.iseg(tmp_path / "iSeg-2019-Training" if nested else tmp_path, suffix=suffix)
    dataset = Iseg2019(tmp_path)
    assert [subject.id for subject in dataset.subjects()] == [
        "subject-1",
        "subject-10",
        "subject-2",
    ]
    scan = read_first(dataset)
    assert scan.image.shape == (2, *SHAPE) and np.unique(scan.label).tolist() == [0, 10, 150, 250]
    if suffix == ".hdr":  # no orientation stated: voxels in file order
        np.testing.assert_array_equal(scan.label, labels((0, 10, 150, 250)))
        np.testing.assert_array_equal(scan.affine, np.eye(4))
        assert len(dataset.files(dataset.subjects()[0])) == 6


def test_iseg_voxel_size_comes_from_the_analyze_header(tmp_path: Path) -> None:
    dataset = Iseg2019(layouts.iseg(tmp_path, [1]))
    for file, values in (("T1", noise(1)), ("T2", noise(2)), ("label", labels((0, 10, 150, 250)))):
        write_analyze(tmp_path / f"subject-1-{file}.hdr", values[..., None], (1, 2, 3))
    assert read_first(dataset).spacing == (1, 2, 3)
    write_analyze(tmp_path / "subject-1-T2.hdr", noise(2)[..., None], (1, 2, 4))
    error = fault(dataset)
    assert "affine" in error.what and error.where == str(tmp_path / "subject-1-T2.hdr")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("subject-1-T2.img", None, "the t2 image is missing"),
        ("subject-1-T2.hdr", None, "the t2 image is missing"),
        ("subject-1-T2.img", b"", "the t2 image is an empty file"),
        ("subject-1-T2.img", b"abc", "the t2 image is truncated"),
        ("subject-1-T2.hdr", b"abc", "the t2 image cannot be read"),
        ("subject-1-label.img", None, "the label is missing"),
    ],
)
def test_iseg_faults_name_the_part(
    file: str, content: bytes | None, says: str, tmp_path: Path
) -> None:
    dataset = Iseg2019(layouts.iseg(tmp_path, [1]))
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    error = fault(dataset)
    assert says in error.what and error.where == str(tmp_path / file)


@pytest.mark.parametrize("part", ["T2", "label"])
def test_iseg_image_or_label_absent(part: str, tmp_path: Path) -> None:
    layouts.iseg(tmp_path)
    for suffix in (".hdr", ".img"):
        (tmp_path / f"subject-1-{part}{suffix}").unlink()
    error = fault(Iseg2019(tmp_path))
    assert "is missing" in error.what and error.where == str(tmp_path / f"subject-1-{part}.hdr")


# Decathlon


def test_decathlon_picks_channels_of_the_4d_file(tmp_path: Path) -> None:
    dataset = Decathlon(layouts.decathlon(tmp_path))
    assert dataset.modalities == ("flair", "t1w", "t1gd", "t2w") and dataset.task == "Tiny"
    image = noise(0, (*SHAPE, 4))
    scan = read_first(dataset, ("t2w", "t1w"))
    np.testing.assert_array_equal(scan.image[0], image[::-1, ::-1, :, 3])
    np.testing.assert_array_equal(scan.image[1], image[::-1, ::-1, :, 1])
    assert len(dataset.files(dataset.subjects()[0])) == 2


def test_decathlon_label_maps(tmp_path: Path) -> None:
    maps = Decathlon(layouts.decathlon(tmp_path / "three")).label_maps
    alias = "edema_non_enhancing_tumor_enhancing_tumour"
    assert list(maps) == ["all", "whole", "edema", "non_enhancing_tumor", "enhancing_tumour", alias]
    assert maps[alias] is maps["all"] and maps["all"].values == {0: 0, 1: 1, 2: 2, 3: 3}
    assert maps["whole"].values == {0: 0, 1: 1, 2: 1, 3: 1}
    assert maps["non_enhancing_tumor"].values == {0: 0, 1: 0, 2: 1, 3: 0}
    assert maps["all"].regions == {
        "edema": (1,),
        "non_enhancing_tumor": (2,),
        "enhancing_tumour": (3,),
    }
    four = Decathlon(layouts.decathlon(tmp_path / "four", names=["a", "b", "c", "All"])).label_maps
    assert list(four) == ["all", "whole", "a", "b", "c"] and four["all"].classes[4] == "all"
    one = Decathlon(layouts.decathlon(tmp_path / "one", names=["left atrium"])).label_maps
    assert list(one) == ["all", "whole", "left_atrium"]


def test_decathlon_single_modality_is_a_3d_file(tmp_path: Path) -> None:
    dataset = Decathlon(layouts.decathlon(tmp_path, ["MRI"], ["Anterior", "Posterior"]))
    assert dataset.modalities == ("mri",) and "anterior_posterior" in dataset.label_maps
    np.testing.assert_array_equal(read_first(dataset).image[0], noise(0)[::-1, ::-1])


@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 3)])
def test_decathlon_wrong_number_of_channels(shape: tuple[int, ...], tmp_path: Path) -> None:
    dataset = Decathlon(layouts.decathlon(tmp_path))
    file = write_nifti(tmp_path / "imagesTr" / "BRATS_001.nii.gz", noise(0, shape))
    error = fault(dataset, ("flair",))
    assert "not 4 channels" in error.what and error.where == str(file)


@pytest.mark.parametrize(("folder", "says"), [("imagesTr", "flair image"), ("labelsTr", "label")])
def test_decathlon_missing_and_truncated_files(folder: str, says: str, tmp_path: Path) -> None:
    dataset = Decathlon(layouts.decathlon(tmp_path))
    file = tmp_path / folder / "BRATS_001.nii.gz"
    file.write_bytes(file.read_bytes()[:-20])
    error = fault(dataset)
    assert f"the {says} cannot be read" in error.what and error.where == str(file)
    file.unlink()
    error = fault(dataset)
    assert error.what == f"the {says} is missing" and error.where == str(file)


@pytest.mark.parametrize(
    "path", ["../x.nii.gz", "a/../../x.nii.gz", "/etc/x.nii.gz", "C:\\x.nii.gz", "..\\x.nii.gz"]
)
@pytest.mark.parametrize("key", ["image", "label"])
def test_decathlon_paths_stay_inside_the_root(path: str, key: str, tmp_path: Path) -> None:
    layouts.decathlon(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["training"][1][key] = path
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="outside") as caught:
        Decathlon(tmp_path)
    assert f"training[1].{key}" in caught.value.what and caught.value.where == str(
        tmp_path / "dataset.json"
    )


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("modality", None, "'modality' is not an object"),
        ("labels", None, "'labels' is not an object"),
        ("training", None, "'training' is not a list"),
        ("modality", {}, "'modality' is not an object"),
        ("modality", {"0": "a", "2": "b"}, "not 0, 1, 2"),
        ("modality", {"0": "T1", "1": "t1"}, "twice"),
        ("modality", {"0": 5}, "not a number up to 255 and a name"),
        ("labels", {"background": 0, "tumour": 1}, "not a number up to 255 and a name"),
        ("labels", {"0": "background", "300": "x"}, "not a number up to 255 and a name"),
        ("labels", {"1": "x", "2": "y"}, "needs 0"),
        ("labels", {"0": "background"}, "needs 0"),
        ("labels", {"0": "air", "1": "Background"}, "another value than 0"),
        ("training", [], "'training' is not a list"),
        ("training", ["a.nii.gz"], "training[0]"),
        ("training", [{"image": "a.nii.gz"}], "training[0].label"),
        ("training", [{"image": "", "label": "a"}], "training[0].image"),
        (
            "training",
            [{"image": "a.nii", "label": "a"}, {"image": "b/a.nii.gz", "label": "a"}],
            "lists a twice",
        ),
    ],
)
def test_decathlon_malformed_content(key: str, value: object, says: str, tmp_path: Path) -> None:
    file = layouts.decathlon(tmp_path) / "dataset.json"
    content = json.loads(file.read_text())
    content.pop(key)
    if value is not None:
        content[key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        Decathlon(tmp_path)
    assert says in caught.value.what and caught.value.where == str(file)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_decathlon_malformed_json(text: bytes, tmp_path: Path) -> None:
    file = layouts.decathlon(tmp_path) / "dataset.json"
    file.write_bytes(text)
    with pytest.raises(UserError) as caught:
        Decathlon(tmp_path)
    assert caught.value.where == str(file)


def test_decathlon_parent_folder_names_the_task(tmp_path: Path) -> None:
    layouts.decathlon(tmp_path / "Task01_BrainTumour")
    with pytest.raises(UserError, match="Task01_BrainTumour"):
        Decathlon(tmp_path)


def test_decathlon_ignores_macos_companions(tmp_path: Path) -> None:
    file = layouts.decathlon(tmp_path) / "dataset.json"
    content = json.loads(file.read_text())
    content["training"].insert(
        0, {"image": "imagesTr/._BRATS_001.nii.gz", "label": "labelsTr/._BRATS_001.nii.gz"}
    )
    file.write_text(json.dumps(content))
    assert [subject.id for subject in Decathlon(tmp_path).subjects()] == ["BRATS_001", "BRATS_002"]


# Label maps that a person writes down


def test_classes_with_their_values_make_a_label_map() -> None:
    made = LabelMap.of({"rim": [4], "core": (1, 2)}, known=[4, 2, 1, 7])
    assert made.classes == ("background", "rim", "core")
    assert made.values == {0: 0, 4: 1, 1: 2, 2: 2, 7: 0}
    assert made.regions == {"rim": (1,), "core": (2,)}
    assert list(made.values) == [0, 1, 2, 4, 7], "the order in which values are known is no matter"


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ({}, "no class is named"),
        ({"lesion": []}, "'lesion' has no label value"),
        ({"lesion": [1, 3]}, "3 of 'lesion' is unknown to this dataset\n  .* are 1, 2, 4"),
        ({"lesion": [0]}, "0 of 'lesion' is background"),
        ({"lesion": [1], "rim": [2, 1]}, "1 is in 'lesion' and in 'rim'"),
        ({"lesion": [1, 1]}, "1 is in 'lesion' and in 'lesion'"),
        ({"background": [1]}, "no class can be called 'background'"),
    ],
)
def test_classes_that_do_not_fit_are_told(classes: dict[str, list[int]], says: str) -> None:
    with pytest.raises(UserError) as caught:
        LabelMap.of(classes, [0, 1, 2, 4])
    assert re.search(says, str(caught.value)) and caught.value.where == "data.labels"


def test_a_dataset_takes_a_label_map_by_name_or_by_values(tmp_path: Path) -> None:
    dataset = Fets2021(layouts.fets(tmp_path))
    assert dataset.label_values == {0, 1, 2, 4}
    written = dataset.label_map({"enhancing": [4]})
    assert written == dataset.label_map("enhancing")
    both = dataset.label_map({"core": [1, 4], "oedema": [2]})
    assert both.classes == ("background", "core", "oedema")
    with pytest.raises(UserError, match="are 1, 2, 4"):
        dataset.label_map({"core": [3]})


# LGG

CS = "TCGA_CS_4941_19960909"


def edit_lgg(
    root: Path, n: int, change: Callable[[np.ndarray], np.ndarray], ending: str = ""
) -> Path:
    file = root / CS / f"{CS}_{n}{ending}.tif"
    with Image.open(file) as image:
        pixels = np.array(image)
    Image.fromarray(change(pixels)).save(file)
    return file


def test_lgg_patients_and_institutions(tmp_path: Path) -> None:
    layouts.lgg(tmp_path / "kaggle_3m", [CS, "TCGA_CS_4941_19970101", "TCGA_DU_A5TP_19970614"])
    (tmp_path / "kaggle_3m" / "data.csv").write_text("Patient\n")
    (tmp_path / "kaggle_3m" / "README.md").write_text("x")
    for root in (tmp_path, tmp_path / "kaggle_3m"):
        subjects = Lgg(root).subjects()
        assert [(s.id, s.patient, s.institution) for s in subjects] == [
            (CS, "TCGA_CS_4941", "CS"),
            ("TCGA_CS_4941_19970101", "TCGA_CS_4941", "CS"),
            ("TCGA_DU_A5TP_19970614", "TCGA_DU_A5TP", "DU"),
        ]


def test_lgg_slices_are_in_numeric_order_and_axes_point_right_front_up(tmp_path: Path) -> None:
    dataset = Lgg(layouts.lgg(tmp_path, [CS], slices=11))
    (tmp_path / CS / f"._{CS}_1.tif").write_bytes(b"x")
    scan = read_first(dataset)
    rows, columns = layouts.LGG_SHAPE
    assert scan.image.shape == (3, columns, rows, 11)
    top_left = scan.image[:, columns - 1, rows - 1]
    np.testing.assert_array_equal(top_left, [[n + 50 * c for n in range(1, 12)] for c in range(3)])
    with Image.open(tmp_path / CS / f"{CS}_10.tif") as image:
        pixels = np.asarray(image)
    np.testing.assert_array_equal(scan.image[1, :, :, 9], pixels[::-1, ::-1, 1].T)
    assert np.argwhere(scan.label[..., 9]).tolist() == [[columns - 1 - 2, rows - 1 - 1]]
    assert np.unique(scan.label).tolist() == [0, 1]
    np.testing.assert_array_equal(scan.affine, np.eye(4))
    assert dataset.distance_unit == "voxels", "the affine's unit lengths are not millimetres"
    files = [file.name for file in dataset.files(dataset.subjects()[0])]
    assert files == [f"{CS}_{n}{ending}.tif" for n in range(1, 12) for ending in ("", "_mask")]


@pytest.mark.parametrize(("modality", "channel"), [("t1", 0), ("t1ce", 2)])
def test_lgg_copy_of_flair_is_not_that_modality(
    modality: str, channel: int, tmp_path: Path
) -> None:
    dataset = Lgg(layouts.lgg(tmp_path, [CS]))

    def copy(pixels: np.ndarray) -> np.ndarray:
        pixels[..., channel] = pixels[..., 1]
        return pixels

    for n in (1, 2):
        edit_lgg(tmp_path, n, copy)
    read_first(dataset)  # single slices may be equal, such as blank ones
    edit_lgg(tmp_path, 3, copy)
    error = fault(dataset)
    assert f"its {modality} channel is a copy of FLAIR" in error.what and error.where == str(
        tmp_path / CS
    )
    others = tuple(m for m in dataset.modalities if m != modality)
    assert read_first(dataset, others).modalities == others


@pytest.mark.parametrize("file", [f"{CS}_{n}{e}.tif" for n in (1, 2, 3) for e in ("", "_mask")])
def test_lgg_missing_slice_or_mask_is_named(file: str, tmp_path: Path) -> None:
    dataset = Lgg(layouts.lgg(tmp_path, [CS]))
    (tmp_path / CS / file).unlink()
    error = fault(dataset)
    assert "is missing" in error.what and error.where == str(tmp_path / CS / file)
    assert ("mask" in error.what) == ("mask" in file)


def test_lgg_gap_and_empty_folder(tmp_path: Path) -> None:
    dataset = Lgg(layouts.lgg(tmp_path, [CS]))
    for ending in ("", "_mask"):
        (tmp_path / CS / f"{CS}_2{ending}.tif").unlink()
    assert fault(dataset).what == "the slice 2 is missing"
    for file in dataset.files(dataset.subjects()[0]):
        file.unlink()
    assert fault(dataset).what == "no slices"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("ending", ["", "_mask"])
def test_lgg_corrupt_tiff(keep: float, ending: str, tmp_path: Path) -> None:
    dataset = Lgg(layouts.lgg(tmp_path, [CS]))
    cut(f"{CS}/{CS}_2{ending}.tif", keep)(tmp_path)
    error = fault(dataset)
    said = "cannot be read as TIFF" if keep else "is an empty file"
    assert said in error.what and error.where == str(tmp_path / CS / f"{CS}_2{ending}.tif")


def test_lgg_odd_pixels(tmp_path: Path) -> None:
    dataset = Lgg(layouts.lgg(tmp_path, [CS]))
    file = edit_lgg(tmp_path, 2, lambda mask: mask // 2, "_mask")
    error = fault(dataset)
    assert "the mask holds 127, not only 0 and 255" in error.what and error.where == str(file)
    layouts.lgg(tmp_path / "size", [CS])
    file = edit_lgg(tmp_path / "size", 3, lambda pixels: pixels[:-1])
    error = fault(Lgg(tmp_path / "size"))
    assert "(7, 6) pixels, the first has (8, 6)" in error.what and error.where == str(file)
    layouts.lgg(tmp_path / "grey", [CS])
    file = edit_lgg(tmp_path / "grey", 2, lambda pixels: pixels[..., 0])
    error = fault(Lgg(tmp_path / "grey"))
    assert "mode L, not RGB" in error.what and error.where == str(file)
    layouts.lgg(tmp_path / "empty", [CS])
    for n in (1, 2, 3):
        edit_lgg(tmp_path / "empty", n, np.zeros_like, "_mask")
    error = fault(Lgg(tmp_path / "empty"))
    assert "the mask is empty" in error.what and error.where == str(tmp_path / "empty" / CS)


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.parametrize("name", sorted(datasets.REGISTRY.builtin))
def test_no_file_stays_open(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(name, LAYOUTS[name](tmp_path / "data"))
    kept = [dataset.read(subject, dataset.modalities) for subject in dataset.subjects()]
    links = (
        [link.resolve() for link in Path("/proc/self/fd").iterdir()]
        if Path("/proc/self/fd").is_dir()
        else []
    )
    assert kept and not [link for link in links if tmp_path in link.parents]


# Real data


def test_real_hippocampus() -> None:
    dataset = Decathlon(real_data("Task04_Hippocampus"))
    assert dataset.modalities == ("mri",) and dataset.task == "Hippocampus"
    assert dataset.label_map("anterior_posterior").classes == (
        "background",
        "anterior",
        "posterior",
    )
    subjects = dataset.subjects()
    assert len(subjects) == 180 and subjects[0].id == "hippocampus_001"
    for subject in subjects[::30]:
        scan = dataset.read(subject, dataset.modalities)
        assert scan.spacing == (1, 1, 1) and np.unique(scan.label).tolist() == [0, 1, 2]
        assert all(20 < size < 80 for size in scan.label.shape)
        # The label "anterior" lies in front of "posterior": y grows to the front.
        assert np.argwhere(scan.label == 1)[:, 1].mean() > np.argwhere(scan.label == 2)[:, 1].mean()


def test_real_lgg() -> None:
    dataset = Lgg(real_data("kaggle_3m"))
    subjects = dataset.subjects()
    assert len(subjects) == 24 and {s.institution for s in subjects} == {"CS", "DU", "FG", "HT"}
    for subject in subjects[:: len(subjects) // 4]:
        scan = dataset.read(subject, dataset.modalities)
        assert scan.image.shape == (3, 256, 256, len(dataset.files(subject)) // 2)
        assert scan.image.max() <= 255 and scan.image.std(axis=(1, 2, 3)).min() > 1
        flair, abnormal = scan.image[1], scan.label == 1
        assert flair[abnormal].mean() > flair[flair > 20].mean()  # FLAIR abnormality is bright
