"""The transfer risk map of one subject as NIfTI, from a source checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from trm_bench import networks
from trm_bench.datasets.base import Scan
from trm_bench.errors import UserError
from trm_bench.evaluation import predict
from trm_bench.files import write_atomically
from trm_bench.protocol import EvaluationConfig, NetworkConfig, TrainingConfig, VolumeConfig
from trm_bench.runs import load_checkpoint
from trm_bench.transfer_risk import LeepStatistics, Risk, RiskMap, RiskSummary
from trm_bench.volumes import prepare_scan


def open_source(checkpoint: Path, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """A frozen source network, and what its checkpoint says of it (`config`, `classes`).

    Raises:
        UserError: The file is not a checkpoint of this package.
    """
    state, about = load_checkpoint(checkpoint)
    config, dims = NetworkConfig.model_validate(about["config"]["network"]), len(about["config"]["training"]["patch"])
    channels = len(about["config"]["domain"]["images"])
    network = networks.build(config, channels, len(about["classes"]), dims, seed=0)
    network.load_state_dict(state)
    return network.to(device).eval().requires_grad_(False), about


def write(
    checkpoint: Path, images: Sequence[Path], label: Path, out: Path, risk: str, device: torch.device
) -> dict[str, Any]:
    """Writes the risk map in the image's own space, 0 outside the prepared volume.

    The joint P(y, z) is that of this one subject: a map to look at, not the one of a training set.

    Args:
        checkpoint: A source network of this package.
        images: One NIfTI file per modality that the network sees, in its order.
        label: NIfTI label; each value is a class of its own.
        out: `.nii` or `.nii.gz`.
        risk: Of `trm_bench.transfer_risk.RiskMap`.
        device: Where to compute.

    Returns:
        `leep`, `class_explained` and the rest of `RiskSummary.result`.

    Raises:
        UserError: A file is missing or does not fit, or an option is wrong.
    """
    import nibabel as nib

    if risk not in get_args(Risk):
        raise UserError(f"no risk '{risk}'", "--risk", f"choose {' or '.join(get_args(Risk))}")
    if not out.name.endswith((".nii", ".nii.gz")):
        raise UserError("the map is a NIfTI file", out, "name it .nii or .nii.gz")
    network, about = open_source(checkpoint, device)
    config = about["config"]
    modalities = config["domain"]["images"]
    if len(images) != len(modalities):
        hint = f"give --image once for each of {', '.join(modalities)}"
        raise UserError(f"{len(images)} images, but the network sees {len(modalities)}", "--image", hint)
    files = [_read(path) for path in (*images, label)]
    first = files[0]
    for path, file in zip((*images, label), files, strict=True):
        if file.shape != first.shape or not np.allclose(file.affine, first.affine, atol=1e-3):
            raise UserError(f"not on the grid of {images[0].name}", path, "resample it first")
    canonical = [nib.as_closest_canonical(file) for file in files]
    label_values = np.asarray(canonical[-1].dataobj)
    found = np.unique(label_values)
    if not np.array_equal(found, found.round()) or found.min() < 0 or found.max() > 255:
        raise UserError("label values are not whole numbers from 0 to 255", label, "give a label image")
    scan = Scan(
        np.stack([np.asarray(file.dataobj, dtype=np.float32) for file in canonical[:-1]]),
        label_values.astype(np.uint8),
        canonical[0].affine,
        tuple(modalities),
    )
    volume = VolumeConfig.model_validate(config["volume"])
    tensors, prepared = prepare_scan(scan, volume)
    training = TrainingConfig.model_validate(config["training"])
    windows = EvaluationConfig.model_validate(config["evaluation"])
    probabilities = predict(network, tensors["image"][None].float().to(device), training, windows).cpu()
    values = torch.as_tensor(found.astype(np.int64))
    classes = torch.searchsorted(values, tensors["label"].long())[None]
    statistics = LeepStatistics(len(values), probabilities.shape[1])
    statistics.update(probabilities, classes)
    risk_map = RiskMap(statistics.conditional(), risk)  # type: ignore[arg-type]  # checked above
    risks = risk_map(probabilities, classes)
    summary = RiskSummary(len(values))
    summary.update(risks, risk_map.transferability(probabilities, classes), classes)

    native = tensors.get("native", tensors["label"]).shape
    resampled = functional.interpolate(risks[None].float(), size=tuple(native), mode="trilinear", align_corners=False)
    whole = np.zeros(scan.label.shape, dtype=np.float32)
    offset = np.linalg.solve(scan.affine, np.array([*np.array(prepared["affine"])[:3, 3], 1.0]))[:3].round().astype(int)
    box = tuple(slice(o, o + n) for o, n in zip(offset, native, strict=True))
    whole[box] = resampled[0, 0].numpy()
    # back from canonical axes to the file's own
    to_file = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(nib.aff2axcodes(scan.affine)), nib.io_orientation(first.affine)
    )
    image = nib.Nifti1Image(nib.orientations.apply_orientation(whole, to_file), first.affine)
    write_atomically(out, lambda path: nib.save(image, path))
    return summary.result()


def _read(path: Path) -> Any:
    import nibabel as nib

    try:
        image: Any = nib.load(path)
        np.asarray(image.dataobj[..., :1])  # so that a truncated file is noticed here
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise UserError(f"cannot be read as NIfTI: {error}", path, "check the path and the file") from error
    shape = image.shape
    if len(shape) != 3:
        raise UserError(f"has shape {shape}, not three axes", path, "give one file per modality")
    return image
