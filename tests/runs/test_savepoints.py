"""Savepoints in a results folder: runs that were cut off, killed or stopped, and damaged files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
import toy
from helpers import CPU, Run
from torch import Tensor

from trm_bench import pipeline, signals
from trm_bench.display import Display
from trm_bench.methods import Context, Method, Tree
from trm_bench.methods.registry import REGISTRY
from trm_bench.protocol import parse
from trm_bench.runs import arrays, execute, savepoints
from trm_bench.runs.executors import LocalPool
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.plan import Job, Plan
from trm_bench.runs.records import Record
from trm_bench.runs.savepoints import SavepointFile, packed, unpacked
from trm_bench.runs.store import read_record
from trm_bench.training.resuming import Unfit
from trm_bench.verification import verify

ROOT = Path(__file__).resolve().parents[2]
STEPS = 30
LONGEST = 120.0  # seconds that a command may take
TRAINING = {
    "steps": STEPS,
    "batch": 2,
    "patch": [16, 16, 16],
    "optimizer": {"name": "adamw", "lr": 0.01},
}


class Counting(Method):
    """Counts its steps; `tells` and `puts_back` say what it does about it."""

    name = "counting"
    tells, puts_back = True, True

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters)
        self.steps = 0

    def penalty(self, run: Context) -> Tensor | float:
        self.steps += 1
        return 1e-3 * self.steps * sum(p.square().sum() for p in run.network.parameters())

    def state(self, run: Context) -> Tree:
        return self.steps if self.tells else {}

    def restore(self, run: Context, state: Tree) -> None:
        if self.puts_back:
            self.steps = state


class Silent(Counting):
    name = "silent"
    state = Method.state


def changes(steps: int = STEPS, **more: Any) -> dict[str, Any]:
    training = TRAINING | {"steps": steps}
    return {"training": {"source": training, "target": training}, "methods": ["finetune"]} | more


@pytest.fixture(autouse=True)
def not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_stop", signals._Stop())
    for kind in (Counting, Silent):
        monkeypatch.setitem(REGISTRY.builtin, kind.name, f"{__name__}:{kind.__name__}")


@pytest.fixture(scope="module")
def trained_source(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """Results with prepared volumes and the source network, and nothing else."""
    out = tmp_path_factory.mktemp("results")
    (source,) = helpers.plan(toy_data, out, **changes()).sources
    execute.do(source, CPU, lambda *at: None)
    return out


@pytest.fixture
def out(trained_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_source, tmp_path / "out"))


def job(toy_data: Path, out: Path, method: str = "finetune") -> Job:
    (one,) = helpers.plan(toy_data, out, **changes(methods=[method])).runs
    return one


def done(one: Job) -> Record:
    execute.do(one, CPU, lambda *at: None)
    record = read_record(one.result)
    assert record is not None
    return record


def cut(one: Job, monkeypatch: pytest.MonkeyPatch, at: int = 10) -> None:
    """The job is stopped in good order at a step."""

    def stop(step: int, steps: int, loss: float | None) -> None:
        if step >= at:
            signals.ask_to_stop()

    with pytest.raises(signals.Stopped):
        execute.do(one, CPU, stop)
    monkeypatch.setattr(signals, "_stop", signals._Stop())


def numbers(record: Record) -> dict[str, Any]:
    """All of a record that is not of its time and machine."""
    content = record.model_dump(mode="json")
    beside = ("seconds", "resumed", "started", "environment", "peak_memory_bytes")
    return {k: v for k, v in content.items() if k not in beside}


@pytest.fixture(scope="module")
def whole(
    trained_source: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Record]:
    """The record of a method's run that nothing disturbed."""
    records: dict[str, Record] = {}

    def of(method: str) -> Record:
        if method not in records:
            copy = shutil.copytree(trained_source, tmp_path_factory.mktemp("whole") / "out")
            records[method] = done(job(toy_data, Path(copy), method))
        return records[method]

    return of


Whole = Callable[[str], Record]


# Going on


