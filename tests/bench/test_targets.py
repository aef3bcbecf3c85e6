"""From times to ratios, targets and tables."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from trm_bench.bench.bare import COMPILED
from trm_bench.bench.machine import Machine, has_bf16
from trm_bench.bench.occupancy import trained_seconds
from trm_bench.bench.suite import Report
from trm_bench.bench.tables import machine_text, section_table, targets_table
from trm_bench.bench.targets import Target, targets, tuned_row
from trm_bench.bench.timing import Row, Section, in_turns, ratio
from trm_bench.bench.tutorial import _workers

MACHINE = Machine(
    device="cpu",
    name="a processor",
    cores=2,
    flags=("avx2",),
    torch="2",
    threads=1,
    load=0.5,
    compiler="",
    peaks={"fp32": 100.0, "bf16": 400.0},
)


def steps(**seconds: float) -> dict[str, Section]:
    rows = [Row(name.replace("_", " "), (s, 2 * s, s)) for name, s in seconds.items()]
    return {"steps": Section("a training step", "step", tuple(rows), "finetune fp32")}


def value(sections: dict[str, Section], figure: str, on_gpu: bool = False) -> Target:
    (found,) = [t for t in targets(sections, on_gpu) if t.figure == figure]
    return found


def test_turns_are_taken_round_by_round() -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> float:
        order.append(name)
        return seconds + len(order)

    works = {"a": lambda: work("a", 0.5), "b": lambda: work("b", 0.25)}
    assert in_turns(works, 2, lambda: order.append("|")) == {"a": (1.5, 5.5), "b": (3.25, 7.25)}
    assert order == ["a", "|", "b", "|", "a", "|", "b", "|"]


def test_a_ratio_is_taken_within_each_round() -> None:
    # the machine is ten times slower in the second round: no harm
    found = ratio(Row("a", (2.0, 20.0, 3.0)), Row("b", (1.0, 10.0, 1.0)))
    assert (found.median, found.least, found.most) == (2.0, 2.0, 3.0)


def test_targets_are_met_or_not_or_not_measured() -> None:
    sections = steps(bare_plain=1.3, bare_fp32=1.2, finetune_fp32=1.0, trm_fp32=1.02)
    plain = value(sections, "plain bare step / finetune fp32")
    assert plain.value and plain.value.median == pytest.approx(1.3) and plain.met
    assert not value(sections, "plain bare step / finetune fp32", on_gpu=True).met
    assert value(sections, "finetune / trm, fp32").met is False
    for missing in ("plain bare step / finetune bf16", "MONAI's loop / ours, fp32"):
        assert value(sections, missing).met is None and value(sections, missing).value is None


def test_tuned_is_the_best_of_its_precision_and_no_compiled_one() -> None:
    sections = steps(
        **{
            "bare plain": 0.1,
            "bare fp32": 0.9,
            "bare fp32 channels-last": 0.8,
            "bare fp32 compiled": 0.5,
            "bare bf16": 0.3,
            "finetune fp32": 1.0,
        }
    )
    tuned = value(sections, "tuned bare step / finetune, fp32")
    assert tuned.value and tuned.value.median == pytest.approx(0.8) and not tuned.met
    compiled = tuned_row(sections, "fp32", COMPILED)
    assert compiled and compiled.name == "bare fp32 compiled"
    assert tuned_row({}, "fp32") is None


def test_what_is_compiled_has_figures_where_it_was_measured() -> None:
    def named(sections: dict[str, Section]) -> set[str]:
        return {t.figure for t in targets(sections, False) if t.figure.endswith(COMPILED)}

    plain = {"bare plain": 1.3, "bare fp32 compiled": 0.9, "finetune fp32": 1.0}
    assert not named(steps(**plain))
    sections = steps(**plain, **{"finetune fp32 compiled": 0.8})
    rows = Row("MONAI tutorial, 0 workers", (1.2,)), Row("finetune fp32 compiled", (0.8,))
    sections["loop"] = Section("a loop", "step", rows, rows[0].name)
    figures = {
        "plain bare step / finetune fp32 compiled": 1.3 / 0.8,
        "tuned bare step / finetune, fp32 compiled": 0.9 / 0.8,
        "MONAI's loop / ours, fp32 compiled": 1.2 / 0.8,
    }
    assert named(sections) == figures.keys()
    for figure, ratio_of in figures.items():
        found = value(sections, figure).value
        assert found and found.median == pytest.approx(ratio_of)


def test_seconds_of_trainings_include_those_of_sources() -> None:
    def record(train: float, test: float, source: str = "") -> Any:
        source_training = SimpleNamespace(training=SimpleNamespace(steps=30)) if source else None
        config = SimpleNamespace(
            training=SimpleNamespace(steps=10), source_training=source_training
        )
        return SimpleNamespace(
            seconds={"prepare": 100.0, "train": train, "test": test},
            config=config,
            source=SimpleNamespace(id=source) if source else None,
        )

    records = [record(10, 1), record(20, 1, "s"), record(20, 1, "s"), record(30, 1, "t")]
    # 2 seconds a step, and two sources of 30 steps
    assert trained_seconds(records) == 84 + 2 * 60


def test_share_of_the_peak_is_that_of_the_precision() -> None:
    row = Row("a", (0.1,), flops=10**9, precision="bf16")
    assert MACHINE.share(row) == pytest.approx(10 / 400)
    assert MACHINE.share(Row("a", (0.1,), flops=10**9, precision="tf32")) is None


def test_tables_fit_80_columns() -> None:
    row = Row("bare bf16 channels-last compiled", (1.25, 2.0), 10**10, "bf16", 2**30)
    other = Row("finetune_with_validation bf16", (1.0, 2.0), 10**10, "bf16", 2**30)
    section = Section("a training step", "step", (row, other), other.name, "A note. " * 30)
    file = io.StringIO()
    console = Console(file=file, width=80)
    console.print(section_table(section, MACHINE))
    console.print(targets_table(targets({"steps": section}, False)))
    text = file.getvalue()
    for said in (row.name, other.name, "1.125", "1.000 - 1.250", "1024", "2%", ">= 1.25"):
        assert said in text
    assert "fp32 100, bf16 400" in machine_text(MACHINE)


def test_a_report_is_json() -> None:
    sections = steps(bare_plain=2.0, finetune_fp32=1.0)
    report = Report(MACHINE, {"batch": 2}, sections, targets(sections, False))
    read = json.loads(json.dumps(report.json(), allow_nan=False))
    assert read["sections"]["steps"]["rows"][0] | {"seconds": None} == {
        "name": "bare plain",
        "seconds": None,
        "median": 2.0,
        "flops": None,
        "precision": "",
        "peak_memory": None,
        "share_of_peak": None,
    }
    assert read["targets"][0]["met"] is True and read["targets"][1]["met"] is None
    assert read["machine"]["peaks"] == {"fp32": 100.0, "bf16": 400.0}


def test_bf16_is_where_a_processor_has_it() -> None:
    import torch

    cpu = torch.device("cpu")
    assert has_bf16(cpu, ("avx2", "avx512_bf16")) and not has_bf16(cpu, ("avx2", "avx512f"))


def test_workers_are_tried_up_to_the_cores() -> None:
    assert _workers(1) == [0, 1] and _workers(2) == [0, 1, 2] and _workers(6) == [0, 1, 2, 4]
