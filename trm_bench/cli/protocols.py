"""Commands on protocols: which there are, what one says, a copy to edit, the schema of all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Column, Table

from trm_bench.cli.options import ProtocolName, app, example, out, written
from trm_bench.errors import UserError

protocols_app = typer.Typer(help="List, show and copy protocols; print their schema.")
app.add_typer(protocols_app, name="protocols")


@protocols_app.callback(invoke_without_command=True, epilog=example("trm-bench protocols"))
def _protocols(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        list_protocols()


@protocols_app.command("list", epilog=example("trm-bench protocols list"))
def list_protocols() -> None:
    """List the bundled protocols (what `trm-bench protocols` alone does, too)."""
    from trm_bench.protocol import bundled, load_protocol

    table = Table(Column("protocol", no_wrap=True), "data", "what", box=box.SIMPLE_HEAD)
    for name in bundled():
        p = load_protocol(name)
        data = [*dict.fromkeys(of.dataset for of in p.sets), *["phantom"] * (p.phantom is not None)]
        table.add_row(name, "\n".join(data), p.description)
    out.print(table)
    for line in (
        "phantom: runs on stand-in data as well, with --phantom",
        "trm-bench protocols show NAME   what one says, with its reasons",
        "trm-bench protocols copy NAME   a file of your own to edit",
    ):
        out.print(line, markup=False, highlight=False)


@protocols_app.command(
    "show", epilog=example("trm-bench protocols show hippocampus_few_shot --resolved")
)
def show_protocol(
    name: ProtocolName,
    resolved: Annotated[
        bool,
        typer.Option("--resolved", help="With all that it extends, and every default."),
    ] = False,
) -> None:
    """Print a protocol: its file with comments, or all that it means."""
    import yaml

    from trm_bench.inputs import read_text
    from trm_bench.protocol import load_protocol
    from trm_bench.protocol.load import find
    from trm_bench.protocol.markup import MOST_BYTES

    loaded = load_protocol(name)
    if resolved:
        content: Any = loaded.model_dump(mode="json")
        _plain(
            yaml.safe_dump(
                content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
            )
        )
    else:
        _plain(read_text(find(name), MOST_BYTES))


@protocols_app.command(
    "copy", epilog=example("trm-bench protocols copy hippocampus_cross_task mine.yaml")
)
def copy_protocol(
    name: ProtocolName,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="By default NAME.yaml, here.")
    ] = None,
) -> None:
    """Copy a protocol, to be edited; a file that is there stays as it is."""
    from trm_bench.files import write_text
    from trm_bench.inputs import exists, is_folder, read_text
    from trm_bench.protocol.load import find
    from trm_bench.protocol.markup import MOST_BYTES

    source = find(name)
    target = file or Path(f"{source.stem}.yaml")
    if is_folder(target):
        target = target / f"{source.stem}.yaml"
    if exists(target):
        raise UserError("is there already", target, "name another file, or remove this one")
    write_text(target, read_text(source, MOST_BYTES))
    for line in (
        str(target),
        "give it a `name` of its own (its results go to a folder of that name), edit it, then",
        f"trm-bench check {target}",
    ):
        written(line)


@protocols_app.command("schema", epilog=example("trm-bench protocols schema"))
def protocols_schema() -> None:
    """Print the JSON schema of protocols, which editors use to complete and check."""
    import json

    from trm_bench.protocol.reference import json_schema

    _plain(json.dumps(json_schema(), indent=2) + "\n")


def _plain(text: str) -> None:
    out.print(text, end="", soft_wrap=True, highlight=False, markup=False, emoji=False)
