"""The transfer risk map of one subject as NIfTI, from a source checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trm_bench.data.volumes import prepare_scan
from trm_bench.datasets.base import LabelMap, NiftiDataset, Scan, Subject
from trm_bench.errors import BadSubject, UserError
from trm_bench.files import write_atomically
from trm_bench.inputs import ensure_writable
from trm_bench.runs import compute
from trm_bench.runs.arrays import read_checkpoint
from trm_bench.runs.config import RunConfig
from trm_bench.training.evaluation import predict
from trm_bench.transfer_risk import LeepStatistics, Risk, RiskMap, RiskSummary


class _Given(NiftiDataset):
    """The files of one subject, wherever they lie; each label value is a class of its own."""

    name = "risk-map"
    label_maps: Mapping[str, LabelMap] = {
        "any": LabelMap(tuple(map(str, range(256))), {value: value for value in range(256)})
    }
    allow_links = True

    def __init__(self, images: Sequence[Path], label: Path, modalities: tuple[str, ...]) -> None:
        self.root, self.modalities = label.parent, modalities
        self.subject = Subject("files", dict(zip(modalities, images, strict=True)), label)

    def subjects(self) -> list[Subject]:
        return [self.subject]

    def scan(self) -> Scan:
        """The files, read and checked as a benchmark's are.

        Raises:
            UserError: One of them cannot be used.
        """
        try:
            return self.read(self.subject, self.modalities)
        except BadSubject as error:
            fix = "give whole NIfTI files on one grid, the label with whole numbers from 0 to 255"
            raise UserError(error.what, error.where, fix) from error


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
        UserError: A file is missing, damaged or does not fit, the map cannot be written, or an
            option is wrong.
    """
    about, state = read_checkpoint(checkpoint)
    config = about.config
    modalities = config.domain.images
    _check_options(risk, out, images, modalities)
    given = _Given(images, label, modalities)
    scan = given.scan()
    ensure_writable(out.parent)
    network = _network(config, state, device, checkpoint)
    try:
        tensors, prepared = prepare_scan(scan, config.volume)
        image = tensors["image"][None].float().to(device)
        probabilities = predict(network, image, config.training, config.evaluation).cpu()
        values = torch.as_tensor(np.unique(scan.label).astype(np.int64))
        classes = torch.searchsorted(values, tensors["label"].long())[None]
        statistics = LeepStatistics(len(values), probabilities.shape[1])
        statistics.update(probabilities, classes)
    except (RuntimeError, ValueError, MemoryError) as error:  # of PyTorch, memory above all
        what = f"the network cannot be applied: {' '.join(str(error).split())[:300]}"
        raise UserError(what, images[0], "give an image like those it was trained on") from error
    if not bool(probabilities.isfinite().all()):
        fix = "train the source network again: delete this file and run the protocol"
        raise UserError("the network gives NaN: its weights are no good", checkpoint, fix)
    # mypy: the name was checked above
    risk_map = RiskMap(statistics.conditional(), risk)  # type: ignore[arg-type]
    risks = risk_map(probabilities, classes)
    summary = RiskSummary(len(values))
    summary.update(risks, risk_map.transferability(probabilities, classes), classes)

    whole = given.as_on_disk(given.subject, modalities, _native(risks, scan, tensors, prepared))
    _save(whole, out)
    return summary.result()


def _check_options(risk: str, out: Path, images: Sequence[Path], modalities: Sequence[str]) -> None:
    if risk not in get_args(Risk):
        raise UserError(f"no risk '{risk}'", "--risk", f"choose {' or '.join(get_args(Risk))}")
    if not out.name.endswith((".nii", ".nii.gz")):
        raise UserError("the map is a NIfTI file", out, "name it .nii or .nii.gz")
    if len(images) != len(modalities):
        fix = f"give --image once for each of {', '.join(modalities)}"
        what = f"{len(images)} images, but the network sees {len(modalities)}"
        raise UserError(what, "--image", fix)


def _network(
    config: RunConfig, state: Mapping[str, Tensor], device: torch.device, checkpoint: Path
) -> torch.nn.Module:
    try:
        return compute.frozen(config, state, device)
    except (RuntimeError, KeyError, AttributeError) as error:  # of load_state_dict
        what = f"the weights are not those of its network: {' '.join(str(error).split())[:300]}"
        fix = "source networks lie under RESULTS/sources/; delete this one and run the protocol"
        raise UserError(what, checkpoint, fix) from error


def _save(image: Any, out: Path) -> None:
    import nibabel as nib

    try:
        write_atomically(out, lambda path: nib.save(image, path))
    except OSError as error:
        fix = "choose another --out, or free some space"
        raise UserError(f"cannot be written: {error.strerror or error}", out, fix) from error


def _native(
    risks: Tensor, scan: Scan, tensors: dict[str, Tensor], prepared: dict[str, Any]
) -> np.ndarray:
    """A map on the prepared grid, (1, X, Y, Z), on the scan's grid, 0 outside."""
    native = tuple(tensors.get("native", tensors["label"]).shape)
    batched = risks[None].float()
    resampled = functional.interpolate(batched, size=native, mode="trilinear", align_corners=False)
    whole = np.zeros(scan.label.shape, dtype=np.float32)
    # where the cropped volume begins in the scan: its first voxel, from mm back to voxels
    first_voxel = [*np.array(prepared["affine"])[:3, 3], 1.0]
    offset = np.linalg.solve(scan.affine, first_voxel)[:3].round().astype(int)
    box = tuple(slice(o, o + n) for o, n in zip(offset, native, strict=True))
    whole[box] = resampled[0, 0].numpy()
    return whole
