"""One command from protocol to table.

Prepare, plan, train what is missing, audit, report, track.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trm_bench import estimates, networks, report
from trm_bench.analysis import audit
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.formats import has_sound_bf16
from trm_bench.methods.registry import REGISTRY, create, trainable
from trm_bench.plurals import counted
from trm_bench.preparing import Data, open_data
from trm_bench.protocol import Protocol, load_protocol
from trm_bench.protocol.choices import choose_methods, choose_seeds, refuse_borrowed_labels
from trm_bench.protocol.transfers import choose_transfers, refuse_unknown
from trm_bench.report import mlflow, settled
from trm_bench.report.tracking import Store
from trm_bench.runs import execute, health, keeping, savepoints
from trm_bench.runs.executors import Event, Executor, Failure, Listen, LocalPool, Task
from trm_bench.runs.folders import ProtocolFolder, ResultsFolder
from trm_bench.runs.locks import only_one
from trm_bench.runs.plan import Plan, Planner, refuse_misfit
from trm_bench.runs.records import StoredPlan, Taken
from trm_bench.runs.store import read_record, read_results, write_plan
from trm_bench.training.compiling import require_compiler


@dataclass(frozen=True)
class Outcome:
    """What a benchmark did.

    Attributes:
        folder: Of the protocol's results.
        states: Number of runs by state (`finished`, `diverged`, `failed`).
    """

    folder: ProtocolFolder
    states: dict[str, int]


def load(
    name: str,
    settings: Sequence[str] = (),
    phantom: bool = False,
    methods: Sequence[str] = (),
    seeds: Sequence[str] = (),
    transfers: Sequence[str] = (),
) -> Protocol:
    """A protocol with what a command chooses of it; nothing is made or opened.

    Args:
        name: A file, or a bundled protocol.
        settings: `key.path=value`.
        phantom: Apply the protocol's settings for the stand-in.
        methods: Labels; `all` alone: all that can train the protocol's network.
        seeds: Numbers.
        transfers: Names that are going to be asked for; see `protocol.transfers.refuse_unknown`.

    Raises:
        UserError: Something is not as it must be.
    """
    protocol = load_protocol(name, settings, phantom)
    if list(methods) == ["all"]:
        methods = [*(m.label for m in protocol.methods), *trainable(protocol)]
    if methods:
        protocol = choose_methods(protocol, methods, REGISTRY.names())
    refuse_borrowed_labels(protocol, REGISTRY.names())
    for index, chosen in enumerate(protocol.methods):
        for one in (chosen, *map(chosen.at, chosen.per_transfer)):
            create(chosen.name, one.parameters, f"methods.{index}")
    refuse_unknown(protocol, transfers)
    return choose_seeds(protocol, seeds) if seeds else protocol


def run(
    protocol: Protocol,
    output: Path,
    *,
    stand_in: bool = False,
    transfers: Sequence[str] = (),
    jobs: int | None = None,
    display: Display | None = None,
    pages: bool = True,
    tuned: Taken | None = None,
    executor: Executor | None = None,
) -> Outcome:
    """Runs a protocol; what has been done before is not done again.

    Args:
        protocol: Resolved.
        output: The folder of the results.
        stand_in: Use the phantom instead of the real data.
        transfers: Names of the transfers to run; all where empty.
        jobs: Trainings on the CPU at a time, and subjects that are prepared; by default one a core.
        display: Where progress is shown.
        pages: Draw charts and report.html too, which takes some seconds.
        tuned: What the protocol's methods have of a sweep.
        executor: Where trainings run, if elsewhere.

    Raises:
        UserError: Protocol, data or folder are not as they must be; nothing has been trained then.
    """
    executor = executor or LocalPool(torch.device("cpu"), jobs)
    display, folder = display or Display(quiet=True), ResultsFolder(output).protocol(protocol.name)
    with only_one(folder, display.warn), display:
        data, plan = planned(protocol, folder, stand_in, transfers, executor, jobs, display, tuned)
        ended = {job.id for job in (*plan.sources, *plan.runs) if job.is_done()}  # reads all files
        done = len(ended) == len(plan.sources) + len(plan.runs)
        if not done:
            with display.phase("checking networks"):
                check_networks(protocol, plan)
            fill(executor, plan, jobs, display)
        _store_plan(protocol, folder, data, plan, display, tuned)
        if done and pages and settled.is_settled(folder, _tracked(protocol, folder)):
            display.say("nothing to do: all runs are finished, and their report is written")
            return Outcome(folder, _states(plan))
        with mlflow.tracker(protocol, folder, display) as tracked:
            for job in plan.runs:
                if job.id in ended:
                    tracked.hear(Event(job.id, "done"))
            train(plan, executor, display, tracked.hear)
            if said := keeping.settle(folder, protocol.keep):
                display.warn(said)
            judged = _audit(folder, data, executor, display)
            with display.phase("writing tables, figures and pages"):
                if pages:
                    report.write_pages(folder.path)
                    report.write_index(folder.results)
                else:
                    report.write(folder)
        states = _states(plan)
        if pages and judged and tracked.whole and "failed" not in states:
            settled.settle(folder, _tracked(protocol, folder))
    return Outcome(folder, states)


def _tracked(protocol: Protocol, folder: ProtocolFolder) -> str:
    """Where the runs of a protocol are tracked, and whether our own store is there."""
    if protocol.tracking == "off":
        return ""
    store = Store(folder.results)
    return store.shown if not store.own or store.path.is_file() else "nowhere"


def _store_plan(
    protocol: Protocol,
    folder: ProtocolFolder,
    data: Data,
    plan: Plan,
    display: Display,
    tuned: Taken | None,
) -> None:
    stored = StoredPlan(
        protocol=protocol,
        data=data.kind,
        settings=plan.settings,
        left_out=tuple(data.left_out),
        cells=tuple(plan.cells),
        tuned=tuned and tuned.note(protocol.name, plan.conditions),
    )
    health.set_aside(health.of_plan(folder).damaged, display.warn)
    kept, dropped = write_plan(folder, stored)
    if kept or dropped:
        earlier = f"{counted(kept, 'cell')} of earlier commands in the table"
        display.say(f"{earlier}, {dropped} of other settings left out")


def planned(
    protocol: Protocol,
    folder: ProtocolFolder,
    stand_in: bool,
    transfers: Sequence[str],
    executor: Executor,
    jobs: int | None,
    display: Display,
    tuned: Taken | None = None,
) -> tuple[Data, Plan]:
    """What `run` would do, without training: the data, prepared, and the plan.

    Raises:
        UserError: Something is not as it must be, or `tuned` no longer fits.
    """
    data = open_data(protocol, folder.results, stand_in, jobs, display, transfers)
    chosen = choose_transfers(protocol, data.datasets, transfers)
    place = executor.device, executor.has_bf16
    planner = Planner(protocol, data.cohorts, data.imported, folder, data.kind, *place)
    plan = planner.plan(chosen)
    if tuned:
        refuse_misfit(tuned, plan, data.kind, borrowed=tuned.is_borrowed(protocol.name))
    return data, plan


def fill(executor: Executor, plan: Plan, jobs: int | None, display: Display) -> None:
    """Has a pool on GPUs of this machine train as many at a time as fill them."""
    if jobs is None and isinstance(executor, LocalPool) and executor.device.type == "cuda":
        with display.phase("timing a few steps, to see how many trainings fill a GPU"):
            pace = estimates.pace_of(plan, executor.device)
            executor.jobs = estimates.jobs_that_fill(pace, executor.device)
        display.say(f"{counted(executor.jobs, 'training')} at a time")


def check_networks(protocol: Protocol, plan: Plan) -> int:
    """Builds every network of a plan and passes a patch through it on paper.

    Returns:
        Bytes of the largest training step.

    Raises:
        UserError: A network refuses its arguments or its patch, or a method the network, so that
            a run would fail.
    """
    configs = [job.config for job in (*plan.sources, *plan.runs)]
    shapes = {(c.kind, len(c.domain.images), len(c.domain.classes)): c for c in configs}
    methods = [create(chosen.name, chosen.parameters) for chosen in protocol.methods]
    largest = 0
    for (_, channels, classes), config in sorted(shapes.items(), key=lambda item: item[0]):
        parts = networks.parts(config.network, channels, config.spatial_dims)
        network = networks.build(config.network, channels, classes, config.spatial_dims, seed=0)
        for method in methods:
            method.check(network, parts)
        device = torch.device(config.device)
        size = 2 if config.training.precision == "bf16" else 4
        if size == 2 and not has_sound_bf16(device):
            _refuse_two_deep(networks.two_deep(config.network, config.training, channels, classes))
        if config.training.compile:
            require_compiler(device)
        needed = networks.training_bytes(config.network, config.training, channels, classes, size)
        largest = max(largest, needed)
    return largest


def _refuse_two_deep(layers: Sequence[str]) -> None:
    if layers:
        raise UserError(
            "on this processor bf16 gives wrong gradients where features are two voxels deep: "
            f"layer {layers[0]}",
            "training.*.precision",
            "choose fp32, or a patch of another depth (its first number)",
        )


def train(
    plan: Plan,
    executor: Executor,
    display: Display,
    track: Listen = lambda event: None,
    runs: str = "runs",
) -> None:
    """Trains what is missing; a run whose source failed is recorded as failed.

    Args:
        plan: The jobs.
        executor: Where they run.
        display: Where progress is shown.
        track: Hears of the runs, and not of the sources.
        runs: What they are called there.
    """
    stages = {"source networks": plan.sources, runs: plan.runs}
    found = {job.id: job.health() for jobs in stages.values() for job in jobs}
    missing = {name: [j for j in jobs if not found[j.id].done] for name, jobs in stages.items()}
    savepoints.forget(
        job.savepoint for jobs in stages.values() for job in jobs if found[job.id].done
    )
    for name, jobs in stages.items():
        if done := len(jobs) - len(missing[name]):
            display.say(f"{name}: {done} of {len(jobs)} done already")
    jobs_by_id = {job.id: job for jobs in missing.values() for job in jobs}
    if not jobs_by_id:
        return
    health.set_aside((error for job in jobs_by_id for error in found[job].damaged), display.warn)
    # sources come first in the dictionary, so that a task stands after the one it depends on
    tasks = [
        Task(i, execute.do, (job,), (job.source,) if job.source in jobs_by_id else (), job.cost)
        for i, job in jobs_by_id.items()
    ]
    failures: dict[str, Failure] = {}
    with (
        display.stage("source networks", len(missing["source networks"])) as of_sources,
        display.stage(runs, len(missing[runs]), then="testing") as of_runs,
    ):

        def listen(event: Event) -> None:
            job = jobs_by_id[event.task]
            is_source = job.config.kind == "source"
            if event.kind == "skipped":
                before = failures[event.value]
                reason = f"its source network failed: {before.reason}"
                event = Event(event.task, "failed", replace(before, reason=reason))
            if event.kind == "failed":
                failures[job.id] = event.value
            (of_sources if is_source else of_runs).hear(event, job.title)
            if is_source:
                return
            if event.kind == "failed":
                execute.failed(job, event.value, executor.device)
            track(event)

        executor.run(tasks, listen)


def _audit(folder: ProtocolFolder, data: Data, executor: Executor, display: Display) -> bool:
    """Judges voxel by voxel what is finished; one that fails is a warning, as the runs stand.

    Returns:
        Whether none failed.
    """
    results = read_results(folder)
    for error in results.damaged.values():  # of an earlier command's methods, which stay its own
        display.warn(str(error))
    health.set_aside(health.of_audits(folder, results.cells).damaged, display.warn)
    missing = audit.pending(results, data.cohorts)
    if not missing:
        return True
    titles = {str(work.result): work.title for work in missing}
    ends: list[Event] = []
    with display.stage("voxel-level audits", len(missing)) as stage:
        tasks = [
            Task(str(work.result), audit.audit, (work,), cost=len(work.test) * len(work.records))
            for work in missing
        ]

        def listen(event: Event) -> None:
            stage.hear(event, titles[event.task])
            ends.append(event)

        executor.run(tasks, listen)
    return not any(event.kind == "failed" for event in ends)


def _states(plan: Plan) -> dict[str, int]:
    states: dict[str, int] = {}
    for job in plan.runs:
        record = read_record(job.result)
        state = record.state if record else "failed"
        states[state] = states.get(state, 0) + 1
    return states
