"""The command line: `trm-bench COMMAND`. Commands parse and print; the work is done elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trm_bench.errors import UserError

app = typer.Typer(
    name="trm-bench",
    help="A benchmark suite for negative transfer in medical image segmentation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Make and check data.")
app.add_typer(data_app, name="data")
out = Console()
err = Console(stderr=True)

ProtocolName = Annotated[
    str, typer.Argument(metavar="PROTOCOL", help="A YAML file, or the name of a bundled protocol.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Override a key of the protocol; repeatable."
    ),
]
Phantom = Annotated[
    bool, typer.Option("--phantom", help="Use the stand-in data instead of the real ones.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder of the results.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Trainings at a time; by default one a CPU core or GPU."),
]
Names = Annotated[str | None, typer.Option(metavar="A,B", help="Comma-separated choice.")]


def main() -> None:
    """Runs the command line; what a person can cause is one message and exit code 2."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except UserError as error:
        if debug:
            raise
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("stopped; the same command goes on where this one was", style="yellow")
        sys.exit(130)
    except OSError as error:  # a full disk, a folder that cannot be written
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        err.print(
            f"error: {where}{error.strerror or error}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        err.print(
            "  fix this and give the same command again: what is done stays done", style="red"
        )
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    if version:
        from trm_bench import __version__

        out.print(__version__)
        raise typer.Exit()


def _load(
    name: str,
    settings: list[str] | None,
    phantom: bool,
    methods: str | None = None,
    seeds: str | None = None,
) -> Any:
    from trm_bench import pipeline

    return pipeline.load(name, settings or [], phantom, _split(methods), _split(seeds))


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


@app.command()
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
) -> None:
    """Run a protocol: train what is missing, then write the table. The same command resumes."""
    from trm_bench import environment, pipeline
    from trm_bench.display import Display
    from trm_bench.runs.store import ResultsFolder, read_tuned
    from trm_bench.sweep.tuned import applied

    loaded = _load(protocol, settings, phantom, methods, seeds)
    chosen = environment.device_of(device)
    values = read_tuned(tuned) if tuned else None
    if values and tuned:
        loaded = applied(loaded, values, tuned)
    if dry_run:
        folder = ResultsFolder(out_dir).protocol(loaded.name)
        with Display() as display:
            _, plan = pipeline.planned(
                loaded, folder, phantom, _split(transfers), chosen, jobs, display, values
            )
        _print_plan(plan)
        return
    outcome = pipeline.run(
        loaded,
        out_dir,
        stand_in=phantom,
        transfers=_split(transfers),
        device=chosen,
        jobs=jobs,
        display=Display(),
        tuned=values,
    )
    _print_outcome(outcome)
    if outcome.states.get("failed"):
        raise typer.Exit(1)


def _print_plan(plan: Any) -> None:
    for name, jobs in (("source networks", plan.sources), ("runs", plan.runs)):
        table = Table("id", name, "state")
        for job in jobs:
            table.add_row(job.id, job.title, "done" if job.is_done() else "to do")
        out.print(table)


