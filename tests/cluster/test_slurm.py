"""Runs on a real SLURM: the same files as on one machine, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import toy

pytest.importorskip("distributed", reason="needs trm-bench[cluster]")

import psutil
from loopback import LONGEST, until
from slurm import Slurm

from trm_bench.cluster.folder import ClusterFolder

pytestmark = pytest.mark.slow

WORKERS = 4
JOBS = 8  # of the protocol: two source networks and six runs
SAME = ("table.md", "metrics.csv", "summary.json", "comparisons.csv")
STEPS = 150  # of a training: seconds, so that a kill meets it


Starts = Callable[[], Counter[str]]


@dataclass
class Site:
    """A cluster that `trm-bench cluster slurm` started.

    Attributes:
        slurm: That it runs on.
        folder: Of the cluster.
        protocol: What is run on it.
        scheduler: Id of its job.
        workers: Id of theirs.
    """

    slurm: Slurm
    folder: ClusterFolder
    protocol: Path
    scheduler: str = ""
    workers: str = ""

    def command(self, *arguments: object) -> subprocess.Popen[str]:
        """Starts `trm-bench`."""
        return subprocess.Popen(
            [sys.executable, "-m", "trm_bench", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.slurm.environment | {"PYTHONFAULTHANDLER": "1"},
            cwd=self.protocol.parent,
        )

    def run(self, out: Path) -> subprocess.Popen[str]:
        """Starts a run on the cluster."""
        return self.command("run", self.protocol, "--on", self.folder.path, "--out", out)

    def start(self) -> None:
        """Submits scheduler and workers, and waits for all of these."""
        options = ("--workers", WORKERS, "--folder", self.folder.path)
        code, said = ended(self.command("cluster", "slurm", *options))
        assert code == 0, said
        self.scheduler, self.workers = re.findall(r"job (\d+)", said)
        until(lambda: len(self.at_work()) == WORKERS, f"workers: {self.log()}")

    def at_work(self) -> list[Any]:
        """The processes that have registered as workers."""
        named = re.findall(r"Register worker addr.* name: \S+-(\d+)-0", self.log("scheduler"))
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            # each is named by the process that keeps it
            if (
                "--one" in line
                and str(self.folder.path) in line
                and line[-1].split("-")[-2] in named
            ):
                found.append(process)
        return found

    def log(self, kind: str = "workers") -> str:
        """What all schedulers or all workers said."""
        files = sorted(self.folder.logs.glob(f"trm-bench-{kind}-*.log"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def begun(self) -> Counter[str]:
        """How often each source network and each run was begun, in all tests together."""
        return Counter(re.findall(r"([0-9a-f]{16}) begins", self.log()))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said = process.communicate(timeout=2 * LONGEST)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # where it hangs, by PYTHONFAULTHANDLER
        process.wait(LONGEST)
        pytest.fail(f"it did not end: {os.read(process.stdout.fileno(), 65536).decode()}")  # type: ignore[union-attr]
    return process.returncode, said


def claims(out: Path) -> dict[str, int]:
    """Jobs that are at work now, with the processes that hold their claims."""
    found = {}
    for path in (out / "toy" / "records").glob("*.claim"):
        try:
            found[path.name.split(".")[0]] = int(json.loads(path.read_text())["process"])
        except (OSError, ValueError, KeyError):
            continue
    return found


def one_at_work(out: Path) -> tuple[str, int]:
    """A run that is being trained, and its worker."""
    until(lambda: claims(out), "a run")
    return next(iter(claims(out).items()))


def job_of(worker: int) -> str:
    """A worker's job, by its index: its own id may be that of the whole array."""
    environment = psutil.Process(worker).environ()
    return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    training = toy.protocol(toy_data)["training"]
    target = training["target"] | {"steps": STEPS}
    return toy.write_protocol(
        tmp_path_factory.mktemp("protocol") / "toy.yaml",
        toy_data,
        seeds=[0, 1],
        training=training | {"target": target},
    )


