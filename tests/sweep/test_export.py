"""A sweep's studies in Optuna's storages: a whole copy, written once, and never in the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import pytest
import toy
from helpers import Run
from postgres import SECRET, execute, free_port

from trm_bench.errors import UserError
from trm_bench.protocol import parse
from trm_bench.runs.folders import ProtocolFolder, ResultsFolder
from trm_bench.runs.records import Budget, SweptMethod, SweptTrial, Trials, Tuned, TunedMethod
from trm_bench.runs.store import read_record, read_trials, read_tuned, write_tuned
from trm_bench.sweep.export import export
from trm_bench.sweep.proposals import Trial, propose
from trm_bench.sweep.space import space_of

TRANSFERS = ("whole->lower_upper", "lower_upper->whole")


def swept(root: Path, method: str, transfer: str | None, trials: int) -> tuple[Any, Any]:
    """A method's part of tuned.yaml and of trials.json: random trials, of which number 2 failed."""
    protocol = parse(toy.protocol(root, methods=[method]), "test")
    target = protocol.training.target
    target = target.model_copy(
        update={"optimizer": target.optimizer.model_copy(update={"weight_decay": 0.0})}
    )
    space = space_of(protocol.methods[0], target, protocol.sweep)
    made: list[Trial] = []
    for number in range(trials):
        values = propose(space, made, [], "random", number)
        made.append(Trial(number, values, None if number == 2 else 0.5 + number / 7))
    told = tuple(
        SweptTrial(
            number=t.number,
            values=dict(t.values),
            validation_dice=t.score,
            reason="" if t.score else "diverged: the loss is not finite",
            voxel_share=0.25 if method == "trm" else None,
            seconds=1.5 + t.number,
            runs=(f"{method}{transfer}{t.number}",),
        )
        for t in made
    )
    best = max(made, key=lambda t: t.score or 0)
    tuned = TunedMethod(
        method=method,
        name=method,
        transfer=transfer,
        trial=best.number,
        values=dict(best.values),
        validation_dice=best.score,
        default_validation_dice=made[0].score,
        finished=trials - (trials > 2),
        failed=int(trials > 2),
        runs=trials,
        steps=trials * 4,
        passes=trials * 4,
        space=space.described(),
        space_hash=space.hash,
        code="code",
    )
    return tuned, SweptMethod(method=method, transfer=transfer, seconds=9.0, trials=told)


@pytest.fixture
def made(tmp_path: Path, toy_data: Path) -> Callable[..., ProtocolFolder]:
    """Makes the folder of a sweep without any training."""

    def make(trials: int = 12, transfers: tuple[str | None, ...] = (None,)) -> ProtocolFolder:
        folder = ResultsFolder(tmp_path / "out").protocol("toy")
        budget = Budget(
            trials=trials,
            steps=4,
            seeds=(0,),
            transfers=TRANSFERS,
            per="transfer" if transfers[0] else "protocol",
            sampler="random",
            batch=2,
            seed=0,
        )
        names = [(m, t) for m in ("finetune", "trm") for t in transfers]
        both = [swept(toy_data, method, transfer, trials) for method, transfer in names]
        tuned = Tuned(
            protocol="toy",
            data="phantom",
            budget=budget,
            conditions={"data": "d"},
            methods=tuple(t for t, _ in both),
        )
        write_tuned(folder, tuned, Trials(methods=tuple(s for _, s in both)))
        return folder

    return make


@contextlib.contextmanager
def storage_of(target: str) -> Iterator[Any]:
    """A storage as any other program would open it."""
    if "://" not in target:
        yield optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(target))
        return
    storage = optuna.storages.RDBStorage(
        target.replace("postgresql:", "postgresql+psycopg:").replace("%7B", "{{")
    )
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def read(target: str) -> dict[str, tuple[dict[str, Any], list[Any]]]:
    """Study to its attributes and trials."""
    with storage_of(target) as storage:
        studies = [
            optuna.load_study(study_name=name, storage=storage)
            for name in optuna.get_all_study_names(storage)
        ]
        assert all(s.direction == optuna.study.StudyDirection.MAXIMIZE for s in studies)
        return {s.study_name: (s.user_attrs, s.trials) for s in studies}


