"""Whole-volume inference, and per-subject metrics at the scan's own spacing with a declared rule
for empty masks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from trm_bench.data.patches import SubjectStore
from trm_bench.data.volumes import to_classes
from trm_bench.formats import autocast
from trm_bench.networks import evaluating

if TYPE_CHECKING:
    from trm_bench.data.prepared import Prepared
    from trm_bench.protocol.schema import EvaluationConfig, TrainingConfig

# metric: (value where prediction and reference are both empty, value where one is; "diagonal" is
# the scan's, mm)
EMPTY_RULE: dict[str, tuple[float, float | str]] = {
    "dice": (1.0, 0.0),
    "hd95": (0.0, "diagonal"),
    "surface_dice": (1.0, 0.0),
}


def predict(
    network: nn.Module, image: Tensor, training: TrainingConfig, evaluation: EvaluationConfig
) -> Tensor:
    """Softmax of a whole volume, float32, shape (1, K, X, Y, Z); see `outputs`."""
    return outputs(network, image, training, evaluation).softmax(1)


@torch.no_grad()
def outputs(
    network: nn.Module, image: Tensor, training: TrainingConfig, evaluation: EvaluationConfig
) -> Tensor:
    """A network's outputs on a whole volume by overlapping windows, blended with Gaussian weights.

    Args:
        network: In any mode; evaluated in eval mode and left as it was, module by module.
        image: Shape (1, C, X, Y, Z), on the network's device. A 2D network gets the slices along Z
            as a batch.
        training: Names patch and precision.
        evaluation: Names overlap and number of windows at a time.

    Returns:
        float32, shape (1, K, X, Y, Z).
    """
    from monai.inferers import sliding_window_inference

    flat = len(training.patch) == 2
    inputs = image[0].movedim(-1, 0) if flat else image
    with evaluating(network), autocast(image.device, training.precision):
        logits = sliding_window_inference(
            inputs,
            roi_size=training.patch,
            sw_batch_size=evaluation.batch,
            predictor=network,
            overlap=evaluation.overlap,
            mode="gaussian",
        )
    assert isinstance(logits, Tensor)
    return (logits.movedim(0, -1)[None] if flat else logits).float()


def to_native(probabilities: Tensor, shape: Sequence[int]) -> Tensor:
    """Class indices on the cropped native grid, uint8, shape (X, Y, Z).

    Probabilities are resampled, then compared.
    """
    if tuple(probabilities.shape[2:]) != tuple(shape):
        probabilities = functional.interpolate(
            probabilities, size=tuple(shape), mode="trilinear", align_corners=False
        )
    return probabilities.argmax(1)[0].to(torch.uint8)


def to_prepared(classes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Classes on the cropped native grid, uint8, back on the prepared grid, by nearest voxel."""
    if tuple(classes.shape) == shape:
        return classes
    batched = classes[None, None].float()
    return functional.interpolate(batched, size=shape, mode="nearest-exact")[0, 0].to(torch.uint8)


def score(
    prediction: Tensor,
    label: Tensor,
    regions: Mapping[str, Sequence[int]],
    metrics: Sequence[str],
    spacing: Sequence[float],
    diagonal: float,
    tolerance: float,
) -> dict[str, dict[str, float]]:
    """Metrics of one subject.

    Args:
        prediction: Class indices, shape (X, Y, Z).
        label: Class indices, shape (X, Y, Z).
        regions: What is scored, as unions of classes.
        metrics: Of `dice` (share), `hd95` (mm, the larger of the two directed 95th percentiles),
            `surface_dice` (share of the surfaces within `tolerance`).
        spacing: mm.
        diagonal: mm, given as distance where one mask is empty.
        tolerance: mm.

    Returns:
        Region to metric to value; always finite.
    """
    names = list(regions)
    ours, theirs = (_masks(x.cpu(), regions) for x in (prediction, label))
    values = _measured(ours, theirs, metrics, spacing, tolerance)
    scores: dict[str, dict[str, float]] = {}
    for r, name in enumerate(names):
        empty = int(not ours[0, r].any()) + int(not theirs[0, r].any())
        scores[name] = {}
        for metric in metrics:
            value = float(values[metric][r])
            if empty:
                ruled = EMPTY_RULE[metric][0 if empty == 2 else 1]
                value = diagonal if isinstance(ruled, str) else ruled
            scores[name][metric] = value
    return scores


def _masks(classes: Tensor, regions: Mapping[str, Sequence[int]]) -> Tensor:
    """Class indices (X, Y, Z) to a mask of each region, float32, shape (1, R, X, Y, Z)."""
    members = (torch.tensor(list(region), dtype=classes.dtype) for region in regions.values())
    return torch.stack([torch.isin(classes, of_region) for of_region in members])[None].float()


def _measured(
    ours: Tensor,
    theirs: Tensor,
    metrics: Sequence[str],
    spacing: Sequence[float],
    tolerance: float,
) -> dict[str, Tensor]:
    """Metric to values of each region, (R,); of no meaning where a mask is empty."""
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    values: dict[str, Tensor] = {}
    with warnings.catch_warnings():
        # MONAI warns of empty masks, for which the rule stands
        warnings.simplefilter("ignore")
        if "dice" in metrics:
            values["dice"] = compute_dice(ours, theirs)[0]
        if "hd95" in metrics:
            values["hd95"] = compute_hausdorff_distance(
                ours, theirs, include_background=True, percentile=95, spacing=list(spacing)
            )[0]
        if "surface_dice" in metrics:
            tolerances = [tolerance] * ours.shape[1]
            values["surface_dice"] = compute_surface_dice(
                ours, theirs, tolerances, include_background=True, spacing=list(spacing)
            )[0]
    return values


def score_subjects(
    network: nn.Module,
    store: SubjectStore,
    metrics: Sequence[str],
    training: TrainingConfig,
    evaluation: EvaluationConfig,
    keep: Callable[[Prepared, Tensor], None] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Predicts and scores every subject of a store at its native spacing.

    Args:
        network: To be tested.
        store: Subjects.
        metrics: Names.
        training: Patch and precision.
        evaluation: Windows and tolerance.
        keep: Called with each subject and its predicted classes on the native grid.

    Returns:
        Subject to region to metric to value.
    """
    results = {}
    for i, prepared in enumerate(store.prepared):
        image, _, _ = store.volume(i)
        native = to_classes(prepared.native_label(), store.label_map)
        probabilities = predict(network, image, training, evaluation)
        classes = to_native(probabilities, native.shape).cpu()
        results[prepared.subject] = score(
            classes,
            native,
            store.label_map.regions,
            metrics,
            prepared.native_spacing,
            prepared.diagonal,
            evaluation.surface_tolerance,
        )
        if keep is not None:
            keep(prepared, classes)
    return results


def mean_dice(
    network: nn.Module, store: SubjectStore, training: TrainingConfig, evaluation: EvaluationConfig
) -> float:
    """Mean Dice over subjects and regions: what selection goes by."""
    scores = score_subjects(network, store, ("dice",), training, evaluation)
    values = [region["dice"] for subject in scores.values() for region in subject.values()]
    return sum(values) / len(values)
