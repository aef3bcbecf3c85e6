"""MLflow mirrors the records, and never stands in a benchmark's way."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import toy
from rich.console import Console

from trm_bench import pipeline, protocol, signals
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.report import mlflow as mirror
from trm_bench.report.tracking import PARENT, Store
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.store import read_results

pytestmark = pytest.mark.slow


def run(out: Path, data: Path, display: Display | None = None, **changes: Any) -> pipeline.Outcome:
    loaded = protocol.parse(toy.protocol(data, tracking="mlflow", **changes), "test")
    return pipeline.run(loaded, out, device=torch.device("cpu"), jobs=1, display=display)


def client(out: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")


def logged(out: Path) -> tuple[list[Any], list[Any]]:
    """Parent runs and child runs of the store in a results folder."""
    experiment = client(out).get_experiment_by_name("toy")
    assert experiment is not None
    runs = client(out).search_runs([experiment.experiment_id])
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    return [r for r in runs if r not in children], children


def test_children_lie_under_their_parent_and_hold_the_records(
    tmp_path: Path, toy_data: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    folder = run(tmp_path, toy_data, methods=["finetune", "trm"]).folder
    (parent,), children = logged(tmp_path)
    assert parent.info.status == "FINISHED" and parent.data.tags["data"] == "real"
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
    assert {c.data.tags["method"] for c in children} == {"finetune", "trm"}
    table = pd.read_csv(folder.report("metrics.csv"))
    for child in children:
        tags = child.data.tags
        assert (tags["transfer"], tags["seed"], tags["data"]) == ("whole->lower_upper", "0", "real")
        dice = table[(table.method == tags["method"]) & (table.metric == "dice")].value.mean()
        assert child.data.metrics["test.dice"] == pytest.approx(dice)
        assert child.data.params["training.steps"] == "6"
        assert child.data.metrics["loss_curve"] > 0
    summary = json.loads(folder.report("summary.json").read_text())["metrics"]["dice"]
    assert parent.data.metrics["dice.mean.trm"] == pytest.approx(summary["trm"]["mean"])
    assert parent.data.metrics["dice.gain.trm"] == pytest.approx(summary["trm"]["gain"])
    assert "dice.gain_low.finetune" not in parent.data.metrics, "the reference has no interval"
    assert parent.data.tags["verdict"] == "no verdict"
    kept = {a.path for a in client(tmp_path).list_artifacts(parent.info.run_id)}
    assert {
        "report.html",
        "metrics.csv",
        "table.tex",
        "comparisons.csv",
        "summary.json",
        "figures",
    } <= kept
    (trm,) = [c for c in children if c.data.tags["method"] == "trm"]
    assert trm.data.metrics["diagnostics.leep"] < 0 and trm.data.params["method.base"] == "3.0"

    # resuming, and adding a method, logs nothing twice
    run(tmp_path, toy_data, methods=["finetune", "trm"])
    assert len(logged(tmp_path)[1]) == 2
    run(tmp_path, toy_data, methods=["topk"])
    parents, children = logged(tmp_path)
    assert len(parents) == 1 and len(children) == 3
    assert len(read_results(folder).cells) == 3


def test_a_dead_server_is_reported_once_and_the_benchmark_finishes(
    tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nothing listens on the discard port
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (tmp_path / "said").open("w") as file:
        outcome = run(
            tmp_path / "out", toy_data, Display(console=Console(file=file)), methods=["scratch"]
        )
    assert outcome.states == {"finished": 1}
    assert (outcome.folder.report("table.md")).is_file()
    assert (tmp_path / "said").read_text().count("MLflow is not available") == 1


def test_a_store_that_breaks_midway_does_not_end_the_benchmark(
    tmp_path: Path, toy_data: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise OSError("disk gone")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mirror._RunMirror, "log", broken)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    assert run(tmp_path, toy_data, methods=["scratch"]).states == {"finished": 1}


def test_names_are_what_mlflow_takes() -> None:
    assert mirror.safe("dice@[x]%") == "dice__x__"
    assert mirror.safe("test/dice.mean") == "test/dice.mean"
    for name in ("../x", "/x", "x//y", "x/", ".", "..", "a/../b", "", "=1+1", "-x", "x" * 999):
        assert valid(mirror.safe(name)), name


def valid(name: str) -> bool:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric_name

    try:
        _validate_metric_name(name)
    except MlflowException:
        return False
    return True


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(ResultsFolder(tmp_path))


def test_a_store_is_made_whole_and_what_a_kill_left_is_removed(store: Store) -> None:
    parts = [store.path.with_name(f".mlflow.db.new{end}") for end in ("", "-journal")]
    for part in parts:
        part.write_bytes(b"half a migration")
    store.path.touch()  # sqlite takes this for a new database
    with store.locked():
        assert [e.name for e in store.client().search_experiments()] == ["Default"]
    assert not any(part.exists() for part in parts)


def test_a_store_is_under_its_name_when_its_making_is_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.tracking import sqlalchemy_store

    def stopped(uri: str, artifacts: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_text("half")
        assert not store.path.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", stopped)
    with pytest.raises(KeyboardInterrupt), store.locked():
        store.client()
    assert [p.name for p in store.path.parent.iterdir()] == [".mlflow.db.lock"]


def test_commands_write_one_after_the_other(store: Store) -> None:
    with store.locked():
        with pytest.raises(UserError, match="another command writes") as caught, store.locked(0):
            pass
        assert "when that has ended, give the same command again" in store.told(caught.value)
    with store.locked(0):
        pass


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_path_that_mlflow_does_not_take_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="MLflow takes no"):
        Store(ResultsFolder(tmp_path / name)).client()


def test_a_database_that_cannot_be_opened_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}")  # a folder
    begun = time.monotonic()
    with pytest.raises(Exception, match="unable to open"):
        Store(ResultsFolder(tmp_path)).client().search_experiments()
    assert time.monotonic() - begun < 15, "MLflow by itself takes minutes"


def test_what_dead_commands_left_running_is_killed(store: Store, empty_store: Path) -> None:
    shutil.copy(empty_store, store.path)
    own, tags = store.client(), {PARENT: "x"}
    runs = {}
    for name in ("ours", "dead", "gone", "alive", "foreign"):
        experiment = own.create_experiment(name)
        tagged = {} if name == "foreign" else tags
        runs[name] = own.create_run(experiment, tags=tagged).info.run_id
    locks = {n: store.folder.protocol(n).lock for n in ("ours", "dead", "alive")}
    for lock in locks.values():
        lock.parent.mkdir()
        lock.touch()
    with locks["ours"].open() as ours, locks["alive"].open() as alive:
        for lock in (ours, alive):
            fcntl.flock(lock, fcntl.LOCK_EX)
        store.end_dead(own, "ours")
    states = {name: own.get_run(run).info.status for name, run in runs.items()}
    killed = dict.fromkeys(("ours", "dead", "gone"), "KILLED")
    assert states == killed | {"alive": "RUNNING", "foreign": "RUNNING"}


@pytest.mark.parametrize(
    ("raised", "state"), [(signals.Stopped(), "KILLED"), (OSError("disk gone"), "FAILED")]
)
def test_a_command_that_ends_early_ends_its_parent_and_goes_on_later(
    tmp_path: Path,
    toy_data: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    state: str,
) -> None:
    def stopped(*arguments: Any, **named: Any) -> None:
        raise raised

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.report, "write_pages", stopped)
        with pytest.raises(type(raised)):
            run(tmp_path, toy_data, methods=["scratch"])
    (parent,), children = logged(tmp_path)
    assert parent.info.status == state and [c.info.status for c in children] == ["FINISHED"]
    run(tmp_path, toy_data, methods=["scratch"])
    (again,), children = logged(tmp_path)
    assert (again.info.run_id, again.info.status) == (parent.info.run_id, "FINISHED")
    assert len(children) == 1


@pytest.mark.parametrize("kind", ["half", "none"])
def test_a_store_that_is_broken_is_told_with_what_mends_it(
    tmp_path: Path,
    toy_data: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """A store whose making was cut off by a kill, and no database at all."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"no database" * 999)
    if kind == "half":
        shutil.copy(empty_store, path)
        with contextlib.closing(sqlite3.connect(path)) as half, half:
            half.execute("update alembic_version set version_num = '451aebb31d03'")
            half.execute("drop table trace_info")
    console = Console(record=True, width=300)
    outcome = run(tmp_path, toy_data, Display(console=console), methods=["scratch"])
    said = console.export_text()
    assert outcome.states == {"finished": 1}
    assert said.count("warning") == 1 and f"move {path} aside" in said and "[SQL" not in said


