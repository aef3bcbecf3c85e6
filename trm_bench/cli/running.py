"""Commands that train, or say what would be trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from trm_bench.cli.options import (
    Device,
    Jobs,
    Names,
    On,
    Out,
    Phantom,
    ProtocolName,
    Settings,
    app,
    example,
    load,
    out,
    split,
    written,
)
from trm_bench.plurals import counted

MOST_TRANSFERS = 4  # that have a column of their own on a terminal


@app.command(
    epilog=example("trm-bench run fets_cross_modality --phantom --methods finetune,trm --jobs 2")
)
def run(
    protocol: ProtocolName,
    settings: Settings = None,
    methods: Names = None,
    seeds: Names = None,
    transfers: Names = None,
    device: Device = "auto",
    out_dir: Out = Path("results"),
    phantom: Phantom = False,
    jobs: Jobs = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained, and stop.")
    ] = False,
    tuned: Annotated[
        Path | None, typer.Option("--tuned", help="The tuned.yaml of a sweep of this protocol.")
    ] = None,
    borrow: Annotated[
        bool, typer.Option("--borrow", help="Take --tuned of another protocol; tables say so.")
    ] = False,
    training_of: Annotated[
        str, typer.Option(metavar="METHOD", help="Of --tuned, only its training, for all methods.")
    ] = "",
    on: On = None,
) -> None:
    """Run a protocol: train what is missing, then write the table. The same command resumes."""
    from trm_bench import pipeline
    from trm_bench.display import Display
    from trm_bench.runs.folders import ResultsFolder

    loaded = load(protocol, settings, phantom, methods, seeds, transfers)
    folder = ResultsFolder(out_dir.absolute() if on else out_dir).protocol(loaded.name)
    loaded, taken = _with_tuned(loaded, tuned, borrow, training_of)
    names = split(transfers)
    with _executor(on, device, jobs, folder) as executor:
        if dry_run:
            with Display() as display:
                _, plan = pipeline.planned(
                    loaded, folder, phantom, names, executor, jobs, display, taken
                )
            _print_plan(plan)
            return
        outcome = pipeline.run(
            loaded,
            folder.results.path,
            stand_in=phantom,
            transfers=names,
            jobs=jobs,
            display=Display(),
            tuned=taken,
            executor=executor,
        )
    _print_outcome(outcome, loaded)
    if outcome.states.get("failed"):
        from trm_bench.cli.looking import tell_failures

        tell_failures(outcome.folder)
        raise typer.Exit(1)


def _with_tuned(
    protocol: Any, tuned: Path | None, borrow: bool, training_of: str
) -> tuple[Any, Any]:
    """A protocol with the values of a tuned.yaml, and what it takes of that file."""
    from trm_bench.errors import UserError
    from trm_bench.runs.records import Taken
    from trm_bench.runs.store import read_tuned
    from trm_bench.sweep.tuned import applied

    if tuned is None:
        given = "--borrow" if borrow else "--training-of" if training_of else ""
        if given:
            fix = f"name the {'other ' if borrow else ''}tuned.yaml with --tuned"
            raise UserError("takes nothing", given, fix)
        return protocol, None
    taken = Taken(read_tuned(tuned), training_of)
    return applied(protocol, taken, tuned, borrow), taken


@contextmanager
def _executor(on: str | None, device: str, jobs: int | None, folder: Any) -> Iterator[Any]:
    """Where trainings run: on this machine, or on a cluster."""
    if on is None:
        from trm_bench import environment
        from trm_bench.runs.executors import LocalPool

        with LocalPool(environment.device_of(device), jobs) as pool:
            yield pool
        return
    from trm_bench.cluster.engine import connected
    from trm_bench.cluster.executor import DaskExecutor
    from trm_bench.display import Display

    display = Display()
    with connected(on, device, display.say) as engine:
        yield DaskExecutor(engine, folder.path, display.warn)


def _print_plan(plan: Any) -> None:
    for name, jobs in (("source networks", plan.sources), ("runs", plan.runs)):
        table = Table("id", name, "state")
        for job in jobs:
            table.add_row(job.id, job.title, "done" if job.is_done() else "to do")
        out.print(table)


def _print_outcome(outcome: Any, protocol: Any) -> None:
    folder = outcome.folder
    summary = json.loads(folder.report("summary.json").read_text(encoding="utf-8"))
    out.print(_scores(summary, protocol.metrics[0]))
    out.print(summary["finding"], markup=False, highlight=False)
    states = ", ".join(f"{counted(n, 'run')} {s}" for s, n in sorted(outcome.states.items()))
    out.print(states, highlight=False)
    places = {
        "report": folder.report("report.html"),
        "all reports": folder.results.index,
        "table": folder.report("table.md"),
        "figures": folder.figures,
        "records": folder.records,
        "all numbers": folder.report("metrics.csv"),
    }
    there = {name: place for name, place in places.items() if place.exists()}
    _print_places(protocol, folder, there)


def _scores(summary: dict[str, Any], metric: str) -> Table:
    """The main table as a terminal shows it; table.md and the report have all of it."""
    from trm_bench.report.comparison import Estimate

    methods = summary["metrics"][metric]
    transfers = list(next(iter(methods.values()))["per_transfer"])
    shown = transfers if 1 < len(transfers) <= MOST_TRANSFERS else []
    numbers = [*shown, "mean", "gain [95 % interval]"]
    title = f"{summary['protocol']}: {metric} [{summary['units'][metric]}]"
    if summary["data"] == "phantom":
        title += " of a phantom"
    table = Table(
        Column("method", overflow="fold"),
        *(Column(escape(name), justify="right", overflow="fold") for name in numbers),
        title=escape(title),
        caption=escape(f"gain over {summary['reference']}, in {_points(summary['units'][metric])}"),
    )
    for method, row in methods.items():
        values = [_number(row["per_transfer"][t]) for t in shown]
        mean = _number(row["mean"])
        if row["sd_over_seeds"] is not None:
            mean += f" ± {row['sd_over_seeds']:.2f}"
        gain = Estimate.of(row["gain"], tuple(row["gain_interval"])).shown(signed=True)
        own = "-" if method == summary["reference"] else gain
        table.add_row(escape(method), *values, mean, own)
    return table


def _points(unit: str) -> str:
    """The unit of differences."""
    return "points" if unit == "%" else unit


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _print_places(protocol: Any, folder: Any, places: dict[str, Any]) -> None:
    """Where what a command left is to be found, and how to open the tracking store."""
    from trm_bench.report.tracking import Store

    if protocol.tracking != "off":
        places = places | {"MLflow": Store(folder.results).ui}
    for name, where in places.items():
        written(f"{name:12} {where}")


@app.command(epilog=example("trm-bench sweep hippocampus_cross_task --trials 24 --methods trm"))
def sweep(
    protocol: ProtocolName,
    settings: Settings = None,
    trials: Annotated[int | None, typer.Option(min=1, max=10_000, help="Of each method.")] = None,
    methods: Names = None,
    seeds: Names = None,
    transfers: Names = None,
    device: Device = "auto",
    out_dir: Out = Path("results"),
    phantom: Phantom = False,
    jobs: Jobs = None,
    export_study: Annotated[
        str | None,
        typer.Option(metavar="URL|FILE.log", help="Copy the studies to this Optuna storage."),
    ] = None,
    on: On = None,
) -> None:
    """Tune every method with the same budget, on validation subjects. The same command resumes."""
    from trm_bench import urls
    from trm_bench.display import Display
    from trm_bench.runs.folders import ResultsFolder
    from trm_bench.sweep import driver, export, tuned

    loaded = load(protocol, settings, phantom, methods)
    loaded = driver.with_budget(loaded, trials, split(seeds), split(transfers))
    folder = ResultsFolder(out_dir.absolute() if on else out_dir).protocol(loaded.name)
    with _executor(on, device, jobs, folder) as executor:
        outcome = driver.sweep(
            loaded,
            folder.results.path,
            stand_in=phantom,
            jobs=jobs,
            display=Display(),
            executor=executor,
        )
    for line in tuned.lines(outcome.tuned):
        written(line)
    swept = outcome.folder.sweep
    places = {"report": swept / "report.html", "trials": swept / "trials.csv"}
    _print_places(loaded, outcome.folder, places)
    where = outcome.folder.tuned
    text = f"use it with run {protocol} --tuned {where}"
    written(text)
    if export_study is not None:
        names = export.export(outcome.folder, export_study)
        studies = counted(len(names), "study is", "studies are")
        text = f"{studies} in {urls.shown(export_study)}"
        written(text)
    if any(m.trial is None for m in outcome.tuned.methods):
        raise typer.Exit(1)


@app.command(epilog=example("trm-bench check fets_cross_modality --phantom --jobs 2"))
def check(
    protocol: ProtocolName,
    settings: Settings = None,
    methods: Names = None,
    seeds: Names = None,
    transfers: Names = None,
    device: Device = "auto",
    out_dir: Out = Path("results"),
    phantom: Phantom = False,
    jobs: Jobs = None,
) -> None:
    """Do everything that a run would, but train, and estimate its time, memory and disk.

    Schema, methods, data, splits and networks are checked; a few training steps are timed.
    """
    from trm_bench import checks, environment
    from trm_bench.display import Display

    loaded = load(protocol, settings, phantom, methods, seeds, transfers)
    chosen, names = environment.device_of(device), split(transfers)
    for name, text, good in checks.check(loaded, out_dir, phantom, chosen, Display(), names, jobs):
        out.print("[green]ok  [/green]" if good else "[yellow]warn[/yellow]", end="  ")
        written(f"{name:12} {text}")
