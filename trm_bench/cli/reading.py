"""Commands that read what runs have left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trm_bench.cli.options import (
    app,
    out,
)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of results.")],
) -> None:
    """Write tables, charts and pages again from what a results folder holds, sweeps too."""
    from trm_bench import report
    from trm_bench.runs.folders import run_folders, swept_folders
    from trm_bench.sweep.pages import write_sweep

    swept = [path for one in swept_folders(folder) for path in write_sweep(one)]
    written = report.write_pages(folder) if run_folders(folder) or not swept else []
    for path in [*written, *swept]:
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

    for path in write_readings(folders, method, out_dir):
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
