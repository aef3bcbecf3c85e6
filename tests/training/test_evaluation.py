"""Evaluation: metrics against NumPy and SciPy, the rule for empty masks, whole-volume inference."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers import InMemory, examples, store, subject
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn import functional

from trm_bench.analysis.table import HIGHER_IS_BETTER
from trm_bench.data.volumes import prepare_scan
from trm_bench.datasets.base import LabelMap, Scan
from trm_bench.protocol.schema import EvaluationConfig, Metric, TrainingConfig, VolumeConfig
from trm_bench.training import evaluation
from trm_bench.training.evaluation import (
    EMPTY_RULE,
    mean_dice,
    predict,
    score,
    score_subjects,
    to_native,
    to_prepared,
)

METRICS = ("dice", "hd95", "surface_dice")
WINDOWS = EvaluationConfig(overlap=0.5, batch=2)


def training(*patch: int, precision: str = "fp32") -> TrainingConfig:
    return TrainingConfig(steps=1, patch=patch, precision=precision)


def scored(
    prediction: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float] = (1, 1, 1),
    tolerance: float = 1.05,
    regions: dict[str, tuple[int, ...]] | None = None,
) -> dict[str, dict[str, float]]:
    ours, theirs = (torch.from_numpy(np.asarray(x, np.uint8)) for x in (prediction, label))
    return score(
        ours,
        theirs,
        regions or {"whole": (1,)},
        METRICS,
        spacing,
        diagonal=77.5,
        tolerance=tolerance,
    )


class Painted(nn.Module):
    """Logits of three classes from an image that holds the class indices."""

    def forward(self, image: Tensor) -> Tensor:
        classes = torch.arange(3.0).reshape(1, 3, *[1] * (image.ndim - 2))
        return -50 * (image[:, :1] - classes) ** 2


class Modes(nn.Module):
    """A network, one layer of which is in eval mode and one of which may raise."""

    def __init__(self, raises: bool = False) -> None:
        super().__init__()
        self.raises, self.conv = raises, nn.Conv3d(1, 3, 1)
        self.frozen, self.moving = nn.BatchNorm3d(3), nn.BatchNorm3d(3)
        self.train()
        self.frozen.eval()
        self.seen: list[bool] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(any(module.training for module in self.modules()))
        if self.raises:
            raise RuntimeError("out of luck")
        return self.moving(self.frozen(self.conv(image)))


# ------------------------------------------------------------------------------------------ metrics

sides = st.integers(1, 7)
millimetres = st.sampled_from([0.5, 0.9375, 1.0, 1.37, 3.0])


@examples(40)
@given(
    shape=st.tuples(*[st.integers(3, 14)] * 3),
    spacing=st.tuples(millimetres, millimetres, millimetres),
    density=st.sampled_from([0.01, 0.3, 0.9]),
    seed=st.integers(0, 10**6),
)
def test_metrics_are_those_of_monai_on_whole_volumes(shape, spacing, density, seed) -> None:
    """To the last bit, though crops, empty masks and coinciding surfaces go their own way here."""
    draws = np.random.default_rng(seed)
    label = np.pad(draws.integers(0, 3, shape) * (draws.random(shape) < density), 3)
    ours = np.where(draws.random(label.shape) < 0.9, label, np.roll(label, 1, axis=1))
    regions = {"all": (1, 2), "second": (2,)}
    found = scored(ours, label, spacing, regions=regions)
    for name, region in regions.items():
        masks = [torch.from_numpy(np.isin(x, region))[None, None].float() for x in (ours, label)]
        if all(mask.any() for mask in masks):
            given_to_all = {"include_background": True, "spacing": list(spacing)}
            wanted = {
                "dice": compute_dice(*masks),
                "hd95": compute_hausdorff_distance(*masks, percentile=95, **given_to_all),
                "surface_dice": compute_surface_dice(*masks, [1.05], **given_to_all),
            }
            assert found[name] == {metric: float(value) for metric, value in wanted.items()}


def surface(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Coordinates, mm, of the voxels of a mask that touch its outside.

    Beyond the volume is outside.
    """
    padded = np.pad(mask, 1)
    return (np.argwhere(padded & ~binary_erosion(padded)) - 1) * np.array(spacing)