def assert_whole(target: str, folder: ProtocolFolder) -> None:
    """The storage holds every trial of the folder, as it is there."""
    tuned, trials = read_tuned(folder.tuned), read_trials(folder).methods
    studies = read(target)
    assert len(studies) == len(trials) == len(tuned.methods)
    for method, told in zip(tuned.methods, trials, strict=True):
        name = f"toy/{method.method}" + (f"/{method.transfer}" if method.transfer else "")
        attributes, copies = studies[name]
        assert attributes["protocol"] == "toy" and attributes["data"] == "phantom"
        assert attributes["budget"] == tuned.budget.model_dump(mode="json")
        assert attributes["space_hash"] == method.space_hash
        assert [c.number for c in copies] == [t.number for t in told.trials]
        for copy, trial in zip(copies, told.trials, strict=True):
            choices = {n for n, d in method.space.items() if d["kind"] == "choice"}
            params = {n: json.loads(v) if n in choices else v for n, v in copy.params.items()}
            own = copy.user_attrs
            assert {**params, **own.get("outside_range", {})} == trial.values
            assert copy.value == trial.validation_dice
            assert copy.state.name == ("FAIL" if trial.validation_dice is None else "COMPLETE")
            assert (tuple(own["runs"]), own["seconds"]) == (trial.runs, trial.seconds)
            assert own.get("reason", "") == trial.reason
            assert own.get("voxel_share") == trial.voxel_share


