"""`trm-bench sweep`, tuned.yaml, and `run --tuned`: applied where it fits, refused where not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from helpers import Run, rewrite
from trm_bench.baselines.finetune import Finetune

from trm_bench import report
from trm_bench.protocol.schema import LossConfig
from trm_bench.runs import plan as planning
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Record, SweptMethod, Trials, Tuned
from trm_bench.runs.store import read_plan, read_record, read_tuned, write_tuned

METHODS = ["scratch", "finetune", "trm"]
CHANGES: dict[str, Any] = {"methods": METHODS, "sweep": {"trials": 3, "steps": 3}}
BOTH = {"kind": "cross_task", "pairs": [["whole", "lower_upper"], ["lower_upper", "whole"]]}


@pytest.fixture
def swept(tmp_path: Path, toy_data: Path, trm_bench: Run) -> Path:
    """A protocol's file, with its tuned.yaml in `out/toy/sweep` beside it."""
    file = toy.write_protocol(tmp_path / "p.yaml", toy_data, **CHANGES)
    code, said = trm_bench("sweep", file, "--out", tmp_path / "out", "--jobs", 1)
    assert code == 0, said
    return file


def tuned_of(file: Path) -> Path:
    return file.parent / "out" / "toy" / "sweep" / "tuned.yaml"


def records(folder: Path) -> dict[str, Record]:
    """Method to record, of the table's cells."""
    cells = read_plan(ProtocolFolder(folder)).cells
    read = {c.method: read_record(folder / "records" / f"{c.run}.json") for c in cells}
    return {method: record for method, record in read.items() if record}


def rates(folder: Path) -> dict[str, float]:
    """Transfer to learning rate, of a table of one method."""
    cells = read_plan(ProtocolFolder(folder)).cells
    read = {c.transfer: read_record(folder / "records" / f"{c.run}.json") for c in cells}
    return {t: record.config.training.optimizer.lr for t, record in read.items() if record}


def make_best(file: Path, method: str, values: dict[str, Any]) -> None:
    """As if a sweep had come to these values."""

    def change(content: dict[str, Any]) -> None:
        (entry,) = (m for m in content["methods"] if m["method"] == method)
        entry["values"] = values

    rewrite(file, change)


class TestCommand:
    def test_a_line_a_method_and_where_the_file_lies(
        self, tmp_path: Path, toy_data: Path, trm_bench: Run
    ) -> None:
        file = toy.write_protocol(tmp_path / "p.yaml", toy_data, **CHANGES)
        code, said = trm_bench(
            "sweep", file, "--trials", 2, "--methods", "finetune,trm_uniform", "--seeds", "4,5",
            "--transfers", "whole->lower_upper", "--out", tmp_path / "out", "--jobs", 1,
            "--set", "sweep.steps=2",
        )  # fmt: skip
        assert code == 0, said
        for method, first in (("finetune", "lr"), ("trm_uniform", "denominator")):
            line = rf"{method} +default \d+\.\d\d  best \d+\.\d\d  2 trials  {first} "
            assert re.search(line, said), said
        assert f"--tuned {tuned_of(file)}" in said
        tuned = read_tuned(tuned_of(file))
        assert [m.method for m in tuned.methods] == ["finetune", "trm_uniform"]
        budget = tuned.budget
        assert (budget.trials, budget.steps, budget.seeds) == (2, 2, (4, 5))
        assert budget.transfers == ("whole->lower_upper",)
        assert all(m.runs == 4 for m in tuned.methods)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--set", "sweep.trails=2"], "sweep.trails: unknown key; did you mean 'trials'?"),
            (["--set", "sweep.shared_space.lr=[1.0e-3, 0]"], "must be [low, high] within"),
            (["--set", "split.target.val=0"], "split.target.val"),
            (["--seeds", "1,1"], "are not different whole numbers"),
            (["--transfers", "whole->all"], "the protocol has no transfer 'whole->all'"),
            (["--methods", "trmm"], "no method 'trmm'"),
            (["--phantom"], "this protocol has no phantom"),
        ],
    )
    def test_mistakes_are_named(
        self, tmp_path: Path, toy_data: Path, trm_bench: Run, arguments: list[str], message: str
    ) -> None:
        file = toy.write_protocol(tmp_path / "p.yaml", toy_data, **CHANGES)
        code, said = trm_bench("sweep", file, "--out", tmp_path / "out", *arguments)
        assert code == 2 and message in said, said
        assert not (tmp_path / "out" / "toy" / "records").exists()

    def test_a_method_of_which_nothing_finished_is_an_error(
        self, tmp_path: Path, toy_data: Path, trm_bench: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Finetune, "loss", lambda self, run, batch: torch.tensor(float("nan")))
        file = toy.write_protocol(tmp_path / "p.yaml", toy_data, **CHANGES)
        code, said = trm_bench("sweep", file, "--out", tmp_path / "out", "--jobs", 1)
        assert code == 1
        assert "finetune  default -  best -  3 trials (3 failed)  -" in said
        assert read_tuned(tuned_of(file)).of("trm", "whole->lower_upper") is not None

    def test_the_file_survives_reading_to_the_bit(self, swept: Path) -> None:
        tuned = read_tuned(tuned_of(swept))
        assert Tuned.model_validate_json(tuned.model_dump_json()) == tuned
        values = [m.values["lr"] for m in tuned.methods if "lr" in m.values]
        by_lr = {r.config.training.optimizer.lr for r in _trials(swept)}
        assert len(values) == 2 and set(values) <= by_lr


