"""Commands beside the benchmark: data, and how fast it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from trm_bench.cli.options import (
    Device,
    ProtocolName,
    Settings,
    app,
    err,
    example,
    load,
    out,
    split,
    written,
)
from trm_bench.errors import UserError
from trm_bench.plurals import counted

data_app = typer.Typer(no_args_is_help=True, help="Get, make and check data.")
app.add_typer(data_app, name="data")


@data_app.command(
    "phantom",
    epilog=example("trm-bench data phantom --layout iseg2019 --subjects 12 --out phantom"),
)
def data_phantom(
    layout: Annotated[str, typer.Option(help="fets2021 or iseg2019.")] = "fets2021",
    subjects: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 24,
    spacing: Annotated[float, typer.Option(help="Voxel size, mm (1 to 6).")] = 3.0,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of all that is random.")] = 0,
    out_dir: Annotated[Path, typer.Option("--out", help="Where to write it.")] = Path("phantom"),
) -> None:
    """Write the physics-based phantom in a public dataset's layout."""
    from trm_bench import phantom
    from trm_bench.display import Display

    with Display() as display, display.stage("making the phantom", subjects) as stage:
        root = phantom.write_phantom(
            layout, out_dir, subjects, spacing, seed, lambda done, total: stage.advance(done)
        )
    written(f"use it with --set data.root={root}")


@data_app.command(
    "download", epilog=example("trm-bench data download Task04_Hippocampus --out data")
)
def data_download(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An archive, such as Task04_Hippocampus.")
    ],
    out_dir: Annotated[
        Path, typer.Option("--out", envvar="TRM_DATA", help="Where its folder is to lie.")
    ] = Path("data"),
) -> None:
    """Download freely licensed data, or say where to register; `trm-bench datasets` lists them."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from trm_bench import download

    dataset, archive = download.find(name)
    about = f"{name}: {dataset.title}\nlicence: {dataset.licence}\ncite: {dataset.citation}"
    written(about)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        bar = bars.add_task(name, total=None)
        done = download.fetch(
            name, archive, out_dir, lambda have, of: bars.update(bar, completed=have, total=of)
        )
    state = "" if done else " is there: nothing to do"
    written(f"{out_dir / name}{state}")


@data_app.command(
    "check",
    epilog=example(
        "trm-bench data check hippocampus_cross_task --set data.root=data/Task04_Hippocampus"
    ),
)
def data_check(protocol: ProtocolName, settings: Settings = None) -> None:
    """Read every subject of a protocol's dataset and report each that cannot be used."""
    from trm_bench import checks
    from trm_bench.display import Display

    usable, bad = checks.check_data(load(protocol, settings, False), Display())
    for error in bad:
        err.print(
            f"{error.subject}: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    out.print(f"{counted(usable, 'subject')} can be used, {len(bad)} cannot", highlight=False)
    if bad:
        raise typer.Exit(2)


@app.command(
    epilog=example(
        "trm-bench bench --methods finetune,trm --patch 32,32,32",
        "trm-bench bench --sections all --compile --json bench.json",
    )
)
def bench(
    methods: Annotated[str, typer.Option(help="Comma-separated, or all.")] = "finetune,trm",
    sections: Annotated[
        str,
        typer.Option(help="Of steps, loop, inference, start, protocol; or all (minutes more)."),
    ] = "steps,loop",
    device: Device = "auto",
    steps: Annotated[
        int, typer.Option(min=1, max=100_000, help="Steps of a method in a round.")
    ] = 5,
    rounds: Annotated[
        int, typer.Option(min=3, max=1000, help="Rounds; every competitor has a turn in each.")
    ] = 5,
    patch: Annotated[
        str, typer.Option(help="Patch size, e.g. 48,64,48 (or 128,128 for a 2D network).")
    ] = "48,64,48",
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Patches a step.")] = 2,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Steps through torch.compile too (minutes).")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all that is measured.")
    ] = None,
) -> None:
    """Measure how fast this is beside what the machine can do, and print ratios, the share of its
    peak, memory, and which targets are met.

    A training step of methods beside the bare step of a plain script and the best of its kinds; the
    same network in the training loop of MONAI's tutorials; whole volumes; starting; a whole
    protocol.
    """
    from trm_bench import environment
    from trm_bench.bench import suite, tables
    from trm_bench.display import Display
    from trm_bench.files import write_json
    from trm_bench.inputs import ensure_writable, is_folder

    sizes = split(patch)
    if not all(re.fullmatch("[0-9]{1,4}", size) for size in sizes):
        raise UserError(f"'{patch}' is not a patch size", "--patch", "for example 48,64,48")
    if json_file is not None:
        if is_folder(json_file):
            raise UserError(f"'{json_file}' is a folder", "--json", "name a file")
        ensure_writable(json_file.parent, "--json")
    report = suite.run(
        environment.device_of(device),
        sections=split(sections),
        methods=split(methods),
        steps_of_turn=steps,
        rounds=rounds,
        patch=[int(s) for s in sizes],
        batch=batch,
        compiled=compiled,
        display=Display(),
    )
    written(tables.machine_text(report.machine))
    out.print(*tables.of(report))
    if json_file is not None:
        write_json(json_file, report.json())
