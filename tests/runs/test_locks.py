"""A lock that is held, a file system without locks and a broken disk are three things."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from trm_bench.errors import UserError
from trm_bench.report.tracking import VARIABLE, Store
from trm_bench.runs import locks
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.locks import NoLocks, only_one, take

WITHOUT = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL]


@pytest.fixture
def folder(tmp_path: Path) -> ProtocolFolder:
    return ProtocolFolder(tmp_path / "toy")


def fail(monkeypatch: pytest.MonkeyPatch, number: int) -> list[Any]:
    """Lets every lock fail in one way; returns the calls."""
    calls = []

    def flock(*arguments: Any) -> None:
        calls.append(arguments)
        raise OSError(number, "as told")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks.time, "sleep", calls.append)
    return calls


def test_a_lock_is_held_by_one_or_shared(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as one, path.open() as two, path.open() as three:
        assert take(one.fileno(), path) and not take(two.fileno(), path)
        one.close()
        assert take(two.fileno(), path, shared=True) and take(three.fileno(), path, shared=True)
        with path.open() as four:
            assert not take(four.fileno(), path)


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_held_lock_is_asked_for_twice_and_refused(
    folder: ProtocolFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls = fail(monkeypatch, number)
    with pytest.raises(UserError, match="another trm-bench command"), only_one(folder):
        raise AssertionError
    assert len(calls) == 3  # with the pause


@pytest.mark.parametrize("number", WITHOUT)
def test_a_folder_without_locks_is_worked_in_with_a_warning(
    folder: ProtocolFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fail(monkeypatch, number)
    said: list[str] = []
    with only_one(folder, said.append):
        worked = folder.lock.is_file()
    assert worked and len(said) == 1 and str(folder.path) in said[0]
    assert "no locks (as told)" in said[0] and "one command at a time" in said[0]


def test_a_broken_disk_is_neither(folder: ProtocolFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="as told") as told, only_one(folder):
        raise AssertionError
    assert told.value.errno == errno.EIO and told.value.filename == str(folder.lock)


@pytest.mark.parametrize("number", WITHOUT)
def test_a_store_without_locks_is_not_written(
    folder: ProtocolFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    folder.path.mkdir()
    fail(monkeypatch, number)
    store = Store(folder.results)
    with pytest.raises(NoLocks, match="no locks") as told, store.locked():
        raise AssertionError
    assert VARIABLE in told.value.fix and not store.path.exists()
