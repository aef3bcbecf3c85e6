"""risk-map: the numbers, where they lie, and every file that is not what it must be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from given import AFFINE, SHAPE, checkpoint, config, voxels, weights, write
from helpers import CPU
from torch.nn import functional

from trm_bench import risk_map
from trm_bench.data.volumes import prepare_scan
from trm_bench.datasets.base import LabelMap, Scan
from trm_bench.errors import UserError
from trm_bench.protocol.schema import TrainingConfig
from trm_bench.runs import compute
from trm_bench.runs.config import RunDomain
from trm_bench.training.evaluation import predict
from trm_bench.transfer_risk import LeepStatistics, RiskMap

MOVED = AFFINE + np.diag([0, 0, 0.5], 1)  # by half a millimetre


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    image, label = voxels()
    return {
        "checkpoint": checkpoint(tmp_path / "source.safetensors", weights()),
        "image": write(tmp_path / "image.nii.gz", image),
        "label": write(tmp_path / "label.nii.gz", label),
        "out": tmp_path / "new" / "map.nii.gz",
    }


def made(files: dict[str, Path]) -> dict[str, Any]:
    return risk_map.write(
        files["checkpoint"], [files["image"]], files["label"], files["out"], "neg_log", CPU
    )


def test_the_map_is_that_of_the_network_on_the_scan_in_its_own_space(
    files: dict[str, Path],
) -> None:
    """Against nibabel's own reorientation and the map of the prepared volume, step by step."""
    about = made(files)
    canonical = [nib.as_closest_canonical(nib.load(files[f])) for f in ("image", "label")]
    image, label = (np.asarray(file.dataobj) for file in canonical)
    scan = Scan(image[None].astype(np.float32), label, canonical[0].affine, ("mri",))
    tensors, _ = prepare_scan(scan, config().volume)
    network = compute.frozen(config(), weights(), CPU)
    given = tensors["image"][None].float()
    probabilities = predict(network, given, config().training, config().evaluation)
    classes = torch.tensor([0, 1, 9, 2])[tensors["label"].long()][None]
    statistics = LeepStatistics(3, 2)
    statistics.update(probabilities, classes)
    risks = RiskMap(statistics.conditional(), "neg_log")(probabilities, classes)
    box = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero((image != 0) | (label > 0)))
    wanted = np.zeros(label.shape, np.float32)
    wanted[box] = functional.interpolate(
        risks[None].float(), size=wanted[box].shape, mode="trilinear", align_corners=False
    )[0, 0]
    found = nib.load(files["out"])
    np.testing.assert_allclose(found.affine, AFFINE)
    assert found.shape == SHAPE and wanted.std() > 0 and (wanted == 0).any()
    turned = np.asarray(nib.as_closest_canonical(found).dataobj)
    np.testing.assert_allclose(turned, wanted, rtol=1e-5, atol=1e-6)
    assert about["leep"] < 0 and len(about["risk_per_class"]) == 3


def test_files_without_an_affine_keep_their_own_order(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """nibabel makes up an affine with x reversed for them; the map must lie as the image does."""
    maps = []
    for name, stated in (("stated", True), ("not", False)):
        for kind, array in zip(("image", "label"), voxels(), strict=True):
            image = nib.Nifti1Image(array, np.eye(4))
            if not stated:
                image.header.set_sform(None, 0)
                image.header.set_qform(None, 0)
                image = nib.Nifti1Image(array, None, image.header)
            files[kind] = tmp_path / f"{name}_{kind}.nii"
            nib.save(image, files[kind])
        files["out"] = tmp_path / f"{name}.nii"
        made(files)
        maps.append(np.asarray(nib.load(files["out"]).dataobj))
    np.testing.assert_array_equal(*maps)


def with_one(value: float) -> np.ndarray:
    image = voxels()[0]
    image[5, 5, 5] = value
    return image


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_checksum(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def singular(path: Path) -> None:
    raw = bytearray(write(path.with_name("plain.nii"), voxels()[0]).read_bytes())
    raw[252:256], raw[312:328] = b"\x00\x00\x01\x00", bytes(16)  # sform alone, its last row 0
    path.write_bytes(raw)


FAULTS: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "NaN": ("image", "a.nii.gz", lambda p: write(p, with_one(np.nan)), "1 voxels are NaN"),
    "infinity": ("image", "a.nii", lambda p: write(p, with_one(np.inf)), "1 voxels are NaN or inf"),
    "constant": ("image", "a.nii", lambda p: write(p, np.ones(SHAPE, np.float32)), "constant"),
    "half": ("image", "image.nii.gz", halved, "cannot be read"),
    "no checksum": ("label", "label.nii.gz", without_checksum, "cannot be read"),
    "missing": ("image", "none.nii", lambda p: None, "is missing"),
    "pipe": ("image", "pipe.nii", os.mkfifo, "is no regular file"),
    "text": ("label", "a.nii", lambda p: p.write_text("no image"), "cannot be read"),
    "singular": ("image", "a.nii", singular, "no usable affine"),
    "empty axis": ("image", "a.nii", lambda p: write(p, np.ones((0, 3, 3))), "shape (0, 3, 3)"),
    "colours": (
        "image",
        "a.nii",
        lambda p: write(p, np.zeros(SHAPE, [(c, "u1") for c in "RGB"])),
        "cannot be read",
    ),
    "complex": ("image", "a.nii", lambda p: write(p, np.zeros(SHAPE, np.complex64)), "complex64"),
    "other grid": ("label", "a.nii", lambda p: write(p, voxels()[1], MOVED), "affine"),
    "empty label": ("label", "a.nii", lambda p: write(p, np.zeros(SHAPE, np.uint8)), "labelled"),
    "half a label": ("label", "a.nii", lambda p: write(p, np.full(SHAPE, 0.5)), "label value 0.5"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_cannot_be_used_is_named(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    kind, file, damage, said = FAULTS[name]
    files[kind] = tmp_path / file
    damage(files[kind])
    with pytest.raises(UserError) as caught:
        made(files)
    assert said in caught.value.what and caught.value.where == str(files[kind])
    assert "on_bad_subject" not in caught.value.fix and not files["out"].exists()


@pytest.mark.parametrize(
    ("change", "changes", "said"),
    [
        (lambda s: s.pop("model.2.conv.weight"), {}, "Missing key"),
        (lambda s: s.update(more=torch.zeros(2)), {}, "Unexpected key"),
        (lambda s: s.update({"model.2.conv.bias": torch.zeros(5)}), {}, "size mismatch"),
        (lambda s: s["model.2.conv.bias"].fill_(float("nan")), {}, "gives NaN"),
        (
            lambda s: None,
            {
                "domain": RunDomain.of(
                    ("mri",), "two", LabelMap(("background", "a", "b"), {0: 0, 1: 1, 2: 2})
                )
            },
            "size mismatch",
        ),
        (
            lambda s: None,
            {"training": TrainingConfig(steps=1, patch=(13, 13, 13), precision="fp32")},
            "cannot be applied",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_told(
    change: Callable[[dict[str, torch.Tensor]], object],
    changes: dict[str, Any],
    said: str,
    files: dict[str, Path],
) -> None:
    state = weights()
    change(state)
    checkpoint(files["checkpoint"], state, **changes)
    with pytest.raises(UserError, match=said):
        made(files)


def test_an_output_that_cannot_be_written_is_told(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "folder.nii").mkdir()
    for out in (files["label"] / "map.nii", tmp_path / "folder.nii"):
        with pytest.raises(UserError, match="cannot be written"):
            made({**files, "out": out})
