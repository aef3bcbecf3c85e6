"""MLflow mirrors the records, and never stands in a benchmark's way."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import sqlite3
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import toy
from rich.console import Console
from trm_bench.baselines.scratch import Scratch

from trm_bench import pipeline, protocol, signals
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.report import logged as logged_names
from trm_bench.report import mlflow as mirror
from trm_bench.report.tracking import PARENT, Store
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.store import read_record, read_results

pytestmark = pytest.mark.slow


def run(out: Path, data: Path, display: Display | None = None, **changes: Any) -> pipeline.Outcome:
    loaded = protocol.parse(toy.protocol(data, **{"tracking": "mlflow", **changes}), "test")
    return pipeline.run(loaded, out, jobs=1, display=display)


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
        assert child.data.metrics["test_dice_percent"] == pytest.approx(dice)
        assert child.data.params["training.steps"] == "6"
        assert child.data.metrics["train_loss"] > 0
        assert child.data.metrics["trained_parameters"] > 0
    summary = json.loads(folder.report("summary.json").read_text())["metrics"]["dice"]
    numbers = parent.data.metrics
    assert numbers["test_dice_percent/trm"] == pytest.approx(summary["trm"]["mean"])
    assert numbers["gain_points/trm"] == pytest.approx(summary["trm"]["gain"])
    assert "gain_points_low/finetune" not in numbers, "the reference has no interval"
    assert parent.data.tags["verdict"] == "no verdict"
    description = parent.data.tags["mlflow.note.content"]
    assert description.startswith("**trm is ahead. ") and "*Compare*" in description
    assert folder.report("table.md").read_text().strip() in description
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
    assert trm.data.params["method.base"] == "3.0"
    assert trm.info.run_name == "trm seed 0 whole->lower_upper", "what differs comes first"
    record = json.loads((folder.record(trm.data.tags["run_id"])).read_text())
    assert "leep" in record["diagnostics"] and not any("leep" in m for m in trm.data.metrics)

    # resuming, and adding a method, logs nothing twice
    run(tmp_path, toy_data, methods=["finetune", "trm"])
    assert len(logged(tmp_path)[1]) == 2
    run(tmp_path, toy_data, methods=["topk"])
    parents, children = logged(tmp_path)
    assert len(parents) == 1 and len(children) == 3
    assert len(read_results(folder).cells) == 3


def test_a_child_is_there_while_its_run_trains_and_lasts_as_long(
    tmp_path: Path, toy_data: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mirror, "LIVE_SECONDS", 0.0)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    seen = []
    follow = mirror._RunMirror.follow

    def watch(self: Any, run_id: str, points: Any) -> None:
        follow(self, run_id, points)
        for child in self.live[run_id].children.values():
            found = self.client.get_run(child)
            history = self.client.get_metric_history(child, "train_loss")
            seen.append((found.data.tags["run_id"], found.info.status, len(history)))

    monkeypatch.setattr(mirror._RunMirror, "follow", watch)
    training = {"steps": 20, "batch": 2, "patch": [16] * 3, "optimizer": {"name": "adamw"}}
    changes: dict[str, Any] = {"training": {"source": training, "target": training}}
    folder = run(tmp_path, toy_data, methods=["scratch", "finetune"], **changes).folder
    _, children = logged(tmp_path)
    ids = {child.data.tags["run_id"] for child in children}
    assert {(one, "RUNNING", n) for one in ids for n in (1, 2)} == set(seen)
    for child in children:
        record = read_record(folder.record(child.data.tags["run_id"]))
        assert record is not None
        lasted = child.info.end_time - child.info.start_time
        assert lasted >= 1000 * sum(record.seconds.values()) - 1
        history = client(tmp_path).get_metric_history(child.info.run_id, "train_loss")
        assert [(m.step, m.value) for m in history] == record.curves["loss"]
        times = [child.info.start_time, *(m.timestamp for m in history), child.info.end_time]
        assert times == sorted(times)


def test_runs_of_an_earlier_command_have_the_times_of_their_records(
    tmp_path: Path, toy_data: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one run that fills two cells is a child of each."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    pairs = {"kind": "cross_task", "pairs": [["whole", "lower_upper"], ["lower", "lower_upper"]]}
    changes: dict[str, Any] = {"transfers": pairs, "methods": ["scratch"]}
    folder = run(tmp_path, toy_data, **changes, tracking="off").folder
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    run(tmp_path, toy_data, **changes)
    _, children = logged(tmp_path)
    (path,) = folder.records.glob("*.json")
    record = read_record(path)
    assert record is not None and len(children) == len(read_results(folder).cells) == 2
    for child in children:
        assert child.info.start_time == 1000 * datetime.fromisoformat(record.started).timestamp()
        lasted = child.info.end_time - child.info.start_time
        assert lasted == pytest.approx(1000 * sum(record.seconds.values()), abs=1)


def test_a_command_that_is_stopped_ends_what_is_running(
    tmp_path: Path, toy_data: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    started, start = threading.Event(), mirror._RunMirror.start

    def notice(self: Any, run_id: str, at: int) -> None:
        start(self, run_id, at)
        started.set()

    def stopped(*arguments: Any) -> None:
        assert started.wait(60)
        raise signals.Stopped

    with monkeypatch.context() as patch:
        patch.setattr(mirror._RunMirror, "start", notice)
        patch.setattr(Scratch, "loss", stopped)
        with pytest.raises(signals.Stopped):
            run(tmp_path, toy_data, methods=["scratch"])
    (parent,), (child,) = logged(tmp_path)
    assert (parent.info.status, child.info.status) == ("KILLED", "KILLED")
    run(tmp_path, toy_data, methods=["scratch"])
    (parent,), children = logged(tmp_path)
    assert parent.info.status == "FINISHED"
    assert sorted(c.info.status for c in children) == ["FINISHED", "KILLED"]


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


@pytest.mark.parametrize("broken_at", ["start", "end", "close"])
def test_a_store_that_breaks_midway_does_not_end_the_benchmark(
    tmp_path: Path,
    toy_data: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken_at: str,
) -> None:
    def broken(*arguments: Any) -> None:
        raise OSError("disk gone")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mirror._RunMirror, broken_at, broken)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    console = Console(record=True, width=300)
    outcome = run(tmp_path, toy_data, Display(console=console), methods=["scratch"])
    assert outcome.states == {"finished": 1} and console.export_text().count("disk gone") == 1


def test_names_are_what_mlflow_takes() -> None:
    assert logged_names.safe("dice@[x]%") == "dice__x__"
    assert logged_names.safe("test/dice.mean") == "test/dice.mean"
    for name in ("../x", "/x", "x//y", "x/", ".", "..", "a/../b", "", "=1+1", "-x", "x" * 999):
        assert valid(logged_names.safe(name)), name


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
    ended, end = threading.Event(), mirror._RunMirror.end

    def notice(self: Any, *arguments: Any) -> None:
        end(self, *arguments)
        ended.set()

    def stopped(*arguments: Any, **named: Any) -> None:
        assert ended.wait(60)
        raise raised

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with monkeypatch.context() as patch:
        patch.setattr(mirror._RunMirror, "end", notice)
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
        ("", "trm-bench mlflow '/a b'"),
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
