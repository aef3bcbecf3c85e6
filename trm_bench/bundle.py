"""A network as a MONAI bundle: a folder with weights, network, preparation and inference.

Format: MONAI Bundle Specification, https://docs.monai.io/en/stable/mb_specification.html.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trm_bench import __version__, datasets, networks
from trm_bench.errors import UserError
from trm_bench.inputs import ensure_writable, exists
from trm_bench.prediction import network_of
from trm_bench.runs.arrays import read_trained
from trm_bench.runs.config import RunConfig
from trm_bench.runs.records import Checkpoint

# texts and keys that MONAI takes for something to be evaluated or called
EXPRESSION = re.compile(r'"([$@%]|_target_)')

# What `volumes.prepare_scan` does to the intensities, as an expression over the channels x; where
# any channel is not 0, there is brain.
INTENSITY = {
    "zscore": "(c - c.mean()) / c.std(correction=0).clamp(min=1e-8)",
    "zscore_brain": (
        "(c - c[x.any(0)].mean()) / c[x.any(0)].std(correction=0).clamp(min=1e-8) * x.any(0)"
    ),
    "percentile": (
        "((c - c[x.any(0)].quantile(0.005)) / (c[x.any(0)].quantile(0.995) - "
        "c[x.any(0)].quantile(0.005)).clamp(min=1e-8)).clamp(0, 1) * x.any(0)"
    ),
}

README = """# Segmentation network

Exported by trm-bench {version} as a MONAI bundle. It was trained on the
data set `{dataset}`{stand_in}. It is a research result and no medical device.

Channels of the image, in this order, and classes of the prediction:

```json
{channels}
```

## Use

```python
import torch
from monai.bundle import ConfigParser

config = ConfigParser()
config.read_config("configs/inference.json")
network = config.get_parsed_content("network").eval()
state = torch.load("models/model.pt", map_location="cpu", weights_only=True)
network.load_state_dict(state)
case = config.get_parsed_content("dataset")[0]  # of the files in `images`
with torch.no_grad():
    case["pred"] = config.get_parsed_content("inferer")(case["image"][None], network)[0]
case = config.get_parsed_content("postprocessing")(case)  # case["pred"]: classes
```

Set `images` in `configs/inference.json` to the files of a subject, one per channel.
`postprocessing` takes the classes back to the grid of the first file.

## Preparation

`preprocessing` turns the axes to RAS{crop}{spacing} and scales the intensities
(`{intensity}`). trm-bench's own preparation differs from it in these points:

- it rounds the scaled image to 16 bits;
- it looks for the brain in every image of the data set, not only in the channels of this network;
- a file that states no affine keeps the order of its voxels;
- it resamples with a filter that smooths what shrinks, over the same box, and MONAI does not.

`trm-bench predict` has none of these differences.
"""

LICENSE = """The weights in this folder carry no licence of their own. Whoever trained them has to
say under which terms they may be used, and to replace this text, before they are passed on.

They were trained on the data set {dataset}, whose terms are:

