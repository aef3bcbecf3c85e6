"""How much of a whole benchmark's time is spent on training and testing."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from trm_bench import pipeline
from trm_bench.bench.timing import Row, Section, wall
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.preparing import open_sets
from trm_bench.runs.executors import default_jobs
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.records import Record
from trm_bench.runs.store import read_results

PROTOCOL, METHODS, SEEDS = "demo", ("scratch", "finetune", "trm"), ("0", "1")
# Trainings of some twenty seconds, as short as one that anybody waits for.
STEPS = {"training.source.steps": 1200, "training.target.steps": 800}
SETTINGS = ["tracking=off", *(f"{key}={steps}" for key, steps in STEPS.items())]
AT_HAND, TRAINING = "workers x time", "sources, training, testing"


def measure(device: torch.device, folder: Path, display: Display) -> Section:
    """Runs a part of the demo on the phantom, from the command to its pages, and adds up its runs.

    Args:
        device: Where it trains; a worker a core, or a GPU.
        folder: For its results.
        display: Where progress is shown.

    Raises:
        UserError: The command failed.
    """
    results, jobs = ResultsFolder(folder), default_jobs(device)
    loaded = pipeline.load(PROTOCOL, SETTINGS, True, METHODS, SEEDS)
    options = [f"--methods={','.join(METHODS)}", f"--seeds={','.join(SEEDS)}"]
    options += [f"--set={setting}" for setting in SETTINGS]
    options += ["--phantom", f"--out={folder}", f"--device={device}", f"--jobs={jobs}"]
    with display.phase(f"running {PROTOCOL}"):
        open_sets(loaded, results, Display(quiet=True))  # nobody makes their data in a benchmark
        passed = wall(torch.device("cpu"), lambda: _run(options))
    spent = trained_seconds([*read_results(results.protocol(loaded.name)).records.values()])
    steps = [str(number) for number in STEPS.values()]
    rows = (Row(AT_HAND, (jobs * passed,)), Row(TRAINING, (spent,)))
    note = (
        f"{PROTOCOL} with {', '.join(METHODS)}, {len(SEEDS)} seeds, {' and '.join(steps)} steps of "
        f"source and target, {jobs} workers, "
        f"{passed:.0f} s from the command to its pages. The rest: imports, preparation, loading, "
        "waiting for a source or for the last run, tables and pages."
    )
    return Section("a whole protocol", "protocol", rows, AT_HAND, note)


def _run(options: Sequence[str]) -> None:
    command = [sys.executable, "-m", "trm_bench", "run", PROTOCOL, *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = " ".join(ended.stderr.split())[-300:] or f"exit code {ended.returncode}"
        raise UserError(f"{PROTOCOL} failed: {said}", "bench", "try it by itself")


def trained_seconds(records: Sequence[Record]) -> float:
    """Seconds of all trainings and tests, with those of the source networks.

    These keep no times: each gets its steps times the seconds of a step of the runs, which train
    the same network on patches of the same size; the median over runs.
    """
    own = sum(record.seconds["train"] + record.seconds["test"] for record in records)
    step = statistics.median(r.seconds["train"] / r.config.training.steps for r in records)
    sources = {r.source.id: r.config.source_training for r in records if r.source is not None}
    return own + step * sum(source.training.steps for source in sources.values() if source)
