"""The sweep itself: propose a batch of trials of every method, train what is missing, go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from trm_bench import pipeline
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.preparing import open_data
from trm_bench.protocol.choices import choose_seeds
from trm_bench.protocol.schema import MethodConfig, Protocol, Transfer
from trm_bench.protocol.sweep import SweepConfig
from trm_bench.protocol.transfers import choose_transfers, refuse_unknown
from trm_bench.runs import health
from trm_bench.runs.executors import Executor, LocalPool
from trm_bench.runs.folders import ProtocolFolder, ResultsFolder
from trm_bench.runs.locks import only_one
from trm_bench.runs.plan import Plan, Planner
from trm_bench.runs.records import Budget, Record, Tuned
from trm_bench.runs.store import read_record, refuse_mixture
from trm_bench.seeds import seed_of
from trm_bench.sweep import mirror
from trm_bench.sweep.pages import write_sweep
from trm_bench.sweep.proposals import Trial, Values, propose
from trm_bench.sweep.space import Space, space_of
from trm_bench.sweep.tuned import entry, keep, with_settings

ATTEMPTS = 2  # at a run within a command: a process that was killed may do better the second time


@dataclass(frozen=True)
class Outcome:
    """What a sweep gave: the folder of the protocol's results, and what was tuned now."""

    folder: ProtocolFolder
    tuned: Tuned


@dataclass
class Study:
    """The trials of one method; of one transfer where each has its own values.

    Attributes:
        method: In the protocol.
        transfers: That a trial trains.
        space: Of the method.
        name: Of the one transfer, or None.
        trials: Trained so far, in order.
        records: Of their runs, by id.
    """

    method: MethodConfig
    transfers: tuple[Transfer, ...]
    space: Space
    name: str | None
    trials: list[Trial] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)

    def batch(self, config: SweepConfig) -> list[Values]:
        """The values of the next trials; they depend on the trials so far and nothing else."""
        first = len(self.trials)
        values: list[Values] = []
        for number in range(first, min(first + config.batch, config.trials)):
            axes = (config.seed, self.method.label, self.name or "", number)
            seed = seed_of("sweep", *axes)
            values.append(propose(self.space, self.trials, values, config.sampler, seed))
        return values

    def plan(self, planner: Planner, config: SweepConfig, values: Sequence[Values]) -> Plan:
        """The trainings of a batch: ordinary jobs without test subjects, on the sweep's seeds."""
        protocol, first = planner.protocol, len(self.trials)
        methods = tuple(
            with_settings(self.method, self.space.settings(v), _label(self.method, first + i))
            for i, v in enumerate(values)
        )
        changes = {"methods": methods, "seeds": config.seeds, "training": _trainings(protocol)}
        trials = replace(
            planner,
            protocol=protocol.model_copy(update=changes),
            tested=False,
            folds=config.folds,
        )
        return trials.plan(self.transfers)

    def read(self, plan: Plan, values: Sequence[Values]) -> None:
        """Adds the trials of a batch from the records that its trainings left."""
        first = len(self.trials)
        for number, of_trial in enumerate(values, first):
            label = _label(self.method, number)
            runs = [cell.run for cell in plan.cells if cell.method == label]
            by_id = {job.id: job for job in plan.runs}
            records = [record for run in runs if (record := read_record(by_id[run].result))]
            scores = [r.validation_dice for r in records if r.state == "finished"]
            dice = [score for score in scores if score is not None]
            score = sum(dice) / len(dice) if len(dice) == len(runs) else None
            self.records |= {record.id: record for record in records}
            self.trials.append(Trial(number, of_trial, score, tuple(runs)))


def _label(method: MethodConfig, number: int) -> str:
    return f"{method.label}.trial{number}"


def _trainings(protocol: Protocol) -> object:
    """The protocol's trainings with the steps of the sweep; source networks are the protocol's."""
    trainings, steps = protocol.training, protocol.sweep.steps or protocol.training.target.steps
    target = trainings.target.model_copy(update={"steps": steps})
    return trainings.model_copy(update={"target": target})


def with_budget(
    protocol: Protocol, trials: int | None, seeds: Sequence[str], transfers: Sequence[str]
) -> Protocol:
    """The protocol with what a command chooses of its sweep; the rest stays the protocol's.

    Raises:
        UserError: The seeds are not different whole numbers, or there is no such transfer.
    """
    changes: dict[str, object] = {} if trials is None else {"trials": trials}
    if seeds:
        changes["seeds"] = choose_seeds(protocol, seeds).seeds
    if transfers:
        changes["transfers"] = tuple(transfers)
    own = protocol.sweep.model_copy(update=changes)
    refuse_unknown(protocol, own.transfers or ())
    return protocol.model_copy(update={"sweep": own})


