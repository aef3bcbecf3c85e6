"""The transfer risk map of one subject as NIfTI, from a source checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch.nn import functional

from trm_bench import prediction
from trm_bench.errors import UserError
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
        UserError: A file is missing, damaged or does not fit, the map cannot be written, or an
            option is wrong.
    """
    if risk not in get_args(Risk):
        raise UserError(f"no risk '{risk}'", "--risk", f"choose {' or '.join(get_args(Risk))}")
    found = prediction.apply(checkpoint, images, label, out, device)
    probabilities = found.probabilities.cpu()
    values = torch.as_tensor(np.unique(found.scan.label).astype(np.int64))
    classes = torch.searchsorted(values, found.label.long())[None]
    statistics = LeepStatistics(len(values), probabilities.shape[1])
    statistics.update(probabilities, classes)
    # mypy: the name was checked above
    risk_map = RiskMap(statistics.conditional(), risk)  # type: ignore[arg-type]
    risks = risk_map(probabilities, classes)
    summary = RiskSummary(len(values))
    summary.update(risks, risk_map.transferability(probabilities, classes), classes)
    native = functional.interpolate(
        risks[None].float(), size=found.native, mode="trilinear", align_corners=False
    )
    prediction.save(out, native[0, 0].numpy(), found.grid)
    return summary.result()
