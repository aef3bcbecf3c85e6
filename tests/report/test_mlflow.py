"""MLflow mirrors the records, and never stands in a benchmark's way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import toy
from rich.console import Console

from trm_bench import pipeline, protocol
from trm_bench.display import Display
from trm_bench.report import mlflow as mirror
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
