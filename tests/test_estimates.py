"""What a benchmark would take: the sums, by hand, and how they are said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import CPU, plan

from trm_bench import estimates
from trm_bench.display import duration
from trm_bench.estimates import Pace, pace_of, size
from trm_bench.runs.plan import Plan


@pytest.fixture
def toy_plan(toy_data: Path, tmp_path: Path) -> Plan:
    return plan(toy_data, tmp_path / "out")


@pytest.mark.parametrize(("jobs", "seconds"), [(1, 154), (2, 77), (8, 46)])
def test_time_is_that_of_steps_validation_and_test(toy_plan: Plan, jobs: int, seconds: int) -> None:
    pace = Pace(toy_plan.runs[0].config, step=1.0, steps=5, subject=10.0, packed=0)
    # 6 steps and 1 validation subject of the source; of each run 3 test subjects beside them
    source, run = 6 + 10, 6 + 10 + 30
    assert seconds == max((source + 3 * run) / min(jobs, 4), run)
    missing = [*toy_plan.sources, *toy_plan.runs]
    said = estimates._time(missing, pace, CPU, jobs)
    assert said.text.startswith(f"about {duration(seconds)} for 4 trainings") and said.suffices


def test_weights_are_chosen_by_looks_at_the_validation_subjects(
    toy_data: Path, tmp_path: Path
) -> None:
    training = {"steps": 40, "batch": 2, "patch": [16, 16, 16]}
    selected = {**training, "select": "best", "validate_every": 10}
    several = plan(toy_data, tmp_path, training={"source": training, "target": selected})
    pace = Pace(several.runs[0].config, step=0.5, steps=5, subject=2.0, packed=0)
    assert estimates._seconds(several.runs[0].config, pace) == 40 * 0.5 + (4 + 1) * 2 + 3 * 2
    assert estimates._seconds(several.sources[0].config, pace) == 40 * 0.5 + 2


def test_steps_are_timed_without_leaving_anything(toy_plan: Plan, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    pace = pace_of(toy_plan, CPU)
    assert pace.step > 0 and pace.subject > 0 and 1 <= pace.steps <= estimates.STEPS
    assert 0 < pace.packed < 16**3, "a label of 16^3 voxels, compressed"
    assert sorted(tmp_path.rglob("*")) == before


def test_disk_counts_networks_and_predictions(
    toy_plan: Plan, toy_data: Path, tmp_path: Path
) -> None:
    config, mib = toy_plan.runs[0].config, 2**20
    pace = Pace(config, step=1.0, steps=5, subject=1.0, packed=10 * mib)
    said = estimates._disk([*toy_plan.sources, *toy_plan.runs], pace, {}, tmp_path / "not" / "yet")
    # 3 runs with 3 test subjects each, the records and the report; the network is a small one
    fixed = 3 * estimates.RECORD + estimates.REPORT
    assert said.text.startswith(f"about {size(90 * mib + fixed + 100_000)} for 1 network,")


def test_numbers_are_said_in_a_unit_that_fits() -> None:
    assert [size(n) for n in (1, 2**20, 3 * 2**29)] == ["1 MiB", "1 MiB", "1.5 GiB"]


GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("busy", "tensors", "cores", "at_once"),
    [
        (0.11, 36 * 2**20, 16, 9),  # of an H100: eight at a time make 4.6 times the steps of one
        (0.11, 36 * 2**20, 4, 4),  # a core each
        (0.11, 30 * 2**30, 16, 2),  # 72 GiB are given out
        (0.11, 90 * 2**30, 16, 1),
        (0.9, 36 * 2**20, 16, 1),  # nothing is gained where it is busy
    ],
)
def test_as_many_trainings_share_a_gpu_as_it_has_pauses_memory_and_cores_for(
    toy_plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    busy: float,
    tensors: int,
    cores: int,
    at_once: int,
) -> None:
    config = toy_plan.runs[0].config
    pace = Pace(config, step=1.0, steps=5, subject=1.0, packed=0, busy=busy, tensors=tensors)
    monkeypatch.setattr(estimates, "memory_of", lambda device: 80 * 2**30)
    monkeypatch.setattr(estimates, "default_jobs", lambda d: cores if d.type == "cpu" else 1)
    assert estimates.jobs_that_fill(pace, GPU) == at_once
    monkeypatch.setattr(estimates, "default_jobs", lambda d: 4 * cores if d.type == "cpu" else 4)
    assert estimates.jobs_that_fill(pace, torch.device("cuda")) == 4 * at_once


def test_steps_are_timed_once_and_fill_the_gpu_where_nobody_says_otherwise(
    toy_plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed = []
    config = toy_plan.runs[0].config
    pace = Pace(config, step=1.0, steps=5, subject=1.0, packed=0, busy=0.5)
    monkeypatch.setattr(estimates, "pace_of", lambda plan, device: timed.append(1) or pace)
    monkeypatch.setattr(estimates, "memory_of", lambda device: 80 * 2**30)
    monkeypatch.setattr(estimates, "default_jobs", lambda d: 16 if d.type == "cpu" else 1)
    for jobs, at_once in ((None, 2), (3, 3)):
        said = estimates.estimates(toy_plan, 2**30, {}, GPU, jobs, tmp_path)
        # a gibibyte a step, and the 800 MiB of a process
        memory = f"{size(at_once * (2**30 + estimates.CONTEXT))} with {at_once} trainings at a time"
        assert memory in said[0].text
        assert f"4 trainings, {at_once} at a time" in said[1].text
    assert len(timed) == 2


def test_on_gpus_more_processes_than_fill_them_are_no_faster(
    toy_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace(toy_plan.runs[0].config, step=1.0, steps=5, subject=10.0, packed=0, busy=0.5)
    monkeypatch.setattr(estimates, "default_jobs", lambda device: 1)
    missing = [*toy_plan.sources, *toy_plan.runs]
    for jobs, rate in ((1, 1), (2, 2), (4, 2)):
        said = estimates._time(missing, pace, GPU, jobs).text
        assert said.startswith(f"about {duration((16 + 3 * 46) / rate)} for 4 trainings, {jobs} at")
