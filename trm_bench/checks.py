"""What can be known without training: would a protocol run, and are its data sound?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from trm_bench import estimates, pipeline, prospects
from trm_bench.display import Display
from trm_bench.errors import BadSubject
from trm_bench.inputs import ensure_writable
from trm_bench.plurals import counted
from trm_bench.preparing import open_sets
from trm_bench.protocol import Protocol
from trm_bench.protocol.transfers import in_play
from trm_bench.runs.executors import LocalPool
from trm_bench.runs.folders import ResultsFolder


def check(
    protocol: Protocol,
    output: Path,
    stand_in: bool,
    device: torch.device,
    display: Display,
    transfers: Sequence[str] = (),
    jobs: int | None = None,
) -> Iterator[tuple[str, str, bool]]:
    """Does all that a run would, but train; yields what was found, as (name, text, good).

    Args:
        protocol: Resolved.
        output: The folder of the results, where the data are prepared.
        stand_in: Use the phantom instead of the real data.
        device: Where it is to run.
        display: Where progress is shown.
        transfers: Names of the transfers to run; all where empty.
        jobs: Trainings at a time.

    Raises:
        UserError: At the first thing that would stop the run.
    """
    methods, seeds = len(protocol.methods), len(protocol.seeds)
    text = f"{protocol.name}: {counted(methods, 'method')}, {counted(seeds, 'seed')}"
    yield "schema", text, True
    yield "methods", ", ".join(m.label for m in protocol.methods), True
    folder = ResultsFolder(output).protocol(protocol.name)
    ensure_writable(output)
    pool = LocalPool(device, jobs)
    with display:
        data, plan = pipeline.planned(protocol, folder, stand_in, transfers, pool, jobs, display)
    left_out = f", {len(data.left_out)} left out" if data.left_out else ""
    listed = "; ".join(
        f"{cohort.dataset.name}: {counted(len(cohort.subjects), 'subject')} readable and prepared"
        for cohort in data.cohorts.values()
    )
    yield "data", listed + left_out, True
    parts = {part: len(members) for part, members in plan.runs[0].config.subjects.parts().items()}
    if plan.sources:
        parts["source"] = len(plan.sources[-1].config.subjects.train)
    sizes = ", ".join(f"{part} {size}" for part, size in parts.items())
    yield "split", f"{protocol.split.design}: {sizes}; no patient on two sides", True
    done = sum(job.is_done() for job in (*plan.sources, *plan.runs))
    jobs_of = f"{counted(len(plan.sources), 'source network')} and {counted(len(plan.runs), 'run')}"
    yield "plan", f"{jobs_of}, {done} of them done", True
    yield "power", prospects.line(prospects.of_plan(protocol, plan)), True
    needed = pipeline.check_networks(protocol, plan)
    for found in estimates.estimates(plan, needed, data.cohorts, device, jobs, output):
        yield found.name, found.text, found.suffices


def check_data(protocol: Protocol, display: Display) -> tuple[int, list[BadSubject]]:
    """Reads every subject of the real data.

    Returns:
        Number of usable subjects, and what is wrong with the others.

    Raises:
        UserError: The folder does not hold the dataset.
    """
    opened = open_sets(protocol, None, display)
    subjects = [
        (dataset, subject, in_play(protocol, data, dataset))
        for data, dataset in opened.items()
        for subject in dataset.subjects()
    ]
    bad = []
    with display, display.stage("reading subjects", len(subjects)) as stage:
        for dataset, subject, modalities in subjects:
            try:
                dataset.read(subject, modalities)
            except BadSubject as error:
                bad.append(error)
            stage.advance()
    return len(subjects) - len(bad), bad
