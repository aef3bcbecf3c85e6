"""The command line: `trm-bench COMMAND`. Commands parse and print; the work is done elsewhere."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Annotated

import typer

# isort: off
# importing these adds their commands, in the order in which --help lists them
from trm_bench.cli import (  # noqa: F401
    running,
    looking,
    reading,
    viewing,
    protocols,
    listing,
    using,
    tools,
    sources,
    clusters,
)

# isort: on
from trm_bench import signals
from trm_bench.cli.options import EndOfFile, app, err, out, switches
from trm_bench.errors import UserError

MISTAKE, FAULT, CLOSED = 2, 3, 141  # exit codes; CLOSED is that of a shell for SIGPIPE
LONGEST = 500  # characters of what an unexpected exception says


def main() -> None:
    """Runs the command line, and exits: what went wrong is one message.

    Exit codes: 0; 1, a run failed or a verdict is not reached; 2, what a person can cause; 3, an
    exception that nobody expected; 141, what reads standard output has gone.
    """
    debug = _takes_debug(sys.argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    try:
        try:
            code = _run()
        except Exception as error:
            if signals.stopping():
                raise
            cause = error.args[0] if isinstance(error, EndOfFile) else error
            if debug:
                traceback.print_exception(cause)
            code = _tell(cause)
    except SystemExit:  # rich exits where standard error is a closed pipe
        code = CLOSED
    _let_go()
    sys.exit(code)


def _takes_debug(arguments: list[str]) -> bool:
    """Whether --debug stands before a `--`; it is moved to where the application takes it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    given = len(kept) < end
    arguments[:end] = [*kept[:1], *["--debug"] * given, *kept[1:]]
    return given


def _run() -> int:
    """What the application exits with."""
    try:
        app()
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None:  # typer and rich exit with 1 where a pipe is closed
            if isinstance(cause, BrokenPipeError):
                return CLOSED
            cause = cause.__context__
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _tell(error: Exception) -> int:
    """Says what went wrong, and returns the exit code."""
    match error:
        case BrokenPipeError() if error.filename is None:
            return CLOSED
        case UserError():
            _say(str(error))
            return MISTAKE
        case OSError():  # a full disk, a folder that cannot be written
            where = error.filename if isinstance(error.filename, str | bytes) else ""
            _say(f"{os.fsdecode(where)}{': ' if where else ''}{error.strerror or error}")
            _say("  fix this and give the same command again: what is done stays done", "")
            return MISTAKE
        case _:
            said = " ".join(str(error).split())[:LONGEST]
            what = f"unexpected {type(error).__name__}{': ' if said else ''}{said}"
            _say(f"{what}; this is a fault of trm-bench")
            _say("  the same command with --debug shows where; please report it with that", "")
            return FAULT


def _say(text: str, start: str = "error: ") -> None:
    err.print(f"{start}{text}", style="red", markup=False, highlight=False, soft_wrap=True)


def _let_go() -> None:
    """What standard output did not take, Python would try again at its end, and say so."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    switches.debug = debug
    if version:
        from trm_bench import __version__

        out.print(__version__)
        raise typer.Exit()
    if context.invoked_subcommand is None:
        out.print(context.get_help(), markup=False, highlight=False)
