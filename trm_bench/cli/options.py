"""The application, and the options that several of its commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from trm_bench.errors import UserError


class EndOfFile(Exception):
    """An EOFError of a command, which typer would take for the end of a person's answers."""


class Commands(TyperGroup):
    """The commands, whose errors `main` tells of."""

    def invoke(self, ctx: Any) -> Any:
        """Calls the command that was named."""
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise EndOfFile(error) from error


app = typer.Typer(
    cls=Commands,
    name="trm-bench",
    help="A benchmark suite for negative transfer in medical image segmentation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass
class Switches:
    """What is given to the application itself.

    Attributes:
        debug: Show tracebacks.
    """

    debug: bool = False


switches = Switches()  # the application sets them before each command


class Output(Console):
    """Standard output; a disk that is full below it has a name."""

    def print(self, *objects: Any, **options: Any) -> None:
        """See rich."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            error.filename = error.filename or "standard output"
            raise


out = Output()
err = Console(stderr=True)


def written(text: str, console: Console = out, style: str | None = None) -> None:
    """Prints text as it is, without markup and without line breaks of its own.

    What could steer a terminal is shown instead of sent.
    """
    shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    console.print(shown, style=style, markup=False, highlight=False, soft_wrap=True)


def example(*commands: str) -> str:
    """What the help of a command ends with: how it is called."""
    return "\n\n".join(["Example:", *commands])


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
    typer.Option(
        "--jobs",
        min=1,
        help="Trainings at a time; by default one a CPU core, or as many as fill the GPUs.",
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="FILE|ADDRESS",
        help="Train on a cluster: its scheduler.json, or tls://HOST:PORT (see trm-bench cluster).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
Names = Annotated[str | None, typer.Option(metavar="A,B", help="Comma-separated choice.")]


def load(
    name: str,
    settings: list[str] | None,
    phantom: bool,
    methods: str | None = None,
    seeds: str | None = None,
    transfers: str | None = None,
) -> Any:
    """The protocol with what a command chooses of it, refused where it cannot be."""
    with err.status("loading", spinner="line"):  # PyTorch takes seconds
        from trm_bench import pipeline
        from trm_bench.protocol.choices import refuse_twice

    chosen = split(methods)
    refuse_twice(chosen, "--methods")
    return pipeline.load(name, settings or [], phantom, chosen, split(seeds), split(transfers))


def split(text: str | None) -> list[str]:
    """The names in a comma-separated option; none where it is not given.

    Raises:
        UserError: It is given and names nothing.
    """
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if text is not None and not parts:
        what, fix = f"'{text}' names nothing", "separate names by commas, or leave the option out"
        raise UserError(what, "a list on the command line", fix)
    return parts
