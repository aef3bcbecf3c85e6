"""Folders that are to be written, and names that nothing can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from trm_bench.errors import UserError
from trm_bench.inputs import ensure_writable, exists, is_file, is_folder


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/x"), Path("a\0")):
        with pytest.raises(UserError, match="cannot be written"):
            ensure_writable(folder)


def test_names_that_nothing_can_have_are_nothing(tmp_path: Path) -> None:
    for name in ("a" * 5000, "a\0", "\ud800"):
        path = tmp_path / name
        assert not exists(path) and not is_file(path) and not is_folder(path)
    assert exists(tmp_path) and is_folder(tmp_path) and not is_file(tmp_path)