def _trials(file: Path) -> list[Record]:
    folder = ProtocolFolder(file.parent / "out" / "toy")
    return [r for f in sorted(folder.records.iterdir()) if (r := read_record(f))]


class TestApplied:
    def test_runs_have_the_tuned_values_and_say_so(self, swept: Path, trm_bench: Run) -> None:
        file = tuned_of(swept)
        make_best(file, "trm", {"weight": "affine", "strength": 12.5, "over": "foreground"})
        make_best(
            file, "scratch", {"lr": 0.005, "weight_decay": 0.01, "warmup": 0.25, "dice_share": 0.25}
        )
        out = swept.parent / "tuned"
        code, said = trm_bench("run", swept, "--tuned", file, "--out", out, "--jobs", 1)
        assert code == 0, said
        made = records(out / "toy")
        assert set(made) == set(METHODS)
        parameters = made["trm"].config.method.parameters
        assert (parameters["weight"], parameters["strength"]) == ("affine", 12.5)
        assert (parameters["over"], parameters["risk"]) == ("foreground", "one_minus")
        training = made["scratch"].config.training
        assert (training.optimizer.lr, training.optimizer.weight_decay) == (0.005, 0.01)
        assert training.warmup == 0.25
        assert training.loss == LossConfig(cross_entropy=1.5, dice=0.5)
        assert all(r.config.training.steps == 6 and r.metrics for r in made.values())
        assert made["trm"].config.training.optimizer.lr == 0.01
        note = read_plan(ProtocolFolder(out / "toy")).tuned
        tuned = read_tuned(file)
        assert note and note.digest == tuned.digest and note.digest in said
        assert (note.borrowed_from, note.differs, note.training_of) == (None, (), "")
        caption = (
            "Tuned on the validation subjects, with the same budget for each method: 3 trials of 3 "
            "steps on 1 seed of whole->lower_upper"
        )
        assert caption in (out / "toy" / "table.md").read_text()
        passes = sum(m.passes for m in tuned.methods)
        took = f"{passes} forward-backward passes in all"
        assert f"{took}; tuned.yaml" in (out / "toy" / "table.md").read_text()
        # with the sweep beside the results, the time is known too
        costs = [
            SweptMethod(method=m.method, transfer=None, seconds=1800, trials=())
            for m in tuned.methods
        ]
        write_tuned(ProtocolFolder(out / "toy"), tuned, Trials(methods=tuple(costs)))
        report.write(ProtocolFolder(out / "toy"))
        hours = f"{took}, {len(costs) / 2:.1f} hours of training; tuned.yaml"
        assert hours in (out / "toy" / "table.md").read_text()

    def test_values_of_another_protocol_are_said_to_be_that(
        self, swept: Path, trm_bench: Run
    ) -> None:
        file, out = tuned_of(swept), swept.parent / "borrowed"
        make_best(file, "trm", {"weight": "affine", "strength": 12.5, "over": "foreground"})
        given = ("--set", "name=other", "--set", "training.target.steps=5", "--borrow")
        code, said = trm_bench("run", swept, "--tuned", file, *given, "--out", out, "--jobs", 1)
        assert code == 0, said
        made = records(out / "other")
        assert made["trm"].config.method.parameters["strength"] == 12.5
        assert all(r.config.training.steps == 5 for r in made.values())
        note = read_plan(ProtocolFolder(out / "other")).tuned
        assert note and (note.borrowed_from, note.differs) == ("toy", ("training",))
        assert note.digest == read_tuned(file).digest
        caption = (
            "Tuned on the validation subjects of another protocol, toy (which differs in "
            "training), with the same budget"
        )
        assert caption in (out / "other" / "table.md").read_text()

    def test_the_training_of_one_method_for_all(self, swept: Path, trm_bench: Run) -> None:
        file, out = tuned_of(swept), swept.parent / "shared"
        values = {"lr": 0.005, "weight_decay": 0.01, "warmup": 0.25, "dice_share": 0.25}
        make_best(file, "finetune", values)
        make_best(file, "trm", {"weight": "affine", "strength": 12.5, "over": "foreground"})
        given = ("--tuned", file, "--training-of", "finetune", "--jobs", 1)
        by_hand = ("--set", "methods.0={name: scratch, training: {warmup: 0.5}}")
        code, said = trm_bench("run", swept, *given, *by_hand, "--out", out)
        assert code == 0, said
        made = records(out / "toy")
        assert set(made) == set(METHODS)
        for method, record in made.items():
            training = record.config.training
            assert (training.optimizer.lr, training.optimizer.weight_decay) == (0.005, 0.01)
            assert training.warmup == (0.5 if method == "scratch" else 0.25)
            assert training.loss == LossConfig(cross_entropy=1.5, dice=0.5)
        assert made["trm"].config.method.parameters["strength"] != 12.5
        note, tuned = read_plan(ProtocolFolder(out / "toy")).tuned, read_tuned(file)
        assert note and note.training_of == "finetune" and note.digest == tuned.digest
        (own,) = (m for m in tuned.methods if m.method == "finetune")
        caption = (
            "All methods train with the values that finetune was tuned to on the validation "
            f"subjects: the best of 3 trials of 3 steps on 1 seed of whole->lower_upper (tpe; "
            f"{own.passes} forward-backward passes in all; tuned.yaml"
        )
        assert caption in (out / "toy" / "table.md").read_text()
        # those that have their own values are another table
        trm_only = ("--methods", "trm", "--tuned", file, "--jobs", 1, "--out", out)
        assert trm_bench("run", swept, *trm_only)[0] == 0
        assert set(records(out / "toy")) == {"trm"}
        # and the method need not be run itself
        alone = (*given, "--methods", "trm", "--out", swept.parent / "alone")
        assert trm_bench("run", swept, *alone)[0] == 0
        (record,) = records(swept.parent / "alone" / "toy").values()
        assert record.id == made["trm"].id

    def test_tuned_and_untuned_methods_never_share_a_table(
        self, swept: Path, trm_bench: Run
    ) -> None:
        out, options = swept.parent / "runs", ("--jobs", 1)
        assert trm_bench("run", swept, "--methods", "scratch", "--out", out, *options)[0] == 0
        tuned = ("--methods", "finetune", "--tuned", tuned_of(swept))
        assert trm_bench("run", swept, *tuned, "--out", out, *options)[0] == 0
        assert set(records(out / "toy")) == {"finetune"}
        tuned = ("--methods", "trm", "--tuned", tuned_of(swept))
        assert trm_bench("run", swept, *tuned, "--out", out, *options)[0] == 0
        assert set(records(out / "toy")) == {"finetune", "trm"}

    def test_values_of_one_transfer_hold_there_alone(
        self, tmp_path: Path, toy_data: Path, trm_bench: Run
    ) -> None:
        budget = {"trials": 1, "steps": 2, "per": "transfer"}
        changes = {"methods": ["finetune"], "transfers": BOTH, "sweep": budget}
        file = toy.write_protocol(tmp_path / "p.yaml", toy_data, **changes)
        out = ("--out", tmp_path / "out", "--jobs", 1)
        assert trm_bench("sweep", file, *out)[0] == 0

        def change(content: dict[str, Any]) -> None:
            for entry, lr in zip(content["methods"], (0.002, 0.003), strict=True):
                entry["values"]["lr"] = lr

        rewrite(tuned_of(file), change)
        code, said = trm_bench("run", file, "--tuned", tuned_of(file), *out)
        assert code == 0 and "for each method and transfer" in said
        expected = {"lower_upper->whole": 0.002, "whole->lower_upper": 0.003}
        assert rates(tmp_path / "out" / "toy") == expected
        shared = ("--tuned", tuned_of(file), "--training-of", "finetune", "--jobs", 1)
        code, said = trm_bench("run", file, *shared, "--out", tmp_path / "trm", "--methods", "trm")
        assert code == 0, said
        assert rates(tmp_path / "trm" / "toy") == expected
        rewrite(tuned_of(file), lambda content: content["methods"].pop())
        code, said = trm_bench("run", file, "--tuned", tuned_of(file), *out)
        assert code == 2 and "holds nothing for 'finetune' in whole->lower_upper" in said


