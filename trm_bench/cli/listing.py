"""Commands that say what there is: methods, datasets, this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from trm_bench.cli.options import app, example, out, written


@app.command(epilog=example("trm-bench methods trm"))
def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method's documentation.")] = None,
) -> None:
    """List the methods, or describe one."""
    import inspect

    from trm_bench.methods.registry import REGISTRY

    if name:
        kind = REGISTRY.get(name)
        written(f"{name}  ({kind.paper})\n")
        written(inspect.cleandoc(kind.__doc__ or ""))
        out.print(_parameters(kind))
        for preset, values in kind.presets.items():
            said = ", ".join(f"{key}: {value}" for key, value in values.items())
            written(f"preset: {preset} sets {said}")
        return
    table = Table(Column("method", no_wrap=True), "what", box=box.SIMPLE_HEAD)
    for known in REGISTRY.names():
        kind = REGISTRY.get(known)
        paper = "" if kind.paper == "-" else f" [dim]({escape(kind.paper)})[/dim]"
        table.add_row(known, f"{escape(_first_sentence(kind))}{paper}")
    out.print(table)
    written("trm-bench methods NAME tells of one, with its parameters")


def _first_sentence(kind: type) -> str:
    """Of a class's documentation, as one line."""
    import inspect
    import re

    text = " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split())
    return re.split("(?<=[.;]) ", text)[0].rstrip(".;")


def _parameters(kind: Any) -> Table:
    from trm_bench.sweep.space import declarations

    table, searched = Table("parameter", "default", "sweep", "what"), declarations(kind)
    for name, field in kind.Parameters.model_fields.items():
        sweep = str(searched.get(name, "-"))
        table.add_row(name, str(field.default), sweep, field.description or "")
    return table


@app.command(epilog=example("trm-bench datasets fets2021"))
def datasets(
    name: Annotated[str | None, typer.Argument(help="Show one dataset's documentation.")] = None,
) -> None:
    """List the datasets, or describe one: what it holds, its licence, where to get it."""
    import inspect
    import re

    from trm_bench.datasets import REGISTRY

    if name:
        kind = REGISTRY.get(name)
        about = re.split(
            r"\n\n(?:Attributes|Raises|Source):", inspect.cleandoc(kind.__doc__ or "")
        )[0]
        for line in (f"{name}  {kind.title}", "", about, *_facts(kind)):
            written(line)
        return
    table = Table(Column("dataset", no_wrap=True), "what", "licence", "access", box=box.SIMPLE_HEAD)
    for known in REGISTRY.names():
        kind = REGISTRY.get(known)
        table.add_row(known, *map(escape, (kind.title, kind.licence, kind.access)))
    out.print(table)
    written("trm-bench datasets NAME tells of one: what it holds, its layout, where to get it")


def _named(kind: Any, attribute: str) -> str:
    """What a class lists before a folder is opened."""
    return ", ".join(getattr(kind, attribute, ())) or "from its dataset.json"


def _facts(kind: Any) -> list[str]:
    get = f"{kind.url} ({kind.access})"
    facts = {
        "modalities": _named(kind, "modalities"),
        "label maps": _named(kind, "label_maps"),
        "licence": kind.licence,
        "cite": kind.citation,
        "where to get it": get if kind.url else "-",
        "trm-bench data download": ", ".join(kind.archives) or "no",
    }
    lines = ["", *(f"{key}: {value}" for key, value in facts.items())]
    return [*lines, "layout:", *(f"  {line}" for line in kind.layout.splitlines())]


@app.command(epilog=example("TRM_DATA=data trm-bench doctor"))
def doctor() -> None:
    """Say what this machine has, and whether it suffices.

    Exit code 1: something that is needed is missing. What is optional is no fault.
    """
    from trm_bench.doctor import findings

    colours = {"ok": "green", "missing": "red", "optional": "dim"}
    table = Table(
        Column("", no_wrap=True),
        Column("here", overflow="fold"),
        Column("verdict", no_wrap=True),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    found = list(findings())
    for one in found:
        verdict = f"[{colours[one.verdict]}]{one.verdict}[/]"
        table.add_row(one.name, escape(one.here), verdict)
    out.print(table)
    if any(one.verdict == "missing" for one in found):
        raise typer.Exit(1)
