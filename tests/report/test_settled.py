"""A command that finds all done does nothing, and whatever has changed since is made again."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from rich.console import Console

from trm_bench import fingerprint, pipeline
from trm_bench.analysis import audit
from trm_bench.display import Display
from trm_bench.protocol import parse

pytestmark = pytest.mark.slow
NOTHING = "nothing to do: all runs are finished, and their report is written"


def run(out: Path, root: Path, **changes: Any) -> str:
    """What a run says."""
    file = io.StringIO()
    display = Display(console=Console(file=file, width=200))
    loaded = parse(toy.protocol(root, **changes), "test")
    pipeline.run(loaded, out, jobs=1, display=display)
    return file.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """Results with their report; tests work on copies."""
    out = tmp_path_factory.mktemp("settled")
    assert NOTHING not in run(out, toy_data)
    return out


@pytest.fixture
def results(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "out")


def refuse(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("this takes time, and nothing asked for it")


def test_nothing_is_built_drawn_or_written_when_all_is_done(
    results: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("check_networks", "train", "_audit"):
        monkeypatch.setattr(pipeline, name, refuse)
    monkeypatch.setattr(pipeline.report, "write_pages", refuse)
    monkeypatch.setattr(pipeline.mlflow, "tracker", refuse)
    times = {p: p.stat().st_mtime_ns for p in (results / "toy").rglob("*.*") if p.suffix != ".json"}
    assert NOTHING in run(results, toy_data)
    assert times == {p: p.stat().st_mtime_ns for p in times}


CHANGES: dict[str, Callable[[Path], object]] = {
    "a page that is gone": lambda folder: (folder / "report.html").unlink(),
    "a table that was edited": lambda folder: (folder / "table.md").write_text("mine"),
    "a picture that is gone": lambda folder: next((folder / "figures").glob("*.png")).unlink(),
    "a record that is gone": lambda folder: next((folder / "records").glob("*.json")).unlink(),
    "a prediction that is gone": lambda folder: next(folder.glob("predictions/*/*")).unlink(),
    "a source that is gone": lambda folder: next(
        folder.parent.glob("sources/*.safetensors")
    ).unlink(),
    "a note that is damaged": lambda folder: (folder / ".settled").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_made_again(change: str, results: Path, toy_data: Path) -> None:
    folder = results / "toy"
    before = {p.name: p.read_bytes() for p in folder.glob("*.csv")}
    table = (folder / "table.md").read_bytes()
    CHANGES[change](folder)
    assert NOTHING not in run(results, toy_data)
    assert (folder / "report.html").is_file() and (folder / "table.md").read_bytes() == table
    assert before == {p.name: p.read_bytes() for p in folder.glob("*.csv")}
    assert NOTHING in run(results, toy_data)


def test_other_software_writes_the_report_again(
    results: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trm_bench.report.settled.package_digest", lambda: "another version")
    assert NOTHING not in run(results, toy_data)
    assert len(fingerprint.package_digest()) == 64


def test_other_methods_are_not_taken_for_done(results: Path, toy_data: Path) -> None:
    assert NOTHING not in run(results, toy_data, methods=["scratch", "finetune", "topk"])


def test_an_audit_that_failed_is_tried_again(
    results: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (results / "toy" / "voxels").glob("*"):
        path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(audit, "audit", refuse)
        assert "failed" in run(results, toy_data)
    assert NOTHING not in run(results, toy_data)
    assert list((results / "toy" / "voxels").glob("*.json")) and NOTHING in run(results, toy_data)


class TestWithTracking:
    """What is tracked is part of what is done."""

    def test_a_store_that_is_gone_is_made_again(
        self, toy_data: Path, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = tmp_path / "mlflow.db"
        shutil.copy(empty_store, store)
        assert NOTHING not in run(tmp_path, toy_data, tracking="mlflow")
        assert NOTHING in run(tmp_path, toy_data, tracking="mlflow")
        store.unlink()
        shutil.copy(empty_store, store)
        store.rename(tmp_path / "aside.db")
        said = run(tmp_path, toy_data, tracking="mlflow")
        assert NOTHING not in said and store.is_file()

    def test_what_could_not_be_tracked_is_tried_again(
        self, results: Path, toy_data: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        (results / "mlflow.db").write_bytes(b"no database")
        assert "MLflow is not available" in run(results, toy_data, tracking="mlflow")
        assert NOTHING not in run(results, toy_data, tracking="mlflow")
        shutil.copy(empty_store, results / "mlflow.db")
        assert NOTHING not in run(results, toy_data, tracking="mlflow")
        assert NOTHING in run(results, toy_data, tracking="mlflow")
