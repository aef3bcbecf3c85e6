"""`trm-bench mlflow`: what it refuses, and the server's process."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy
from faults.kills import wait_for_none
from helpers import Run

from trm_bench import serving
from trm_bench.errors import UserError
from trm_bench.report.tracking import NOTE, VIEW_TAG, Store
from trm_bench.runs.folders import ResultsFolder


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def server(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A program in the place of Python, and so of MLflow's server."""
    program = folder / "python"
    program.write_text(f"#!{sys.executable}\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setattr(serving.sys, "executable", str(program))


def unready() -> None:
    raise AssertionError("the server answers")


@pytest.mark.parametrize("name", ["", "gone", "toy"])
def test_without_a_store_nothing_starts_and_nothing_is_made(
    trm_bench: Run, tmp_path: Path, name: str
) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / ".lock").touch()  # as a run leaves it
    (tmp_path / "mlflow.db").touch()
    before = sorted(tmp_path.rglob("*"))
    code, text = trm_bench("mlflow", tmp_path / name)
    assert code == 2 and "there is no MLflow store" in text and "trm-bench run PROTOCOL" in text
    store = tmp_path if name == "toy" else tmp_path / name
    assert str(store / "mlflow.db") in text, "where it looked"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("target", ["link", "nothing"])
def test_a_link_that_leads_nowhere_is_refused(trm_bench: Run, tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    code, text = trm_bench("mlflow", tmp_path / "link")
    assert code == 2 and "leads nowhere" in text


def test_where_nothing_is_tracked_the_message_says_so(
    trm_bench: Run, tmp_path: Path, toy_data: Path
) -> None:
    file = toy.write_protocol(tmp_path / "toy.yaml", toy_data)
    out = tmp_path / "out"
    assert trm_bench("run", file, "--out", out, "--methods", "scratch")[0] == 0
    code, text = trm_bench("mlflow", out)
    assert code == 2 and "tracking: off" in text and "--set tracking=mlflow" in text


def test_a_store_elsewhere_is_named(
    trm_bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:s3cret@host/x")
    code, text = trm_bench("mlflow", tmp_path)
    assert code == 2 and "look there: https://***@host/x" in text and "s3cret" not in text


def test_pages_are_those_of_the_runs(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    store = Store(ResultsFolder(tmp_path))
    assert store.pages() == {}, "of MLflow's Default nothing is shown"
    client = store.client()
    plain, viewed = (client.create_experiment(name) for name in ("b", "a"))
    client.set_experiment_tag(viewed, VIEW_TAG, "{}")
    client.set_experiment_tag(plain, NOTE, "other")
    end = "runs?workflowType=machine_learning"
    assert list(store.pages().items()) == [
        ("a", f"/#/experiments/{viewed}/{end}&viewStateShareKey=trm-bench"),
        ("b", f"/#/experiments/{plain}/{end}"),
    ]


def test_an_empty_store_and_another_protocol_are_refused(
    trm_bench: Run, tmp_path: Path, empty_store: Path
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    code, text = trm_bench("mlflow", tmp_path)
    assert code == 2 and "no run is tracked here yet" in text
    Store(ResultsFolder(tmp_path)).client().create_experiment("other")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / ".lock").touch()
    code, text = trm_bench("mlflow", tmp_path / "toy")
    assert code == 2 and "no run is tracked here yet" in text


def test_a_store_that_mlflow_cannot_read_is_told_with_what_mends_it(
    trm_bench: Run, tmp_path: Path, empty_store: Path
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_store, path)
    with contextlib.closing(sqlite3.connect(path)) as old, old:
        old.execute("update alembic_version set version_num = '451aebb31d03'")
        old.execute("drop table trace_info")
    code, text = trm_bench("mlflow", tmp_path)
    assert code == 2 and str(path) in text and "move it aside" in text and "[SQL" not in text


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((serving.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}: Address already"):
            serving.free_port(port)
        monkeypatch.setattr(serving, "PORT", port)
        assert serving.free_port(None) != port
    assert serving.free_port(None) == port


def test_a_server_that_dies_is_told_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "for i in range(99): print('line', i)\nraise SystemExit('no such table: runs')"
    server(tmp_path, monkeypatch, text)
    with pytest.raises(UserError, match="ended while it started") as caught:
        serving.serve("sqlite:///x", "file:///x", serving.free_port(None), unready)
    lines = str(caught.value).splitlines()
    assert "  no such table: runs" in lines and "  line 98" in lines and "  line 9" not in lines


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server(tmp_path, monkeypatch, "import sys; sys.stdin.read()")
    monkeypatch.setattr(serving, "PATIENCE", 0.0)
    with pytest.raises(UserError, match="does not answer after 0 s"):
        serving.serve("sqlite:///x", "file:///x", serving.free_port(None), unready)


ANSWERS = f"""
import http.server, os, subprocess, sys, threading
sys.path[:0] = {[str(Path(serving.__file__).parents[1])]!r}
from trm_bench import serving
threading.Thread(target=serving._end_with_the_pipe, daemon=True).start()
subprocess.Popen(["sleep", "600"])
open("group", "w").write(str(os.getpid()))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
http.server.HTTPServer((serving.HOST, int(sys.argv[-1])), Handler).serve_forever()
"""


def test_no_process_is_left_whatever_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group ends where the pipe does, which the system closes even after a kill."""
    server(tmp_path, monkeypatch, ANSWERS)
    monkeypatch.chdir(tmp_path)

    def ready() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serving.serve("sqlite:///x", "file:///x", serving.free_port(None), ready)
    assert wait_for_none(int((tmp_path / "group").read_text()), 10) == []


def test_the_server_listens_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(serving, "_end_with_the_pipe", lambda: None)
    monkeypatch.setitem(sys.modules, "mlflow.cli", SimpleNamespace(cli=given.append))
    serving._child("sqlite:////x y/mlflow.db", "file:///x", "5000")
    (words,) = given
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert words[0] == "server" and options["--host"] == "127.0.0.1"
    assert options["--backend-store-uri"] == "sqlite:////x y/mlflow.db"
    assert options["--workers"] == "1"