def _print_outcome(outcome: Any) -> None:
    from trm_bench.report import mlflow

    folder = outcome.folder
    table = folder.report("table.md").read_text(encoding="utf-8")
    out.print(table, markup=False, highlight=False, soft_wrap=True)
    states = ", ".join(f"{n} runs {state}" for state, n in sorted(outcome.states.items()))
    out.print(states, highlight=False)
    uri = mlflow.store_uri(folder)
    for name, where in (
        ("report", folder.report("report.html")),
        ("table", folder.report("table.md")),
        ("figures", folder.figures),
        ("records", folder.records),
        ("all numbers", folder.report("metrics.csv")),
        ("MLflow", f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1"),
    ):
        out.print(f"{name:12} {where}", soft_wrap=True, highlight=False)


@app.command()
def sweep(
    protocol: ProtocolName,
    settings: Settings = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Of each method.")] = None,
    methods: Names = None,
    seeds: Names = None,
    transfers: Names = None,
    device: Device = "auto",
    out_dir: Out = Path("results"),
    phantom: Phantom = False,
    jobs: Jobs = None,
) -> None:
    """Tune every method with the same budget, on validation subjects. The same command resumes."""
    from trm_bench import environment
    from trm_bench.display import Display
    from trm_bench.sweep import driver, tuned

    loaded = _load(protocol, settings, phantom, methods)
    loaded = driver.with_budget(loaded, trials, _split(seeds), _split(transfers))
    outcome = driver.sweep(
        loaded,
        out_dir,
        stand_in=phantom,
        device=environment.device_of(device),
        jobs=jobs,
        display=Display(),
    )
    for line in tuned.lines(outcome.tuned):
        out.print(line, soft_wrap=True, highlight=False, markup=False)
    where = outcome.folder.tuned
    out.print(f"use it with run {protocol} --tuned {where}", soft_wrap=True, highlight=False)
    if any(m.trial is None for m in outcome.tuned.methods):
        raise typer.Exit(1)


@app.command()
def check(
    protocol: ProtocolName,
    settings: Settings = None,
    methods: Names = None,
    seeds: Names = None,
    device: Device = "auto",
    out_dir: Out = Path("results"),
    phantom: Phantom = False,
) -> None:
    """Do everything that a run would, but train: schema, methods, data, splits, memory."""
    from trm_bench import checks, environment
    from trm_bench.display import Display

    loaded = _load(protocol, settings, phantom, methods, seeds)
    for name, text in checks.check(
        loaded, out_dir, phantom, environment.device_of(device), Display()
    ):
        out.print(f"[green]ok[/green]  {name:12} ", end="")
        out.print(text, markup=False, highlight=False)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
) -> None:
    """Write tables, charts and report.html again from the records of a results folder."""
    from trm_bench import report

    for path in report.write_pages(folder):
        out.print(path, soft_wrap=True, highlight=False)


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR DIR...", help="Folders of results.")
    ],
    out_dir: Annotated[
        Path, typer.Option("--out", help="Where to write compare.html and its tables.")
    ] = Path(),
) -> None:
    """Put several results side by side: one page, one table.

    Phantom and real data never together.
    """
    from trm_bench import report

    for path in report.compare(folders, out_dir):
        out.print(path, soft_wrap=True, highlight=False)


@app.command()
def verdict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
) -> None:
    """Judge the claim of each protocol in DIR by its records, and print the rule.

    Exit code 0: every claim is `reproduced` or `direction reproduced`, in each reading of its unit.
    1: one is not, or there is no verdict (no claim, stand-in data, no numbers). 2: there are no
    results to judge.
    """
    from trm_bench import report

    holds, text = report.verdict(folder)
    out.print(text, markup=False, highlight=False, soft_wrap=True)
    if not holds:
        raise typer.Exit(1)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method's documentation.")] = None,
) -> None:
    """List the methods, or describe one."""
    import inspect

    from trm_bench.methods.registry import REGISTRY

    if name:
        kind = REGISTRY.get(name)
        out.print(f"{name}  ({kind.paper})\n", highlight=False, markup=False)
        out.print(inspect.cleandoc(kind.__doc__ or ""), highlight=False, markup=False)
        out.print(_parameters(kind))
        return
    table = Table("method", "what", "parameters", "source")
    for known in REGISTRY.names():
        kind = REGISTRY.get(known)
        first = inspect.cleandoc(kind.__doc__ or "").splitlines()[0]
        table.add_row(known, first, ", ".join(kind.Parameters.model_fields) or "-", kind.paper)
    out.print(table)


def _parameters(kind: Any) -> Table:
    from trm_bench.sweep.space import declarations

    table, searched = Table("parameter", "default", "sweep", "what"), declarations(kind)
    for name, field in kind.Parameters.model_fields.items():
        sweep = str(searched.get(name, "-"))
        table.add_row(name, str(field.default), sweep, field.description or "")
    return table


@app.command()
def protocols() -> None:
    """List the bundled protocols."""
    from trm_bench.protocol import bundled, load_protocol

    table = Table("protocol", "dataset", "what", "methods", "seeds")
    for name in bundled():
        p = load_protocol(name)
        table.add_row(name, p.data.dataset, p.description, str(len(p.methods)), str(len(p.seeds)))
    out.print(table)