def by_hand(
    ours: np.ndarray, theirs: np.ndarray, spacing: Sequence[float], tolerance: float
) -> dict[str, float]:
    apart = cdist(surface(ours, spacing), surface(theirs, spacing))
    there, back = apart.min(1), apart.min(0)
    near = np.count_nonzero(there <= tolerance) + np.count_nonzero(back <= tolerance)
    return {
        "dice": 2
        * np.count_nonzero(ours & theirs)
        / (np.count_nonzero(ours) + np.count_nonzero(theirs)),
        "hd95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "surface_dice": near / (len(there) + len(back)),
    }


@examples(60)
@given(
    shape=st.tuples(sides, sides, sides),
    spacing=st.tuples(millimetres, millimetres, millimetres),
    density=st.sampled_from([0.03, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_metrics_are_those_of_numpy_and_never_nan(shape, spacing, density, seed) -> None:
    draws = np.random.default_rng(seed)
    ours, theirs = (
        draws.random(shape) < density,
        draws.random(shape) < draws.choice([0.03, 0.3, 0.8]),
    )
    found = scored(ours, theirs, spacing)["whole"]
    if ours.any() and theirs.any():
        assert found == pytest.approx(by_hand(ours, theirs, spacing, 1.05), rel=1e-5)
    elif ours.any() or theirs.any():
        assert found == {"dice": 0.0, "hd95": 77.5, "surface_dice": 0.0}
    else:
        assert found == {"dice": 1.0, "hd95": 0.0, "surface_dice": 1.0}
    assert all(math.isfinite(value) for value in found.values())


def test_metrics_of_two_balls_with_anisotropic_spacing() -> None:
    grid = np.indices((24, 22, 12)).transpose(1, 2, 3, 0) * (1.0, 1.2, 2.5)
    ours, theirs = (
        np.linalg.norm(grid - centre, axis=-1) < 8 for centre in ((11, 12, 14), (13, 12.6, 15))
    )
    found = scored(ours, theirs, (1.0, 1.2, 2.5), tolerance=1.3)["whole"]
    assert found == pytest.approx(by_hand(ours, theirs, (1.0, 1.2, 2.5), 1.3), rel=1e-5)
    assert (
        0.7 < found["dice"] < 0.95 and 1 < found["hd95"] < 5 and 0.2 < found["surface_dice"] < 0.95
    )


def test_a_shifted_slab_by_hand() -> None:
    ours, theirs = np.zeros((2, 10, 8, 6), bool)
    ours[2:5], theirs[3:6] = True, True
    found = scored(ours, theirs, (2.0, 1.0, 1.0), tolerance=1.9)["whole"]
    assert found["dice"] == pytest.approx(2 * 2 / 6)
    assert found["hd95"] == pytest.approx(2.0)
    assert scored(ours, theirs, (2.0, 1.0, 1.0), tolerance=2.1)["whole"]["surface_dice"] == 1.0
    assert scored(ours, ours)["whole"] == {"dice": 1.0, "hd95": 0.0, "surface_dice": 1.0}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_the_rule_for_empty_masks(metric: str, ours: bool, theirs: bool) -> None:
    masks = np.zeros((2, 5, 5, 5), np.uint8)
    masks[0, 1:3, 1:3, 1:3], masks[1, 1:3, 1:3, 1:3] = ours, theirs
    value = scored(*masks)["whole"][metric]
    best, worst = {"dice": (1, 0), "hd95": (0, 77.5), "surface_dice": (1, 0)}[metric]
    assert value == (best if ours == theirs else worst)
    single = score(
        *(torch.from_numpy(m) for m in masks), {"whole": (1,)}, [metric], (1, 1, 1), 77.5, 1.0
    )
    assert single == {"whole": {metric: value}}


def test_every_metric_has_its_rules() -> None:
    assert set(EMPTY_RULE) == set(METRICS) == set(Metric.__args__) and set(METRICS) < set(
        HIGHER_IS_BETTER
    )
    for metric, (both, one) in EMPTY_RULE.items():
        assert isinstance(one, str) or (both > one) == HIGHER_IS_BETTER[metric]


@examples(10)
@given(seed=st.integers(0, 10**6))
def test_regions_are_unions_of_classes(seed: int) -> None:
    draws = np.random.default_rng(seed)
    ours, theirs = draws.choice([0, 1, 2, 3], (2, 5, 6, 4), p=[0.7, 0.1, 0.1, 0.1])
    regions = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
    found = scored(ours, theirs, (1, 1, 2), regions=regions)
    assert list(found) == ["WT", "TC", "ET"]
    for name, classes in regions.items():
        alone = scored(np.isin(ours, classes), np.isin(theirs, classes), (1, 1, 2))["whole"]
        assert found[name] == alone


# ---------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(13, 9, 8), (4, 9, 3), (8, 8, 8)])
def test_windows_are_the_whole_volume_where_no_voxel_sees_another(
    shape: tuple[int, int, int], overlap: float
) -> None:
    torch.manual_seed(0)
    network, image = nn.Conv3d(2, 3, 1), torch.randn(1, 2, *shape)
    found = predict(network, image, training(8, 8, 8), EvaluationConfig(overlap=overlap, batch=3))
    assert (
        found.shape == (1, 3, *shape) and found.dtype == torch.float32 and not found.requires_grad
    )
    torch.testing.assert_close(found, network(image).softmax(1), atol=1e-5, rtol=1e-5)


def test_a_2d_network_sees_the_slices() -> None:
    torch.manual_seed(0)
    network, image = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 8, 6, 5)
    found = predict(network, image, training(8, 6), WINDOWS)
    assert found.shape == (1, 3, 8, 6, 5)
    for z in range(5):
        torch.testing.assert_close(
            found[..., z], network(image[..., z]).softmax(1), atol=1e-5, rtol=1e-5
        )


def test_windows_are_blended_with_more_weight_in_their_middle() -> None:
    """A network that knows the place in its window.

    A voxel's value is that of the windows it is central in.
    """

    class Middle(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            near = 4 * torch.hann_window(image.shape[2], periodic=False).reshape(-1, 1, 1).expand(
                image.shape[2:]
            )
            return torch.stack([torch.zeros_like(near), near])[None].repeat(len(image), 1, 1, 1, 1)

    found = predict(
        Middle(), torch.zeros(1, 1, 24, 8, 8), training(8, 8, 8), EvaluationConfig(overlap=0.5)
    )
    alone = Middle()(torch.zeros(1, 1, 8, 8, 8)).softmax(1)
    assert found[0, 1, 8:16].mean() > alone[0, 1].mean()


def test_bf16_inference_gives_float32_probabilities() -> None:
    found = predict(
        nn.Conv3d(1, 3, 1), torch.randn(1, 1, 8, 8, 8), training(4, 4, 4, precision="bf16"), WINDOWS
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(1, 8, 8, 8))


@pytest.mark.parametrize("raises", [False, True])
def test_every_module_keeps_its_mode(raises: bool) -> None:
    network = Modes(raises)
    before = [module.training for module in network.modules()]
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert len(set(before)) == 2
    image = torch.randn(1, 1, 8, 8, 8)
    if raises:
        with pytest.raises(RuntimeError, match="out of luck"):
            predict(network, image, training(4, 4, 4), WINDOWS)
    else:
        predict(network, image, training(4, 4, 4), WINDOWS)
    assert [module.training for module in network.modules()] == before
    assert network.seen and not any(network.seen), "in eval mode while predicting"
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in network.named_buffers())
    assert torch.is_grad_enabled()


# -------------------------------------------------------------------------------------- native grid


def ball(shape: tuple[int, int, int], spacing: Sequence[float]) -> np.ndarray:
    grid = (np.indices(shape).transpose(1, 2, 3, 0) + 0.5) * spacing
    apart = np.linalg.norm(grid - np.array(shape) * spacing / 2, axis=-1)
    return ((apart < 9) * 1 + (apart < 5) * 1).astype(np.uint8)


@pytest.mark.parametrize("wanted", [(1.5, 1.5, 1.5), (0.8, 0.8, 0.8), (2.0, 1.0, 1.0)])
def test_a_label_comes_back_from_the_prepared_grid(wanted: tuple[float, float, float]) -> None:
    shape, spacing = (24, 26, 12), (1.0, 0.9, 2.0)
    label = ball(shape, spacing)
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    tensors, _ = prepare_scan(
        Scan(image, label, np.diag([*spacing, 1]), ("a",)), VolumeConfig(spacing=wanted)
    )
    certain = functional.one_hot(tensors["label"].long(), 3).permute(3, 0, 1, 2)[None].float()
    back = to_native(certain, shape)
    assert back.shape == shape and back.dtype == torch.uint8
    for classes in ((1, 2), (2,)):
        ours, theirs = np.isin(back.numpy(), classes), np.isin(label, classes)
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.85
    there = to_prepared(back, tuple(tensors["label"].shape))
    assert (
        there.shape == tensors["label"].shape
        and float((there == tensors["label"]).float().mean()) > 0.95
    )


def test_on_the_same_grid_nothing_is_resampled() -> None:
    probabilities = torch.rand(1, 4, 5, 6, 7)
    found = to_native(probabilities, (5, 6, 7))
    assert torch.equal(found, probabilities.argmax(1)[0].to(torch.uint8))
    assert torch.equal(to_prepared(found, (5, 6, 7)), found)


@examples(60)
@given(
    given_shape=st.tuples(sides, sides, sides),
    shape=st.tuples(*[st.integers(1, 17)] * 3),
    classes=st.integers(1, 5),
    smooth=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_classes_on_the_native_grid_are_those_of_the_whole_interpolation(
    given_shape, shape, classes, smooth, seed
) -> None:
    """Voxel for voxel, but where two classes are as probable as each other in float32."""
    coarse = [(n + 2) // 3 if smooth else n for n in given_shape]  # smooth: most neighbours agree
    logits = torch.randn(1, classes, *coarse, generator=torch.Generator().manual_seed(seed))
    logits = functional.interpolate(logits, size=given_shape, mode="trilinear")
    probabilities = (5 * logits).softmax(1)
    whole = functional.interpolate(probabilities, size=shape, mode="trilinear")
    found = to_native(probabilities, shape)
    assert found.shape == shape and found.dtype == torch.uint8
    chosen = whole.gather(1, found.long()[None, None])
    torch.testing.assert_close(chosen, whole.amax(1, keepdim=True), atol=1e-6, rtol=0)
    apart = whole.topk(min(2, classes), dim=1).values[0]
    clear = (apart[0] - apart[-1] > 1e-6) | (classes == 1)
    assert torch.equal(found[clear], whole.argmax(1)[0].to(torch.uint8)[clear])


def test_of_equally_probable_classes_the_first_leads() -> None:
    for shape in ((2, 3, 4), (4, 5, 8)):
        assert not to_native(torch.full((1, 3, 2, 3, 4), 1 / 3), shape).any()


def painted(name: str, label: Tensor, **about) -> InMemory:
    return subject(0, label.shape, subject=name, label=label, image=label[None].half(), **about)


def test_subjects_are_scored_on_their_native_grid() -> None:
    coarse = torch.from_numpy(ball((12, 12, 12), (2, 2, 2)))
    native = torch.from_numpy(ball((24, 24, 18), (1, 1, 4 / 3)))
    spacing = (1.0, 1.0, 4 / 3)
    same = painted("same", coarse, native_spacing=(2.0, 2.0, 2.0), diagonal=40.0)
    finer = painted("finer", coarse, native=native, native_spacing=spacing, diagonal=41.0)
    missed = painted("missed", torch.zeros_like(coarse), native=coarse, diagonal=42.0)
    several, seen = store(same, finer, missed), {}
    found = score_subjects(
        Painted(),
        several,
        METRICS,
        training(8, 8, 8),
        WINDOWS,
        lambda prepared, x: seen.update({prepared.subject: x}),
    )
    perfect, worst = (
        {"dice": 1, "hd95": 0, "surface_dice": 1},
        {"dice": 0, "hd95": 42, "surface_dice": 0},
    )
    assert list(found) == ["same", "finer", "missed"]
    assert found["same"] == {"core": perfect, "rim": perfect} and found["missed"] == {
        "core": worst,
        "rim": worst,
    }
    classes = Painted()(coarse[None, None].float()).softmax(1)
    upscaled = (
        functional.interpolate(classes, size=native.shape, mode="trilinear").argmax(1)[0].numpy()
    )
    for name, index in (("core", 1), ("rim", 2)):
        wanted = by_hand(
            upscaled == index, native.numpy() == index, spacing, WINDOWS.surface_tolerance
        )
        assert found["finer"][name] == pytest.approx(wanted, rel=1e-4) and wanted["dice"] > 0.7
    assert list(seen) == ["same", "finer", "missed"] and seen["finer"].shape == native.shape
    np.testing.assert_array_equal(seen["finer"].numpy(), upscaled)
    dice = [found[s][r]["dice"] for s in found for r in ("core", "rim")]
    assert mean_dice(Painted(), several, training(8, 8, 8), WINDOWS) == pytest.approx(np.mean(dice))


def test_on_a_gpu_metrics_are_computed_behind_the_next_prediction(monkeypatch) -> None:
    """Forced here on the CPU: another thread, the same numbers in the same order."""
    coarse = torch.from_numpy(ball((12, 12, 12), (2, 2, 2)))
    native = torch.from_numpy(ball((20, 24, 18), (1, 1, 4 / 3)))
    subjects = store(*[painted(str(i), coarse.roll(i, 0), native=native) for i in range(3)])
    threads: dict[str, set[int]] = {"metrics": set(), "keep": set(), "network": set()}
    score_here = evaluation.score

    def noted(*args):
        threads["metrics"].add(threading.get_ident())
        return score_here(*args)

    class Noted(Painted):
        def forward(self, image: Tensor) -> Tensor:
            threads["network"].add(threading.get_ident())
            return super().forward(image)

    def tested() -> tuple[dict, list]:
        kept: list = []

        def keep(prepared, classes) -> None:
            threads["keep"].add(threading.get_ident())
            kept.append((prepared.subject, classes.tolist()))

        found = score_subjects(Noted(), subjects, METRICS, training(8, 8, 8), WINDOWS, keep)
        return found, kept

    monkeypatch.setattr(evaluation, "score", noted)
    wanted = tested()
    here = threading.get_ident()
    assert all(seen == {here} for seen in threads.values())
    threads["metrics"].clear()
    monkeypatch.setattr(evaluation, "MEASURED_BEHIND", ("cpu",))
    found = tested()
    assert found == wanted and list(found[0]) == ["0", "1", "2"]
    assert here not in threads["metrics"] and len(threads["metrics"]) == 1
    assert threads["keep"] == threads["network"] == {here}


def test_what_fails_behind_a_prediction_is_raised_and_ends_the_test(monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "MEASURED_BEHIND", ("cpu",))
    label = torch.from_numpy(ball((8, 8, 8), (2, 2, 2)))
    subjects, kept = store(*[painted(str(i), label) for i in range(4)]), []

    def failing(*args):
        raise RuntimeError(f"no metrics after {len(kept)}")

    monkeypatch.setattr(evaluation, "score", failing)
    network = Modes()
    with pytest.raises(RuntimeError, match="no metrics after 0"):
        score_subjects(
            network,
            subjects,
            METRICS,
            training(8, 8, 8),
            WINDOWS,
            lambda prepared, x: kept.append(prepared),
        )
    assert not kept and len(network.seen) == 2, "one subject in flight, no more"


def test_the_region_of_the_label_map_is_scored() -> None:
    label = torch.from_numpy(ball((12, 12, 12), (2, 2, 2)))
    regions = LabelMap(("background", "core", "rim"), {0: 0, 1: 1, 2: 2}, {"all": (1, 2)})
    found = score_subjects(
        Painted(),
        store(painted("a", label), label_map=regions),
        METRICS,
        training(12, 12, 12),
        WINDOWS,
    )
    assert found == {"a": {"all": {"dice": 1, "hd95": 0, "surface_dice": 1}}}


# ------------------------------------------------------------------------------------------ windows


class Counted(nn.Module):
    """Remembers the sizes of the batches it saw; its logits rise from the border of a window in."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        self.sizes.append(len(image))
        inside = functional.avg_pool3d(torch.ones_like(image), 3, stride=1, padding=1)
        return torch.cat([image, inside], dim=1)


@pytest.mark.parametrize("overlap, windows", [(0.0, 2 * 3), (0.25, 2 * 4), (0.5, 3 * 5)])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_windows_overlap_and_are_batched_as_configured(
    overlap: float, windows: int, batch: int
) -> None:
    """A 14 x 22 x 8 volume in 8-voxel windows that lie 8, 6 or 4 voxels apart."""
    network = Counted()
    windowing = EvaluationConfig(overlap=overlap, batch=batch)
    predict(network, torch.zeros(1, 1, 14, 22, 8), training(8, 8, 8), windowing)
    assert sum(network.sizes) == windows and max(network.sizes) == min(batch, windows)


def test_the_overlap_matters_where_a_network_sees_its_border() -> None:
    image = torch.zeros(1, 1, 16, 16, 8)
    some = [
        predict(Counted(), image, training(8, 8, 8), EvaluationConfig(overlap=o))
        for o in (0.0, 0.5)
    ]
    assert not torch.allclose(*some)
