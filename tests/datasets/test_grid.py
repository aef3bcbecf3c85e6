"""The way back from a cropped, reoriented volume to the voxels of the file it came from."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trm_bench.data.volumes import prepare_scan
from trm_bench.datasets.grid import Grid
from trm_bench.prediction import Given
from trm_bench.protocol.schema import VolumeConfig

TURNS = [
    (axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)
]  # all 48
Numbers = tuple[int, int, int]


def affine_of(axes: Numbers, signs: Numbers, spacing: tuple[float, ...]) -> np.ndarray:
    """Axis i of the file runs along world axis axes[i], backwards where its sign is -1."""
    affine = np.diag([0.0, 0, 0, 1])
    for i in range(3):
        affine[axes[i], i] = signs[i] * spacing[i]
    affine[:3, 3] = (5, -7, 11)
    return affine


@given(
    shape=st.tuples(*[st.integers(3, 6)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3),
    wanted=st.sampled_from([None, (1.0, 1.0, 1.0), (2.0, 1.0, 0.7)]),
    crop=st.sampled_from(["brain", "none"]),
    seed=st.integers(0, 99),
)
@settings(examples(6), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_voxel_comes_back_from_every_orientation(
    tmp_path: Path,
    shape: Numbers,
    spacing: tuple[float, float, float],
    wanted: tuple[float, float, float] | None,
    crop: str,
    seed: int,
) -> None:
    """Against the very voxels of the file, and against nibabel's own reorientation."""
    draws = np.random.default_rng(seed)
    label = draws.integers(0, 3, shape).astype(np.uint8)
    label[0], label[1, 1, 1] = 0, 2  # something to crop, and something that stays
    paths = [tmp_path / f"{name}.nii" for name in ("image", "label")]
    for axes, signs in TURNS:
        affine = affine_of(axes, signs, spacing)
        for path, array in zip(paths, (label.astype(np.float32), label), strict=True):
            nib.save(nib.Nifti1Image(array, affine), path)
        scan = Given(paths[:1], paths[1], ("t1",)).scan()
        canonical = nib.as_closest_canonical(nib.load(paths[1]))
        np.testing.assert_array_equal(scan.label, np.asarray(canonical.dataobj))
        volume = VolumeConfig.model_validate({"spacing": wanted, "crop": crop})
        tensors, about = prepare_scan(scan, volume)
        native = tensors.get("native", tensors["label"]).numpy()
        assert crop == "none" or native.shape < scan.label.shape
        grid = Grid(**about["grid"])
        np.testing.assert_array_equal(grid.put_back(native), label)
        np.testing.assert_array_equal(grid.cut_out(label), native)
        np.testing.assert_array_equal(grid.affine, affine)


def test_another_shape_does_not_lie_on_the_grid() -> None:
    grid = Grid((3, 4, 5), np.eye(4).tolist()).cropped([slice(0, 2)] * 3)
    assert grid.put_back(np.ones((2, 2, 2))).sum() == 8
    with pytest.raises(ValueError, match="shape"):
        grid.cut_out(np.zeros((5, 4, 3)))
