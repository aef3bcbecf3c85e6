"""Prepared volumes.

Numbers against NumPy, names that hold what matters, files that are made once and never trusted.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import helpers
import layouts
import nibabel as nib
import numpy as np
import pytest
import torch
import toy
from helpers import CPU, examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional

from trm_bench import preparing
from trm_bench.data import prepared, volumes
from trm_bench.data.patches import SubjectStore
from trm_bench.data.prepared import Prepared, cache_path, open_expected, open_prepared, prepare
from trm_bench.data.volumes import prepare_scan, resample, resample_label
from trm_bench.datasets import open_dataset
from trm_bench.datasets.base import LabelMap, Scan
from trm_bench.errors import Damaged
from trm_bench.files import write_atomically
from trm_bench.protocol.schema import VolumeConfig

FETS = ("t1", "t1ce", "t2", "flair")
SPACING = (1.0, 1.25, 3.0)
AFFINE = np.array([[1.0, 0, 0, -10], [0, 1.25, 0, 20], [0, 0, 3, -30], [0, 0, 0, 1]])


def scan(seed: int = 0, shape: tuple[int, ...] = (12, 10, 8), channels: int = 2) -> Scan:
    """Two channels of unlike scale, 0 outside a box that each fills in part, with a label inside
    it.
    """
    draws = np.random.default_rng(seed)
    image = np.zeros((channels, *shape), np.float32)
    for c in range(channels):
        image[c, 2 + c : -3, 1:-2, 3 : -1 - c] = draws.normal(100 * 10**c, 5 * 10**c, shape)[
            2 + c : -3, 1:-2, 3 : -1 - c
        ]
    label = np.zeros(shape, np.uint8)
    label[5:8, 3:6, 4:6] = draws.choice([0, 1, 2, 4], (3, 3, 2))
    return Scan(image, label, AFFINE.copy(), tuple("ab"[:channels]))


def ramp(n: int, axis: int) -> torch.Tensor:
    """0, 1, 2, ... along an axis of (1, X, Y, Z), the others of size 2."""
    shape = [1, 1, 1, 1]
    shape[axis] = n
    return (
        torch.arange(n, dtype=torch.float32)
        .reshape(shape)
        .expand(1, *[s if s > 1 else 2 for s in shape[1:]])
    )


def prepared_fets(root: Path, out: Path, modalities: tuple[str, ...] = FETS) -> Prepared:
    dataset = open_dataset("fets2021", root)
    return prepare(
        dataset, dataset.subjects()[0], modalities, VolumeConfig(), out / "prepared.safetensors"
    )


# ----------------------------------------------------------------------------------------- one scan


def test_the_crop_is_the_box_of_brain_and_labels() -> None:
    one = scan()
    one.label[0, 4, 4] = 1  # a labelled voxel outside the brain is kept
    tensors, about = prepare_scan(one, VolumeConfig())
    box = (slice(0, 9), slice(1, 8), slice(3, 7))
    assert (
        np.array_equal(tensors["label"].numpy(), one.label[box])
        and tensors["label"].dtype == torch.uint8
    )
    assert (
        np.array_equal(tensors["brain"].numpy(), (one.image != 0).any(0)[box])
        and "native" not in tensors
    )
    assert tensors["image"].shape == (2, 9, 7, 4) and tensors["image"].dtype == torch.float16
    assert about["shape"] == [9, 7, 4] and about["modalities"] == ["a", "b"]
    np.testing.assert_allclose(about["spacing"], SPACING)
    assert [start for start, _ in about["grid"]["box"]] == [0, 1, 3]
    assert about["grid"]["affine"] == AFFINE.tolist()
    assert about["diagonal"] == pytest.approx(np.sqrt(12**2 + 12.5**2 + 24**2)), "of the whole scan"


def test_without_crop_everything_stays() -> None:
    one = scan()
    tensors, about = prepare_scan(one, VolumeConfig(crop="none"))
    assert tensors["image"].shape == one.image.shape and np.array_equal(
        tensors["label"].numpy(), one.label
    )
    assert about["grid"]["box"] == [[0, n] for n in one.label.shape]


@pytest.mark.parametrize("crop", ["brain", "none"])
@pytest.mark.parametrize("intensity", ["zscore_brain", "zscore", "percentile"])
def test_intensities_against_numpy(intensity: str, crop: str) -> None:
    one = scan()
    tensors, _ = prepare_scan(one, VolumeConfig(intensity=intensity, crop=crop))
    box = (slice(2, 9), slice(1, 8), slice(3, 7)) if crop == "brain" else (slice(None),) * 3
    for c in range(2):
        channel, brain = one.image[c][box].astype(np.float64), (one.image != 0).any(0)[box]
        if intensity == "percentile":
            low, high = np.percentile(channel[brain], [0.5, 99.5])
            wanted = np.clip((channel - low) / (high - low), 0, 1) * brain
        elif intensity == "zscore":
            wanted = (channel - channel.mean()) / channel.std()
        else:
            wanted = np.where(brain, (channel - channel[brain].mean()) / channel[brain].std(), 0)
        np.testing.assert_allclose(tensors["image"][c].numpy(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "intensity",
    [
        "zscore_brain",
        "zscore",
        "percentile",
    ],
)
def test_extreme_intensities_stay_finite(intensity: str) -> None:
    one = scan()
    one.image[0] = np.where(np.random.default_rng(0).random(one.label.shape) < 0.1, 3e38, -3e38)
    image = prepare_scan(one, VolumeConfig(intensity=intensity))[0]["image"][0]
    assert bool(image.isfinite().all()) and float(image.max()) > 0.9


@pytest.mark.parametrize("intensity", ["zscore_brain", "zscore", "percentile"])
def test_empty_channels_and_brains_stay_finite(intensity: str) -> None:
    one = scan()
    one.image[1] = 0
    tensors, _ = prepare_scan(one, VolumeConfig(intensity=intensity))
    assert (
        bool(tensors["image"].isfinite().all())
        and not tensors["image"][1].any()
        and tensors["image"][0].any()
    )
    one.image[:] = 0
    one.image[:, 5, 5, 5] = 1  # so little that nothing is left of the brain after resampling
    tensors, _ = prepare_scan(
        one, VolumeConfig(intensity=intensity, crop="none", spacing=(6, 6, 12))
    )
    assert bool(tensors["image"].isfinite().all()) and not tensors["brain"].any()


def test_what_fp16_cannot_hold_is_clamped() -> None:
    one = scan()
    one.image[0] = np.where(np.random.default_rng(0).random(one.label.shape) < 0.1, 3.4e38, -3.4e38)
    image = prepare_scan(one, VolumeConfig(intensity="zscore"))[0]["image"][
        0
    ]  # the difference to the mean is infinite
    assert float(image.max()) == volumes.FLOAT16_LARGEST == torch.finfo(torch.float16).max


@pytest.mark.parametrize("crop", ["brain", "none"])
@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5)])
def test_the_scan_itself_is_not_changed(crop: str, spacing: Any) -> None:
    one, same = scan(), scan()
    for box in (
        slice(None),
        slice(2, 9),
    ):  # of a scan that is larger than its box, and one that is not
        given_, kept = (
            replace(s, image=np.ascontiguousarray(s.image[:, box]), label=s.label[box].copy())
            for s in (one, same)
        )
        prepare_scan(given_, VolumeConfig(crop=crop, spacing=spacing))
        assert np.array_equal(given_.image, kept.image) and np.array_equal(given_.label, kept.label)
        assert np.array_equal(given_.affine, kept.affine)


@examples(40)
@given(
    shape=st.tuples(*[st.integers(1, 300)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 6)] * 3),
    wanted=st.tuples(*[st.floats(0.2, 6)] * 3),
)
def test_the_new_grid_has_about_the_wanted_spacing(shape, spacing, wanted) -> None:
    found = volumes.resampled_shape(shape, spacing, wanted)
    for n, s, m, w in zip(shape, spacing, found, wanted, strict=True):
        assert m >= 1 and (m == 1 or abs(n * s / w - m) <= 0.5 + 1e-9)
    assert volumes.resampled_shape(shape, spacing, None) == shape


def test_resampling_keeps_the_extent_and_the_native_label(tmp_path: Path) -> None:
    one = scan()
    plain, _ = prepare_scan(one, VolumeConfig())
    tensors, about = prepare_scan(one, VolumeConfig(spacing=(2, 2, 2)))
    box = np.array(plain["label"].shape) * SPACING
    assert about["shape"] == [round(x / 2) for x in box]
    np.testing.assert_allclose(np.array(about["shape"]) * about["spacing"], box)
    np.testing.assert_allclose(about["native_spacing"], SPACING)
    assert torch.equal(tensors["native"], plain["label"])
    assert all(t.shape[-3:] == tuple(about["shape"]) for n, t in tensors.items() if n != "native")
    brain = tensors["brain"]
    for channel in tensors["image"].double():
        assert float(channel[brain].mean()) == pytest.approx(0, abs=1e-3)
        assert float(channel[brain].std(correction=0)) == pytest.approx(1, abs=1e-3)
        assert not channel[~brain].any()
    saved = prepared.save(
        tmp_path / "a.safetensors",
        tensors,
        {**about, "subject": "a", "files": {"a": [1, "0" * 64]}},
    )
    assert torch.equal(saved.native_label(), plain["label"])
    image, label, brain = saved.load(["b", "a"])
    assert torch.equal(torch.stack(image), tensors["image"].flip(0)) and torch.equal(
        label, tensors["label"]
    )
    assert saved.shape == tuple(about["shape"]) and saved == open_prepared(saved.path)
    same = prepared.save(tmp_path / "b.safetensors", plain, {**about, "subject": "b", "files": {}})
    assert torch.equal(same.native_label(), plain["label"])


def test_classes_of_raw_values() -> None:
    label_map = LabelMap(("background", "NCR", "ET"), {0: 0, 1: 1, 2: 0, 4: 2, 255: 1})
    found = volumes.to_classes(torch.tensor([[0, 1, 2], [4, 255, 4]], dtype=torch.uint8), label_map)
    assert found.tolist() == [[0, 1, 0], [2, 1, 2]] and found.dtype == torch.uint8


# --------------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("n, m", [(141, 70), (13, 3), (17, 4), (10, 7), (7, 10)])
def test_a_ramp_stays_a_ramp_and_a_constant_itself(n: int, m: int, axis: int) -> None:
    shape = [2, 2, 2]
    shape[axis - 1] = m
    centre, reach = (np.arange(m) + 0.5) * n / m - 0.5, max(1, n / m)
    interior = (centre - reach >= -1) & (centre + reach <= n)
    found = resample(ramp(n, axis), shape).movedim(axis, -1)
    assert interior.any() and found.shape == (1, 2, 2, m)
    # the triangle meets whole voxels
    np.testing.assert_allclose(
        found.numpy()[..., interior],
        np.broadcast_to(centre[interior], (1, 2, 2, interior.sum())),
        atol=0.02 if m < n else 1e-5,
    )
    assert bool((found.diff(dim=-1) > 0).all())
    np.testing.assert_allclose(
        resample(torch.full((1, *ramp(n, axis).shape[1:]), 7.3), shape).numpy(), 7.3, rtol=1e-6
    )


sides = st.integers(1, 7)


@examples(40)
@given(
    shape=st.tuples(sides, sides, sides),
    more=st.tuples(*[st.integers(0, 6)] * 3),
    seed=st.integers(0, 99),
)
def test_enlarging_is_linear_interpolation(shape, more, seed) -> None:
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    larger = [n + m for n, m in zip(shape, more, strict=True)]
    wanted = functional.interpolate(
        image[None], size=larger, mode="trilinear", align_corners=False
    )[0]
    torch.testing.assert_close(resample(image, larger), wanted, atol=1e-5, rtol=1e-5)


@examples(40)
@given(
    shape=st.tuples(sides, sides, sides), to=st.tuples(sides, sides, sides), seed=st.integers(0, 99)
)
def test_any_resampling_is_an_average(shape, to, seed) -> None:
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))
    found = resample(image, to)
    assert found.shape == (1, *to) and found.is_contiguous()
    assert (
        float(image.min()) - 1e-5 <= float(found.min())
        and float(found.max()) <= float(image.max()) + 1e-5
    )
    torch.testing.assert_close(resample(image.flip(1), to).flip(1), found, atol=1e-5, rtol=1e-5)


def test_shrinking_does_not_alias() -> None:
    """A pattern finer than the new voxels becomes about its mean, where plain interpolation keeps
    its extremes.
    """
    stripes = torch.zeros(1, 81, 2, 2)
    stripes[:, ::2] = 1
    inside = resample(stripes, (27, 2, 2))[:, 1:-1]
    np.testing.assert_allclose(inside.numpy(), 0.5, atol=0.06)  # 4/9 and 5/9 by hand


@examples(40)
@given(
    shape=st.tuples(sides, sides, sides), to=st.tuples(sides, sides, sides), seed=st.integers(0, 99)
)
def test_a_label_keeps_to_its_values(shape, to, seed) -> None:
    values = np.random.default_rng(seed).choice([0, 1, 2, 4, 250], shape).astype(np.uint8)
    label = torch.from_numpy(values)
    found = resample_label(label, to)
    assert (
        found.dtype == torch.uint8
        and found.shape == to
        and set(found.unique().tolist()) <= set(np.unique(values))
    )
    assert torch.equal(resample_label(label, shape), label)
    tripled = resample_label(label, [3 * n for n in shape])
    assert torch.equal(tripled[1::3, 1::3, 1::3], label), "the voxel in the middle of the old one"
    assert bool((resample_label(torch.full_like(label, 4), to) == 4).all())


def test_a_label_is_the_largest_share() -> None:
    label = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 4], (5, 6, 4)).astype(np.uint8))
    to = (9, 7, 11)
    shares = torch.stack([(label == v).float() for v in (0, 1, 4)])[None]
    shares = functional.interpolate(shares, size=to, mode="trilinear", align_corners=False)[
        0
    ].numpy()
    found, top = resample_label(label, to).numpy(), np.sort(shares, 0)
    clear = top[-1] - top[-2] > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], np.array([0, 1, 4])[shares.argmax(0)][clear])


def test_ties_go_to_the_smaller_value() -> None:
    label = torch.tensor([4, 1], dtype=torch.uint8).reshape(2, 1, 1)
    assert resample_label(label, (1, 1, 1)).item() == 1


# ------------------------------------------------------------------------------------------ digests


def test_the_digest_changes_with_the_image_and_the_label(tmp_path: Path) -> None:
    """In the Decathlon an image and its label have one name in two folders."""
    root = layouts.decathlon(tmp_path / "data", modality=("MRI",))
    dataset = open_dataset("decathlon", root)
    digests, voxels = [], []
    for seed, values in ((0, (0, 1, 2, 3)), (1, (0, 1, 2, 3)), (1, (0, 2, 1, 3))):
        layouts.write_nifti(root / "imagesTr" / "BRATS_001.nii.gz", layouts.noise(seed))
        layouts.write_nifti(root / "labelsTr" / "BRATS_001.nii.gz", layouts.labels(values))
        one = prepare(
            dataset, dataset.subjects()[0], ("mri",), VolumeConfig(), tmp_path / "one.safetensors"
        )
        assert set(one.files) == {"imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz"}
        digests.append(one.digest)
        voxels.append(one.voxels)
    assert len(set(digests)) == 3
    assert voxels[0] != voxels[1] == voxels[2]


def test_the_digest_changes_when_two_modalities_change_places(tmp_path: Path) -> None:
    root = layouts.fets(tmp_path / "data")
    before = prepared_fets(root, tmp_path)
    one, other = (
        root / "FeTS21_Training_001" / f"FeTS21_Training_001_{m}.nii.gz" for m in ("t1", "t2")
    )
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    after = prepared_fets(root, tmp_path)
    assert sorted(v for v in before.files.values()) == sorted(v for v in after.files.values())
    assert before.digest != after.digest and before.voxels != after.voxels


def test_the_digest_is_that_of_the_modalities_in_play(tmp_path: Path) -> None:
    root = layouts.fets(tmp_path / "data")
    before = prepared_fets(root, tmp_path, ("t1", "t2"))
    layouts.write_nifti(
        root / "FeTS21_Training_001" / "FeTS21_Training_001_flair.nii.gz", layouts.noise(99)
    )
    after = prepared_fets(root, tmp_path, ("t1", "t2"))
    assert before == after and len(before.files) == 3
    assert prepared_fets(root, tmp_path, ("t1", "flair")).digest != before.digest


def test_a_recompressed_file_has_the_same_voxels(tmp_path: Path) -> None:
    root = layouts.fets(tmp_path / "data")
    before = prepared_fets(root, tmp_path)
    for file in (root / "FeTS21_Training_001").iterdir():
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), 1))
    after = prepared_fets(root, tmp_path)
    assert before.voxels == after.voxels and before.digest != after.digest


def test_a_manifest_holds_sizes_and_hashes(tmp_path: Path) -> None:
    root = layouts.fets(tmp_path / "data")
    found = prepared_fets(root, tmp_path).files
    assert len(found) == 5
    for name, (size, sha) in found.items():
        content = (root / name).read_bytes()
        assert size == len(content) and sha == hashlib.sha256(content).hexdigest()


# -------------------------------------------------------------------------------------------- cache


class TestCachePath:
    @staticmethod
    def path(
        root: Path, modalities: tuple[str, ...] = ("t1", "t2"), index: int = 0, **volume: Any
    ) -> str:
        dataset = open_dataset("fets2021", root)
        return cache_path(
            Path("cache"), dataset, dataset.subjects()[index], modalities, VolumeConfig(**volume)
        ).name

    def test_everything_that_matters_changes_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = layouts.fets(tmp_path / "data")
        names = [
            self.path(root),
            self.path(root, ("t2", "t1")),
            self.path(root, ("t1",)),
            self.path(root, FETS),
            self.path(root, index=1),
            self.path(root, spacing=(1, 1, 1)),
            self.path(root, spacing=(1, 1, 2)),
            self.path(root, crop="none"),
            self.path(root, intensity="zscore"),
            self.path(root, intensity="percentile"),
        ]
        file = root / "FeTS21_Training_001" / "FeTS21_Training_001_t2.nii.gz"
        stat = file.stat()
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        names.append(self.path(root))
        file.write_bytes(file.read_bytes() + b"\0")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        names.append(self.path(root))
        file.unlink()
        names.append(self.path(root))
        monkeypatch.setattr(prepared, "code_fingerprint", lambda *modules: "other code")
        names.append(self.path(root))
        assert len(set(names)) == len(names)

    def test_the_order_of_channels_in_one_file_matters(self, tmp_path: Path) -> None:
        dataset = open_dataset("decathlon", layouts.decathlon(tmp_path / "data"))
        one = dataset.subjects()[0]
        orders = (("flair", "t1w"), ("t1w", "flair"))
        assert (
            len({cache_path(tmp_path, dataset, one, order, VolumeConfig()) for order in orders})
            == 2
        )

    def test_nothing_else_does(self, tmp_path: Path) -> None:
        root = layouts.fets(tmp_path / "data")
        before = self.path(root)
        layouts.write_nifti(
            root / "FeTS21_Training_001" / "FeTS21_Training_001_flair.nii.gz", layouts.noise(99)
        )
        layouts.write_nifti(
            root / "FeTS21_Training_002" / "FeTS21_Training_002_t1.nii.gz", layouts.noise(99)
        )
        assert self.path(root) == before
        shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copy2)
        assert self.path(tmp_path / "elsewhere") == before


class TestCache:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        made: list[str] = []

        def spy(dataset: Any, subject: Any, *arguments: Any) -> Prepared:
            made.append(subject.id)
            return prepare(dataset, subject, *arguments)

        monkeypatch.setattr(preparing, "prepare", spy)
        return made

    def test_what_is_prepared_is_not_prepared_again(
        self, tmp_path: Path, toy_data: Path, calls: list[str]
    ) -> None:
        helpers.plan(toy_data, tmp_path)
        assert sorted(calls) == [f"toy_{i:03d}" for i in range(9)]
        calls.clear()
        helpers.plan(toy_data, tmp_path)
        helpers.plan(toy_data, tmp_path, seeds=[1, 2])
        assert not calls

    def test_a_changed_file_alone_is_prepared_again(self, tmp_path: Path, calls: list[str]) -> None:
        root = toy.write_dataset(tmp_path / "data")
        helpers.plan(root, tmp_path)
        calls.clear()
        (root / "labelsTr" / "toy_003.nii.gz").write_bytes(
            (root / "labelsTr" / "toy_004.nii.gz").read_bytes()
        )
        helpers.plan(root, tmp_path)
        assert calls == ["toy_003"]

    @pytest.mark.parametrize(
        "damage", [lambda b: b[:-10], lambda b: b[:100], lambda b: b"", lambda b: b"\xff" * 40]
    )
    def test_a_damaged_file_is_prepared_again(
        self, tmp_path: Path, toy_data: Path, calls: list[str], damage
    ) -> None:
        before = helpers.plan(toy_data, tmp_path)
        run = before.runs[0]
        file = run.prepared[run.config.subjects.test[0].subject]
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        digest = run.config.subjects.test[0].digest
        with pytest.raises(Damaged):
            open_expected(file, run.config.subjects.test[0].subject, digest)
        calls.clear()
        after = helpers.plan(toy_data, tmp_path)
        assert len(calls) == 1 and file.read_bytes() == whole
        aside = file.with_name(f"{file.name}.damaged")
        assert aside.read_bytes() == damage(whole), "for whoever wants to look at it"
        assert [r.id for r in before.runs] == [r.id for r in after.runs]

    def test_a_file_of_something_else_is_none(self, tmp_path: Path) -> None:
        save_file({"image": torch.zeros(2)}, tmp_path / "a.safetensors")
        save_file(
            {"image": torch.zeros(2)}, tmp_path / "b.safetensors", metadata={"prepared": "{}"}
        )
        save_file(
            {"image": torch.zeros(2)}, tmp_path / "c.safetensors", metadata={"prepared": "[1"}
        )
        for name in ("a", "b", "c"):
            with pytest.raises(Damaged):
                open_prepared(tmp_path / f"{name}.safetensors")
        assert open_prepared(tmp_path / "absent.safetensors") is None

    def test_an_interrupted_write_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(tensors: Any, path: Path, **more: Any) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="No space"):
            prepared_fets(layouts.fets(tmp_path / "data"), tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())

    def test_prepared_subjects_make_a_store(self, tmp_path: Path) -> None:
        root = layouts.fets(tmp_path / "data")
        one = prepared_fets(root, tmp_path)
        whole = open_dataset("fets2021", root).label_map("whole_tumor")
        store = SubjectStore([one], ("flair", "t1"), whole, CPU)
        image, label, _ = store.volume(0)
        assert torch.equal(image[0], torch.stack(one.load(FETS)[0])[[3, 0]].float())
        assert set(label.unique().tolist()) == {0, 1}

    def test_a_store_maps_its_subjects_and_outlives_their_files(self, tmp_path: Path) -> None:
        root = layouts.fets(tmp_path / "data")
        one = prepared_fets(root, tmp_path)
        whole = open_dataset("fets2021", root).label_map("whole_tumor")
        store = SubjectStore([one], ("flair", "t1"), whole, CPU)
        held = [*store.images[0], store.labels[0], store.brains[0]]
        maps = Path("/proc/self/maps").read_text().splitlines()
        ranges = [line.split()[0].split("-") for line in maps if line.endswith(str(one.path))]
        for tensor in held:
            assert any(int(a, 16) <= tensor.data_ptr() < int(b, 16) for a, b in ranges)
        before = [tensor.clone() for tensor in held]
        size = one.path.stat().st_size
        write_atomically(one.path, lambda path: path.write_bytes(b"\0" * size))  # made anew
        one.path.unlink()
        assert all(torch.equal(a, b) for a, b in zip(before, held, strict=True))


# ------------------------------------------------------------------------------------------- memory

PREPARE = """
import resource, sys
from pathlib import Path
from trm_bench import datasets
from trm_bench.data import prepared
from trm_bench.protocol.schema import VolumeConfig
dataset = datasets.open_dataset("fets2021", Path(sys.argv[1]))
config = VolumeConfig(spacing=(1.5, 1.5, 1.5))
path = Path(sys.argv[1]) / "made.safetensors"
made = prepared.prepare(dataset, dataset.subjects()[0], dataset.modalities, config, path)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(*made.shape, peak if sys.platform == "darwin" else peak * 1024)
"""


@pytest.mark.slow
def test_a_full_fets_subject_takes_less_than_3_gib(tmp_path: Path) -> None:
    name, shape = "FeTS21_Training_001", (240, 240, 155)
    folder = tmp_path / name
    folder.mkdir()
    # nothing to crop: the largest there can be
    volume = np.random.default_rng(0).integers(1, 3000, shape, np.int16)
    for modality in FETS:
        nib.save(nib.Nifti1Image(volume, layouts.LPS), folder / f"{name}_{modality}.nii")
    label = (volume % 3).astype(np.int16)
    nib.save(nib.Nifti1Image(label, layouts.LPS), folder / f"{name}_seg.nii")
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    *found, peak = map(int, done.stdout.split())
    assert found == [160, 160, 103]
    assert peak < 3 * 2**30, f"{peak / 2**30:.2f} GiB"
