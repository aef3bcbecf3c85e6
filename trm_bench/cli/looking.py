"""Commands that show what a results folder holds: its runs, and one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from trm_bench.cli.options import AsJson, Names, app, err, example, out, split, switches, written
from trm_bench.plurals import counted

if TYPE_CHECKING:
    from trm_bench.contents import Row, Run
    from trm_bench.runs.folders import ProtocolFolder

MOST_FAILURES = 3  # that a command tells of at its end


@app.command("list", epilog=example("trm-bench list results --method finetune,trm --state failed"))
def list_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    method: Names = None,
    transfer: Names = None,
    seed: Names = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="finished, diverged, failed, damaged or not run."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs of a results folder: transfer, method, seed, state, Dice and seconds."""
    from trm_bench import contents

    choices = {"method": method, "transfer": transfer, "seed": seed, "state": state}
    found = contents.rows(folder, {key: split(value) for key, value in choices.items()})
    if as_json:
        out.print_json(json.dumps(contents.plain(found)), ensure_ascii=True)
        return
    for protocol in dict.fromkeys(row.protocol for row in found):
        rows = [row for row in found if row.protocol == protocol]
        out.print(_table(protocol, rows))
    for row in found:
        if row.state == "not run" and row.reason:
            written(
                f"{row.run[: contents.SHORTEST]} is {row.reason}; the same command goes on there"
            )
    out.print(counted(len(found), "run"), highlight=False)


def _table(protocol: str, rows: list[Row]) -> Table:
    from trm_bench.contents import SHORTEST

    table = Table(
        Column("run", no_wrap=True),
        Column("transfer", overflow="fold"),
        Column("method", overflow="fold"),
        Column("seed", justify="right"),
        Column("state", no_wrap=True),
        Column("Dice", justify="right", no_wrap=True),
        Column("s", justify="right", no_wrap=True),
        title=escape(protocol),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for row in rows:
        dice = "-" if row.dice is None else f"{row.dice:.2f}"
        seconds = "-" if row.seconds is None else f"{row.seconds:.1f}"
        names = (escape(row.transfer), escape(row.method))
        table.add_row(row.run[:SHORTEST], *names, str(row.seed), row.state, dice, seconds)
    return table


@app.command(epilog=example("trm-bench show results", "trm-bench show 3f2a --results results"))
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN|DIR",
            help="A run's id, the beginning of it or its record; or a folder of results.",
        ),
    ],
    results: Annotated[
        Path, typer.Option("--results", metavar="DIR", help="Where a run's id is looked for.")
    ] = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Show what a run was and what came of it, or what a results folder holds."""
    from trm_bench import contents
    from trm_bench.inputs import is_folder
    from trm_bench.runs.folders import protocol_folders

    if is_folder(Path(name)):
        several = [contents.about_protocol(folder) for folder in protocol_folders(Path(name))]
        if as_json:
            out.print_json(json.dumps(several), ensure_ascii=True)
            return
        for about in several:
            _show_protocol(about)
        return
    run = contents.find(name, results)
    if as_json:
        out.print_json(json.dumps(run.about()), ensure_ascii=True)
    else:
        _show_run(run)


def _facts(facts: dict[str, Any]) -> None:
    """Names and values, those that say nothing left out."""
    for key, value in facts.items():
        if value not in ("", None, []):
            written(f"{key:16} {value}")


def _show_protocol(about: dict[str, Any]) -> None:
    left_out = about["left_out"]
    data = f"{', '.join(about['datasets'])} ({about['data']})"
    written(
        f"{about['protocol']}: {about['description']}"
        if about["description"]
        else about["protocol"]
    )
    _facts(
        {
            "  data": f"{data}, {counted(len(left_out), 'subject')} left out" if left_out else data,
            "  network": about["network"],
            "  transfers": ", ".join(about["transfers"]),
            "  methods": ", ".join(about["methods"]) + (" (tuned)" if about["tuned"] else ""),
            "  seeds": ", ".join(map(str, about["seeds"])),
            "  runs": ", ".join(f"{n} {state}" for state, n in about["states"].items()),
            "  report": about["report"] or f"not written yet: trm-bench report {about['folder']}",
            "  its runs": f"trm-bench list {about['folder']}",
        }
    )


def _show_run(run: Run) -> None:
    import yaml

    from trm_bench import contents

    record, about = run.record, run.about()
    config, machine = record.config, record.environment
    cells = [f"{c.transfer}, {c.method}, seed {c.seed}" for c in run.cells]
    outside = "no cell of the table: the protocol has other settings now, or it is a sweep's"
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in record.seconds.items())
    memory = record.peak_memory_bytes
    written(f"run {record.id}: {record.state}")
    _facts(
        {
            "protocol": f"{about['protocol']}, {config.data} data",
            "cell": "; ".join(cells) or outside,
            "reason": record.reason,
            "record": about["file"],
            "started": record.started,
            "seconds": seconds,
            "peak memory": memory and f"{memory / 2**30:.2f} GiB",
            "device": f"{machine.device}, {machine.device_name}",
            "packages": ", ".join(f"{n} {v}" for n, v in machine.packages.items()),
            "source network": record.source and record.source.id,
            "validation Dice": _per_cent(record.validation_dice, 100),
            "test Dice": _per_cent(about["dice"]),
        }
    )
    for title, values in (
        ("Dice of each region [%]", about["dice_of_regions"]),
        ("worst test subjects, Dice [%]", about["worst_subjects"]),
    ):
        if values:
            written(f"\n{title}")
            _facts({f"  {name}": f"{value:.2f}" for name, value in values.items()})
    if record.traceback:
        written(f"\n{record.traceback.rstrip()}")
    written("\nconfiguration")
    text = yaml.safe_dump(contents.configuration(config), sort_keys=False, default_flow_style=None)
    written(text.rstrip())
    if record.state == "finished":
        unkept = "its network was not kept; `keep: best` or `keep: all` in the protocol keeps them"
        written(f"\n{run.predict or unkept}")


def _per_cent(value: float | None, scale: float = 1) -> str:
    return "" if value is None else f"{scale * value:.2f} %"


def tell_failures(folder: ProtocolFolder) -> None:
    """Says of a protocol's failed runs why, and where their tracebacks are.

    One run for each reason; with --debug, its traceback too.
    """
    from trm_bench.contents import failures

    failed = failures(folder)
    first = {row.reason: (row, trace) for row, trace in reversed(failed)}
    told = list(reversed(first.values()))[:MOST_FAILURES]
    for row, trace in told:
        same = sum(other.reason == row.reason for other, _ in failed) - 1
        also = f" (and {counted(same, 'run')} more)" if same else ""
        results = folder.results.path
        elsewhere = "" if results == Path("results") else f" --results {results}"
        lines = [
            f"failed: {row.transfer} {row.method} seed {row.seed}{also}: {row.reason}",
            f"  record: {folder.record(row.run)}",
            f"  read it, with the traceback: trm-bench show {row.run}{elsewhere}",
        ]
        if switches.debug and trace:
            lines.append(trace.rstrip())
        written("\n".join(lines), err, "red")
    if len(failed) > len(told):
        written(f"all that failed: trm-bench list {folder.path} --state failed", err)
