"""Steps a second of several trainings that share a device, by their number.

    TRM_DATA=FOLDER .venv/bin/python benchmarks/sharing.py study/hippocampus.yaml
                    [--device cuda] [--at-once 1 2 4 8 16] [--seconds 4] [--results sharing.json]

Each process trains the protocol's first run from scratch on a few subjects, over and over; all of
them begin together. Beside the curve stand a step and the share of it that kernels take, as `run`
times them to choose how many trainings fill a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

# in the place of this folder, whose statistics.py is not the standard library's
sys.path[0] = str(Path(__file__).parents[1])

import torch

from trm_bench import environment, estimates, pipeline
from trm_bench.display import Display
from trm_bench.runs import compute, execute
from trm_bench.runs.executors import Event, LocalPool, Task
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.plan import Job, Plan
from trm_bench.seeds import deterministic

STEPS = 20  # between looks at the clock
STARTED, READY = 60.0, 5.0  # seconds for processes to start, and to make a network and warm up


def trained(job: Job, start: float, seconds: float, device: torch.device, progress: Any) -> float:
    """Steps a second of one process, from `start`, seconds since the epoch."""
    deterministic(device)
    run, _ = compute.start(job.config, None, partial(execute.load_part, job, device), device)
    estimates.seconds_of_steps(run, STEPS, device)
    if (left := start - time.time()) < 0:
        raise RuntimeError(f"ready {-left:.1f} s late")
    time.sleep(left)
    steps, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        estimates.seconds_of_steps(run, STEPS, device)
        steps += STEPS
    return steps / passed


def curve(plan: Plan, device: torch.device, numbers: list[int], seconds: float) -> dict[int, float]:
    """Number of processes to the steps that they make a second together."""
    job, measured = estimates.few_subjects(plan.runs[0]), {}
    with LocalPool(device, max(numbers)) as pool:
        # a first time, long enough to start all processes, which stay
        for number, wait in [(max(numbers), STARTED), *((n, READY) for n in numbers)]:
            events: list[Event] = []
            start = time.time() + wait
            tasks = [Task(str(i), trained, (job, start, seconds)) for i in range(number)]
            pool.run(tasks, events.append)
            if failed := [event.value for event in events if event.kind == "failed"]:
                raise SystemExit(f"{number} at once: {failed[0]}")
            measured[number] = sum(event.value for event in events if event.kind == "done")
            print(f"{number} at once: {measured[number]:.1f} steps a second", flush=True)
    return {number: round(measured[number], 1) for number in numbers}


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("protocol")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    device, loaded = environment.device_of(given.device), pipeline.load(given.protocol)
    with tempfile.TemporaryDirectory() as made:
        folder = ResultsFolder(Path(made)).protocol(loaded.name)
        pool = LocalPool(device, 1)
        _, plan = pipeline.planned(loaded, folder, False, (), pool, None, Display())
        pace = estimates.pace_of(plan, device)
        found = {
            "protocol": given.protocol,
            "machine": environment.describe(device).model_dump(),
            "step_ms": round(1e3 * pace.step, 2),
            "kernels_share_of_a_step": round(pace.busy, 3),
            "steps_a_second": curve(plan, device, given.at_once, given.seconds),
        }
    print(json.dumps(found, indent=1))
    if given.results:
        given.results.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
