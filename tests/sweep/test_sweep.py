"""Whole sweeps on toy data: trials, interruptions, failures, equal budgets, no test subject."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from helpers import rewrite
from torch import Tensor
from trm_bench.baselines.finetune import Finetune

from trm_bench import pipeline
from trm_bench.errors import UserError
from trm_bench.methods.registry import BUILTIN, trainable
from trm_bench.protocol import parse
from trm_bench.runs import execute
from trm_bench.runs.executors import LocalPool
from trm_bench.runs.folders import ProtocolFolder, ResultsFolder
from trm_bench.runs.locks import only_one
from trm_bench.runs.plan import Job
from trm_bench.runs.records import Record, TunedMethod
from trm_bench.runs.store import read_record, read_trials
from trm_bench.sweep import driver

CPU = torch.device("cpu")
SWEEP: dict[str, Any] = {"trials": 6, "batch": 2, "steps": 4}
WHOLE = "[!.]*.json"  # records, and not the half of one that a kill leaves beside them
BOTH = {"kind": "cross_task", "pairs": [["whole", "lower_upper"], ["lower_upper", "whole"]]}


def sweep(out: Path, root: Path, jobs: int = 1, **changes: Any) -> driver.Outcome:
    given = {"methods": ["finetune", "trm"], "sweep": SWEEP} | changes
    loaded = parse(toy.protocol(root, **given), "test")
    return driver.sweep(loaded, out, jobs=jobs, pages=False)


def records(folder: ProtocolFolder) -> dict[str, Record]:
    files = sorted(folder.records.glob(WHOLE))
    return {file.stem: record for file in files if (record := read_record(file))}


def of(outcome: driver.Outcome, method: str) -> TunedMethod:
    return next(m for m in outcome.tuned.methods if m.method == method)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> driver.Outcome:
    """A sweep, done once; tests must not change the folder."""
    return sweep(tmp_path_factory.mktemp("finished"), toy_data)


def copy(finished: driver.Outcome, to: Path) -> ProtocolFolder:
    shutil.copytree(finished.folder.results.path, to, dirs_exist_ok=True)
    return ResultsFolder(to).protocol("toy")


class TestTrials:
    def test_every_method_gets_its_trials(self, finished: driver.Outcome) -> None:
        assert [m.method for m in finished.tuned.methods] == ["finetune", "trm"]
        for method in finished.tuned.methods:
            assert (method.finished, method.failed, method.runs) == (6, 0, 6)
            assert method.steps == method.passes == 6 * 4
        assert len(records(finished.folder)) == 12
        assert len(list((finished.folder.results.path / "sources").iterdir())) == 1

    def test_every_trial_is_told(self, finished: driver.Outcome) -> None:
        by_id = records(finished.folder)
        swept = read_trials(finished.folder).methods
        assert [s.method for s in swept] == ["finetune", "trm"]
        for method in swept:
            assert [t.number for t in method.trials] == list(range(6))
            for trial in method.trials:
                (record,) = [by_id[run] for run in trial.runs]
                assert trial.validation_dice == record.validation_dice
                assert trial.voxel_share and 0 < trial.voxel_share < 1
                assert trial.seconds == pytest.approx(sum(record.seconds.values()))
            assert method.seconds == pytest.approx(sum(t.seconds for t in method.trials))
            best = max(method.trials, key=lambda t: t.validation_dice or 0)
            assert best.values == of(finished, method.method).values

    def test_the_best_is_the_best_of_the_records(self, finished: driver.Outcome) -> None:
        for method in finished.tuned.methods:
            own = [
                r for r in records(finished.folder).values() if r.config.method.name == method.name
            ]
            best = max(own, key=lambda r: r.validation_dice or 0)
            assert method.validation_dice == best.validation_dice
            assert (method.validation_dice or 0) >= (method.default_validation_dice or 1)
            if method.name == "trm":
                assert method.values.items() <= best.config.method.parameters.items()
            else:
                assert method.values["lr"] == best.config.training.optimizer.lr
                assert method.values["warmup"] == best.config.training.warmup

    def test_the_first_trial_is_the_protocols_own_run(
        self, finished: driver.Outcome, toy_data: Path, tmp_path: Path
    ) -> None:
        whole = toy.protocol(toy_data, methods=["finetune", "trm"])
        whole["training"]["target"]["steps"] = 4
        outcome = pipeline.run(parse(whole, "test"), tmp_path, jobs=1, pages=False)
        untested = {"subjects", "metrics"}
        trials = [r.config.model_dump(exclude=untested) for r in records(finished.folder).values()]
        for record in records(outcome.folder).values():
            assert record.config.model_dump(exclude=untested) in trials
            method = of(finished, record.config.method.name)
            assert method.default_validation_dice == record.validation_dice

    def test_seeds_and_transfers_are_averaged(self, tmp_path: Path, toy_data: Path) -> None:
        budget = {"trials": 2, "steps": 2, "seeds": [3, 5]}
        outcome = sweep(tmp_path, toy_data, methods=["finetune"], sweep=budget, transfers=BOTH)
        made = records(outcome.folder).values()
        assert Counter((r.config.seed, r.config.domain.labels) for r in made) == {
            (seed, labels): 2 for seed in (3, 5) for labels in ("whole", "lower_upper")
        }
        assert {r.config.training.steps for r in made} == {2}
        assert {r.config.source.training.steps for r in made if r.config.source} == {6}
        default = [r.validation_dice or 0 for r in made if r.config.training.optimizer.lr == 0.01]
        method = of(outcome, "finetune")
        assert len(default) == 4
        assert method.default_validation_dice == pytest.approx(sum(default) / 4, abs=1e-12)
        assert method.runs == 8 and method.passes == 16

    def test_each_patient_validates_once_in_an_inner_cross_validation(
        self, tmp_path: Path, toy_data: Path
    ) -> None:
        budget = {"trials": 2, "steps": 2, "folds": 3}
        outcome = sweep(tmp_path, toy_data, methods=["finetune"], sweep=budget)
        method, made = of(outcome, "finetune"), records(outcome.folder).values()
        assert (method.runs, method.passes, outcome.tuned.budget.folds) == (6, 12, 3)
        default = [r for r in made if r.config.training.optimizer.lr == 0.01]
        pool = [m.subject for r in default for m in r.config.subjects.val]
        assert len(default) == 3 and len(set(pool)) == len(pool) == 3
        for record in default:
            train = {m.subject for m in record.config.subjects.train}
            assert train == set(pool) - {m.subject for m in record.config.subjects.val}
        scores = [r.validation_dice or 0 for r in default]
        assert method.default_validation_dice == pytest.approx(sum(scores) / 3, abs=1e-12)
        with pytest.raises(UserError, match=r"sweep\.folds: 4 folds of 3 training and validation"):
            sweep(tmp_path, toy_data, methods=["finetune"], sweep={**budget, "folds": 4})

    def test_each_transfer_may_have_its_own_values(self, tmp_path: Path, toy_data: Path) -> None:
        budget = {"trials": 3, "steps": 2, "per": "transfer"}
        outcome = sweep(tmp_path, toy_data, methods=["finetune"], sweep=budget, transfers=BOTH)
        names = ["lower_upper->whole", "whole->lower_upper"]
        assert sorted(str(m.transfer) for m in outcome.tuned.methods) == names
        assert all(m.runs == 3 for m in outcome.tuned.methods)
        rates = {
            name: {
                r.config.training.optimizer.lr
                for r in records(outcome.folder).values()
                if r.config.domain.labels == name.split("->")[1]
            }
            for name in names
        }
        assert rates[names[0]] & rates[names[1]] == {0.01}  # the defaults; other draws differ

    def test_methods_one_by_one_are_methods_together(
        self, finished: driver.Outcome, tmp_path: Path, toy_data: Path
    ) -> None:
        sweep(tmp_path, toy_data, methods=["trm"])
        outcome = sweep(tmp_path, toy_data, methods=["finetune"])
        assert outcome.folder.tuned.read_bytes() == finished.folder.tuned.read_bytes()
        assert [s.method for s in read_trials(outcome.folder).methods] == ["finetune", "trm"]
        outcome = sweep(tmp_path, toy_data, methods=["trm"], sweep={**SWEEP, "trials": 2})
        written = yaml.safe_load(outcome.folder.tuned.read_text())
        assert [m["method"] for m in written["methods"]] == ["trm"]  # budgets are not mixed


class TestInterruption:
    @pytest.mark.parametrize("lost", [slice(0, None, 2), slice(1, 4), slice(0, 12), slice(12, 12)])
    def test_a_sweep_goes_on_from_its_records(
        self, finished: driver.Outcome, tmp_path: Path, toy_data: Path, lost: slice
    ) -> None:
        """What an interruption leaves is any part of the records, and no tuned.yaml."""
        folder = copy(finished, tmp_path)
        gone = sorted(folder.records.iterdir())[lost]
        for file in gone:
            file.unlink()
        folder.tuned.unlink()
        kept = {file: file.stat().st_mtime_ns for file in folder.records.iterdir()}
        sweep(tmp_path, toy_data)
        assert folder.tuned.read_bytes() == finished.folder.tuned.read_bytes()
        assert {f.name for f in folder.records.iterdir()} == {
            f.name for f in finished.folder.records.iterdir()
        }
        assert all(file.stat().st_mtime_ns == before for file, before in kept.items())

    def test_the_order_of_arrival_does_not_matter(
        self,
        finished: driver.Outcome,
        tmp_path: Path,
        toy_data: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        run = LocalPool.run

        def backwards(self: LocalPool, tasks: Any, listen: Any) -> None:
            waiting, tasks = {task.id for task in tasks}, [replace(t, cost=0.0) for t in tasks]
            first = [t for t in tasks if not waiting & set(t.after)]
            rest = [t for t in tasks if waiting & set(t.after)]
            run(self, first + rest[::-1] if rest else first[::-1], listen)

        monkeypatch.setattr(LocalPool, "run", backwards)
        outcome = sweep(tmp_path, toy_data)
        assert outcome.folder.tuned.read_bytes() == finished.folder.tuned.read_bytes()

    @pytest.mark.slow
    def test_a_sweep_that_is_killed_again_and_again_is_the_same(
        self,
        finished: driver.Outcome,
        tmp_path: Path,
        toy_data: Path,
        request: pytest.FixtureRequest,
    ) -> None:
        """kill -9 of a sweep of 12 trainings in two workers: after a result, or at any moment."""
        kills = request.config.getoption("--kills")
        changes = {"methods": ["finetune", "trm"], "sweep": SWEEP}
        file = toy.write_protocol(tmp_path / "p.yaml", toy_data, **changes)
        command = [sys.executable, "-m", "trm_bench", "sweep", file, "--out", tmp_path / "out"]
        folder = ResultsFolder(tmp_path / "out").protocol("toy")
        moments = random.Random(0)

        def start() -> subprocess.Popen[bytes]:
            # a group of its own, so that the kill takes the workers along
            return subprocess.Popen(
                [*map(str, command), "--jobs", "2"],
                start_new_session=True,
                stderr=subprocess.DEVNULL,
            )

        def done() -> int:
            return len(list(folder.records.glob(WHOLE)))

        for kill in range(kills):
            process, before = start(), done()
            last = time.monotonic() + (moments.uniform(2, 15) if kill % 2 else 120)
            enough = 99 if kill % 2 else before + 1
            while process.poll() is None and done() < enough and time.monotonic() < last:
                time.sleep(0.02)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process = start()
        assert process.wait() == 0
        assert folder.tuned.read_bytes() == finished.folder.tuned.read_bytes()
        made, undisturbed = records(folder), records(finished.folder)
        assert made.keys() == undisturbed.keys() and len(made) == 12
        for one, other in zip(
            read_trials(folder).methods, read_trials(finished.folder).methods, strict=True
        ):
            for mine, theirs in zip(one.trials, other.trials, strict=True):
                assert mine.model_copy(update={"seconds": 0}) == theirs.model_copy(
                    update={"seconds": 0}
                )

    def test_a_run_that_failed_once_is_trained_again(
        self,
        finished: driver.Outcome,
        tmp_path: Path,
        toy_data: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        met, do = set(), execute.do

        def at_second(job: Job, *arguments: Any) -> str:
            if job.config.kind == "run" and job.id not in met:
                met.add(job.id)
                raise MemoryError("killed")
            return do(job, *arguments)

        monkeypatch.setattr(execute, "do", at_second)
        outcome = sweep(tmp_path, toy_data)
        assert len(met) == 12
        assert outcome.folder.tuned.read_bytes() == finished.folder.tuned.read_bytes()


def broken(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Any], Any]) -> None:
    """Fine-tuning whose loss is passed through `fault` where the learning rate is low."""
    plain = Finetune.loss

    def loss(self: Any, run: Any, batch: Any) -> Tensor:
        value = plain(self, run, batch)
        return fault(value) if run.config.optimizer.lr < 2e-3 else value

    monkeypatch.setattr(Finetune, "loss", loss)


class TestFailures:
    @pytest.mark.parametrize("state", ["diverged", "failed"])
    def test_a_bad_trial_is_one_and_the_sweep_goes_on(
        self, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch, state: str
    ) -> None:
        def fault(value: Tensor) -> Tensor:
            if state == "failed":
                raise RuntimeError("too low")
            return value * float("nan")

        broken(monkeypatch, fault)
        outcome = sweep(tmp_path, toy_data, methods=["finetune"])
        method = of(outcome, "finetune")
        made = records(outcome.folder).values()
        low = [r for r in made if r.config.training.optimizer.lr < 2e-3]
        assert {r.state for r in low} == {state} and 0 < len(low) < 6
        assert (method.finished, method.failed) == (6 - len(low), len(low))
        assert method.values["lr"] >= 2e-3
        before = outcome.folder.tuned.read_bytes()
        sweep(tmp_path, toy_data, methods=["finetune"])
        assert outcome.folder.tuned.read_bytes() == before

    def test_a_method_of_which_nothing_finished_has_no_values(
        self, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Finetune, "loss", lambda self, run, batch: torch.tensor(float("nan")))
        whole = sweep(tmp_path, toy_data, methods=["finetune", "trm"], sweep={"trials": 2})
        method = of(whole, "finetune")
        assert (method.trial, method.values, method.finished, method.failed) == (None, {}, 0, 2)
        assert of(whole, "trm").finished == 2

    def test_a_source_that_fails_ends_the_sweep(
        self, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: Any) -> None:
            raise RuntimeError("no luck")

        monkeypatch.setattr(execute, "_train_source", fail)
        with pytest.raises(UserError, match=r"source whole seed 0: .*no luck"):
            sweep(tmp_path, toy_data)


class TestBudgets:
    def test_every_method_has_the_same(
        self, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Counts backward passes, of all methods; ForkMerge trains two branches, longer fine-tuning
        takes twice the steps, an oracle's cross-fit is four trainings, a soup's number of them is
        searched, and two methods pass a source batch too.
        """
        network = {"name": "UNet", "channels": [4, 8], "strides": [2], "norm": "batch"}
        names = trainable(parse(toy.protocol(toy_data, network=network), "test"))
        assert names == list(BUILTIN)
        counts: Counter[str] = Counter()
        current: list[Job] = []
        do, backward = execute.do, Tensor.backward

        def counted(self: Tensor, *arguments: Any, **named: Any) -> None:
            counts[current[-1].config.kind + " " + current[-1].config.method.name] += 1
            backward(self, *arguments, **named)

        def known(job: Job, *arguments: Any) -> str:
            current.append(job)
            return do(job, *arguments)

        monkeypatch.setattr(execute, "do", known)
        monkeypatch.setattr(Tensor, "backward", counted)
        budget = {"trials": 2, "steps": 4, "seed": 1}
        outcome = sweep(tmp_path, toy_data, network=network, methods=names, sweep=budget)
        assert counts.pop("source scratch") == 6  # trained once
        trials = [record.config for record in records(outcome.folder).values()]
        made = [t.method.parameters["ingredients"] for t in trials if t.method.name == "soup"]
        times = dict.fromkeys(names, 1) | {"finetune_longer": 2, "forkmerge": 2, "trm_oracle": 5}
        backwards = {name: 8 * times[name] for name in names}
        backwards |= dict.fromkeys(("soup", "greedy_soup"), 4 * sum(made))
        assert counts == {f"run {name}": backwards[name] for name in names}
        for m in outcome.tuned.methods:
            steps = 16 if m.method == "finetune_longer" else 8
            assert (m.finished, m.runs, m.steps) == (2, 2, steps), m.method
            on_source = m.method in ("disagreement", "style_contrast")
            assert m.passes == (16 if on_source else backwards[m.method])

    @pytest.mark.parametrize("folds", [None, 3])
    def test_no_trial_is_scored_on_subjects_that_it_trained_on(
        self, tmp_path: Path, toy_data: Path, folds: int | None
    ) -> None:
        budget = {"trials": 2, "steps": 2, "folds": folds}
        methods = ["finetune_with_validation", "finetune"]
        outcome = sweep(tmp_path, toy_data, methods=methods, sweep=budget)
        for record in records(outcome.folder).values():
            assert not {*record.config.subjects.train} & {*record.config.subjects.val}
        control, plain = (of(outcome, name) for name in methods)
        assert control.default_validation_dice == plain.default_validation_dice

    def test_test_subjects_cannot_be_reached(
        self, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[Job] = []
        opened: set[str] = set()
        run, opening = LocalPool.run, execute.open_expected

        def seen(self: LocalPool, tasks: Any, listen: Any) -> None:
            given.extend(a for t in tasks for a in t.arguments if isinstance(a, Job))
            run(self, tasks, listen)

        def noted(path: Path, subject: str, digest: str) -> Any:
            opened.add(subject)
            return opening(path, subject, digest)

        monkeypatch.setattr(LocalPool, "run", seen)
        monkeypatch.setattr(execute, "open_expected", noted)
        outcome = sweep(tmp_path, toy_data)
        whole = parse(toy.protocol(toy_data, methods=["finetune"]), "test")
        quiet = pipeline.Display(quiet=True)
        plan = pipeline.planned(whole, outcome.folder, False, (), LocalPool(CPU, 1), 1, quiet)[1]
        subjects = plan.runs[0].config.subjects
        test = {member.subject for member in subjects.test}
        assert len(test) == 3 and len(given) == 13
        for job in given:
            assert not job.config.subjects.test and not job.config.metrics
            text = json.dumps(job.config.model_dump(mode="json")) + json.dumps(
                {k: str(v) for k, v in job.prepared.items()}
            )
            assert not any(subject in text for subject in test)
        assert opened and not opened & test
        for record in records(outcome.folder).values():
            assert not record.metrics and "test" not in record.manifest


class TestBadInput:
    def test_no_validation_subjects(self, tmp_path: Path, toy_data: Path) -> None:
        split = {"source": 3, "target": {"train": 2, "val": 0}}
        with pytest.raises(UserError, match=r"split\.target\.val: input should be greater"):
            sweep(tmp_path, toy_data, split=split)

    def test_a_split_for_each_seed(self, tmp_path: Path, toy_data: Path) -> None:
        split = {"source": 3, "target": {"train": 2, "val": 1}, "design": "resampled"}
        with pytest.raises(UserError, match=r"split\.design: .*test subjects"):
            sweep(tmp_path, toy_data, split=split)

    def test_an_unknown_transfer(self, tmp_path: Path, toy_data: Path) -> None:
        with pytest.raises(UserError, match="no transfer 'whole->lower'"):
            sweep(tmp_path, toy_data, sweep={"transfers": ["whole->lower"]})

    def test_one_command_at_a_time(self, tmp_path: Path, toy_data: Path) -> None:
        with (
            only_one(ResultsFolder(tmp_path).protocol("toy")),
            pytest.raises(UserError, match="another trm-bench command"),
        ):
            sweep(tmp_path, toy_data)

    def test_other_data_of_a_kind(
        self, finished: driver.Outcome, tmp_path: Path, toy_data: Path
    ) -> None:
        folder = copy(finished, tmp_path)
        rewrite(folder.tuned, lambda content: content.update(data="phantom"))
        with pytest.raises(UserError, match="holds results on phantom data"):
            sweep(tmp_path, toy_data)
