"""The command line: `trm-bench COMMAND`. Commands parse and print; the work is done elsewhere."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

# isort: off
# importing these adds their commands, in the order in which --help lists them
from trm_bench.cli import running, reading, listing, tools  # noqa: F401

# isort: on
from trm_bench.cli.options import app, err, out
from trm_bench.errors import UserError


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
