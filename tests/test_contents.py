"""`trm-bench list` and `trm-bench show`: what a results folder holds, in words and as JSON."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import toy
import yaml
from helpers import Run
from reported import change, change_plan, small

from trm_bench.methods.registry import REGISTRY
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.store import read_results

METHODS = ["scratch", "finetune", "trm"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two protocols' results; one run failed, one diverged, one is gone, one is damaged."""
    few = {"methods": METHODS, "seeds": (0, 1), "subjects": 7}
    folder = small(tmp_path / "results" / "first", **few)
    small(tmp_path / "results" / "second", **few, seed=1)
    failed = {
        "state": "failed",
        "reason": "ValueError: [red]no\x1b[2J",
        "traceback": "Traceback\n  here",
    }
    change(folder, 0, lambda record: record.update(failed, metrics={}, predictions={}))
    lost = {"state": "diverged", "reason": "the loss became nan"}
    change(folder, 1, lambda record: record.update(lost, metrics={}, predictions={}))
    runs = [cell.run for cell in read_results(ProtocolFolder(folder)).cells]
    ProtocolFolder(folder).record(runs[2]).unlink()
    ProtocolFolder(folder).record(runs[3]).write_text("{}")
    return folder.parent


def listed(trm_bench: Run, *arguments: object) -> list[dict[str, Any]]:
    code, text = trm_bench("list", *arguments, "--json")
    assert code == 0
    found: list[dict[str, Any]] = json.loads(text)
    return found


def test_all_runs_are_listed_in_the_order_of_the_plans(trm_bench: Run, results: Path) -> None:
    rows = listed(trm_bench, results)
    plans = [read_results(ProtocolFolder(results / name)) for name in ("first", "second")]
    assert [row["run"] for row in rows] == [cell.run for p in plans for cell in p.cells]
    assert [row["state"] for row in rows[:5]] == [
        *("failed", "diverged", "not run", "damaged", "finished")
    ]
    by_hand = plans[1].records[rows[-1]["run"]].metrics
    values = [m["dice"] for regions in by_hand.values() for m in regions.values()]
    assert rows[-1]["dice"] == pytest.approx(100 * sum(values) / len(values))
    assert rows[0]["reason"] == "ValueError: [red]no\x1b[2J" and rows[0]["dice"] is None
    code, text = trm_bench("list", results)
    assert code == 0 and max(map(len, text.splitlines())) <= 80
    assert text.count("finished") == 20 and text.endswith("24 runs\n")
    assert all(row["run"][:8] in text for row in rows)


@pytest.mark.parametrize(
    ("choice", "number"),
    [
        (("--method", "trm"), 8),
        (("--method", "trm,scratch", "--seed", "1"), 8),
        (("--transfer", "t1->t2"), 12),
        (("--state", "failed,not run"), 2),
        (("--state", "failed", "--method", "trm"), 0),
    ],
    ids=str,
)
def test_runs_are_chosen(
    trm_bench: Run, results: Path, choice: tuple[str, ...], number: int
) -> None:
    assert len(listed(trm_bench, results, *choice)) == number


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "DIR", "--method", "tmr"), "did you mean 'trm'"),
        (("list", "DIR", "--state", "finish"), "did you mean 'finished'"),
        (("list", "DIR", "--seed", "7"), "known: 0, 1"),
        (("list", "/nowhere"), "no results"),
        (("show", "zebra", "--results", "DIR"), "neither a folder, a record nor the id"),
        (("show", "*", "--results", "DIR"), "neither a folder, a record nor the id"),
        (("show", "ffffffffffffffff", "--results", "DIR"), "no run's id begins with"),
        (("show", "DAMAGED", "--results", "DIR"), "carries no checksum"),
        (("show", "DIR/first/plan.json"), "is no Record"),
    ],
    ids=str,
)
def test_mistakes_are_told(
    trm_bench: Run, results: Path, arguments: tuple[str, ...], said: str
) -> None:
    damaged = listed(trm_bench, results, "--state", "damaged")[0]["run"]
    given = [a.replace("DIR", str(results)).replace("DAMAGED", damaged) for a in arguments]
    code, text = trm_bench(*given)
    assert code == 2 and said in text and "Traceback" not in text


