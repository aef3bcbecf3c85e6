"""MLflow mirrors the trials of a sweep, and never stands in its way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import toy
from rich.console import Console
from torch import Tensor
from trm_bench.baselines.finetune import Finetune

from trm_bench.display import Display
from trm_bench.protocol import parse
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.store import read_record, read_trials
from trm_bench.sweep import driver, mirror

pytestmark = pytest.mark.slow


@pytest.fixture
def out(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


def sweep(out: Path, data: Path, trials: int = 3, **given: Any) -> driver.Outcome:
    changes = {"tracking": "mlflow", "methods": ["finetune", "trm"]}
    budget = {"trials": trials, "batch": 2, "steps": 2}
    loaded = parse(toy.protocol(data, sweep=budget, **changes), "test")
    return driver.sweep(loaded, out, jobs=1, pages=False, **given)


def client(out: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")


def logged(out: Path) -> tuple[list[Any], list[Any]]:
    """Parent runs and child runs of the store in a results folder."""
    experiment = client(out).get_experiment_by_name("toy")
    runs = client(out).search_runs([experiment.experiment_id])
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    return [r for r in runs if r not in children], children


def test_trials_lie_under_their_sweep_and_hold_what_the_records_say(
    out: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Finetune.loss

    def loss(self: Any, run: Any, batch: Any) -> Tensor:
        low = run.config.optimizer.lr != 0.01
        return plain(self, run, batch) * (float("nan") if low else 1)

    monkeypatch.setattr(Finetune, "loss", loss)
    folder = sweep(out, toy_data).folder
    (parent,), children = logged(out)
    assert parent.info.status == "FINISHED" and parent.data.tags["kind"] == "sweep"
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
    by_key = {(c.data.tags["method"], int(c.data.tags["trial"])): c for c in children}
    assert len(children) == len(by_key) == 6
    for method in read_trials(folder).methods:
        for trial in method.trials:
            child = by_key[method.method, trial.number]
            assert child.data.tags["runs"] == trial.runs[0]
            for name, value in trial.values.items():
                assert child.data.params[name] == str(value)
            metrics = child.data.metrics
            score = trial.validation_dice
            expected = None if score is None else pytest.approx(100 * score)
            assert metrics.get("validation_dice_percent") == expected
            assert child.info.status == ("FAILED" if trial.validation_dice is None else "FINISHED")
            record = read_record(folder.record(trial.runs[0]))
            assert record is not None
            seconds = sum(record.seconds.values())
            assert child.info.end_time - child.info.start_time == pytest.approx(
                1000 * seconds, abs=2
            )
            curve = client(out).get_metric_history(child.info.run_id, "train_loss")
            assert [(m.step, m.value) for m in curve] == record.curves["loss"]
    assert [by_key["finetune", i].info.status for i in range(3)] == ["FINISHED", "FAILED", "FAILED"]
    assert "the loss became nan" in by_key["finetune", 1].data.tags["reason"]
    best = max(t.validation_dice or 0 for t in read_trials(folder).methods[1].trials)
    assert parent.data.metrics["best_validation_dice_percent/trm"] == pytest.approx(100 * best)
    kept = {a.path for a in client(out).list_artifacts(parent.info.run_id)}
    assert {"tuned.yaml", "trials.json"} <= kept


def test_a_command_that_goes_on_logs_what_is_new(out: Path, toy_data: Path) -> None:
    sweep(out, toy_data, trials=2)
    first = {c.info.run_id for c in logged(out)[1]}
    (parent,), children = logged(out)
    # a kill leaves a child running, without its tag in the parent's eyes
    cut = client(out).create_run(parent.info.experiment_id, tags={**children[0].data.tags})
    client(out).delete_run(children[0].info.run_id)
    sweep(out, toy_data, trials=3)
    (parent,), children = logged(out)
    states = {c.info.run_id: c.info.status for c in children}
    assert states.pop(cut.info.run_id) == "KILLED"
    assert len(states) == 6 and set(states.values()) == {"FINISHED"}
    assert len(first & states.keys()) == 3


def test_a_store_that_fails_is_one_warning(
    out: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("disk is gone")

    monkeypatch.setattr(mirror._SweepMirror, "_log_trial", fail)
    console = Console(record=True, width=200)
    outcome = sweep(out, toy_data, display=Display(console=console))
    assert console.export_text().count("disk is gone") == 1
    assert [m.finished for m in outcome.tuned.methods] == [3, 3]
    assert ResultsFolder(out).protocol("toy").tuned.is_file()
