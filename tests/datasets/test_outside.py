"""Files that a dataset must not follow, open or wait for."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import layouts
import pytest
from layouts import LAYOUTS

from trm_bench.datasets import Subject, nifti, open_dataset, volume
from trm_bench.errors import BadSubject, UserError


def first_file(name: str, root: Path) -> Path:
    """The first file of the first subject."""
    dataset = open_dataset(name, root)
    return dataset.files(dataset.subjects()[0])[0]


def read_first(name: str, root: Path, allow_links: bool = False) -> object:
    dataset = open_dataset(name, root, allow_links)
    return dataset.read(dataset.subjects()[0], dataset.modalities)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize("replace", [pipe, device, folder])
def test_what_is_no_file_is_never_opened(
    name: str, replace: Callable[[Path], None], tmp_path: Path
) -> None:
    root = LAYOUTS[name](tmp_path / "data")
    replace(first_file(name, root))
    with pytest.raises(BadSubject, match=r"no regular file|is missing"):
        read_first(name, root)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_link_that_leads_outside_needs_leave(name: str, tmp_path: Path) -> None:
    root = LAYOUTS[name](tmp_path / "data")
    file = first_file(name, root)
    outside = tmp_path / f"outside{''.join(file.suffixes)}"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(BadSubject, match=r"by a symbolic link\n.*data\.allow_links") as caught:
        read_first(name, root)
    assert caught.value.where == str(file)
    read_first(name, root, allow_links=True)


def test_links_inside_the_root_and_to_the_root_are_no_matter(tmp_path: Path) -> None:
    root = LAYOUTS["decathlon"](tmp_path / "data")
    file = first_file("decathlon", root)
    file.rename(root / "elsewhere.nii.gz")
    file.symlink_to(root / "elsewhere.nii.gz")
    (tmp_path / "link").symlink_to(root)
    read_first("decathlon", tmp_path / "link")


def test_descriptions_that_lead_outside_need_leave(tmp_path: Path) -> None:
    for name, about in (("decathlon", "dataset.json"), ("fets2021", "partitioning_1.csv")):
        root = LAYOUTS[name](tmp_path / name)
        (root / about).rename(tmp_path / about)
        (root / about).symlink_to(tmp_path / about)
        with pytest.raises(UserError, match="symbolic link"):
            open_dataset(name, root).subjects()
        assert open_dataset(name, root, allow_links=True).subjects()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0", "a\n", "\ud800", "a" * 201, "\u00e9" * 101],
)
def test_a_subject_id_is_a_plain_file_name(name: str) -> None:
    with pytest.raises(UserError, match="no plain file name"):
        Subject(name, {}, Path("label.nii"))


def test_descriptions_are_bounded_and_never_waited_for(tmp_path: Path) -> None:
    root = LAYOUTS["decathlon"](tmp_path / "d")
    about = root / "dataset.json"
    with about.open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match="larger than"):
        open_dataset("decathlon", root)
    pipe(about)
    with pytest.raises(UserError, match=r"no dataset\.json"):
        open_dataset("decathlon", root)
    root = LAYOUTS["fets2021"](tmp_path / "f")
    with (root / "partitioning_1.csv").open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match="larger than"):
        open_dataset("fets2021", root).subjects()


@pytest.mark.parametrize("path", ["a\0.nii.gz", "a" * 300 + ".nii.gz", "a/" * 30 + "b.nii.gz"])
def test_a_path_that_no_file_can_have_is_told(path: str, tmp_path: Path) -> None:
    root = LAYOUTS["decathlon"](tmp_path)
    about = json.loads((root / "dataset.json").read_text())
    about["training"][0]["label"] = path
    (root / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="no file can be called"):
        open_dataset("decathlon", root)


def test_a_compressed_file_that_goes_on_is_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "SLACK", 2**20)
    root = LAYOUTS["decathlon"](tmp_path)
    file = first_file("decathlon", root)
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()) + bytes(2**22)))
    with pytest.raises(BadSubject, match="goes on long after its last voxel"):
        read_first("decathlon", root)


def test_a_volume_is_bounded_before_memory_is_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "MOST_VOXELS", 100)
    root = layouts.iseg(tmp_path)
    with pytest.raises(BadSubject, match="more than 100 voxels"):
        read_first("iseg2019", root)


def test_folders_below_the_root_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = LAYOUTS["fets2021"](tmp_path / "data")
    (root / "all").symlink_to("/")
    monkeypatch.setattr("trm_bench.datasets.fets2021.MOST_FILES", 50)
    with pytest.raises(UserError, match="more than 50 files and folders"):
        open_dataset("fets2021", root).subjects()


def test_slices_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = LAYOUTS["lgg"](tmp_path)
    monkeypatch.setattr("trm_bench.datasets.lgg.MOST_PIXELS", 7)
    with pytest.raises(BadSubject, match="more than 7 along an axis"):
        read_first("lgg", root)