class TestRefused:
    def refused(
        self, trm_bench: Run, file: Path, *arguments: object, tuned: Path | None = None
    ) -> str:
        out = file.parent / "refused"
        given = ("--tuned", tuned or tuned_of(file), "--out", out, "--jobs", 1)
        code, said = trm_bench("run", file, *given, *arguments)
        assert code == 2, said
        assert not (out / "toy" / "records").exists()
        return " ".join(said.split())

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("name=other", "was tuned for the protocol 'toy', and this is 'other'"),
            ("training.target.steps=5", "was tuned before a change of the protocol's 'training'"),
            ("split.seed=1", "was tuned before a change of the protocol's 'split'"),
            ("network.channels=[4,4]", "was tuned before a change of the protocol's 'network'"),
            ("data.volume.intensity=percentile", "a change of the protocol's 'data'"),
            ("evaluation.overlap=0.25", "was tuned before a change of the protocol's 'evaluation'"),
            (
                "sweep.shared_space.lr=[1.0e-3,1]",
                "the search space of 'scratch' is another one now",
            ),
            ("methods.2.with_dice=2", "the search space of 'trm' is another one now"),
            ("methods.2={name: focal, label: trm}", "the name of another method"),
            ("methods=[focal]", "holds nothing for 'focal'"),
        ],
    )
    def test_another_protocol(
        self, swept: Path, trm_bench: Run, setting: str, message: str
    ) -> None:
        assert message in self.refused(trm_bench, swept, "--set", setting)

    def test_borrowing_from_oneself_or_nothing(self, swept: Path, trm_bench: Run) -> None:
        assert "is of this very protocol" in self.refused(trm_bench, swept, "--borrow")
        code, said = trm_bench("run", swept, "--borrow", "--out", swept.parent / "refused")
        assert code == 2 and "name the other tuned.yaml with --tuned" in " ".join(said.split())

    def test_the_training_of_what_has_none(self, swept: Path, trm_bench: Run) -> None:
        said = self.refused(trm_bench, swept, "--training-of", "trm")
        assert "'trm' was tuned without the training" in said and "tune_training: always" in said
        said = self.refused(trm_bench, swept, "--training-of", "fine tune")
        assert "holds nothing for 'fine tune'" in said and "finetune" in said
        code, said = trm_bench("run", swept, "--training-of", "trm", "--out", swept.parent / "no")
        assert code == 2 and "name the tuned.yaml with --tuned" in " ".join(said.split())

    def test_borrowed_values_of_single_transfers(self, swept: Path, trm_bench: Run) -> None:
        def change(content: dict[str, Any]) -> None:
            content["methods"][0]["transfer"] = "whole->lower_upper"

        rewrite(tuned_of(swept), change)
        said = self.refused(trm_bench, swept, "--borrow", "--set", "name=other")
        assert "values of each transfer, which another protocol does not have" in said

    def test_borrowed_values_of_another_space_or_data(self, swept: Path, trm_bench: Run) -> None:
        given = ("--borrow", "--set", "name=other")
        said = self.refused(trm_bench, swept, *given, "--set", "methods.2.with_dice=2")
        assert "the search space of 'trm' is another one now" in said
        said = self.refused(trm_bench, swept, *given, "--set", "methods=[focal]")
        assert "holds nothing for 'focal'" in said and "sweep toy --methods focal" in said
        rewrite(tuned_of(swept), lambda content: content.update(data="phantom"))
        assert "was tuned on phantom data" in self.refused(trm_bench, swept, *given)

    @pytest.mark.parametrize(
        "key", ["metrics=[dice]", "seeds=[3]", "description=x", "sweep.trials=9"]
    )
    def test_what_does_not_concern_tuning_is_free(
        self, swept: Path, trm_bench: Run, key: str
    ) -> None:
        given = ("--tuned", tuned_of(swept), "--out", swept.parent / "free", "--dry-run")
        code, said = trm_bench("run", swept, *given, "--set", key)
        assert code == 0, said

    def test_other_subjects(
        self, swept: Path, toy_data: Path, trm_bench: Run, tmp_path: Path
    ) -> None:
        other = toy.write_dataset(tmp_path / "other", seed=1)
        said = self.refused(trm_bench, swept, "--set", f"data.root={other}")
        assert "was tuned before a change of the subjects' files" in said
        moved = shutil.copytree(toy_data, tmp_path / "moved")
        given = ("--tuned", tuned_of(swept), "--out", tmp_path / "free", "--dry-run")
        assert trm_bench("run", swept, *given, "--set", f"data.root={moved}")[0] == 0

    def test_the_other_kind_of_data(self, swept: Path, trm_bench: Run) -> None:
        rewrite(tuned_of(swept), lambda content: content.update(data="phantom"))
        assert "was tuned on phantom data, and these are real" in self.refused(trm_bench, swept)

    def test_other_code(self, swept: Path, trm_bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = planning.code_fingerprint
        changed = "trm_bench.methods.trm"
        monkeypatch.setattr(
            planning,
            "code_fingerprint",
            lambda *modules: "other" if changed in modules else plain(*modules),
        )
        said = self.refused(trm_bench, swept)
        assert "was tuned with other code: what computes 'trm' has changed since" in said

    def test_nothing_finished(self, swept: Path, trm_bench: Run) -> None:
        rewrite(
            tuned_of(swept), lambda content: content["methods"][0].update(trial=None, values={})
        )
        assert "no trial of 'finetune' finished" in self.refused(trm_bench, swept)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[1", "holds no tuned values"),
            ("a: 1", "carries no checksum"),
            ("schema_version: 2", "has schema version 2"),
            ("schema_version: 9", "has schema version 9"),
            ("", "carries no checksum"),
            (None, "cannot be read"),
        ],
    )
    def test_files_that_are_none(
        self, tmp_path: Path, toy_data: Path, trm_bench: Run, text: str | None, message: str
    ) -> None:
        file = toy.write_protocol(tmp_path / "p.yaml", toy_data, **CHANGES)
        tuned = tmp_path / "tuned.yaml"
        if text is not None:
            tuned.write_text(text)
        assert message in self.refused(trm_bench, file, tuned=tuned)