@data_app.command("phantom")
def data_phantom(
    layout: Annotated[str, typer.Option(help="fets2021 or iseg2019.")] = "fets2021",
    subjects: Annotated[int, typer.Option(min=1)] = 24,
    spacing: Annotated[float, typer.Option(help="Voxel size, mm (1 to 6).")] = 3.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out_dir: Annotated[Path, typer.Option("--out", help="Where to write it.")] = Path("phantom"),
) -> None:
    """Write the physics-based phantom in a public dataset's layout."""
    from trm_bench import phantom
    from trm_bench.display import Display

    with Display() as display, display.stage("making the phantom", subjects) as stage:
        root = phantom.write_phantom(
            layout, out_dir, subjects, spacing, seed, lambda done, total: stage.advance(done)
        )
    out.print(f"use it with --set data.root={root}", soft_wrap=True, highlight=False, markup=False)


@data_app.command("check")
def data_check(protocol: ProtocolName, settings: Settings = None) -> None:
    """Read every subject of a protocol's dataset and report each that cannot be used."""
    from trm_bench import checks
    from trm_bench.display import Display

    usable, bad = checks.check_data(_load(protocol, settings, False), Display())
    for error in bad:
        err.print(
            f"{error.subject}: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    out.print(f"{usable} subjects can be used, {len(bad)} cannot", highlight=False)
    if bad:
        raise typer.Exit(2)


@app.command("risk-map")
def risk_map(
    checkpoint: Annotated[
        Path, typer.Option(help="A source network: RESULTS/sources/ID.safetensors.")
    ],
    image: Annotated[
        list[Path],
        typer.Option(help="NIfTI image; once per modality that the network sees, in its order."),
    ],
    label: Annotated[Path, typer.Option(help="NIfTI label of the target task.")],
    out_file: Annotated[
        Path, typer.Option("--out", help="Where to write the map (.nii or .nii.gz).")
    ] = Path("map.nii.gz"),
    risk: Annotated[str, typer.Option(help="neg_log or one_minus.")] = "neg_log",
    device: Device = "auto",
) -> None:
    """Write the transfer risk map of one subject as NIfTI, in the image's own space."""
    from trm_bench import environment, risk_map

    chosen = environment.device_of(device)
    about = risk_map.write(checkpoint, image, label, out_file, risk, chosen)
    explained = f"class-explained variance {about['class_explained']:.3f}"
    out.print(f"{out_file}  LEEP {about['leep']:.4f}, {explained}")


@app.command()
def bench(
    methods: Annotated[str, typer.Option(help="Comma-separated, or all.")] = "finetune,trm",
    device: Device = "auto",
    steps: Annotated[int, typer.Option(min=1, help="Steps of a method in a round.")] = 10,
    rounds: Annotated[
        int, typer.Option(min=3, help="Rounds; every method has a turn in each.")
    ] = 7,
    patch: Annotated[
        str, typer.Option(help="Patch size, e.g. 48,64,48 (or 128,128 for a 2D network).")
    ] = "48,64,48",
    batch: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Time a training step of methods beside the bare network step, in turn, and print ratios and
    peak memory.
    """
    from trm_bench import environment, step_time

    sizes = _split(patch)
    if not all(size.isdigit() for size in sizes):
        raise UserError(f"'{patch}' is not a patch size", "--patch", "for example 48,64,48")
    out.print(
        step_time.bench(
            _split(methods),
            environment.device_of(device),
            steps,
            rounds,
            [int(s) for s in sizes],
            batch,
        )
    )


@app.command()
def doctor() -> None:
    """Say what this machine has, and whether it suffices."""
    from trm_bench import checks

    table = Table("", "here", "verdict")
    fine = True
    for name, here, good in checks.doctor():
        fine = fine and good
        table.add_row(name, here, "[green]ok[/green]" if good else "[red]missing[/red]")
    out.print(table)
    if not fine:
        raise typer.Exit(1)