{terms}
"""


def write(checkpoint: Path, out: Path) -> None:
    """Writes a network as a bundle.

    `configs/metadata.json` and `configs/inference.json` (network, preprocessing, inferer,
    postprocessing; no evaluator, which would need Ignite), `models/model.pt` (a plain state dict),
    `docs/README.md`, `docs/license.txt`.

    Args:
        checkpoint: A source or target network of this package.
        out: A folder that does not exist, or is empty; whole or not there at all afterwards.

    Raises:
        UserError: The checkpoint cannot be used, its network has modules of a method's own, `out`
            is there already or cannot be written, or a name is one that MONAI would evaluate.
    """
    about, config, state = read_trained(checkpoint)
    network_of(config, state, torch.device("cpu"), checkpoint)
    parts = networks.parts(config.network, len(config.domain.images), config.spatial_dims)
    if parts.added(state):
        what = f"{config.method.name} puts modules into its network that MONAI does not have"
        fix = "use it with trm-bench predict, or give a network of another method"
        raise UserError(what, checkpoint, fix)
    if exists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError("is there already", out, "choose a new folder with --out")
    ensure_writable(out.parent)
    metadata = _metadata(about, config)
    definition = _network_def(config)
    named = json.dumps([metadata, config.network.arguments], ensure_ascii=False)
    if found := EXPRESSION.search(named):
        what = f"a name in it begins with {found[1]}, which MONAI would evaluate"
        raise UserError(what, checkpoint, "give it another name in the protocol")
    files = {
        "configs/metadata.json": json.dumps(metadata, indent=4) + "\n",
        "configs/inference.json": json.dumps(_inference(config, definition), indent=4) + "\n",
        "docs/README.md": _readme(config),
        "docs/license.txt": LICENSE.format(dataset=config.dataset, terms=_terms(config)),
    }
    try:
        _write(out, files, state)
    except OSError as error:
        fix = "choose another --out, or free some space"
        raise UserError(f"cannot be written: {error.strerror or error}", out, fix) from error


def _write(out: Path, files: Mapping[str, str], state: Mapping[str, Tensor]) -> None:
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        for name, text in files.items():
            path = temporary / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (temporary / "models").mkdir()
        torch.save({name: t.clone() for name, t in state.items()}, temporary / "models/model.pt")
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _metadata(about: Checkpoint, config: RunConfig) -> dict[str, Any]:
    """configs/metadata.json, with every key that the specification requires."""
    tensor: dict[str, Any] = {"type": "image", "modality": "n/a", "dtype": "float32"}
    tensor |= {"value_range": [], "spatial_shape": list(config.training.patch)}
    tensor["is_patch_data"] = True
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by trm-bench {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")},
        "task": f"segmentation: {', '.join(config.domain.classes[1:])}",
        "description": f"{config.network.name} trained with {config.method.name} on "
        f"{config.dataset}; trm-bench id {about.id}",
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": config.dataset,
        "trained_with": dict(about.environment.packages),
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "magnitude",
                    "num_channels": len(config.domain.images),
                    "channel_def": _numbered(config.domain.images),
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "format": "labels",
                    "num_channels": len(config.domain.classes),
                    "channel_def": _numbered(config.domain.classes),
                }
            },
        },
    }


def _numbered(names: tuple[str, ...]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def _network_def(config: RunConfig) -> dict[str, Any]:
    channels, classes = len(config.domain.images), len(config.domain.classes)
    kind, arguments = networks.constructor(config.network, channels, classes, config.spatial_dims)
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **arguments}


def _inference(config: RunConfig, definition: Mapping[str, Any]) -> dict[str, Any]:
    """configs/inference.json."""
    images = [f"image_{channel}.nii.gz" for channel in range(len(config.domain.images))]
    slices = config.spatial_dims == 2
    windows = {
        "_target_": "SliceInferer" if slices else "SlidingWindowInferer",
        "roi_size": list(config.training.patch),
        "sw_batch_size": config.evaluation.batch,
        "overlap": config.evaluation.overlap,
        "mode": "gaussian",
    }
    invert = {"transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False}
    back = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "Invertd", "keys": "pred", **invert},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]
    return {
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": ".",
        "images": images,
        "network_def": dict(definition),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(config)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': [@dataset_dir + '/' + name for name in @images]}]",
            "transform": "@preprocessing",
        },
        "inferer": windows | ({"spatial_dim": 2} if slices else {}),
        "postprocessing": {"_target_": "Compose", "transforms": back},
    }


def _preprocessing(config: RunConfig) -> list[dict[str, Any]]:
    """MONAI's transforms that come nearest to `volumes.prepare_scan`."""
    volume, of_image = config.volume, {"keys": "image"}
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", **of_image, "ensure_channel_first": True},
        {"_target_": "Orientationd", **of_image, "axcodes": "RAS"},
    ]
    if volume.crop == "brain":
        foreground = {"source_key": "image", "select_fn": "$lambda x: x != 0"}
        steps.append({"_target_": "CropForegroundd", **of_image, **foreground})
    if volume.spacing is not None:
        spacing = {"pixdim": list(volume.spacing), "mode": "bilinear"}
        steps.append({"_target_": "Spacingd", **of_image, **spacing})
    scaled = f"$lambda x: torch.stack([{INTENSITY[volume.intensity]} for c in x])"
    steps.append({"_target_": "Lambdad", **of_image, "func": scaled})
    steps.append({"_target_": "EnsureTyped", **of_image, "device": "@device"})
    return steps


def _readme(config: RunConfig) -> str:
    channels = {
        "image": _numbered(config.domain.images),
        "pred": _numbered(config.domain.classes),
    }
    spacing = config.volume.spacing
    return README.format(
        version=__version__,
        dataset=config.dataset,
        stand_in=" (its stand-in, the phantom, not real scans)" if config.data == "phantom" else "",
        channels=json.dumps(channels, indent=1),
        crop=", crops to what is not 0" if config.volume.crop == "brain" else "",
        spacing=f", resamples to {' x '.join(map(str, spacing))} mm" if spacing else "",
        intensity=config.volume.intensity,
    )


def _terms(config: RunConfig) -> str:
    try:
        kind = datasets.REGISTRY.get(config.dataset)
    except UserError:
        return "not known here, since the data set's package is not installed."
    return f"{kind.licence or 'not stated'}\n{kind.citation}"
