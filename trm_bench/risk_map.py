"""The transfer risk map of one subject as NIfTI, from a source checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trm_bench.data.volumes import prepare_scan
from trm_bench.datasets.base import Scan
from trm_bench.errors import UserError
from trm_bench.files import write_atomically
from trm_bench.runs import compute
from trm_bench.runs.arrays import read_checkpoint
from trm_bench.training.evaluation import predict
from trm_bench.transfer_risk import LeepStatistics, Risk, RiskMap, RiskSummary


def write(
    checkpoint: Path,
    images: Sequence[Path],
    label: Path,
    out: Path,
    risk: str,
    device: torch.device,
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
    if risk not in get_args(Risk):
        raise UserError(f"no risk '{risk}'", "--risk", f"choose {' or '.join(get_args(Risk))}")
    if not out.name.endswith((".nii", ".nii.gz")):
        raise UserError("the map is a NIfTI file", out, "name it .nii or .nii.gz")
    about, state = read_checkpoint(checkpoint)
    config = about.config
    modalities = config.domain.images
    if len(images) != len(modalities):
        fix = f"give --image once for each of {', '.join(modalities)}"
        what = f"{len(images)} images, but the network sees {len(modalities)}"
        raise UserError(what, "--image", fix)
    scan, first = _scan(images, label, modalities)
    tensors, prepared = prepare_scan(scan, config.volume)
    network = compute.source_network(config, state, device)
    image = tensors["image"][None].float().to(device)
    probabilities = predict(network, image, config.training, config.evaluation).cpu()
    values = torch.as_tensor(np.unique(scan.label).astype(np.int64))
    classes = torch.searchsorted(values, tensors["label"].long())[None]
    statistics = LeepStatistics(len(values), probabilities.shape[1])
    statistics.update(probabilities, classes)
    # mypy: the name was checked above
    risk_map = RiskMap(statistics.conditional(), risk)  # type: ignore[arg-type]
    risks = risk_map(probabilities, classes)
    summary = RiskSummary(len(values))
    summary.update(risks, risk_map.transferability(probabilities, classes), classes)

    _write_native(risks, scan, tensors, prepared, first.affine, out)
    return summary.result()


def _write_native(
    risks: Tensor,
    scan: Scan,
    tensors: dict[str, Tensor],
    prepared: dict[str, Any],
    affine: np.ndarray,
    out: Path,
) -> None:
    """Writes a map on the prepared grid, (1, X, Y, Z), in the space of a file's own affine."""
    import nibabel as nib

    native = tuple(tensors.get("native", tensors["label"]).shape)
    batched = risks[None].float()
    resampled = functional.interpolate(batched, size=native, mode="trilinear", align_corners=False)
    whole = np.zeros(scan.label.shape, dtype=np.float32)
    # where the cropped volume begins in the scan: its first voxel, from mm back to voxels
    first_voxel = [*np.array(prepared["affine"])[:3, 3], 1.0]
    offset = np.linalg.solve(scan.affine, first_voxel)[:3].round().astype(int)
    box = tuple(slice(o, o + n) for o, n in zip(offset, native, strict=True))
    whole[box] = resampled[0, 0].numpy()
    # back from canonical axes to the file's own
    to_file = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(nib.aff2axcodes(scan.affine)), nib.io_orientation(affine)
    )
    image = nib.Nifti1Image(nib.orientations.apply_orientation(whole, to_file), affine)
    write_atomically(out, lambda path: nib.save(image, path))


def _scan(images: Sequence[Path], label: Path, modalities: tuple[str, ...]) -> tuple[Scan, Any]:
    """The files as one scan in canonical axes, and the first of them as it is on disk."""
    import nibabel as nib

    files = [_read(path) for path in (*images, label)]
    first = files[0]
    for path, file in zip((*images, label), files, strict=True):
        if file.shape != first.shape or not np.allclose(file.affine, first.affine, atol=1e-3):
            raise UserError(f"not on the grid of {images[0].name}", path, "resample it first")
    canonical = [nib.as_closest_canonical(file) for file in files]
    labels = np.asarray(canonical[-1].dataobj)
    present = np.unique(labels)
    if not np.array_equal(present, present.round()) or present.min() < 0 or present.max() > 255:
        what = "label values are not whole numbers from 0 to 255"
        raise UserError(what, label, "give a label image")
    voxels = np.stack([np.asarray(f.dataobj, dtype=np.float32) for f in canonical[:-1]])
    return Scan(voxels, labels.astype(np.uint8), canonical[0].affine, modalities), first


def _read(path: Path) -> Any:
    import nibabel as nib

    try:
        image: Any = nib.load(path)
        np.asarray(image.dataobj[..., :1])  # so that a truncated file is noticed here
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise UserError(
            f"cannot be read as NIfTI: {error}", path, "check the path and the file"
        ) from error
    shape = image.shape
    if len(shape) != 3:
        raise UserError(f"has shape {shape}, not three axes", path, "give one file per modality")
    return image
