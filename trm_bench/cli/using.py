"""Commands that apply a network to files of one's own: risk-map, predict, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trm_bench.cli.options import Device, app, example, out

Network = Annotated[
    Path,
    typer.Option(
        "--checkpoint",
        help="A network: RESULTS/sources/ID.safetensors, or PROTOCOL/networks/ID.safetensors.",
    ),
]
Images = Annotated[
    list[Path],
    typer.Option(
        "--image", help="NIfTI image; once per modality that the network sees, in its order."
    ),
]


@app.command(
    "risk-map",
    epilog=example(
        "trm-bench risk-map --checkpoint source.safetensors --image t1.nii.gz --label seg.nii.gz"
    ),
)
def risk_map(
    checkpoint: Network,
    image: Images,
    label: Annotated[Path, typer.Option(help="NIfTI label of the target task.")],
    out_file: Annotated[
        Path, typer.Option("--out", help="Where to write the map (.nii or .nii.gz).")
    ] = Path("map.nii.gz"),
    risk: Annotated[str, typer.Option(help="neg_log or one_minus.")] = "neg_log",
    device: Device = "auto",
) -> None:
    """Write the transfer risk map of one subject as NIfTI, in the image's own space."""
    from trm_bench import environment, risk_map

    chosen = environment.device_of(device)
    about = risk_map.write(checkpoint, image, label, out_file, risk, chosen)
    explained = f"class-explained variance {about['class_explained']:.3f}"
    out.print(f"{out_file}  LEEP {about['leep']:.4f}, {explained}")


@app.command(
    epilog=example(
        "trm-bench predict --checkpoint results/sources/ID.safetensors --image t1.nii.gz"
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
    device: Device = "auto",
) -> None:
    """Write what a network predicts of one subject as NIfTI, in the image's own space."""
    from trm_bench import environment, prediction

    chosen = environment.device_of(device)
    counts = prediction.write(checkpoint, image, out_file, values, chosen)
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    out.print(f"{out_file}  voxels: {listed}", markup=False, highlight=False, soft_wrap=True)


@app.command(
    epilog=example("trm-bench export --checkpoint results/sources/ID.safetensors --out bundle")
)
def export(
    checkpoint: Network,
    out_dir: Annotated[Path, typer.Option("--out", help="A new folder for the bundle.")],
) -> None:
    """Write a network as a MONAI bundle, a folder that loads without trm-bench."""
    from trm_bench import bundle

    bundle.write(checkpoint, out_dir)
    out.print(f"{out_dir}: see README.md in it", markup=False, highlight=False, soft_wrap=True)
