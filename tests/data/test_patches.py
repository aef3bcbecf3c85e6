"""Patches: cut as NumPy would, drawn by the seed axes alone, augmented as the protocol says."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, InMemory, examples, store, subject
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from scipy.stats import binomtest, chisquare
from torch import Tensor

from trm_bench.data import patches
from trm_bench.data.patches import Batch, PatchSampler, SubjectStore
from trm_bench.datasets.base import LabelMap
from trm_bench.protocol.schema import AugmentConfig, TrainingConfig

EVERYTHING = {
    "flip": (0, 1, 2),
    "rotate": 30,
    "scale": 0.2,
    "contrast": 0.2,
    "brightness": 0.2,
    "noise": 0.1,
}


def sampler(
    volumes: SubjectStore,
    patch: Sequence[int],
    augment: dict[str, Any],
    *axes: object,
    **config: Any,
):
    training = TrainingConfig(
        steps=1, patch=tuple(patch), augment=AugmentConfig(**augment), **config
    )
    return PatchSampler(volumes, training, *axes)


def numbered(seed: int, shape: Sequence[int], number: int = 0) -> InMemory:
    """A subject whose image says where a voxel is.

    Its three indices and the subject's number, all counted from 1.
    """
    indices = torch.stack(torch.meshgrid(*[torch.arange(1, n + 1) for n in shape], indexing="ij"))
    return subject(
        seed, shape, image=torch.cat([indices, torch.full((1, *shape), number + 1)]).half()
    )


def tensors(batch: Batch) -> list[Tensor]:
    return [batch.image, batch.label, batch.brain, *batch.fields.values()]


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def centred_on(label: Tensor, **config: Any) -> np.ndarray:
    """Classes at the centres of 400 patches of one voxel, all of them drawn around foreground."""
    volumes = store(subject(0, label.shape, label=label))
    batch = sampler(volumes, (1, 1, 1), {}, "classes", batch=400, foreground=1.0, **config).batch(0)
    return batch.label.flatten().numpy()


# ------------------------------------------------------------------------------------------ cutting


def crop(volume: np.ndarray, start: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    """The patch at `start`, which may reach over the edge, where it is 0."""
    padded = np.pad(volume, [(p, p) for p in patch])
    return padded[tuple(slice(s + p, s + 2 * p) for s, p in zip(start, patch, strict=True))]


def is_a_crop(
    found: list[np.ndarray], volumes: list[list[np.ndarray]], flip: Sequence[int]
) -> bool:
    """Whether image, label, brain and fields (*patch each) are one crop of one subject with allowed
    flips.
    """
    patch = found[-1].shape
    for turned in itertools.chain.from_iterable(
        itertools.combinations(flip, n) for n in range(len(flip) + 1)
    ):
        back = [np.flip(array, turned) for array in found]
        first = np.argwhere(back[3] > 0)[0]
        number = int(back[3][tuple(first)]) - 1
        start = [int(back[d][tuple(first)]) - 1 - int(first[d]) for d in range(3)]
        slack = np.array(volumes[number][0].shape) - patch
        legal = all(
            0 <= s <= k if k >= 0 else s == k // 2
            for s, k in zip(start, slack.tolist(), strict=True)
        )
        if legal and all(
            np.array_equal(b, crop(v, start, patch))
            for b, v in zip(back, volumes[number], strict=True)
        ):
            return True
    return False


sizes = st.integers(1, 8)


@examples(60)
@given(
    shapes=st.lists(st.tuples(sizes, sizes, sizes), min_size=1, max_size=3),
    patch=st.one_of(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes)),
    flip=st.sets(st.sampled_from([0, 1, 2])),
    foreground=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_a_batch_is_what_numpy_cuts(shapes, patch, flip, foreground, seed) -> None:
    several = [numbered(seed + i, shape, i) for i, shape in enumerate(shapes)]
    volumes = store(*several)
    risk = [torch.rand(shape) for shape in shapes]
    volumes.attach("risk", risk)
    drawn = sampler(
        volumes, patch, {"flip": tuple(flip)}, seed, batch=4, foreground=foreground
    ).batch(seed)
    assert drawn.image.shape == (4, 4, *patch) and drawn.image.dtype == torch.float32
    assert drawn.label.dtype == torch.int64 and drawn.brain.dtype == torch.bool
    assert all(t.shape == (4, *patch) for t in (drawn.label, drawn.brain, drawn.fields["risk"]))
    arrays = [
        [t.numpy() for t in (*s.image, s.label, s.brain, r)]
        for s, r in zip(several, risk, strict=True)
    ]
    for b in range(4):
        found = [
            t.numpy()
            for t in (*drawn.image[b], drawn.label[b], drawn.brain[b], drawn.fields["risk"][b])
        ]
        thick = [f[..., None] if len(patch) == 2 else f for f in found]
        assert is_a_crop(thick, arrays, [axis for axis in sorted(flip) if axis < len(patch)])


def test_starts_are_even_over_all_that_fit_and_subjects_too() -> None:
    volumes = store(numbered(0, (5, 4, 6), 0), numbered(1, (5, 4, 6), 1))
    image = sampler(volumes, (3, 4, 2), {}, "starts", batch=3000, foreground=0.0).batch(0).image
    first = image[:, :, 0, 0, 0].long().numpy()
    for channel, number in enumerate((3, 1, 5, 2)):
        counts = np.bincount(first[:, channel])[1:]
        assert len(counts) == number and (number == 1 or chisquare(counts).pvalue > 1e-3)


def test_each_allowed_axis_is_flipped_half_the_time_and_no_other() -> None:
    volumes = store(numbered(0, (6, 6, 6)))
    image = sampler(volumes, (3, 3, 3), {"flip": (0, 2)}, "flips", batch=400).batch(0).image
    for axis, expected in enumerate((True, False, True)):
        steps = image[:, axis].diff(dim=axis + 1).flatten(1)
        assert bool((steps.abs() == 1).all()) and bool((steps == steps[:, :1]).all())
        flipped = int((steps[:, 0] < 0).sum())
        assert binomtest(flipped, 400).pvalue > 1e-3 if expected else flipped == 0


def test_2d_patches_are_slices_along_the_last_axis() -> None:
    volumes = store(numbered(0, (9, 8, 7)))
    for augment in ({}, {"flip": (0, 1, 2)}, {"rotate": 90, "scale": 0.3}):
        batch = sampler(volumes, (4, 5), augment, "2D", batch=64).batch(0)
        assert batch.image.shape == (64, 4, 4, 5)
        inside = batch.image[:, 3] == 1  # the whole voxel, at no edge
        heights = [
            image[2][where].unique() for image, where in zip(batch.image, inside, strict=True)
        ]
        assert all(
            len(h.round().unique()) == 1 and float((h - h.round()).abs().max()) < 1e-5
            for h in heights
        )
        assert len(torch.cat(heights).round().unique()) == 7


# ------------------------------------------------------------------------------------------ drawing


def test_a_step_does_not_depend_on_what_was_drawn_before() -> None:
    volumes = store(subject(0, (7, 8, 9)), subject(1, (6, 5, 4)))
    some, other = (sampler(volumes, (4, 4, 4), EVERYTHING, "patches", 0) for _ in range(2))
    once = some.batch(5)
    torch.manual_seed(1)
    for step in (9, 0, 5, 3):
        other.batch(step)
    assert equal(once, other.batch(5)) and equal(once, some.batch(5))
    assert not equal(once, some.batch(6))


def test_the_axes_alone_make_the_batches() -> None:
    def batch(*axes: object) -> Batch:
        return sampler(store(subject(0, (9, 9, 9))), (4, 4, 4), EVERYTHING, *axes).batch(0)

    assert equal(batch("patches", "t1", 0), batch("patches", "t1", 0))
    for axes in (("patches", "t1", 1), ("patches", "t2", 0), ("source patches", "t1", 0)):
        assert not equal(batch(*axes), batch("patches", "t1", 0))


def test_an_attached_field_changes_no_draw() -> None:
    volumes = store(subject(0, (9, 9, 9)))
    drawn = sampler(volumes, (4, 4, 4), EVERYTHING, "patches")
    before = drawn.batch(0)
    volumes.attach("risk", [torch.rand(9, 9, 9)])
    assert torch.equal(before.image, drawn.batch(0).image) and torch.equal(
        before.label, drawn.batch(0).label
    )


@pytest.mark.parametrize("share, number", [(0.0, 0), (0.01, 1), (0.33, 3), (0.5, 4), (1.0, 8)])
def test_so_many_patches_are_centred_on_foreground(share: float, number: int) -> None:
    label = torch.zeros(30, 30, 30, dtype=torch.uint8)
    label[14, 3, 26] = 1
    volumes = store(subject(0, label.shape, label=label))
    drawn = sampler(volumes, (3, 3, 3), {"flip": (0, 1, 2)}, "share", batch=8, foreground=share)
    for step in range(20):
        centres = drawn.batch(step).label[:, 1, 1, 1]
        assert bool((centres[:number] == 1).all()) and int(centres.sum()) <= number + 1


def test_patches_around_foreground_at_the_edge_stay_inside() -> None:
    label = torch.zeros(9, 9, 9, dtype=torch.uint8)
    label[0, 8, 4] = 2
    volumes = store(
        subject(0, label.shape, label=label, brain=torch.ones(label.shape, dtype=torch.bool))
    )
    batch = sampler(volumes, (4, 4, 4), {}, "edge", batch=4, foreground=1.0).batch(0)
    assert bool(batch.brain.all()) and bool((batch.label == 2).flatten(1).any(1).all())


def test_classes_are_centred_on_alike_however_small() -> None:
    label = torch.zeros(9, 9, 9, dtype=torch.uint8)
    label[:, :, :4] = 1
    label[8, 8, 8] = 2
    counts = np.bincount(centred_on(label), minlength=3)
    assert counts[0] == 0 and binomtest(int(counts[1]), 400).pvalue > 1e-3
    label[8, 8, 8] = 0
    assert set(centred_on(label)) == {1}


def test_without_foreground_patches_are_drawn_anywhere() -> None:
    assert set(centred_on(torch.zeros(4, 4, 4, dtype=torch.uint8))) == {0}
    label = torch.zeros(4, 4, 4, dtype=torch.uint8)
    volumes = store(subject(0, label.shape, label=label), subject(1, label.shape, label=label + 1))
    batch = sampler(volumes, (1, 1, 1), {}, "some", batch=50, foreground=1.0).batch(0)
    assert set(batch.label.unique().tolist()) == {0, 1}


def test_of_a_large_class_some_voxels_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "FOREGROUND_VOXELS", 5)
    shape = (6, 6, 6)
    whole = numbered(0, shape)
    volumes = store(InMemory("0", whole.image, torch.ones(shape, dtype=torch.uint8), whole.brain))
    batch = sampler(volumes, (1, 1, 1), {}, "large", batch=300, foreground=1.0).batch(0)
    assert len(batch.image.flatten(1).unique(dim=0)) == 5


# ------------------------------------------------------------------------------------- augmentation


@examples(30)
@given(
    shape=st.tuples(sizes, sizes, sizes),
    patch=st.one_of(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes)),
    seed=st.integers(0, 1000),
)
def test_fields_are_cut_exactly_as_the_label_is(shape, patch, seed) -> None:
    several = [subject(seed, shape), subject(seed + 1, shape[::-1])]
    volumes = store(*several)
    volumes.attach("label", [s.label for s in several])
    volumes.attach("brain", [s.brain[None] for s in several])
    batch = sampler(volumes, patch, EVERYTHING, seed).batch(seed)
    assert torch.equal(batch.fields["label"], batch.label.float())
    assert torch.equal(batch.fields["brain"], batch.brain.float())


@pytest.mark.parametrize("patch", [(7, 5, 6), (7, 5)], ids=["3D", "2D"])
def test_affine_is_a_bounded_rotation_and_zoom_about_the_centre(patch: tuple[int, ...]) -> None:
    """The image holds each voxel's own index, so the sampled points can be read from it."""
    dims, angles, zooms = len(patch), [], []
    volumes = store(numbered(0, (24, 24, 24)))
    batch = sampler(
        volumes, patch, {"rotate": 25, "scale": 0.2}, "affine", batch=60, foreground=0.0
    ).batch(0)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in patch], indexing="ij"), -1).reshape(
        -1, dims
    )
    for image in batch.image.flatten(2).numpy():
        whole = np.abs(image[3] - 1) < 1e-6  # at no edge, where the padding is mixed in
        if whole.sum() < 30:
            continue
        places = np.c_[grid, np.ones(len(grid))]
        solution, *_ = np.linalg.lstsq(places[whole], image[:dims, whole].T - 1, rcond=None)
        np.testing.assert_allclose(places[whole] @ solution, image[:dims, whole].T - 1, atol=2e-4)
        matrix, middle = solution[:dims].T, (np.array(patch) - 1) / 2
        zoom = np.linalg.det(matrix) ** (1 / dims)
        np.testing.assert_allclose(matrix.T @ matrix, zoom**2 * np.eye(dims), atol=1e-3)
        start = matrix @ middle + solution[dims] - middle
        np.testing.assert_allclose(start, start.round(), atol=1e-3)
        turn = np.eye(3)
        turn[:dims, :dims] = matrix / zoom
        angles.append(np.abs(Rotation.from_matrix(turn).as_euler("XYZ", degrees=True)))
        zooms.append(zoom)
    assert len(zooms) > 30
    assert 0.8 <= min(zooms) < 0.85 and 1.15 < max(zooms) <= 1.2
    largest = np.max(angles, axis=0)
    assert (largest <= 25.01).all() and largest[2] > 15
    assert (largest[:2] > 15).all() if dims == 3 else (largest[:2] < 1e-3).all()