@pytest.fixture(params=["sqlite", "log"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'studies.db'}"
    return str(tmp_path / f"studies.{request.param}")


class TestCopy:
    def test_every_trial_is_there(self, made: Any, target: str) -> None:
        folder = made()
        assert export(folder, target) == ["toy/finetune", "toy/trm"]
        assert_whole(target, folder)

    def test_the_cases_that_matter_are_among_them(self, made: Any, target: str) -> None:
        """Failed trials, a default outside its range, parameters that do not always matter."""
        export(made(), target)
        studies = read(target)
        finetune, trm = studies["toy/finetune"][1], studies["toy/trm"][1]
        assert finetune[2].state.name == "FAIL" and "diverged" in finetune[2].user_attrs["reason"]
        assert finetune[0].user_attrs["outside_range"] == {"weight_decay": 0.0}
        assert finetune[0].state.name == "COMPLETE" and "lr" in finetune[0].params
        assert not any("outside_range" in t.user_attrs for t in (*finetune[1:], *trm))
        assert len({frozenset(t.params) for t in trm}) > 1

    def test_a_study_for_each_transfer(self, made: Any, target: str) -> None:
        folder = made(3, TRANSFERS)
        names = [f"toy/{m}/{t}" for m in ("finetune", "trm") for t in TRANSFERS]
        assert export(folder, target) == names
        assert_whole(target, folder)


class TestAgain:
    def test_nothing_is_there_twice(self, made: Any, target: str) -> None:
        folder = made()
        export(folder, target)
        before = read(target)
        export(folder, target)
        assert read(target) == before
        if "://" not in target:
            written = Path(target).read_bytes()
            export(folder, target)
            assert Path(target).read_bytes() == written

    def test_a_sweep_that_went_on_adds_its_trials(self, made: Any, target: str) -> None:
        export(made(4), target)
        first = read(target)
        folder = made(9)
        export(folder, target)
        assert_whole(target, folder)
        for name, (_, trials) in first.items():
            assert read(target)[name][1][:4] == trials

    @pytest.mark.parametrize("after", [0, 5, 13])
    def test_an_export_that_was_cut_off_is_completed(
        self, made: Any, target: str, monkeypatch: pytest.MonkeyPatch, after: int
    ) -> None:
        add, left = optuna.Study.add_trial, [after]

        def cut(study: Any, trial: Any) -> None:
            if not left[0]:
                raise OSError("pulled the plug")
            left[0] -= 1
            add(study, trial)

        folder = made()
        with monkeypatch.context() as patched:
            patched.setattr(optuna.Study, "add_trial", cut)
            with pytest.raises(UserError, match="pulled the plug"):
                export(folder, target)
        export(folder, target)
        assert_whole(target, folder)

    def test_trials_trained_anew_replace_the_old_ones(self, made: Any, target: str) -> None:
        folder = made()
        export(folder, target)
        trials = read_trials(folder).model_dump(mode="json")
        trials["methods"][0]["trials"][2] |= {"validation_dice": 0.9, "reason": ""}
        write_tuned(folder, read_tuned(folder.tuned), Trials.model_validate(trials))
        export(folder, target)
        assert_whole(target, folder)

    @pytest.mark.parametrize("direction", ["maximize", "minimize"])
    def test_what_others_made_is_refused_and_stays(
        self, made: Any, target: str, direction: str
    ) -> None:
        with storage_of(target) as storage:
            study = optuna.create_study(study_name="toy/trm", storage=storage, direction=direction)
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
            before = study.trials
        folder = made()
        with pytest.raises(UserError, match="'toy/trm' that is no export of this sweep"):
            export(folder, target)
        with storage_of(target) as storage:
            assert optuna.get_all_study_names(storage) == ["toy/trm"], "nothing beside it"
            assert optuna.load_study(study_name="toy/trm", storage=storage).trials == before

    def test_trials_that_others_added_are_not_lost(self, made: Any, target: str) -> None:
        folder = made()
        export(folder, target)
        with storage_of(target) as storage:
            study = optuna.load_study(study_name="toy/trm", storage=storage)
            study.add_trial(optuna.trial.create_trial(value=1.0))
        with pytest.raises(UserError, match="no export of this sweep"):
            export(folder, target)
        assert len(read(target)["toy/trm"][1]) == 13

    def test_without_trials_json(self, made: Any, target: str) -> None:
        folder = made()
        folder.trials.unlink()
        with pytest.raises(UserError, match=r"trials\.json: lacks the trials of 'finetune'"):
            export(folder, target)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """A protocol's file beside the `out` of its sweep."""
    from trm_bench.sweep import driver

    path = tmp_path_factory.mktemp("whole")
    changes: dict[str, Any] = {"methods": ["finetune"], "sweep": {"trials": 2, "steps": 2}}
    driver.sweep(parse(toy.protocol(toy_data, **changes), "test"), path / "out", jobs=1)
    return toy.write_protocol(path / "p.yaml", toy_data, **changes)


class TestCommand:
    def test_it_exports_at_the_end(self, whole: Path, target: str, trm_bench: Run) -> None:
        code, said = trm_bench(
            "sweep", whole, "--out", whole.parent / "out", "--export-study", target
        )
        assert code == 0 and f"1 study is in {target}" in said
        folder = ResultsFolder(whole.parent / "out").protocol("toy")
        (trials,) = read_trials(folder).methods
        copies = read(target)["toy/finetune"][1]
        assert [c.value for c in copies] == [t.validation_dice for t in trials.trials]
        for copy, trial in zip(copies, trials.trials, strict=True):
            record = read_record(folder.record(trial.runs[0]))
            assert record and copy.datetime_start
            started = datetime.fromisoformat(record.started).timestamp()
            assert copy.datetime_start.timestamp() == pytest.approx(started, abs=1)
            assert copy.duration.total_seconds() == pytest.approx(trial.seconds, abs=0.01)

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            ("nowhere", "'nowhere' is no storage of Optuna"),
            ("", "'' is no storage of Optuna"),
            ("studies.log.txt", "is no storage of Optuna"),
            (
                "/proc/none/studies.log",
                "studies.log: the studies cannot be written here: No such",
            ),
            ("{tmp}/file/studies.journal", "cannot be written here: Not a directory"),
            ("{tmp}/folder.log", "cannot be written here: Is a directory"),
            ("{tmp}/other.log", "is not a journal of Optuna"),
            ("{tmp}/torn.journal", "or the last line of one is cut off"),
            ("sqlite:////proc/none/studies.db", "unable to open database file"),
            ("sqlite:///{tmp}/file", "file is not a database"),
            ("sqlite://", "would be gone with the command"),
            ("sqlite:///:memory:", "would be gone with the command"),
            ("postgresql://me:s3cret@127.0.0.1:9/db", "***@127.0.0.1:9/db: the studies cannot"),
            ("postgresql://127.0.0.1:9/db?user=me&password=s3cret", "127.0.0.1:9/db: the studies"),
            ("postgresql://me:s3cret@nowhere.invalid/db", "***@nowhere.invalid/db: the studies"),
            ("postgresql://me:a@s3cret@127.0.0.1/db", "postgresql://***: is not the URL"),
            ("postgresql://me:s3cret/db", "postgresql://***: is not the URL"),
            ("postgresql://me:1?s3cret@h/db", "postgresql://***: is not the URL"),
            ("postgresql://h/db?password=1@s3cret", "postgresql://***: is not the URL"),
            ("postgresql://h:s3cret", "postgresql://***: is not the URL"),
            ("mysql://me:s3cret@127.0.0.1:9/db", "mysql://***@127.0.0.1:9/db: needs a driver"),
            ("elephant://me:s3cret@127.0.0.1/db", "elephant://***@127.0.0.1/db: the studies"),
        ],
    )
    def test_a_bad_target_is_one_message(
        self, whole: Path, tmp_path: Path, trm_bench: Run, bad: str, why: str
    ) -> None:
        (tmp_path / "file").write_text("a text\n" * 200)
        (tmp_path / "other.log").write_text("a log line\n")
        (tmp_path / "torn.journal").write_text('{"op_code":0}\n{"op_c')
        (tmp_path / "folder.log").mkdir()
        out = whole.parent / "out"
        tuned = out / "toy" / "sweep" / "tuned.yaml"
        before = tuned.read_bytes()
        aim = bad.replace("{tmp}", str(tmp_path))
        code, said = trm_bench("sweep", whole, "--out", out, "--export-study", aim)
        assert code == 2 and why in said, said
        assert said.count("error: ") == 1 and "Traceback" not in said
        assert "tuned.yaml is written" in said and "exports again at no cost" in said
        assert "s3cret" not in said
        assert tuned.read_bytes() == before
        assert (tmp_path / "other.log").read_text() == "a log line\n"

    def test_a_missing_driver_is_named(self, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(UserError) as caught:
            export(made(), "postgresql://me:s3cret@127.0.0.1:9/db")
        assert "driver that is not installed" in caught.value.what
        assert "pip install 'trm-bench[export]'" in caught.value.fix
        assert "s3cret" not in str(caught.value)


# PostgreSQL


class TestPostgres:
    @pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
    def test_every_trial_is_there_once(self, made: Any, database: str, scheme: str) -> None:
        folder, aim = made(), database.replace("postgresql", scheme, 1)
        names = export(folder, aim)
        assert_whole(database, folder)
        before = read(database)
        assert export(folder, aim) == names and read(database) == before

    def test_a_sweep_that_went_on_and_one_trained_anew(self, made: Any, database: str) -> None:
        export(made(4), database)
        folder = made(9)
        export(folder, database)
        assert_whole(database, folder)
        trials = read_trials(folder).model_dump(mode="json")
        trials["methods"][1]["trials"][3]["validation_dice"] = 0.125
        write_tuned(folder, read_tuned(folder.tuned), Trials.model_validate(trials))
        export(folder, database)
        assert_whole(database, folder)

    @pytest.mark.parametrize("fault", ["password", "database", "rights"])
    def test_one_that_cannot_be_written(self, made: Any, database: str, fault: str) -> None:
        folder, aim, why = made(2), database, "permission denied for schema public"
        server, _, name = database.rpartition("/")
        if fault == "password":
            aim, why = aim.replace(quote(SECRET, safe=""), "wr0ng"), "authentication failed"
        elif fault == "database":
            aim, why = f"{aim}2", f'database "{name}2" does not exist'
        else:
            port = int(server.rpartition(":")[2])
            execute(port, "DROP ROLE IF EXISTS guest", "CREATE ROLE guest LOGIN PASSWORD 'wr0ng'")
            execute(port, "REVOKE CREATE ON SCHEMA public FROM public", database=name)
            aim = f"postgresql://guest:wr0ng@127.0.0.1:{port}/{name}"
        with pytest.raises(UserError) as caught:
            export(folder, aim)
        assert why in caught.value.what and "\n" not in caught.value.what
        assert not any(s in str(caught.value) for s in ("wr0ng", SECRET, quote(SECRET, safe="")))

    @pytest.mark.slow
    def test_the_dashboard_opens_it(self, made: Any, database: str) -> None:
        names = export(made(3, TRANSFERS), database)
        port = free_port()
        url = database.replace("postgresql:", "postgresql+psycopg:").replace("{", "{{")
        script = Path(sys.executable).parent / "optuna-dashboard"
        command = [str(script), url, "--host", "127.0.0.1", "--port", str(port)]
        # a group of its own, so that its end takes all its processes along
        process = subprocess.Popen(command, start_new_session=True)
        try:
            assert set(names) == set(studies_of(process, port))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def studies_of(process: subprocess.Popen[bytes], port: int) -> list[str]:
    """What a dashboard lists, as soon as it answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=60) as page:
                return [study["study_name"] for study in json.load(page)["study_summaries"]]
        except ConnectionError:
            pass
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)  # and not a sleep: one that has died is seen at once
    pytest.fail("the dashboard did not answer")
