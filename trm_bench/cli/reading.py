"""Commands that read what runs have left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trm_bench.cli.options import AsJson, Settings, app, err, example, load, out, split, written
from trm_bench.errors import UserError
from trm_bench.plurals import counted


def warn_of_damage(*folders: Path) -> None:
    """Says what is damaged or missing of the files that a report is computed from.

    It does without them.
    """
    from trm_bench.runs import health
    from trm_bench.runs.folders import run_folders, swept_folders

    for folder in folders:
        for protocol in dict.fromkeys([*run_folders(folder), *swept_folders(folder)]):
            found = health.of_report(protocol)
            lines = [str(error) for error in found.damaged]
            if found.missing:
                lost = counted(len(found.missing), "run of the plan has", "runs of the plan have")
                lines.append(f"{protocol.path}: {lost} no record\n  give the run command again")
            for line in lines:
                err.print(
                    f"warning: {line}",
                    style="yellow",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )


@app.command(epilog=example("trm-bench report results"))
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
) -> None:
    """Write tables, charts and pages again from what a results folder holds, sweeps too."""
    from trm_bench import report
    from trm_bench.runs.folders import run_folders, swept_folders
    from trm_bench.sweep.pages import write_sweep

    warn_of_damage(folder)
    swept = [path for one in swept_folders(folder) for path in write_sweep(one)]
    paths = report.write_pages(folder) if run_folders(folder) or not swept else []
    for path in [*paths, *swept]:
        written(str(path))


@app.command(
    epilog=example("trm-bench compare results/fets_cross_modality other/fets_cross_modality")
)
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR DIR...", help="Folders of results.")
    ],
    out_dir: Annotated[
        Path, typer.Option("--out", help="Where to write compare.html and its tables.")
    ] = Path(),
) -> None:
    """Put results side by side, and say whether two of one protocol agree.

    A folder has records, or what a report left of them: results/reference has the latter. Phantom
    and real data never stand together.
    """
    from trm_bench import report
    from trm_bench.report.comparison import RULE

    warn_of_damage(*folders)
    paths, pairs = report.compare(folders, out_dir)
    for pair in pairs:
        title, head, rows = pair.table(next(iter(pair.rows)))
        table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
        for name in head:
            table.add_column(escape(name), overflow="fold")
        for row in rows:
            table.add_row(*(Text(text.replace(" [", "\n[")) for text in row))
        out.print(table)
        out.print(pair.sentence, markup=False, highlight=False)
        for key, one, other in pair.settings:
            line = f"  {key}: {one} in {pair.names[0]}, {other} in {pair.names[1]}"
            written(line)
    if pairs:
        out.print(RULE, markup=False, highlight=False)
    for path in paths:
        written(str(path))


@app.command(epilog=example("trm-bench readings results --method trm --out results"))
def readings(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of results with sweeps.")
    ],
    method: Annotated[str, typer.Option(help="Whose options are judged.")] = "trm",
    out_dir: Annotated[
        Path, typer.Option("--out", help="Where to write readings.md, its table and chart.")
    ] = Path(),
) -> None:
    """Say what each value of a method's options does, over the datasets that were swept."""
    from trm_bench.sweep.readings_report import write_readings

    warn_of_damage(*folders)
    for path in write_readings(folders, method, out_dir):
        written(str(path))


@app.command(
    "power", epilog=example("trm-bench power hippocampus_cross_task --subjects 70 --sd 0.9,0.5,1.8")
)
def power_(
    name: Annotated[
        str,
        typer.Argument(metavar="PROTOCOL|DIR", help="A protocol, or the results of a pilot."),
    ],
    settings: Settings = None,
    subjects: Annotated[
        int | None,
        typer.Option(min=2, max=1_000_000, help="Test subjects; by default the protocol's."),
    ] = None,
    deviations: Annotated[
        str | None,
        typer.Option(
            "--sd",
            metavar="SUBJECT,SEED,RESIDUAL",
            help="Standard deviations of the gains of a protocol, in points.",
        ),
    ] = None,
) -> None:
    """Say what gains could be found, and how many seeds and subjects a claim takes."""
    from trm_bench import prospects

    folder = Path(name)
    if folder.is_dir():
        if settings or subjects or deviations:
            what = "results are judged by their own subjects and spread"
            raise UserError(what, "--set, --subjects, --sd", "leave them out, or name a protocol")
        warn_of_damage(folder)
        several = prospects.of_results(folder)
    else:
        protocol = load(name, settings, False)
        several = [prospects.of_protocol(protocol, subjects, _deviations(deviations))]
    for prospect in several:
        head, *rows = prospects.table(prospect)
        table = Table(*head, box=None, padding=(0, 2))
        for row in rows:
            table.add_row(*row)
        for sentence in prospects.sentences(prospect):
            written(sentence)
        out.print(table)


def _deviations(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        subject, seed, residual = (float(x) for x in split(text))
    except ValueError:
        subject = seed = residual = -1.0
    if not min(subject, seed, residual) >= 0:
        what = f"'{text}' is not three standard deviations"
        raise UserError(what, "--sd", "subjects, seeds and residual, for example --sd 1.3,0.5,1.8")
    return subject, seed, residual


@app.command(epilog=example("trm-bench verdict results/fets_cross_modality"))
def verdict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
) -> None:
    """Judge the claim of each protocol in DIR by its records, and print the rule.

    Exit code 0: of every claim, half or more is shown, in each reading of its unit, and the gain
    over trm_prior and trm_shuffled survives. 1: of one it is not, or there is no verdict (no claim,
    stand-in data, too few seeds, no numbers). 2: there are no results to judge.
    """
    from trm_bench import report

    warn_of_damage(folder)
    holds, text = report.verdict(folder)
    written(text)
    if not holds:
        raise typer.Exit(1)


@app.command(epilog=example("trm-bench verify results"))
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
    as_json: AsJson = False,
) -> None:
    """Read every file of a results folder and say what is damaged or missing; change nothing.

    Exit code 0: all that the table needs is there, as it was written. 1: something is damaged or
    missing; the command that made it makes it again. What else was found is told, and no fault.
    """
    from trm_bench import verification

    read, findings = verification.verify(folder)
    faults = [f for f in findings if f.is_fault]
    if as_json:
        listed = [{"kind": f.kind, "path": str(f.path), "what": f.what} for f in findings]
        found = {"files": read, "faults": len(faults), "findings": listed}
        out.print_json(json.dumps(found), ensure_ascii=True)
    else:
        for f in findings:
            line = f"{f.kind}: {f.path} {f.what}"
            style = "red" if f.is_fault else None
            written(line, style=style)
        notes = len(findings) - len(faults)
        files, noted = counted(read, "file"), counted(notes, "note")
        summary = f"{files}, {len(faults)} damaged or missing, {noted}"
        out.print(summary, highlight=False)
    if faults:
        raise typer.Exit(1)
