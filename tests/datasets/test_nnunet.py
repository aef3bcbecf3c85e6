"""nnU-Net's raw layout: what dataset.json means, what is refused, and what real data hold."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
from layouts import SHAPE, change, labels, noise, real_data, write_nifti

from trm_bench.datasets import open_dataset
from trm_bench.datasets.nnunet import NnUNet
from trm_bench.errors import BadSubject, UserError

BRATS = {"background": 0, "Whole": [1, 2, 3], "tumor core": [2, 3], "enhancing": [3]}


def fault(root: Path) -> BadSubject:
    dataset = NnUNet(root)
    with pytest.raises(BadSubject) as caught:
        dataset.read(dataset.subjects()[0], dataset.modalities)
    return caught.value


def test_channels_are_files_with_four_digits(tmp_path: Path) -> None:
    dataset = NnUNet(layouts.nnunet(tmp_path, cases=["b", "a_0001"]))
    assert dataset.modalities == ("t1", "t2_flair") and dataset.distance_unit == "mm"
    first, second = dataset.subjects()
    assert (first.id, second.id) == ("a_0001", "b") and second.patient == "b"
    assert second.images["t2_flair"] == tmp_path / "imagesTr" / "b_0001.nii.gz"
    scan = dataset.read(second, ("t2_flair", "t1"))
    np.testing.assert_array_equal(scan.image[0], noise(1)[::-1, ::-1])
    np.testing.assert_array_equal(scan.image[1], noise(0)[::-1, ::-1])
    np.testing.assert_array_equal(scan.label, labels((0, 1, 2, 3))[::-1, ::-1])


def test_label_maps_are_those_of_a_decathlon_task_with_these_labels(tmp_path: Path) -> None:
    names = ["LV", "Myo cardium", "RV"]
    ours = NnUNet(layouts.nnunet(tmp_path / "n")).label_maps
    task = open_dataset("decathlon", layouts.decathlon(tmp_path / "d", names=names)).label_maps
    assert list(ours.items()) == list(task.items())
    assert list(ours) == ["all", "whole", "lv", "myo_cardium", "rv", "lv_myo_cardium_rv"]


def test_regions_score_the_classes_of_their_values(tmp_path: Path) -> None:
    root = layouts.nnunet(tmp_path, labels_=BRATS, regions_class_order=[1, 2, 3])
    maps = NnUNet(root).label_maps
    assert list(maps) == ["all", "whole", "tumor_core", "enhancing"]
    assert maps["all"].classes == ("background", "value_1", "value_2", "enhancing")
    assert maps["all"].values == {0: 0, 1: 1, 2: 2, 3: 3}
    assert maps["all"].regions == {"whole": (1, 2, 3), "tumor_core": (2, 3), "enhancing": (3,)}
    assert maps["tumor_core"].values == {0: 0, 1: 0, 2: 1, 3: 1}
    assert maps["enhancing"].values == {0: 0, 1: 0, 2: 0, 3: 1}


def test_regions_of_values_with_gaps(tmp_path: Path) -> None:
    label_values = {"bg": 0, "core": [4, 1], "ED": 2}
    everything = NnUNet(layouts.nnunet(tmp_path, labels_=label_values)).label_maps["all"]
    assert everything.classes == ("background", "value_1", "ed", "value_4")
    assert everything.values == {0: 0, 1: 1, 2: 2, 4: 3}
    assert everything.regions == {"core": (3, 1), "ed": (2,)}


def test_names_that_channels_share_end_with_the_number(tmp_path: Path) -> None:
    root = layouts.nnunet(tmp_path, channels=["zscore", "CT", "zScore"])
    assert NnUNet(root).modalities == ("zscore_0", "ct", "zscore_2")


def test_tables_say_institution_and_patient(tmp_path: Path) -> None:
    root = layouts.nnunet(tmp_path, cases=["a", "b", "c"])
    (root / "institutions.csv").write_text(
        "\ufeffsubject,institution,scanner\r\na,X,1\r\nb, Y ,2\r\n"
    )
    (root / "patients.csv").write_text("patient,subject\np,a\np,c\n")
    found = [(s.id, s.institution, s.patient) for s in NnUNet(root).subjects()]
    assert found == [("a", "X", "p"), ("b", "Y", "b"), ("c", "", "p")]


@pytest.mark.parametrize("table", ["institutions.csv", "patients.csv"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,x\n", "no column"),
        ("subject,{}\ncase_001\n", "csv:2: the row is not one"),
        ("subject,{}\ncase_001,A\ncase_001,B\n", "csv:3: case_001 has the"),
        ('subject,{}\ncase_001,"A\nB"\n', "csv:3: a name holds a control character"),
        ("subject,{}\ncase_9,A\n", "no training case is called case_9"),
        ('subject,{}\n"case_001', "no csv table"),
    ],
)
def test_a_malformed_table_is_told(table: str, text: str, says: str, tmp_path: Path) -> None:
    root = layouts.nnunet(tmp_path)
    (root / table).write_text(text.format(table.removesuffix("s.csv")))
    with pytest.raises(UserError, match=says) as caught:
        NnUNet(root).subjects()
    assert str(root / table) in str(caught.value.where)


def test_a_table_that_leads_outside_needs_leave(tmp_path: Path) -> None:
    root = layouts.nnunet(tmp_path / "data")
    (tmp_path / "there.csv").write_text("subject,institution\n")
    (root / "institutions.csv").symlink_to(tmp_path / "there.csv")
    with pytest.raises(UserError, match="symbolic link"):
        NnUNet(root).subjects()
    assert len(open_dataset("nnunet", root, allow_links=True).subjects()) == 2


def test_dataset_names_the_files(tmp_path: Path) -> None:
    root = layouts.nnunet(tmp_path, channels=["CT"])
    (root / "imagesTr").rename(root / "scans")
    cases = {
        "two": {"images": ["scans/case_002_0000.nii.gz"], "label": "labelsTr/case_002.nii.gz"},
        "one": {"images": ["scans/case_001_0000.nii.gz"], "label": "./labelsTr/case_001.nii.gz"},
    }
    dataset = NnUNet(change(root, dataset=cases))
    assert [subject.id for subject in dataset.subjects()] == ["one", "two"]
    assert dataset.read(dataset.subjects()[0], ("ct",)).image.shape == (1, *SHAPE)
    (root / "scans" / "case_001_0000.nii.gz").unlink()
    assert str(root / "scans" / "case_001_0000.nii.gz") == fault(root).where


@pytest.mark.parametrize("path", ["../x.nii.gz", "/etc/x.nii.gz", "C:\\x.nii.gz", "a/../../x.nii"])
@pytest.mark.parametrize("key", ["images", "label"])
def test_named_files_stay_inside(path: str, key: str, tmp_path: Path) -> None:
    case: dict[str, Any] = {"images": ["a.nii.gz"], "label": "b.nii.gz"}
    case[key] = [path] if key == "images" else path
    root = change(layouts.nnunet(tmp_path, channels=["CT"]), dataset={"one": case}, numTraining=1)
    with pytest.raises(UserError, match="outside") as caught:
        NnUNet(root).subjects()
    assert f"dataset.one.{key}" in caught.value.what


CONTENT: list[tuple[dict[str, Any], str]] = [
    ({"channel_names": None}, "'modality' is not an object"),
    ({"channel_names": {"0": "a", "2": "b"}}, "not 0, 1, 2"),
    ({"channel_names": {"0": 5}}, "not a number up to 255 and a name"),
    ({"channel_names": {"0": "ct", "1": "ct", "2": "ct_1"}}, "a name twice"),
    ({"labels": None}, "'labels' is not an object"),
    ({"labels": {"0": "background", "1": "x"}}, "not a name with values"),
    ({"labels": {"background": 0}}, "at least one more"),
    ({"labels": {"a": 1, "b": 2}}, "needs one label 0"),
    ({"labels": {"background": 0, "a": [0, 1]}}, "needs one label 0"),
    ({"labels": {"background": [0, 1], "a": 2}}, "needs one label 0"),
    ({"labels": {"background": 0, "a": 256}}, "values up to 255"),
    ({"labels": {"background": 0, "a": True}}, "values up to 255"),
    ({"labels": {"background": 0, "a": []}}, "values up to 255"),
    ({"labels": {"background": 0, "a": [[1]]}}, "values up to 255"),
    ({"labels": {"background": 0, "a": [1, 1]}}, "twice"),
    ({"labels": {"background": 0, "a b": 1, "A-B": 2}}, "twice"),
    ({"labels": {"background": 0, "a": 1, "b": 1}}, "one value two names"),
    ({"labels": {"bg": 0, "background": 1}}, "two values one name"),
    ({"labels": {"background": 0, "value 2": 1, "a": [1, 2]}}, "two values one name"),
    ({"labels": {"background": 0, "a": 1, "ignore": 2}}, "label of voxels without truth"),
    ({"file_ending": None}, "'file_ending' is 'None'"),
    ({"file_ending": ".png"}, "what is read is .nii.gz, .nii, .nrrd, .mha"),
    ({"file_ending": [".nii"]}, "'file_ending'"),
    ({"distance_unit": "cm"}, "'distance_unit' is 'cm'"),
    ({"file_ending": None, "training": []}, "the Decathlon's layout"),
]


@pytest.mark.parametrize(("values", "says"), CONTENT)
def test_malformed_content(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    root = change(layouts.nnunet(tmp_path), **values)
    with pytest.raises(UserError) as caught:
        NnUNet(root)
    assert says in caught.value.what and caught.value.where == str(root / "dataset.json")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"numTraining": 3}, "'numTraining' is 3, the folder has 2"),
        ({"dataset": []}, "'dataset' is not an object"),
        ({"dataset": {"a": {"images": ["x.nii"], "label": "y.nii"}}}, "2 images"),
        ({"dataset": {"a": {"images": ["x.nii", 1], "label": "y.nii"}}}, "dataset.a.images[1]"),
        ({"dataset": {"a": {"images": ["x.nii", "z.nii"]}}}, "dataset.a.label"),
    ],
)
def test_cases_that_are_not_what_is_said(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    root = change(layouts.nnunet(tmp_path), **values)
    with pytest.raises(UserError) as caught:
        NnUNet(root).subjects()
    assert says in caught.value.what and caught.value.where == str(root / "dataset.json")


def test_a_file_of_no_channel_is_named(tmp_path: Path) -> None:
    root = layouts.nnunet(tmp_path)
    for name in ("case_001_0002.nii.gz", "case_001.nii.gz"):
        file = write_nifti(root / "imagesTr" / name, noise(0))
        with pytest.raises(UserError, match=r"_0000\.nii\.gz to _0001\.nii\.gz") as caught:
            NnUNet(root).subjects()
        assert caught.value.where == str(file)
        file.unlink()
    (root / "imagesTr" / "._case_001_0000.nii.gz").write_bytes(b"x")  # macOS' companions
    assert len(NnUNet(root).subjects()) == 2


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = layouts.nnunet(tmp_path)
    image, label = root / "imagesTr" / "case_001_0001.nii.gz", root / "labelsTr/case_001.nii.gz"
    image.unlink()
    error = fault(root)
    assert (error.what, error.where) == ("the t2_flair image is missing", str(image))
    write_nifti(image, noise(1))
    label.unlink()
    error = fault(root)
    assert (error.what, error.where) == ("the label is missing", str(label))
    (root / "imagesTr").rename(root / "imagesTs")
    with pytest.raises(UserError, match="cannot be read") as caught:
        NnUNet(root).subjects()
    assert caught.value.where == str(root / "imagesTr")


def test_an_ending_that_no_file_has(tmp_path: Path) -> None:
    root = change(layouts.nnunet(tmp_path), file_ending=".mha")
    with pytest.raises(UserError, match=r"no case: no file labelsTr/CASE\.mha"):
        NnUNet(root).subjects()


def test_channels_on_a_fourth_axis_are_to_be_split(tmp_path: Path) -> None:
    root = layouts.nnunet(tmp_path)
    file = write_nifti(root / "imagesTr" / "case_001_0000.nii.gz", noise(0, (*SHAPE, 2)))
    error = fault(root)
    assert "split its fourth axis into a file for each channel" in error.what
    assert error.where == str(file)


def test_the_unit_of_distances_is_that_of_the_set_or_of_who_opens_it(tmp_path: Path) -> None:
    root = layouts.nnunet(tmp_path, distance_unit="voxels")
    assert NnUNet(root).distance_unit == "voxels"
    assert open_dataset("nnunet", root).distance_unit == "voxels"
    assert open_dataset("nnunet", root, distance_unit="mm").distance_unit == "mm"


def test_a_folder_of_datasets_and_the_other_layout_are_named(tmp_path: Path) -> None:
    layouts.nnunet(tmp_path / "Dataset001_Tiny")
    with pytest.raises(UserError, match="Dataset001_Tiny"):
        NnUNet(tmp_path)
    with pytest.raises(UserError, match=r"data\.dataset: nnunet"):
        open_dataset("decathlon", tmp_path / "Dataset001_Tiny")


def test_a_pipe_in_the_place_of_a_table_is_no_table(tmp_path: Path) -> None:
    root = layouts.nnunet(tmp_path)
    os.mkfifo(root / "institutions.csv")
    assert {subject.institution for subject in NnUNet(root).subjects()} == {""}


def test_real_cardiac() -> None:
    dataset = open_dataset("nnunet", real_data("Dataset101_MMsED"), distance_unit="voxels")
    subjects = dataset.subjects()
    assert dataset.modalities == ("cine",) and dataset.distance_unit == "voxels"
    assert Counter(s.institution for s in subjects) == {"A": 36, "B": 36}
    for subject in subjects[::24]:
        scan = dataset.read(subject, ("cine",))
        assert set(np.unique(scan.label)) == {0, 1, 2, 3}
        # the myocardium surrounds the left ventricle: their centres are close to each other
        middle = [np.argwhere(scan.label == v).mean(axis=0)[:2] for v in (1, 2, 3)]
        assert np.linalg.norm(middle[0] - middle[1]) < np.linalg.norm(middle[0] - middle[2])
