"""Whole-volume inference, and per-subject metrics at the scan's own spacing with a declared rule
for empty masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trm_bench.data.patches import SubjectStore
from trm_bench.data.volumes import bounding_box, to_classes
from trm_bench.formats import autocast
from trm_bench.networks import evaluating

if TYPE_CHECKING:
    from trm_bench.data.prepared import Prepared
    from trm_bench.protocol.schema import EvaluationConfig, TrainingConfig

A = TypeVar("A")
B = TypeVar("B")

Scores = dict[str, dict[str, float]]
"""Region to metric to value."""

UNDECIDED = 255
"""In place of a class, where neighbours differ; of 256 classes, the last is interpolated too."""

# Kinds of device beside which metrics are computed while the next subject is predicted; beside a
# training on the CPU they would take a core that another run uses.
MEASURED_BEHIND = ("cuda",)

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
            # in bf16, blending would round every window, and take twice as long
            predictor=lambda windows: network(windows).float(),
            overlap=evaluation.overlap,
            mode="gaussian",
        )
    assert isinstance(logits, Tensor)
    return logits.movedim(0, -1)[None] if flat else logits


def to_native(probabilities: Tensor, shape: Sequence[int]) -> Tensor:
    """Classes on the cropped native grid: probabilities are resampled, then compared.

    Linear interpolation mixes the 8 prepared voxels around a native one. Where the same class leads
    in all 8 it leads in every mixture of them, so that only the other voxels, those between two
    classes, are interpolated: plane by plane, which takes little memory, and on the CPU, since a
    GPU would wait for every plane.

    Args:
        probabilities: Shape (1, K, X, Y, Z), on any device.
        shape: Of the native grid.

    Returns:
        Class indices, uint8, of that shape, on the CPU.
    """
    given = probabilities[0].cpu()
    classes = _largest(given)
    if tuple(classes.shape) == tuple(shape):
        return classes
    (x, next_x, towards_x), (y, next_y, towards_y), (z, next_z, towards_z) = (
        _neighbours(n, m) for n, m in zip(classes.shape, shape, strict=True)
    )
    agreed = _where_all_agree(classes)
    native = agreed.index_select(2, z).index_select(1, y).index_select(0, x)
    slices = given.movedim(1, 0).contiguous()
    for i, plane in enumerate(native):
        row, column = between = (plane == UNDECIDED).nonzero(as_tuple=True)
        if not len(row):
            continue
        rows = slices[x[i]].lerp(slices[next_x[i]], towards_x[i])
        lines = rows.index_select(1, y).lerp(rows.index_select(1, next_y), towards_y[:, None])
        low, high = lines[:, row, z[column]], lines[:, row, next_z[column]]
        plane[between] = _largest(low.lerp(high, towards_z[column]))
    return native


def _largest(values: Tensor) -> Tensor:
    """Index of the first largest of (K, ...), uint8; `argmax` takes ten times as long there."""
    best, index = values[0].clone(), torch.zeros_like(values[0], dtype=torch.uint8)
    for k, value in enumerate(values[1:], start=1):
        index.masked_fill_(value > best, k)
        torch.maximum(best, value, out=best)
    return index


def _where_all_agree(classes: Tensor) -> Tensor:
    """The class of a voxel and of the next ones along each axis, else `UNDECIDED`."""
    least = most = classes
    for axis in range(classes.ndim):
        following = torch.arange(1, classes.shape[axis] + 1).clamp(max=classes.shape[axis] - 1)
        least = least.minimum(least.index_select(axis, following))
        most = most.maximum(most.index_select(axis, following))
    return classes.where(least == most, UNDECIDED)


def _neighbours(given: int, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per voxel along a resampled axis: the voxel before it, the one after it, and the way there.

    Float32 and the clamping at the ends are as in `functional.interpolate` without aligned corners.
    """
    scale = torch.tensor(given, dtype=torch.float32) / wanted
    at = (scale * (torch.arange(wanted) + 0.5) - 0.5).clamp(min=0)
    before = at.long().clamp(max=given - 1)
    return before, (before + 1).clamp(max=given - 1), at - before


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
) -> Scores:
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
    members = [index for region in regions.values() for index in region]
    both = [x.cpu().numpy() for x in (prediction, label)]
    scored = bounding_box(np.isin(both[0], members) | np.isin(both[1], members))
    scores: dict[str, dict[str, float]] = {}
    for name, region in regions.items():
        ours, theirs = (np.isin(classes[scored], list(region)) for classes in both)
        if empty := 2 - bool(ours.any()) - bool(theirs.any()):
            ruled = {metric: EMPTY_RULE[metric][0 if empty == 2 else 1] for metric in metrics}
            scores[name] = {m: diagonal if isinstance(v, str) else v for m, v in ruled.items()}
        else:
            values = _measured(ours, theirs, metrics, spacing, tolerance)
            scores[name] = {metric: float(values[metric]) for metric in metrics}
    return scores


