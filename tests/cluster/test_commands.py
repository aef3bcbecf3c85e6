"""`run --on` and `sweep --on` leave the files that the same commands leave on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import toy
from helpers import Run

pytest.importorskip("distributed", reason="needs trm-bench[cluster]")

from loopback import Cluster, cluster

pytestmark = pytest.mark.slow

SAME = ("table.md", "metrics.csv", "summary.json", "comparisons.csv")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("two"), workers=2) as started:
        yield started


@pytest.fixture
def file(tmp_path: Path, toy_data: Path) -> Path:
    budget = {"trials": 2, "batch": 1, "steps": 2}
    return toy.write_protocol(tmp_path / "toy.yaml", toy_data, seeds=[0, 1], sweep=budget)


def test_run_leaves_the_same_table_and_a_second_one_finds_it(
    trm_bench: Run, two: Cluster, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a relative --out is one of this process
    code, text = trm_bench("run", file, "--on", two.folder, "--out", "there")
    assert code == 0 and "6 runs finished" in text
    assert trm_bench("run", file, "--jobs", 1, "--out", "here")[0] == 0
    for name in SAME:
        there, here = (tmp_path / o / "toy" / name for o in ("there", "here"))
        assert there.read_bytes() == here.read_bytes(), name
    assert two.log().count("begins") == 2 + 6 + 2, "two sources, six runs, two audits"
    code, text = trm_bench("run", file, "--on", two.folder, "--out", "there")
    assert code == 0 and "nothing to do" in text
    left = [p for p in (tmp_path / "there").rglob("*") if p.suffix == ".claim"]
    assert left == []


def test_a_run_that_fails_there_says_why(
    trm_bench: Run, two: Cluster, toy_data: Path, tmp_path: Path
) -> None:
    methods = ["finetune", {"name": "bss", "k": 1000}]
    file = toy.write_protocol(tmp_path / "toy.yaml", toy_data, methods=methods)
    code, text = trm_bench("run", file, "--on", two.folder, "--out", tmp_path / "out")
    assert code == 1 and "too small for k=1000" in text and "1 run failed" in text


def test_sweep_finds_the_same_values(
    trm_bench: Run, two: Cluster, file: Path, tmp_path: Path
) -> None:
    tuned = []
    for options in (("--on", two.folder), ("--jobs", 1)):
        out = tmp_path / str(len(tuned))
        code, _ = trm_bench("sweep", file, *options, "--out", out, "--methods", "trm")
        assert code == 0
        tuned.append((out / "toy" / "sweep" / "tuned.yaml").read_bytes())
    assert tuned[0] == tuned[1]


@pytest.mark.parametrize("where", ["nowhere.json", "tcp://10.1.2.3:8786", "8786"])
def test_what_cannot_be_reached_is_told_before_data_are_prepared(
    trm_bench: Run, file: Path, tmp_path: Path, where: str
) -> None:
    code, text = trm_bench("run", file, "--on", where, "--out", tmp_path / "out")
    assert code == 2 and ("--on" in text or where in text)
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_no_worker_has_is_told(
    trm_bench: Run, two: Cluster, file: Path, tmp_path: Path
) -> None:
    command = ("run", file, "--on", two.file, "--device", "cuda", "--out", tmp_path / "out")
    code, text = trm_bench(*command)
    assert code == 2 and "has workers without a GPU" in text
