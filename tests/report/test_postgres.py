"""MLflow's store in a PostgreSQL: whole, made once, shared by commands that run at once."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import toy
import yaml
from postgres import SECRET
from rich.console import Console

from trm_bench import pipeline, protocol
from trm_bench.display import Display
from trm_bench.report import mlflow as mirror
from trm_bench.report import tracking
from trm_bench.report.tracking import VARIABLE, Store
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.store import read_record

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def run(out: Path, data: Path, **changes: Any) -> tuple[pipeline.Outcome, str]:
    """What a command did, and what it said."""
    loaded = protocol.parse(toy.protocol(data, **{"tracking": "mlflow", **changes}), "test")
    display = Display(console=Console(file=io.StringIO(), width=200))
    outcome = pipeline.run(loaded, out, jobs=1, display=display, pages=False)
    return outcome, display.console.file.getvalue()  # type: ignore[attr-defined]


def logged(out: Path, name: str = "toy") -> tuple[list[Any], list[Any]]:
    """Parents and children of an experiment in the store that is named."""
    client = Store(ResultsFolder(out)).client()
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    return [r for r in runs if r not in children], children


def assert_no_secret(text: str) -> None:
    assert not [s for s in (SECRET, quote(SECRET, safe="")) if s in text]


def test_a_run_is_there_whole_live_and_once(
    tmp_path: Path, toy_data: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, database)
    monkeypatch.setattr(mirror, "LIVE_SECONDS", 0.0)
    seen, follow = [], mirror._RunMirror.follow

    def watch(self: Any, run_id: str, points: Any) -> None:
        follow(self, run_id, points)
        for child in self.live[run_id].children.values():
            found = self.client.get_run(child)
            seen.append((found.data.tags["run_id"], found.info.status))

    monkeypatch.setattr(mirror._RunMirror, "follow", watch)
    chosen: dict[str, Any] = {"methods": ["scratch", "finetune"]}
    outcome, said = run(tmp_path, toy_data, **chosen)
    (parent,), children = logged(tmp_path)
    assert parent.info.status == "FINISHED"
    assert sorted(c.data.tags["method"] for c in children) == ["finetune", "scratch"]
    assert {(c.data.tags["run_id"], "RUNNING") for c in children} == set(seen)
    for child in children:
        record = read_record(outcome.folder.record(child.data.tags["run_id"]))
        assert record is not None and child.info.status == "FINISHED"
        assert child.data.metrics["train_loss"] == record.curves["loss"][-1][1]
    # no server keeps the files, so they lie with the results
    assert parent.info.artifact_uri.startswith(tmp_path.resolve().as_uri())
    kept = {p.name for p in tmp_path.glob("mlartifacts/toy/*/artifacts/*")}
    assert {"metrics.csv", *(p.name for p in outcome.folder.records.iterdir())} <= kept

    before = [c.info.run_id for c in children]
    again = run(tmp_path, toy_data, **chosen)[1]
    parents, children = logged(tmp_path)
    assert len(parents) == 1 and [c.info.run_id for c in children] == before

    assert "warning" not in said + again and "postgresql://***@127.0.0.1" in said
    assert_no_secret(said + again)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert_no_secret(path.read_bytes().decode("latin-1"))


@pytest.mark.slow
def test_two_commands_make_one_store_together(
    tmp_path: Path, toy_data: Path, database: str
) -> None:
    commands = []
    for name in ("one", "two"):
        content = {**toy.protocol(toy_data, methods=["scratch"], tracking="mlflow"), "name": name}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        given = ["run", tmp_path / f"{name}.yaml", "--out", tmp_path / "out", "--jobs", "1"]
        commands.append([sys.executable, "-m", "trm_bench", *map(str, given)])
    environment = {**os.environ, VARIABLE: database, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started: list[Any] = [subprocess.Popen(c, env=environment, **pipes) for c in commands]  # type: ignore[call-overload]
    for process in started:
        said = process.communicate(timeout=240)[0]
        assert process.returncode == 0 and "warning" not in said, said
        assert_no_secret(said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, database)
        for name in ("one", "two"):
            (parent,), (child,) = logged(tmp_path / "out", name)
            assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_one_protocol_in_two_folders_has_two_parents(
    tmp_path: Path, toy_data: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a command does not end what another one, elsewhere, has at work."""
    monkeypatch.setenv(VARIABLE, database)
    here = tmp_path / "here"
    loaded = protocol.parse(toy.protocol(toy_data, tracking="mlflow", methods=["scratch"]), "test")
    folder = run(here, toy_data, methods=["scratch"])[0].folder
    store = Store(folder.results)
    at_work = mirror._RunMirror(loaded, folder, store)
    (cell,) = at_work.plan.cells
    at_work.start(cell.run, 0)
    run(tmp_path / "there", toy_data, methods=["scratch"])
    parents, children = logged(here)
    states = {c.data.tags["mlflow.parentRunId"]: [] for c in children}  # type: ignore[var-annotated]
    for child in children:
        states[child.data.tags["mlflow.parentRunId"]].append(child.info.status)
    assert len(parents) == 2
    assert sorted(states.pop(at_work.parent)) == ["FINISHED", "RUNNING"]
    assert [*states.values()] == [["FINISHED"]]


def test_a_store_is_made_by_one_at_a_time(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, database)
    monkeypatch.setattr(tracking, "PATIENCE", 0.1)
    store = Store(ResultsFolder(tmp_path))
    with store.making():
        with pytest.raises(Exception, match="lock timeout") as caught, store.making():
            raise AssertionError
        assert_no_secret(store.told(caught.value))
    with store.making():
        assert store.client().search_experiments()


def test_a_driver_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "postgresql://me:s3cret@127.0.0.1:9/x")
    for driver in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, driver, None)
    store = Store(ResultsFolder(tmp_path))
    with pytest.raises(ImportError) as caught, store.making():
        raise AssertionError
    said = store.told(caught.value)
    assert "psycopg" in said and "'trm-bench[export]'" in said and "s3cret" not in said