def test_no_message_holds_user_or_password(
    tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    console = Console(record=True, width=300)
    run(tmp_path, toy_data, Display(console=console), methods=["scratch"])
    said = console.export_text()
    assert "tracking with MLflow: http://***@127.0.0.1:9" in said and "not available" in said
    assert "see to the store that MLFLOW_TRACKING_URI names" in said
    assert "s3cret" not in said and "me:" not in said


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("", "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db' --host 127.0.0.1"),
        ("https://me:s3cret@host/x", "https://***@host/x"),
        (
            "postgresql://me:s3cret@host/x",
            'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI" --host 127.0.0.1',
        ),
    ],
)
def test_how_to_look_at_the_store(monkeypatch: pytest.MonkeyPatch, uri: str, said: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert Store(ResultsFolder(Path("/a b"))).ui == said


@pytest.mark.parametrize("target", ["elsewhere", "gone"])
def test_a_link_in_the_place_of_the_store_is_left_alone(tmp_path: Path, target: str) -> None:
    """A store is renamed to its place, which must never be that of another file."""
    elsewhere = tmp_path / target
    if target == "elsewhere":
        elsewhere.write_bytes(b"")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mlflow.db").symlink_to(elsewhere)
    store = Store(ResultsFolder(out))
    with store.locked(), pytest.raises(UserError, match="is a link"):
        store.client()
    assert elsewhere.exists() == (target == "elsewhere")
    assert {p.name for p in tmp_path.iterdir()} <= {"out", "elsewhere"}