def test_a_prefix_of_several_runs_names_them(trm_bench: Run, results: Path) -> None:
    ids = sorted({path.stem for path in results.glob("*/records/*.json")})
    digit = next(d for d in "0123456789abcdef" if sum(i.startswith(d) for i in ids) > 1)
    code, text = trm_bench("show", digit, "--results", results)
    assert code == 2 and next(i for i in ids if i.startswith(digit)) in text


def test_a_run_is_shown_by_id_prefix_and_path(trm_bench: Run, results: Path) -> None:
    row = listed(trm_bench, results)[-1]
    path = results / "second" / "records" / f"{row['run']}.json"
    texts = {
        trm_bench("show", *named)
        for named in (
            (row["run"], "--results", path.parents[1]),
            (path,),
            (row["run"][:12], "--results", path.parents[1]),
        )
    }
    ((code, text),) = texts
    assert code == 0 and f"{row['transfer']}, {row['method']}, seed {row['seed']}" in text
    record = read_results(ProtocolFolder(results / "second")).records[row["run"]]
    dice = {s: sum(m["dice"] for m in r.values()) / len(r) for s, r in record.metrics.items()}
    worst = text.partition("worst test subjects")[2].partition("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in worst] == sorted(dice, key=lambda s: dice[s])[:5]
    assert [line.split()[1] for line in worst] == [
        f"{100 * d:.2f}" for d in sorted(dice.values())[:5]
    ]
    configuration = yaml.safe_load(text.partition("\nconfiguration\n")[2].rpartition("\n\n")[0])
    assert configuration["method"]["name"] == "trm" and configuration["seed"] == row["seed"]
    shown = json.loads(trm_bench("show", path, "--json")[1])
    assert shown["record"]["id"] == row["run"] and shown["dice"] == row["dice"]


def test_a_failed_run_shows_its_traceback(trm_bench: Run, results: Path) -> None:
    run = listed(trm_bench, results, "--state", "failed")[0]["run"]
    code, text = trm_bench("show", run, "--results", results)
    assert "\x1b" not in text, "what would clear the terminal is shown, not sent"
    assert code == 0 and "ValueError: [red]no\\x1b[2J" in text and "Traceback\n  here" in text


def test_a_folder_is_shown(trm_bench: Run, results: Path) -> None:
    change_plan(results / "first", lambda plan: plan["protocol"].update(description="[b]Why?"))
    code, text = trm_bench("show", results)
    assert code == 0 and "first: [b]Why?" in text and "scratch, finetune, trm" in text
    assert "8 finished, 1 diverged, 1 failed, 1 damaged, 1 not run" in " ".join(text.split())
    first, second = json.loads(trm_bench("show", results, "--json")[1])
    assert (first["protocol"], second["states"]) == ("first", {"finished": 12})
    assert first["report"] is None and "trm-bench report" in text


def test_a_kept_network_says_how_to_predict_and_does(
    trm_bench: Run, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as if a package had brought the method: what it is stands in the record, and renames no run
    file = toy.write_protocol(tmp_path / "p.yaml", toy_data, keep="all", methods=["scratch"])
    planned = trm_bench("run", file, "--out", tmp_path / "out", "--dry-run", "--device", "cpu")[1]
    monkeypatch.setattr(REGISTRY, "package", lambda name: {"its-package": f"1.0 {name}"})
    trm_bench("run", file, "--out", tmp_path / "out", "--jobs", 1, "--device", "cpu")
    (record,) = (tmp_path / "out" / "toy" / "records").glob("*.json")
    assert record.stem in planned
    code, text = trm_bench("show", record)
    assert code == 0 and "its-package 1.0 scratch" in text
    command = shlex.split(text.strip().splitlines()[-1])
    assert command[:2] == ["trm-bench", "predict"] and command[-1] == "mri.nii.gz"
    command[-1] = str(toy_data / "imagesTr" / "toy_000.nii.gz")
    code, text = trm_bench(*command[1:], "--out", tmp_path / "p.nii.gz", "--device", "cpu")
    assert code == 0 and (tmp_path / "p.nii.gz").is_file()
