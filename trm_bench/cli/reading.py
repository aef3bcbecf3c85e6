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
