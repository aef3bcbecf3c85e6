"""Commands that say what there is: methods, datasets, this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Column, Table

from trm_bench.cli.options import (
    app,
    out,
)


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
    table = Table(Column("method", no_wrap=True), "what", "parameters", "source")
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
            out.print(line, soft_wrap=True, highlight=False, markup=False)
        return
    table = Table(
        Column("dataset", no_wrap=True), "what", "modalities", "label maps", "licence", "access"
    )
    for known in REGISTRY.names():
        kind = REGISTRY.get(known)
        named = (_named(kind, attribute) for attribute in ("modalities", "label_maps"))
        table.add_row(known, kind.title, *named, kind.licence, kind.access)
    out.print(table)


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
