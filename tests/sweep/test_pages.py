"""The report of a sweep: from tuned.yaml and trials.json alone, right, and fit to be read."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Run
from reported import documented

from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Budget, SweptMethod, SweptTrial, Trials, Tuned, TunedMethod
from trm_bench.runs.store import write_tuned
from trm_bench.sweep.findings import Finding, read_findings
from trm_bench.sweep.pages import write_sweep

SPACE = {
    "lr": {"kind": "float", "search": [1e-4, 1e-2], "log": True},
    "share": {"kind": "float", "search": [0.0, 1.0], "log": False},
    "how": {"kind": "choice", "search": ["a", "b", None], "log": False},
    "base": {"kind": "int", "search": [1, 9], "log": False, "when": {"how": "b"}},
}
Score = Callable[[dict[str, Any]], float | None]


def drawn(number: int, draws: random.Random) -> dict[str, Any]:
    values: dict[str, Any] = {"lr": 10 ** draws.uniform(-4, -2), "share": draws.uniform(0, 1)}
    values["how"] = draws.choice(["a", "b", None])
    return values | ({"base": draws.randint(1, 9)} if values["how"] == "b" else {})


def share_counts(values: dict[str, Any]) -> float:
    return 0.5 + 0.3 * values["share"] + 0.001 * math.log10(values["lr"])


def method(
    name: str = "m",
    trials: int = 24,
    score: Score = share_counts,
    transfer: str | None = None,
    **values: Any,
) -> tuple[TunedMethod, SweptMethod]:
    """A method whose last trial has certain values too."""
    draws = random.Random(name)
    all_values = [drawn(i, draws) for i in range(trials)]
    all_values[-1] |= values
    scores = [score(v) for v in all_values]
    swept = tuple(
        SweptTrial(
            number=i,
            values=v,
            validation_dice=s,
            reason="" if s is not None else "diverged: the loss became nan",
            voxel_share=0.25 + i / 100,
            seconds=60.0,
            runs=(f"run{i}",),
        )
        for i, (v, s) in enumerate(zip(all_values, scores, strict=True))
    )
    best = max((s, -i) for i, s in enumerate(scores) if s is not None) if any(scores) else None
    entry = TunedMethod(
        method=name,
        name=name,
        transfer=transfer,
        trial=None if best is None else -best[1],
        values={} if best is None else all_values[-best[1]],
        validation_dice=None if best is None else best[0],
        default_validation_dice=scores[0],
        finished=sum(s is not None for s in scores),
        failed=sum(s is None for s in scores),
        runs=trials,
        steps=50 * trials,
        passes=100 * trials,
        space=SPACE,
        space_hash="0",
        code="0",
    )
    return entry, SweptMethod(method=name, transfer=transfer, seconds=60.0 * trials, trials=swept)


def folder(
    path: Path, *methods: tuple[TunedMethod, SweptMethod], data: str = "real"
) -> ProtocolFolder:
    budget = Budget(
        trials=24, steps=50, seeds=(0,), transfers=("a->b",), per="protocol", sampler="tpe",
        batch=4, seed=0,
    )  # fmt: skip
    tuned = Tuned(
        protocol="toy",
        data=data,  # type: ignore[arg-type]
        budget=budget,
        conditions={},
        methods=tuple(entry for entry, _ in methods),
    )
    made = ProtocolFolder(path / "toy")
    write_tuned(made, tuned, Trials(methods=tuple(swept for _, swept in methods)))
    return made


def finding(*arguments: Any, **named: Any) -> Finding:
    entry, swept = method(*arguments, **named)
    return Finding(entry, swept.trials, swept.seconds)


class TestFindings:
    def test_best_so_far_skips_what_failed(self) -> None:
        scores = iter([None, 0.2, 0.1, None, 0.4, 0.3])
        found = finding(trials=6, score=lambda values: next(scores))
        assert found.best_so_far() == [None, 0.2, 0.2, 0.2, 0.4, 0.4]
        assert found.gain is None and found.best is not None and found.best.number == 4

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"lr": 1.2e-4}, ["lr 0.00012 lies at the lower end"]),
            ({"lr": 9e-3}, ["lr 0.009 lies at the upper end"]),
            ({"lr": 1.3e-4, "share": 0.5}, []),  # at 1 % of the range, but at 6 % of its scale
            ({"lr": 1e-3, "share": 0.96}, ["share 0.96 lies at the upper end"]),
            ({"share": 0.02}, ["share 0.02 lies at the lower end"]),
            ({"how": "b", "base": 9}, ["base 9 lies at the upper end"]),
            ({"how": "a"}, []),
        ],
    )
    def test_the_edge_of_a_range_is_on_its_own_scale(
        self, values: dict[str, Any], said: list[str]
    ) -> None:
        middle = {"lr": 1e-3, "share": 0.5, "how": "a"} | values
        entry, swept = method()
        found = Finding(entry.model_copy(update={"values": middle}), swept.trials, 1.0)
        lines = found.edges()
        assert len(lines) == len(said)
        assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))

    @pytest.mark.parametrize(("trials", "number"), [(24, 1), (59, 1), (60, 3)])
    def test_the_first_importance_alone_below_sixty_trials(self, trials: int, number: int) -> None:
        found, note = finding(trials=trials).importances()
        assert len(found) == number and next(iter(found)) == "share"
        assert found["share"] > 0.8 and note.endswith("base")

    @pytest.mark.parametrize(
        ("trials", "score", "why"),
        [
            (5, share_counts, "5 finished trials"),
            (24, lambda values: 0.5, "all trials have the same score"),
            (9, lambda values: None, "0 finished trials"),
        ],
    )
    def test_no_importance_without_reason(self, trials: int, score: Score, why: str) -> None:
        found, note = finding(trials=trials, score=score).importances()
        assert found == {} and note.startswith(why)


class TestPages:
    def test_what_is_written(self, tmp_path: Path) -> None:
        failing = method("failing", score=lambda values: None)
        half = method("half", score=lambda v: None if v["share"] < 0.5 else share_counts(v))
        made = folder(tmp_path, failing, half, method("whole", share=0.99))
        written = write_sweep(made)
        assert all(path.is_file() for path in written)
        assert {p.name for p in written} >= {"report.html", "summary.md", "trials.csv"}
        page = (made.sweep / "report.html").read_text()
        summary = (made.sweep / "summary.md").read_text()
        _, (nothing, some, whole) = read_findings(made)
        for text in (page, summary):
            assert "24 trials of each method, 50 steps each" in text
            assert "whole: share 0.99 lies at the upper end" in text
            assert f"{100 * (whole.entry.validation_dice or 0):.2f}" in text
            assert f"{some.entry.finished} of 24" in text and "0 of 24" in text
            assert "A gain here is a hope" in text and "3600" in text  # steps in all
            assert "phantom" not in text
        assert nothing.entry.trial is None and "the loss became nan" in page
        rows = list(csv.DictReader((made.sweep / "trials.csv").open()))
        assert len(rows) == 72 and [*rows[0]] == documented("### trials.csv")
        last = rows[-1]
        assert json.loads(last["values"])["share"] == 0.99 and last["runs"] == "run23"
        share = whole.trials[-1].validation_dice
        assert share and float(last["validation_dice"]) == pytest.approx(100 * share), "per cent"
        assert [r["validation_dice"] for r in rows[:24]] == [""] * 24
        before = {path: path.read_bytes() for path in written}
        write_sweep(made)
        assert before == {path: path.read_bytes() for path in written}

    def test_each_transfer_has_its_own(self, tmp_path: Path) -> None:
        made = folder(tmp_path, method("m", transfer="a->b"), method("m", transfer="b->a"))
        names = {path.name for path in write_sweep(made)}
        assert {"m-a-to-b.png", "m-b-to-a.png"} <= names
        assert "m b-&gt;a" in (made.sweep / "report.html").read_text()

    def test_stand_in_data_are_named_everywhere(self, tmp_path: Path) -> None:
        made = folder(tmp_path, method(), data="phantom")
        write_sweep(made)
        for name in ("report.html", "summary.md"):
            assert "phantom" in (made.sweep / name).read_text()

    def test_nothing_in_a_name_or_reason_acts(self, tmp_path: Path) -> None:
        nasty = "<script>alert(1)</script>|$x_{"
        entry, swept = method("=1+1", transfer=nasty, score=lambda v: v["share"] - 0.5 or None)
        last = swept.trials[-1].model_copy(update={"reason": f"=2+2\n{nasty}"})
        swept = swept.model_copy(update={"trials": (*swept.trials[:-1], last)})
        made = folder(tmp_path, (entry, swept))
        write_sweep(made)
        page = (made.sweep / "report.html").read_text()
        assert page.count("<script") == 1 and "&lt;script&gt;" in page
        summary = (made.sweep / "summary.md").read_text()
        assert "<script" not in summary and r"\|$x_{" in summary
        rows = list(csv.DictReader((made.sweep / "trials.csv").open(newline="")))
        assert rows[-1]["method"] == "'=1+1" and rows[-1]["transfer"] == nasty
        assert rows[-1]["reason"] == f"'=2+2\n{nasty}"

    def test_the_command_writes_it_again(self, tmp_path: Path, trm_bench: Run) -> None:
        made = folder(tmp_path, method())
        for path in (tmp_path, made.path):
            code, text = trm_bench("report", path)
            assert code == 0 and "report.html" in text
            (made.sweep / "report.html").unlink()
        code, text = trm_bench("report", tmp_path / "nothing")
        assert code == 2 and "no results of trm-bench here" in text