def test_image_and_label_are_moved_together() -> None:
    grid = torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"))
    label = ((grid - torch.tensor([6, 8, 9]).reshape(3, 1, 1, 1)).square().sum(0) < 25).to(
        torch.uint8
    )
    volumes = store(subject(0, label.shape, label=label, image=label[None].half()))
    augment = {"flip": (0, 1, 2), "rotate": 45, "scale": 0.3}
    batch = sampler(volumes, (10, 10, 10), augment, "together", batch=20).batch(0)
    image, classes = batch.image[:, 0], batch.label
    assert float(((image > 0.999) | (image < 0.001)).float().mean()) > 0.5
    assert bool((classes[image > 0.999] == 1).all()) and bool((classes[image < 0.001] == 0).all())


@pytest.mark.parametrize("in_plane", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 4, 2), (3, 3, 3)])
def test_interpolation_is_scipys(shape: tuple[int, int, int], in_plane: bool) -> None:
    draws = np.random.default_rng(0)
    volume = draws.normal(size=(2, *shape)).astype(np.float16)
    points = draws.uniform(-2.5, 8.5, (3, 4, 5, 1 if in_plane else 6)).astype(np.float32)
    points[:, 0] = points[:, 0].round()  # some exactly on voxels
    z = shape[2] - 1
    if in_plane:
        points[2] = z
    first, size = [-3, -3, z if in_plane else -3], [13, 13, 1 if in_plane else 13]
    cut = patches._Turned(list(torch.from_numpy(points)), first, size)
    found = cut.between(list(torch.from_numpy(volume))).numpy()
    far = (points < -1.01).any(0) | (np.array(shape) + 0.01 < points.T).T.any(0)
    assert far.any() and not found[:, far].any()
    for c in range(2):
        options: dict[str, Any] = {"mode": "grid-constant", "cval": 0}
        wanted = map_coordinates(volume[c].astype(np.float64), points, order=1, **options)
        np.testing.assert_allclose(found[c], wanted, atol=1e-5)
        nearest = map_coordinates(volume[c].astype(np.float64), points.round(), order=0, **options)
        assert np.array_equal(cut.nearest(torch.from_numpy(volume[c])).numpy(), nearest)