@pytest.fixture(scope="module")
def site(slurm: Slurm, protocol: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = ClusterFolder.at(tmp_path_factory.mktemp("site") / "a cluster")
    made = Site(slurm, folder, protocol)
    made.start()
    yield made
    slurm("scancel", made.scheduler, made.workers)
    slurm.wait(lambda: not slurm("squeue", "-h"), "jobs do not end")


@pytest.fixture(scope="module")
def alone(site: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one machine leaves."""
    out = tmp_path_factory.mktemp("alone")
    code, said = ended(site.command("run", site.protocol, "--jobs", 1, "--out", out))
    assert code == 0, said
    return left(out)


@pytest.fixture
def starts(site: Site) -> Starts:
    """How often each source network and each run was begun in this test."""
    before = site.begun()
    return lambda: site.begun() - before


def left(out: Path) -> dict[str, bytes]:
    assert not list(out.rglob("*.claim"))
    return {name: (out / "toy" / name).read_bytes() for name in SAME}


def test_each_worker_has_a_gpu_of_its_own(site: Site) -> None:
    seen = {
        (p.environ()["SLURMD_NODENAME"], p.environ()["CUDA_VISIBLE_DEVICES"])
        for p in site.at_work()
    }
    assert seen == {("n0", "0"), ("n0", "1"), ("n1", "0"), ("n1", "1")}


def test_the_table_is_that_of_one_machine(
    site: Site, alone: dict[str, bytes], starts: Starts, tmp_path: Path
) -> None:
    code, said = ended(site.run(tmp_path))
    assert code == 0, said
    assert left(tmp_path) == alone
    assert len(starts()) == JOBS and set(starts().values()) == {1}


def test_a_worker_that_is_killed_is_replaced(
    site: Site, alone: dict[str, bytes], starts: Starts, tmp_path: Path
) -> None:
    process = site.run(tmp_path)
    run, worker = one_at_work(tmp_path)
    os.kill(worker, 9)
    code, said = ended(process)
    assert code == 0, said
    assert left(tmp_path) == alone
    begun = starts()
    assert begun.pop(run) == 2 and len(begun) == JOBS - 1 and set(begun.values()) == {1}
    until(lambda: len(site.at_work()) == WORKERS, "a worker in its place")


def test_the_same_command_goes_on_where_a_killed_one_was(
    site: Site, alone: dict[str, bytes], starts: Starts, tmp_path: Path
) -> None:
    process = site.run(tmp_path)
    one_at_work(tmp_path)
    process.kill()
    process.communicate()
    code, said = ended(site.run(tmp_path))
    assert code == 0, said
    assert left(tmp_path) == alone
    assert len(starts()) == JOBS and set(starts().values()) == {1}


def test_a_worker_near_its_time_limit_hands_on_and_is_queued_again(
    site: Site, alone: dict[str, bytes], starts: Starts, tmp_path: Path
) -> None:
    process = site.run(tmp_path)
    run, worker = one_at_work(tmp_path)
    job = job_of(worker)
    # what SLURM does two minutes before the time is over
    site.slurm("scancel", "--signal=USR1", "--batch", job)
    code, said = ended(process)
    assert code == 0, said
    assert left(tmp_path) == alone
    begun = starts()
    assert begun.pop(run) <= 2 and len(begun) == JOBS - 1 and set(begun.values()) == {1}
    again = f"job {job} is requeued"
    until(lambda: "Restarts=1" in site.slurm("scontrol", "show", "job", job), again)
    until(lambda: len(site.at_work()) == WORKERS, f"{again}, and at work")


def test_a_worker_job_that_is_cancelled_hands_on(
    site: Site, alone: dict[str, bytes], starts: Starts, tmp_path: Path
) -> None:
    process = site.run(tmp_path)
    run, worker = one_at_work(tmp_path)
    job = job_of(worker)
    site.slurm("scancel", job)
    code, said = ended(process)
    assert code == 0, said
    assert left(tmp_path) == alone
    begun = starts()
    assert begun.pop(run) <= 2 and len(begun) == JOBS - 1 and set(begun.values()) == {1}
    until(lambda: site.slurm.state(job) == {"CANCELLED"}, "the job is not queued again")


def test_a_scheduler_that_is_killed_is_no_failure_of_a_run(
    site: Site, alone: dict[str, bytes], tmp_path: Path
) -> None:
    process = site.run(tmp_path)
    one_at_work(tmp_path)
    (scheduler,) = (
        p
        for p in psutil.process_iter(["cmdline"])
        if "distributed.cli.dask_scheduler" in (line := p.info["cmdline"] or [])
        and str(site.folder.scheduler_file) in line
    )
    scheduler.kill()
    code, said = ended(process)
    assert code == 2 and "scheduler is gone" in said and "failed" not in said
    site.slurm.wait(lambda: not site.slurm("squeue", "-h"), "workers end", LONGEST)
    site.start()
    code, said = ended(site.run(tmp_path))
    assert code == 0, said
    assert left(tmp_path) == alone
