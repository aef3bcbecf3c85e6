"""A file is there whole or not at all, and what a dead process left of one is removed."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from trm_bench import files
from trm_bench.files import HOST, TEMPORARY, clock, leftovers, remove_leftovers, write_atomically

DEAD = 2**22 + 1  # above the largest number of a process


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    def full(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "folder" / "a.json"
    with pytest.raises(OSError, match="No space left") as told:
        write_atomically(path, full)
    assert told.value.filename == str(path) and list(path.parent.iterdir()) == []


def test_no_two_writers_of_a_file_share_a_temporary(tmp_path: Path) -> None:
    names: list[str] = []
    path = tmp_path / "a.json"

    def write(temporary: Path) -> None:
        names.append(temporary.name)
        if len(names) < 3:
            write_atomically(path, write)
        temporary.write_text(str(len(names)))

    write_atomically(path, write)
    told = [TEMPORARY.fullmatch(name) for name in names]
    assert len(set(names)) == 3 and all(m and m[1] == HOST for m in told)
    assert all(m and int(m[2]) == os.getpid() and m[0].endswith(".a.json") for m in told)
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_are_those_of_dead_processes_of_this_machine(tmp_path: Path) -> None:
    dead = tmp_path / f".{HOST}-{DEAD}-0a.a.json"
    kept = [tmp_path / f".{HOST}-{os.getpid()}-0a.a.json", tmp_path / f".other-{DEAD}-0a.a.json"]
    kept += [tmp_path / name for name in ("a.json", ".lock", f".{HOST}-{DEAD}-.a.json")]
    for path in (dead, *kept):
        path.write_text("half")
    assert leftovers(tmp_path) == [dead] and leftovers(tmp_path / "none") == []
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_what_another_machine_left_is_removed_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (tmp_path / f".other-7-{word}.a.json" for word in ("0a", "0b"))
    finished = tmp_path / "a.json"
    for path in (old, new, finished):
        path.write_text("half")
    # the file server is three days ahead of this machine, whose own clock has no say
    ahead = clock(tmp_path) + 3 * 86400
    monkeypatch.setattr(files, "clock", lambda folder: ahead)
    os.utime(finished, (0, 0))
    os.utime(old, (0, ahead - 86401))
    os.utime(new, (0, ahead - 86399))
    assert leftovers(tmp_path) == [old]


def test_a_folder_that_cannot_be_written_has_no_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert clock(tmp_path / "file") == -float("inf")
    assert clock(tmp_path) == pytest.approx((tmp_path / "file").stat().st_mtime, abs=60)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_host_is_a_name_a_start_and_a_space_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-1.site.org")
    here = files._host()
    assert here.startswith("node1siteorg") and here == files._host() and here.isalnum()

    def elsewhere(path: Path) -> Path:
        raise FileNotFoundError(path)

    others = set()
    for link in (lambda path: Path("pid:[1]"), lambda path: Path("pid:[2]"), elsewhere):
        monkeypatch.setattr(Path, "readlink", link)
        others.add(files._host())
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: "another start")
    others.add(files._host())
    assert len(others | {here}) == 5 and all(len(one) == len(here) for one in others)
