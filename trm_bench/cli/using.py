"""Commands that apply a network to files of one's own: risk-map, predict, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trm_bench.cli.options import Device, app, example, written
from trm_bench.errors import UserError

Network = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        help="A network: its file, its name in sources/index.csv, or the beginning of its id.",
    ),
]
ResultsDir = Annotated[
    Path, typer.Option("--results", help="The results folder in which names and ids are sought.")
]
Images = Annotated[
    list[Path],
    typer.Option(
        "--image", help="NIfTI image; once per modality that the network sees, in its order."
    ),
]


@app.command(
    "risk-map",
    epilog=example("trm-bench risk-map --run 3fa9c1d2 --image t1.nii.gz --label seg.nii.gz"),
)
def risk_map(
    image: Images,
    label: Annotated[Path, typer.Option(help="NIfTI label of the target task.")],
    run: Annotated[
        str | None,
        typer.Option(help="A run whose map is wanted: its id, or PROTOCOL/records/ID.json."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Without a run: the source network, as a file, a name or an id."),
    ] = None,
    results: ResultsDir = Path("results"),
    protocol: Annotated[
        str | None,
        typer.Option(help="Without a run: whose options and label maps it has."),
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="LABEL", help="Without a run: the reading of the paper.")
    ] = "trm",
    label_map: Annotated[
        str | None,
        typer.Option(help="Without a run: a label map by name; else each value is a class."),
    ] = None,
    out_file: Annotated[
        Path, typer.Option("--out", help="Where to write the map (.nii or .nii.gz).")
    ] = Path("map.nii.gz"),
    values: Annotated[
        str, typer.Option(help="risk: R; weights: w(R), what the loss is multiplied by.")
    ] = "risk",
    device: Device = "auto",
) -> None:
    """Write the transfer risk map of one subject as NIfTI, in the image's own space.

    With --run it is the map that the run's loss used: its source network, options, label map, and
    statistics of its training subjects. A JSON file beside the map says what it was made from.
    """
    from trm_bench import environment, risk_map

    if (run is None) == (checkpoint is None):
        fix = "give --run ID, or --checkpoint with a source network"
        raise UserError("a map is of a run, or of a source network", "--run, --checkpoint", fix)
    if run is not None and (protocol or label_map or method != "trm"):
        what, options = "a run has options of its own", "--protocol, --method, --label-map"
        raise UserError(what, options, "leave them out, or give --checkpoint instead of --run")
    chosen = environment.device_of(device)
    if run is not None:
        basis = risk_map.of_run(run, results, chosen)
    else:
        basis = _new_basis(checkpoint or "", results, protocol, method, label_map, chosen)
    about = risk_map.write(basis, image, label, out_file, values, chosen)
    _say_what_it_is(out_file, about)


def _new_basis(
    checkpoint: str,
    results: Path,
    protocol: str | None,
    method: str,
    label_map: str | None,
    device: Any,
) -> Any:
    from trm_bench import risk_map
    from trm_bench.protocol import load_protocol
    from trm_bench.report.sources import find

    loaded = load_protocol(protocol) if protocol else None
    return risk_map.of_checkpoint(find(results, checkpoint), loaded, method, label_map, device)


def _say_what_it_is(out_file: Path, about: dict[str, Any]) -> None:
    source, explained = about["source"], about["class_explained"]
    numbers = f"LEEP {about['leep']:.4f}, class-explained variance {explained:.3f}"
    written(f"{out_file}  {about['values']}, {numbers}")
    written(f"  source: {source['name']} ({source['id']})")
    written(f"  statistics: {about['statistics']}")
    names = ("risk", "scope", "normalise", "weight", "strength", "base")
    listed = ", ".join(f"{name} {about['options'][name]}" for name in names)
    written(f"  options of {about['method']}: {listed}")


@app.command(
    epilog=example(
        'trm-bench predict --checkpoint "fets2021 t1 whole_tumor seed 0" --image t1.nii.gz'
    )
)
def predict(
    checkpoint: Network,
    image: Images,
    out_file: Annotated[
        Path, typer.Option("--out", help="Where to write the classes (.nii or .nii.gz).")
    ] = Path("prediction.nii.gz"),
    values: Annotated[
        str, typer.Option(help="classes: their indices; labels: label values of the data set.")
    ] = "classes",
    results: ResultsDir = Path("results"),
    device: Device = "auto",
) -> None:
    """Write what a network predicts of one subject as NIfTI, in the image's own space."""
    from trm_bench import environment, prediction
    from trm_bench.report.sources import find

    chosen = environment.device_of(device)
    counts = prediction.write(find(results, checkpoint), image, out_file, values, chosen)
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    written(f"{out_file}  voxels: {listed}")


@app.command(
    epilog=example("trm-bench export --checkpoint results/sources/ID.safetensors --out bundle")
)
def export(
    checkpoint: Network,
    out_dir: Annotated[Path, typer.Option("--out", help="A new folder for the bundle.")],
    results: ResultsDir = Path("results"),
) -> None:
    """Write a network as a MONAI bundle, a folder that loads without trm-bench."""
    from trm_bench import bundle
    from trm_bench.report.sources import find

    bundle.write(find(results, checkpoint), out_dir)
    written(f"{out_dir}: see README.md in it")