@given(
    seed=st.integers(0, 99),
    patch=st.tuples(*[st.integers(1, 9)] * 3),
    turned=st.sampled_from([{"rotate": 180}, {"scale": 0.9}, {"rotate": 40, "scale": 0.5}]),
)
@examples(60)
def test_the_part_that_is_read_holds_all_points(
    seed: int, patch: tuple[int, int, int], turned: dict[str, float]
) -> None:
    draws = torch.Generator().manual_seed(seed)
    augment = AugmentConfig.model_validate(turned)
    start = torch.randint(-3, 20, (4, 3), generator=draws)
    matrix = patches._turn_and_zoom(4, augment, False, draws)
    points = patches._moved(
        [start[:, d : d + 1] + torch.arange(patch[d]) for d in range(3)], matrix
    )
    firsts, extents = patches._boxes(start, torch.tensor(patch), matrix)
    for b in range(4):
        for d in range(3):
            first, extent = int(firsts[b, d]), int(extents[b, d])
            low, high = float(points[d][b].min()), float(points[d][b].max())
            assert first <= np.floor(low) and np.ceil(high) < first + extent
            assert extent <= high - low + 4, "more than is needed"


@pytest.mark.parametrize("augment", [{}, EVERYTHING], ids=["plain", "augmented"])
def test_autocast_does_not_reach_the_batch(augment: dict[str, Any]) -> None:
    drawn = sampler(store(subject(0, (12, 12, 12))), (6, 6, 6), augment, "autocast")
    plain = drawn.batch(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert equal(plain, drawn.batch(0)) and drawn.batch(0).image.dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")


def test_gain_and_shift_are_per_patch_and_channel_and_leave_zeros() -> None:
    one = subject(0, (8, 8, 8))
    image = torch.where(
        one.brain, torch.cat([one.image, 2 * one.image]), torch.tensor(0, dtype=torch.float16)
    )
    volumes = store(InMemory("0", image, one.label, one.brain))
    plain = sampler(volumes, (6, 10, 6), {}, "gain", batch=20).batch(0)
    changed = sampler(
        volumes, (6, 10, 6), {"contrast": 0.3, "brightness": 0.5}, "gain", batch=20
    ).batch(0)
    assert torch.equal(plain.label, changed.label)
    assert torch.equal(plain.image == 0, changed.image == 0), "background or padding got a value"
    fits = []
    for before, after in zip(plain.image.flatten(0, 1), changed.image.flatten(0, 1), strict=True):
        x, y = before[before != 0].numpy(), after[before != 0].numpy()
        gain, shift = np.polyfit(x.astype(np.float64), y.astype(np.float64), 1)
        np.testing.assert_allclose(y, gain * x + shift, atol=1e-5)
        fits.append((gain, shift))
    gains, shifts = np.array(fits).T
    assert 0.7 <= gains.min() < 0.8 and 1.2 < gains.max() <= 1.3
    assert -0.5 <= shifts.min() < -0.3 and 0.3 < shifts.max() <= 0.5
    assert len(np.unique(gains.round(5))) == 40


def test_noise_is_gaussian_of_at_most_that_deviation() -> None:
    ones = torch.ones(1, 16, 16, 16, dtype=torch.float16)
    ones[:, :2] = 0
    volumes = store(subject(0, (16, 16, 16), image=ones))
    image = sampler(volumes, (16, 16, 16), {"noise": 0.5}, "noise", batch=30).batch(0).image
    assert not image[:, :, :2].any()
    noise = (image[:, :, 2:] - 1).flatten(1)
    deviations = noise.std(1)
    assert (
        float(noise.mean().abs()) < 0.01
        and 0.4 < float(deviations.max()) < 0.52
        and float(deviations.min()) < 0.1
    )
    kurtosis = float(((noise / deviations[:, None]) ** 4).mean())
    assert kurtosis == pytest.approx(3, abs=0.1)


# -------------------------------------------------------------------------------------------- store


@pytest.mark.parametrize(
    ("patch", "augment", "golden"),
    [
        ((8, 7, 9), {}, "66ca0f377121dc59"),
        ((8, 7), {"flip": (0, 1, 2)}, "05a7e77134baf188"),
        ((20, 3, 5), {"flip": (0,), "contrast": 0.3, "brightness": 0.2}, "26aab1656ba0f00d"),
    ],
    ids=["plain", "flipped slices", "larger than a volume"],
)
def test_batches_are_what_they_were(
    patch: tuple[int, ...], augment: dict[str, Any], golden: str
) -> None:
    """Hashes of what an implementation gave that held all voxels in one tensor.

    Without turning and noise, whose last bits depend on the processor.
    """
    several = []
    for i, shape in enumerate([(4, 30, 6), (7, 5, 20), (12, 12, 12)]):
        draws = np.random.default_rng(i).normal(0, 1, (3, *shape))
        several.append(subject(i, shape, image=torch.from_numpy(draws).half()))
    volumes = store(*several)
    volumes.attach("risk", [s.label.float() * 0.37 for s in several])
    drawn = sampler(volumes, patch, augment, "golden", 1, batch=5)
    digest = hashlib.sha256()
    for tensor in itertools.chain.from_iterable(tensors(drawn.batch(step)) for step in (0, 1, 7)):
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update((tensor.numpy() + 0).tobytes())  # 0 has one sign
    assert digest.hexdigest()[:16] == golden


@pytest.mark.parametrize("augment", [{}, {"rotate": 30}], ids=["straight", "turned"])
def test_outside_is_background_whatever_a_value_means(augment: dict[str, Any]) -> None:
    inverse = LabelMap(("background", "rest"), {0: 1, 1: 0, 2: 0})
    volumes = store(subject(0, (3, 3, 3), label=torch.zeros(3, 3, 3).byte()), label_map=inverse)
    batch = sampler(volumes, (9, 9, 9), augment, "outside", batch=3).batch(0)
    assert 0 < batch.label.sum() <= 3 * 64 and not batch.label[:, 0].any()


def test_maps_are_copied() -> None:
    volumes, own = store(subject(0, (3, 4, 5))), torch.ones(3, 4, 5)
    volumes.attach("risk", [own])
    own.zero_()
    assert volumes.fields["risk"][0].all()


def test_a_store_gives_volumes_back() -> None:
    several = [subject(0, (3, 4, 5)), subject(1, (5, 2, 2)), subject(2, (1, 1, 1))]
    whole = LabelMap(("background", "whole"), {0: 0, 1: 1, 2: 1})
    volumes = store(*several, label_map=whole)
    assert len(volumes) == 3 and volumes.classes == 2
    assert volumes.images[0][0].dtype == torch.float16
    for i, one in enumerate(several):
        image, label, brain = volumes.volume(i)
        assert image.dtype == torch.float32 and torch.equal(image, one.image[None].float())
        assert label.dtype == torch.int64 and torch.equal(label[0], (one.label > 0).long())
        assert torch.equal(brain[0], one.brain)


@pytest.mark.parametrize(
    "shapes",
    [
        [(3, 4, 5)],
        [(3, 4, 5), (5, 2, 2), (1, 1, 1)],
        [(5, 4, 3), (5, 2, 2)],
        [(3, 4, 5), (20,)],
        [(5, 2, 2), (3, 4, 5)],
        [(2, 3, 4, 5), (1, 5, 2, 2)],
    ],
    ids=["too few", "too many", "permuted", "flat", "swapped", "two channels"],
)
def test_maps_that_do_not_fit_are_refused(shapes: list[tuple[int, ...]]) -> None:
    volumes = store(subject(0, (3, 4, 5)), subject(1, (5, 2, 2)))
    with pytest.raises(ValueError, match="'risk': the maps do not fit the 2 subjects"):
        volumes.attach("risk", [torch.zeros(shape) for shape in shapes])
    assert not volumes.fields


def test_attached_maps_are_detached_float32_on_the_device() -> None:
    volumes = store(subject(0, (3, 4, 5)))
    volumes.attach("risk", [torch.ones(3, 4, 5, dtype=torch.float64, requires_grad=True)])
    (held,) = volumes.fields["risk"]
    assert held.dtype == torch.float32 and not held.requires_grad and held.device == CPU


def test_a_subset_is_a_store_of_those_subjects_that_shares_their_voxels() -> None:
    several = [subject(i, (6, 5 + i, 4)) for i in range(4)]
    whole = store(*several)
    whole.attach("risk", [torch.full(s.label.shape, float(i)) for i, s in enumerate(several)])
    part = whole.subset([3, 1])
    assert len(part) == 2 and len(whole) == 4 and part.classes == whole.classes
    for own, i in enumerate([3, 1]):
        assert part.prepared[own] is whole.prepared[i] and part.shapes[own] == whole.shapes[i]
        assert part.images[own] is whole.images[i] and part.labels[own] is whole.labels[i]
        assert part.brains[own] is whole.brains[i]
        assert part.fields["risk"][own] is whole.fields["risk"][i]
    part.attach("more", [torch.zeros(shape) for shape in part.shapes])
    assert "more" not in whole.fields
    alone = store(several[3], several[1])
    alone.attach("risk", [torch.full(several[i].label.shape, float(i)) for i in (3, 1)])
    alone.attach("more", [torch.zeros(shape) for shape in alone.shapes])
    drawn = (sampler(volumes, (4, 4, 4), EVERYTHING, "x", batch=3) for volumes in (part, alone))
    assert equal(*(patches.batch(2) for patches in drawn))
