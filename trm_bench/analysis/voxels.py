"""What transfer did to single voxels, and whether a map knew it; on arrays alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SCRATCH = "scratch"
REFERENCE = "finetune"  # whose lost voxels a risk map should find
ALL_VOXELS = "all voxels"
LOST_OR_WON = "lost against won"  # of the voxels that transfer changed: is harm told from help?
FALSE_POSITIVE_RATES = np.linspace(0, 1, 101)  # where a ROC curve is kept


def lost(label: NDArray[Any], scratch: NDArray[Any], transfer: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels of negative transfer: right when trained from scratch, wrong after transfer."""
    return (scratch == label) & (transfer != label)


def outcomes(
    label: NDArray[Any], scratch: NDArray[Any], transfer: NDArray[Any], classes: int
) -> NDArray[np.int64]:
    """Counts what transfer did to the voxels of each class.

    Args:
        label: Class indices, any shape.
        scratch: Prediction of the network trained from scratch, same shape.
        transfer: Prediction of the method, same shape.
        classes: Number of classes, background included.

    Returns:
        Shape (classes, 3): voxels of the class; of those, lost (right from scratch, wrong after
        transfer) and won (wrong from scratch, right after transfer).
    """
    truth = label.astype(np.int64)
    won = lost(label, transfer, scratch)
    kind = np.where(lost(label, scratch, transfer), 1, np.where(won, 2, 0))
    counts = np.bincount((truth * 3 + kind).ravel(), minlength=3 * classes).reshape(classes, 3)
    return np.stack([counts.sum(axis=1), counts[:, 1], counts[:, 2]], axis=1)


def roc(risk: NDArray[Any], lost: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]] | None:
    """How well a risk map finds the voxels of actual negative transfer.

    Args:
        risk: Of each voxel.
        lost: Whether the voxel was lost; same shape.

    Returns:
        The area under the ROC curve (0.5: the map knows nothing) and the true positive rate at
        each of `FALSE_POSITIVE_RATES`; None where all voxels are lost, or none.
    """
    from sklearn import metrics

    if lost.all() or not lost.any():
        return None
    false, true, _ = metrics.roc_curve(lost.ravel(), risk.ravel())
    return float(metrics.auc(false, true)), np.interp(FALSE_POSITIVE_RATES, false, true)
