"""Commands on source networks from elsewhere."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from trm_bench.cli.options import app, example, out, written
from trm_bench.errors import UserError
from trm_bench.plurals import counted

if TYPE_CHECKING:
    from trm_bench.checkpoints import Foreign
    from trm_bench.checkpoints.guessing import Guess
    from trm_bench.protocol.schema import NetworkConfig

sources_app = typer.Typer(no_args_is_help=True, help="Look at checkpoints from elsewhere.")
app.add_typer(sources_app, name="sources")

MOST_ROWS = 60


@sources_app.command("inspect", epilog=example("trm-bench sources inspect model.pt"))
def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A checkpoint, or the folder of a MONAI bundle.")
    ],
    network: Annotated[
        Path | None,
        typer.Option(metavar="YAML", help="A network to fit it into: its block, or a protocol."),
    ] = None,
) -> None:
    """Show a checkpoint's tensors, what it says of its network, and how it could be used."""
    from trm_bench import checkpoints
    from trm_bench.checkpoints.guessing import guess

    config = None if network is None else _network(network)
    foreign = checkpoints.read(file)
    out.print(_tensors(foreign))
    for name, value in _said(foreign):
        written(f"{name}: {value}")
    found = guess(foreign, config)
    if found is None:
        written("network: none of the usual ones takes most of these tensors; try one by --network")
    else:
        written(
            f"network: {found.network.name} takes {found.fits} of {found.of_file} tensors; "
            f"{found.initial} of its own would keep their initial values"
        )
    written("as a domain of a protocol:\n")
    written(_yaml(file, foreign, found))


def _network(path: Path) -> NetworkConfig:
    """The network that a YAML file describes, or the protocol in it."""
    from pydantic import ValidationError

    from trm_bench.protocol.markup import read_yaml
    from trm_bench.protocol.schema import NetworkConfig

    said = read_yaml(path)
    if isinstance(said, dict) and isinstance(said.get("network"), dict):
        said = said["network"]
    fix = "give a mapping with `name` and the network's arguments, or a protocol"
    if not isinstance(said, dict):
        raise UserError("describes no network", path, fix)
    try:
        return NetworkConfig.model_validate(said)
    except ValidationError as error:
        raise UserError(f"describes no network: {error.errors()[0]['msg']}", path, fix) from error


def _tensors(foreign: Foreign) -> Table:
    """All tensors, or where there are many the modules that hold them."""
    if len(foreign.tensors) <= MOST_ROWS:
        table = Table(Column("tensor", overflow="fold"), "shape", "type")
        for name, tensor in foreign.tensors.items():
            kind = str(tensor.dtype).removeprefix("torch.")
            table.add_row(escape(name), escape(str(list(tensor.shape))), kind)
        return table
    depth = 1
    while depth < 6 and len({_start(name, depth + 1) for name in foreign.tensors}) <= MOST_ROWS:
        depth += 1
    tensors, numbers = Counter[str](), Counter[str]()
    for name, tensor in foreign.tensors.items():
        tensors[_start(name, depth)] += 1
        numbers[_start(name, depth)] += tensor.numel()
    table = Table(Column("tensors", overflow="fold"), "how many", "numbers")
    for start, many in list(tensors.items())[: 2 * MOST_ROWS]:
        table.add_row(escape(start), str(many), str(numbers[start]))
    if len(tensors) > 2 * MOST_ROWS:
        table.add_row(f"... and {len(tensors) - 2 * MOST_ROWS} more", "", "")
    return table


def _start(name: str, depth: int) -> str:
    parts = name.split(".")
    return ".".join(parts[:depth]) + (".*" if len(parts) > depth else "")


def _said(foreign: Foreign) -> list[tuple[str, object]]:
    """What the file says, as names and values."""
    numbers = sum(tensor.numel() for tensor in foreign.tensors.values())
    said: list[tuple[str, object]] = [
        ("format", foreign.format),
        ("sha256", foreign.sha256),
        ("tensors", f"{len(foreign.tensors)}, of {counted(numbers, 'number')}"),
    ]
    if foreign.network is not None:
        said.append(("it says of its network", foreign.network.name))
    if foreign.channels is not None:
        said.append(("input channels", foreign.channels))
    if foreign.classes is not None:
        said.append(("classes", ", ".join(foreign.classes)))
    about = {
        key: "".join(c for c in text if c.isprintable()) for key, text in foreign.about.items()
    }
    return said + [(f"it says of its {key}", text) for key, text in about.items() if text]


def _yaml(file: Path, foreign: Foreign, found: Guess | None) -> str:
    """A domain that could be pasted into a protocol."""
    import yaml

    network = found.network if found else foreign.network
    channels = found.channels if found else foreign.channels or 1
    domain: dict[str, Any] = {
        "checkpoint": str(file),
        "sha256": foreign.sha256,
        "network": network.model_dump() if network else {"name": "FILL_IN"},
        "channels": [f"channel_{n}" for n in range(channels)],
        "classes": list(foreign.classes) if foreign.classes else None,
    }
    if found and found.rename:
        domain["rename"] = [list(rule) for rule in found.rename]
    if found and found.partial:
        domain["partial"] = True
    return yaml.safe_dump(
        {"domains": {"pretrained": domain}}, sort_keys=False, default_flow_style=None, width=100
    )