@pytest.mark.parametrize("method", ["finetune", "counting"])
def test_a_run_that_was_stopped_goes_on(
    out: Path, toy_data: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    one = job(toy_data, out, method)
    for sitting, step in enumerate((10, 20)):
        cut(one, monkeypatch, step)
        saved = arrays.open_savepoint(one.savepoint)
        assert (saved.step, saved.steps, saved.resumed) == (step, STEPS, sitting)
        assert not one.is_done() and not one.health().damaged
        assert saved.seconds > 1000 * sitting
        # as if this sitting had taken long, which no later one does
        about, tensors = arrays.read_savepoint(one.savepoint)
        longer = about.model_copy(update={"seconds": about.seconds + 1000})
        arrays.write_savepoint(one.savepoint, longer, tensors)
    record = done(one)
    assert numbers(record) == numbers(whole(method))
    assert record.resumed == 2 and whole(method).resumed == 0
    assert record.seconds["train"] > longer.seconds > 2000
    assert not one.savepoint.exists() and one.is_done()


def test_a_source_network_goes_on(
    out: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = helpers.plan(toy_data, out, **changes()).sources
    before = source.result.read_bytes()
    source.result.unlink()
    cut(source, monkeypatch)
    assert not source.result.exists()
    assert done_source(source) == before and not source.savepoint.exists()


def done_source(source: Job) -> bytes:
    execute.do(source, CPU, lambda *at: None)
    return source.result.read_bytes()


def test_a_run_that_failed_goes_on_and_one_that_ended_does_not(
    out: Path, toy_data: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(toy_data, out)
    cut(one, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(execute.compute, "test", lambda *given: 1 / 0)
        assert done(one).state == "failed"
    assert one.savepoint.exists()
    record = done(one)
    assert record.resumed == 1 and numbers(record) == numbers(whole("finetune"))


def test_a_run_that_diverges_leaves_no_savepoint(
    out: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(toy_data, out)
    cut(one, monkeypatch)

    def diverge(*given: Any) -> None:
        raise execute.Diverged("here")

    monkeypatch.setattr(execute.compute, "train", diverge)
    assert done(one).state == "diverged" and not one.savepoint.exists()


# What cannot be gone on from


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def foreign(path: Path) -> None:
    saved, tensors = arrays.read_savepoint(path)
    arrays.write_savepoint(path, saved.model_copy(update={"id": "0" * 16}), tensors)


def a_folder(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


DAMAGES = {
    "flipped": flipped,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": foreign,
    "folder": a_folder,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_savepoint_is_told_once_and_set_aside(
    out: Path, toy_data: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    one = job(toy_data, out)
    cut(one, monkeypatch)
    DAMAGES[kind](one.savepoint)
    told: list[str] = []
    display = Display(quiet=True)
    monkeypatch.setattr(display, "warn", told.append)
    pipeline.train(Plan(runs=[one]), LocalPool(CPU, 1), display)
    assert len(told) == 1 and one.savepoint.name in told[0] and "set aside" in told[0]
    record = read_record(one.result)
    assert record is not None and record.resumed == 0
    assert numbers(record) == numbers(whole("finetune"))
    assert [p.name for p in one.savepoint.parent.iterdir()] == [f"{one.savepoint.name}.damaged"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_savepoint_that_is_damaged_meanwhile_is_set_aside(
    out: Path,
    toy_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    one = job(toy_data, out)
    cut(one, monkeypatch)
    DAMAGES[kind](one.savepoint)
    assert done(one).resumed == 0
    assert len(caplog.messages) == 1 and "set aside" in caplog.messages[0]


def test_the_numbers_of_another_pytorch_are_not_gone_on_with(
    out: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = job(toy_data, out)
    cut(one, monkeypatch)
    saved, tensors = arrays.read_savepoint(one.savepoint)
    other = saved.model_copy(update={"torch": "1.0"})
    arrays.write_savepoint(one.savepoint, other, tensors)
    assert done(one).resumed == 0
    assert "was made with PyTorch 1.0; the training begins anew" in caplog.text


def test_a_method_that_does_not_put_back_begins_anew(
    out: Path,
    toy_data: Path,
    whole: Whole,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = job(toy_data, out, "counting")
    cut(one, monkeypatch)
    monkeypatch.setattr(Counting, "puts_back", False)
    record = done(one)
    assert record.resumed == 0 and numbers(record) == numbers(whole("counting"))
    assert "counting does not put back method.steps" in caplog.text


@pytest.mark.parametrize("method", ["silent", "counting"])
def test_a_method_whose_state_is_not_known_is_not_saved(
    out: Path,
    toy_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    monkeypatch.setenv(savepoints.VARIABLE, "0")
    monkeypatch.setattr(Counting, "state", lambda self, run: object())
    one = job(toy_data, out, method)
    cut(one, monkeypatch)
    assert not one.savepoint.exists()
    assert len(caplog.messages) == 1 and "cannot save" in caplog.text
    assert done(one).state == "finished"


def test_a_full_disk_does_not_end_a_training(
    out: Path,
    toy_data: Path,
    whole: Whole,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: list[Path] = []

    def full(path: Path, *content: Any) -> None:
        tries.append(path)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setenv(savepoints.VARIABLE, "0")
    monkeypatch.setattr(savepoints, "SHARE", 1.0)
    monkeypatch.setattr(arrays, "write_savepoint", full)
    one = job(toy_data, out)
    assert numbers(done(one)) == numbers(whole("finetune"))
    assert tries == STEPS * [one.savepoint] and len(caplog.messages) == 1
    assert "No space left on device" in caplog.text


# When


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes: float) -> None:
        self.now, self.takes = 1000.0, takes
        self.saved: list[float] = []
        monkeypatch.setattr(savepoints.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(arrays, "write_savepoint", self.write)

    def write(self, *content: Any) -> None:
        self.saved.append(self.now)
        self.now += self.takes


@pytest.mark.parametrize(
    ("takes", "times"),
    [(0.5, [1180.0, 1361.0, 1542.0]), (10.0, [1180.0, 2180.0, 3180.0])],
)
def test_savepoints_are_some_minutes_apart_and_cost_a_hundredth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: float, times: list[float]
) -> None:
    clock = Clock(monkeypatch, takes)
    savepoint = SavepointFile(tmp_path / "x.safetensors", 10**6)
    step = 0
    while len(clock.saved) < 3:
        clock.now, step = float(int(clock.now)) + 1, step + 1
        savepoint.look(step, dict)
    assert clock.saved == pytest.approx(times, abs=1)


@pytest.mark.parametrize(("given", "pause"), [("5", 5), ("0", 0), ("-1", 180), ("soon", 180)])
def test_the_environment_may_say_how_far_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, pause: float
) -> None:
    monkeypatch.setenv(savepoints.VARIABLE, given)
    assert SavepointFile(tmp_path / "x", 1).pause == pause


def test_a_stop_after_the_last_look_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(signals.Stopped), SavepointFile(tmp_path / "x", 1).steps():
        signals.ask_to_stop()


# What is in them


def test_a_tree_comes_back_as_it_was() -> None:
    infinite = float("inf")
    tree = {
        "a": [1, 2.5, -0.0, infinite, -infinite, None, True, "text", (1, (2,), [])],
        3: {"dict": {}, "tensor": torch.tensor(1.5), "float": torch.tensor([True, False])},
        "bf16": torch.ones(2, 3, dtype=torch.bfloat16),
    }
    content, tensors = packed(tree)
    again = unpacked(json.loads(json.dumps(content, allow_nan=False)), tensors)
    assert str(again) == str(tree) and list(again) == ["a", 3, "bf16"]
    assert str(unpacked(*packed({"x": float("nan")}))) == "{'x': nan}"
    with pytest.raises(Unfit, match="a set is no number"):
        packed({"x": {1}})


# What other commands make of them


def test_verify_and_list_tell_of_trainings_that_were_cut_off(
    out: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch, trm_bench: Run
) -> None:
    protocol = parse(toy.protocol(toy_data, **changes()), "test")
    one = job(toy_data, out)
    cut(one, monkeypatch)
    folder = ResultsFolder(out).protocol("toy")
    _, plan = pipeline.planned(
        protocol, folder, False, (), LocalPool(CPU, 1), 1, Display(quiet=True)
    )
    assert plan.runs[0].id == one.id

    def found() -> dict[str, str]:
        return {f.kind: f.what for f in verify(out)[1] if f.path.parent.name == "savepoints"}

    (folder.records).mkdir(exist_ok=True)
    assert found().keys() == {"cut off"} and "step 10 of 30" in found()["cut off"]
    kept = one.savepoint.read_bytes()
    flipped(one.savepoint)
    assert found().keys() == {"damaged"}
    one.savepoint.write_bytes(kept)
    pipeline.run(protocol, out, jobs=1, pages=False)
    assert found() == {}
    record = one.result.read_bytes()
    one.result.unlink()
    one.savepoint.write_bytes(kept)
    code, said = trm_bench("list", out)
    assert code == 0 and "is at step 10 of 30; the same command goes on there" in said
    code, said = trm_bench("list", out, "--json")
    assert json.loads(said)[0]["reason"] == "at step 10 of 30"
    one.result.write_bytes(record)
    assert found().keys() == {"leftover"}
    pipeline.train(Plan(runs=[one]), LocalPool(CPU, 1), Display(quiet=True))
    assert not one.savepoint.exists()


# Real commands


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """A folder with a protocol whose trainings take seconds, and `whole`, its results."""
    folder = tmp_path_factory.mktemp("long")
    content = changes(250, methods=["finetune", "forkmerge"])
    toy.write_protocol(folder / "p.yaml", toy_data, **content)
    pipeline.run(pipeline.load(str(folder / "p.yaml")), folder / "whole", jobs=1, pages=False)
    return folder


def results_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted((out / "toy").rglob("*")):
        if path.name in ("metrics.csv", "table.md", "comparisons.csv") or path.suffix == ".gz":
            found[path.relative_to(out).as_posix()] = path.read_bytes()
        if path.parent.name == "records":
            record = read_record(path)
            assert record is not None
            found[path.name] = numbers(record)
    return found


# A command that is sent a signal by a step of a training, with all its processes, as a terminal
# does. Workers execute the upper part too.
SENDS = """
import os, sys
from pathlib import Path
from trm_bench.runs.savepoints import SavepointFile

SENT, NUMBER, STEP = Path({sent!r}), {number:d}, {step}
look = SavepointFile.look

def send(self, step, state):
    trained = [*self.path.parents[2].glob("sources/[!.]*.safetensors")]
    if trained and step == STEP and not SENT.exists():
        SENT.write_text(self.path.name)
        os.killpg(0, NUMBER)
    look(self, step, state)

SavepointFile.look = send
if __name__ == "__main__":
    from trm_bench.__main__ import main
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "jobs", "every"),
    [
        (signal.SIGKILL, 1, "0"),
        (signal.SIGINT, 1, "1000"),
        (signal.SIGTERM, 2, "1000"),
    ],
)
def test_a_command_that_is_cut_off_goes_on(
    long: Path, tmp_path: Path, number: signal.Signals, jobs: int, every: str
) -> None:
    """A signal has the training saved at the end of its step; nothing else would have just then."""
    out, script, sent, step = tmp_path / "out", tmp_path / "sends.py", tmp_path / "sent", 20
    script.write_text(SENDS.format(sent=str(sent), number=number, step=step))
    command = ["run", long / "p.yaml", "--out", out, "--jobs", jobs, "--device", "cpu"]
    ended = subprocess.run(
        [sys.executable, script, *map(str, command)],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            savepoints.VARIABLE: every,
        },
        capture_output=True,
        text=True,
        timeout=LONGEST,
        start_new_session=True,
    )
    assert "Traceback" not in ended.stderr
    folder = ResultsFolder(out).protocol("toy")
    left = {path.name: arrays.open_savepoint(path).step for path in there(folder.savepoints)}
    saved = left[sent.read_text()]
    if number is signal.SIGKILL:
        assert ended.returncode == -number and 0 < saved < step
    else:
        assert ended.returncode == 128 + number and signals.STOPPED in ended.stderr
        assert saved == step if jobs == 1 else saved >= step
    pipeline.run(pipeline.load(str(long / "p.yaml")), out, jobs=1, pages=False)
    for name in left:
        record = read_record(folder.records / f"{Path(name).stem}.json")
        assert record is not None and record.resumed == 1
    assert results_of(out) == results_of(long / "whole")
    assert not there(folder.savepoints)


def there(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.safetensors"))
