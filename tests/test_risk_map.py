"""risk-map: the numbers, where they lie, and every file that is not what it must be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import toy
from given import AFFINE, SHAPE, checkpoint, config, voxels, weights, write
from helpers import CPU, Run, plan
from torch import Tensor
from torch.nn import functional

from trm_bench import pipeline, risk_map
from trm_bench.data.volumes import prepare_scan
from trm_bench.datasets.base import LabelMap, Scan
from trm_bench.errors import UserError
from trm_bench.methods.registry import create
from trm_bench.protocol import parse
from trm_bench.protocol.schema import TrainingConfig
from trm_bench.runs import arrays, compute, execute
from trm_bench.runs.config import RunDomain
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Record
from trm_bench.runs.store import read_results
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


def made(files: dict[str, Path], **changes: Any) -> dict[str, Any]:
    """By default of a reading whose risk is -log p."""
    given = {"protocol": None, "method": "trm_paper_literal", "label_map": None}
    values = changes.pop("values", "risk")
    basis = risk_map.of_checkpoint(files["checkpoint"], device=CPU, **(given | changes))
    return risk_map.write(basis, [files["image"]], files["label"], files["out"], values, CPU)


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
    beside = json.loads((files["out"].parent / "map.json").read_text())
    assert beside["options"]["risk"] == "neg_log" and "this subject alone" in beside["statistics"]
    np.testing.assert_allclose(beside["conditional"], statistics.conditional())


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


# Of a run

OPTIONS = {"scope": "labelled", "risk": "neg_log", "normalise": "minmax_per_image", "base": 7.0}
CHANGES = {"methods": ["finetune", {"name": "trm", "label": "mine", **OPTIONS}, "trm_prior"]}


@pytest.fixture(scope="module")
def done(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ProtocolFolder:
    out = tmp_path_factory.mktemp("done") / "out"
    loaded = parse(toy.protocol(toy_data, **CHANGES), "test")
    return pipeline.run(loaded, out, jobs=1, pages=False).folder


def record_of(folder: ProtocolFolder, method: str) -> Record:
    return next(r for cell, r in read_results(folder).finished() if cell.method == method)


def used(toy_data: Path, folder: ProtocolFolder, run: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Training subject to its risks and its weights, as the run's own method makes them."""
    jobs = plan(toy_data, folder.path.parent, **CHANGES).runs
    (job,) = [job for job in jobs if job.id == run]
    _, state = arrays.read_source(folder.results, job.source)
    source = compute.source_of(job.config, state, CPU)
    context, _ = compute.start(job.config, source, partial(execute.load_part, job, CPU), CPU)
    method = create(job.config.method.name, job.config.method.parameters)
    weights, found = method.weights(context), {}
    for i, prepared in enumerate(context.training_set.prepared):
        image, label, _ = context.training_set.volume(i)
        found[prepared.subject] = method.maps(context, image, label)["risk"][0], weights[i][0]
    return found


def test_the_map_of_a_run_is_the_one_that_its_loss_used(
    toy_data: Path, done: ProtocolFolder, tmp_path: Path, trm_bench: Run
) -> None:
    record = record_of(done, "mine")
    maps = used(toy_data, done, record.id)
    assert len(maps) == 2
    for subject, (risks, weighted) in maps.items():
        files = [toy_data / f / f"{subject}.nii.gz" for f in ("imagesTr", "labelsTr")]
        for values, wanted in (("risk", risks), ("weights", weighted)):
            out = tmp_path / f"{subject}_{values}.nii.gz"
            given = ("--run", record.id[:8], "--results", done.path.parent, "--values", values)
            tail = ("--image", files[0], "--label", files[1], "--out", out, "--device", "cpu")
            code, said = trm_bench("risk-map", *given, *tail)
            assert code == 0 and "decathlon mri whole seed 0" in said, said
            assert f"2 training subjects of run {record.id}" in said
            found = np.asarray(nib.load(out).dataobj)
            np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6, atol=1e-7)
            about = json.loads(out.with_name(f"{subject}_{values}.json").read_text())
            assert about["run"]["leep"] == record.diagnostics["leep"] != about["leep"]
            assert about["options"].items() >= OPTIONS.items()
            assert about["source"]["id"] == record.source.id


def test_the_options_are_those_of_a_protocol_and_labels_have_names(
    toy_data: Path, done: ProtocolFolder, tmp_path: Path, trm_bench: Run
) -> None:
    data = toy.protocol(toy_data)["data"] | {"label_maps": {"top": {"upper": [2]}}}
    protocol = toy.write_protocol(tmp_path / "p.yaml", toy_data, data=data, **CHANGES)
    image, label = (toy_data / f / "toy_000.nii.gz" for f in ("imagesTr", "labelsTr"))
    out, source = tmp_path / "map.nii", "decathlon mri whole seed 0"
    given = ("--checkpoint", source, "--results", done.path.parent, "--protocol", protocol)
    tail = ("--image", image, "--label", label, "--out", out, "--device", "cpu")
    chosen = ("--method", "mine", "--label-map", "top")
    assert trm_bench("risk-map", *given, *tail, *chosen)[0] == 0
    about = json.loads((tmp_path / "map.json").read_text())
    assert about["options"].items() >= OPTIONS.items() and about["run"] is None
    assert about["label_map"]["classes"] == ["background", "upper"]
    for change, said in {
        ("--label-map", "bottom"): "no label map 'bottom'",
        ("--method", "trm_prior"): "no risk map of its own",
        ("--values", "both"): "choose risk or weights",
        ("--checkpoint", "decathlon mri hole seed 0"): "did you mean 'decathlon mri whole",
        ("--run", "ffffffff"): "of a run, or of a source network",
    }.items():
        code, text = trm_bench("risk-map", *given, *tail, *change)
        assert code == 2 and said in " ".join(text.split()), text


def test_a_run_without_a_map_or_with_other_labels_is_told(
    toy_data: Path, done: ProtocolFolder, tmp_path: Path
) -> None:
    results = done.path.parent
    with pytest.raises(UserError, match="no risk map of its own"):
        risk_map.of_run(str(done.record(record_of(done, "trm_prior").id)), results, CPU)
    with pytest.raises(UserError, match="begins with"):
        risk_map.of_run("ffffffff", results, CPU)
    basis = risk_map.of_run(record_of(done, "mine").id, results, CPU)
    image, odd = toy_data / "imagesTr" / "toy_000.nii.gz", tmp_path / "odd.nii"
    nib.save(nib.Nifti1Image(np.full((16, 16, 16), 9, np.uint8), np.eye(4)), odd)
    with pytest.raises(UserError, match="the label holds 9"):
        risk_map.write(basis, [image], odd, tmp_path / "map.nii", "risk", CPU)


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