def sweep(
    protocol: Protocol,
    output: Path,
    *,
    stand_in: bool = False,
    jobs: int | None = None,
    display: Display | None = None,
    pages: bool = True,
    executor: Executor | None = None,
) -> Outcome:
    """Tunes the methods of a protocol; what has been trained before is not trained again.

    Args:
        protocol: Resolved; its `sweep` block is the budget.
        output: The folder of the results.
        stand_in: Use the phantom instead of the real data.
        jobs: Trainings on the CPU at a time, and subjects that are prepared; by default one a core.
        display: Where progress is shown.
        pages: Write the report of the sweep too, which takes some seconds.
        executor: Where trainings run, if elsewhere.

    Raises:
        UserError: Protocol, data or folder are not as they must be, or a source network failed.
    """
    executor = executor or LocalPool(torch.device("cpu"), jobs)
    display = display or Display(quiet=True)
    if protocol.split.design == "resampled":
        what = "with another split for each seed, test subjects of one are tuned on in another"
        fix = "sweep it with one split: --set split.design=fixed"
        raise UserError(what, "split.design", fix)
    folder, config = ResultsFolder(output).protocol(protocol.name), protocol.sweep
    spaces = [space_of(chosen, protocol.training.target, config) for chosen in protocol.methods]
    with only_one(folder, display.warn), display:
        names = config.transfers or ()
        data = open_data(protocol, folder.results, stand_in, jobs, display, names)
        refuse_mixture(folder, data.kind)
        transfers = choose_transfers(protocol, data.datasets, names)
        place = executor.device, executor.has_bf16
        planner = Planner(protocol, data.cohorts, data.imported, folder, data.kind, *place)
        without_tests = replace(planner, tested=False).plan(transfers)
        pipeline.check_networks(protocol, without_tests)
        pipeline.fill(executor, without_tests, jobs, display)
        health.set_aside(health.of_sweep(folder).damaged, display.warn)
        groups = [(t.name, (t,)) for t in transfers]
        studies = [
            Study(chosen, of_study, space, name)
            for chosen, space in zip(protocol.methods, spaces, strict=True)
            for name, of_study in (
                groups if config.per == "transfer" else [(None, tuple(transfers))]
            )
        ]
        conditions = planner.plan(()).conditions
        with mirror.tracker(protocol, folder, display, data.kind, conditions) as track:
            _train_all(studies, planner, executor, display, track)
            tuned = _written(studies, planner, transfers, conditions, display)
            if pages:
                write_sweep(folder)
    return Outcome(folder, tuned)


def _train_all(
    studies: Sequence[Study],
    planner: Planner,
    executor: Executor,
    display: Display,
    track: mirror.Track,
) -> None:
    """Batch by batch of all studies, until each has its trials."""
    config = planner.protocol.sweep
    for first in range(0, config.trials, config.batch):
        batches = [study.batch(config) for study in studies]
        plans = [
            study.plan(planner, config, values)
            for study, values in zip(studies, batches, strict=True)
        ]
        last = min(first + config.batch, config.trials) - 1
        name = f"trials {first} to {last} of {config.trials}"
        _train(_joined(plans), executor, display, name)
        for study, plan, values in zip(studies, plans, batches, strict=True):
            study.read(plan, values)
            track(study.method.label, study.name, study.trials, study.records)


def _joined(plans: Sequence[Plan]) -> Plan:
    """One plan of several, each job once."""
    sources = {job.id: job for plan in plans for job in plan.sources}
    runs = {job.id: job for plan in plans for job in plan.runs}
    return Plan(sources=list(sources.values()), runs=list(runs.values()))


def _train(plan: Plan, executor: Executor, display: Display, name: str) -> None:
    """Trains what is missing; what failed a second time stays failed, and the sweep goes on.

    Raises:
        UserError: A source network failed, without which no trial means anything.
    """
    for _ in range(ATTEMPTS):
        if all(job.is_done() for job in (*plan.sources, *plan.runs)):
            return
        pipeline.train(plan, executor, display, runs=name)
    if failed := [job for job in plan.sources if not job.is_done()]:
        runs = [job for job in plan.runs if job.source == failed[0].id]
        record = read_record(runs[0].result)
        raise UserError(
            record.reason if record else "its training failed",
            failed[0].title,
            "fix this and give the same command again: what is done stays done",
        )


def _written(
    studies: Sequence[Study],
    planner: Planner,
    transfers: Sequence[Transfer],
    conditions: dict[str, str],
    display: Display,
) -> Tuned:
    protocol, config = planner.protocol, planner.protocol.sweep
    budget = Budget(
        trials=config.trials,
        steps=config.steps or protocol.training.target.steps,
        seeds=config.seeds,
        transfers=tuple(transfer.name for transfer in transfers),
        folds=config.folds,
        tune_training=config.tune_training,
        per=config.per,
        sampler=config.sampler,
        batch=config.batch,
        seed=config.seed,
    )
    pairs = [
        entry(study.method, study.name, study.space, study.trials, list(study.records.values()))
        for study in studies
    ]
    tuned = Tuned(
        protocol=protocol.name,
        data=planner.data,
        budget=budget,
        conditions=conditions,
        methods=tuple(method for method, _ in pairs),
    )
    _, kept, dropped = keep(planner.folder, tuned, [swept for _, swept in pairs])
    if kept or dropped:
        earlier = f"{kept} methods of earlier sweeps stay in tuned.yaml"
        display.say(f"{earlier}, {dropped} of another budget or other data are left out")
    return tuned