def _measured(
    ours: np.ndarray,
    theirs: np.ndarray,
    metrics: Sequence[str],
    spacing: Sequence[float],
    tolerance: float,
) -> dict[str, Tensor]:
    """Metric to value, float32; both masks hold something."""
    values: dict[str, Tensor] = {}
    if "dice" in metrics:
        common, *sizes = (float(np.count_nonzero(mask)) for mask in (ours & theirs, ours, theirs))
        values["dice"] = torch.tensor(2 * common) / sum(sizes)
    if {"hd95", "surface_dice"} & set(metrics):
        there, back = _surface_distances(ours, theirs, spacing)
        values["hd95"] = torch.maximum(there.quantile(0.95), back.quantile(0.95))
        near = (there <= tolerance).sum() + (back <= tolerance).sum()
        values["surface_dice"] = near / (len(there) + len(back))
    return values


def _surface_distances(
    ours: np.ndarray, theirs: np.ndarray, spacing: Sequence[float]
) -> list[Tensor]:
    """From each surface voxel of one mask to the other mask's surface, both ways, mm, float32."""
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    box = bounding_box(ours | theirs)
    # what lies beyond is outside of both masks, as it is beyond the volume
    edges = get_mask_edges(ours[box], theirs[box], crop=False)
    distances = []
    for one, other in (edges, edges[::-1]):
        # only these are looked up; good masks share much of their surface, at distance 0
        apart = one & ~other
        far = get_surface_distance(apart, other, spacing=list(spacing)) if apart.any() else ()
        zeros = np.zeros(np.count_nonzero(one & other))
        distances.append(torch.from_numpy(np.append(zeros, far)).float())
    return distances


def score_subjects(
    network: nn.Module,
    store: SubjectStore,
    metrics: Sequence[str],
    training: TrainingConfig,
    evaluation: EvaluationConfig,
    keep: Callable[[Prepared, Tensor], None] | None = None,
) -> dict[str, Scores]:
    """Predicts and scores every subject of a store at its native spacing.

    Args:
        network: To be tested.
        store: Subjects.
        metrics: Names.
        training: Patch and precision.
        evaluation: Windows and tolerance.
        keep: Called with each subject and its predicted classes on the native grid, in order, in
            the calling thread.

    Returns:
        Subject to region to metric to value.
    """

    def predicted() -> Iterator[tuple[Prepared, Tensor]]:
        for i, prepared in enumerate(store.prepared):
            # moved at once: behind the next subject's windows, a copy would wait for them
            yield prepared, predict(network, store.volume(i)[0], training, evaluation).cpu()

    def measured(subject: tuple[Prepared, Tensor]) -> tuple[Prepared, Tensor, Scores]:
        prepared, probabilities = subject
        native = to_classes(prepared.native_label(), store.label_map)
        classes = to_native(probabilities, native.shape)
        scores = score(
            classes,
            native,
            store.label_map.regions,
            metrics,
            prepared.native_spacing,
            prepared.diagonal,
            evaluation.surface_tolerance,
        )
        return prepared, classes, scores

    mapped = _map_behind if store.device.type in MEASURED_BEHIND else map
    results = {}
    for prepared, classes, scores in mapped(measured, predicted()):
        results[prepared.subject] = scores
        if keep is not None:
            keep(prepared, classes)
    return results


def _map_behind(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Like `map`, but the function works on one item in a thread while the next one is made."""
    with ThreadPoolExecutor(1) as pool:
        before: Future[B] | None = None
        for item in items:
            begun = pool.submit(function, item)
            if before is not None:
                yield before.result()
            before = begun
        if before is not None:
            yield before.result()


def mean_dice(
    network: nn.Module, store: SubjectStore, training: TrainingConfig, evaluation: EvaluationConfig
) -> float:
    """Mean Dice over subjects and regions: what selection goes by."""
    scores = score_subjects(network, store, ("dice",), training, evaluation)
    values = [region["dice"] for subject in scores.values() for region in subject.values()]
    return sum(values) / len(values)
