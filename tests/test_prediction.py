"""What a network predicts lies on the scan's own voxels, in a run's files and from the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import toy
from given import AFFINE, SHAPE, checkpoint, config, voxels, weights, write
from helpers import CPU, Run, plan

from trm_bench import pipeline, prediction
from trm_bench.datasets.base import LabelMap
from trm_bench.errors import UserError
from trm_bench.protocol import parse
from trm_bench.runs import keeping
from trm_bench.runs.config import RunDomain
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.store import read_results
from trm_bench.verification import verify

TURN = np.array([[1, -1], [2, 1], [0, -1]])  # canonical axes to those of the files


def run(data: Path, out: Path, keep: str) -> ProtocolFolder:
    changes = {"methods": ["scratch", "finetune"], "seeds": [0, 1], "keep": keep}
    volume = {"data": {"dataset": "decathlon", "root": str(data), "volume": {"crop": "brain"}}}
    loaded = parse(toy.protocol(data, **changes, **volume), "test")
    return pipeline.run(loaded, out, jobs=1, pages=False).folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data with an empty border, on turned axes that their files state."""
    root = toy.write_dataset(tmp_path_factory.mktemp("turned"))
    for path in root.glob("*Tr/*.nii.gz"):
        array = np.asarray(nib.load(path).dataobj).copy()
        for axis, (low, high) in enumerate([(1, 15), (0, 16), (1, 16)]):
            outside = np.delete(np.arange(16), slice(low, high))
            array[(slice(None),) * axis + (outside,)] = 0
        nib.save(nib.Nifti1Image(array, np.eye(4)).as_reoriented(TURN), path)
    return root


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data: Path) -> ProtocolFolder:
    return run(data, tmp_path_factory.mktemp("done") / "out", "best")


@pytest.fixture
def copy(done: ProtocolFolder, tmp_path: Path) -> ProtocolFolder:
    shutil.copytree(done.path.parent, tmp_path / "out")
    return ProtocolFolder(tmp_path / "out" / done.path.name)


def test_a_kept_prediction_overlays_the_label_file(done: ProtocolFolder, data: Path) -> None:
    """Dice of the files as they lie on disk is the record's."""
    for _, record in read_results(done).finished():
        for subject, scores in record.metrics.items():
            kept = nib.load(done.prediction(record.id, subject))
            label = nib.load(data / "labelsTr" / f"{subject}.nii.gz")
            assert nib.aff2axcodes(label.affine) != ("R", "A", "S")
            np.testing.assert_array_equal(kept.affine, label.affine)
            ours, theirs = (np.asarray(image.dataobj) for image in (kept, label))
            assert ours.dtype == np.uint8 and kept.header.get_intent()[0] == "label"
            assert kept.header["descrip"].item() == b"0 background, 1 lower, 2 upper"
            for value, name in ((1, "lower"), (2, "upper")):
                a, b = ours == value, theirs == value
                dice = 2 * (a & b).sum() / (a.sum() + b.sum())
                assert scores[name]["dice"] == pytest.approx(dice, abs=1e-6)


def test_the_best_network_of_each_method_stays_and_predicts_what_was_kept(
    done: ProtocolFolder, data: Path, tmp_path: Path
) -> None:
    results = read_results(done)
    kept = {path.stem for path in done.networks.iterdir()}
    for method in ("scratch", "finetune"):
        records = [record for cell, record in results.finished() if cell.method == method]
        best = max(records, key=lambda record: record.validation_dice)
        assert len(records) == 2 and kept & {record.id for record in records} == {best.id}
        for subject in best.metrics:
            image, out = data / "imagesTr" / f"{subject}.nii.gz", tmp_path / "out.nii.gz"
            counts = prediction.write(done.network(best.id), [image], out, "classes", CPU)
            wanted = done.prediction(best.id, subject)
            assert out.read_bytes() == wanted.read_bytes()
            found = np.asarray(nib.load(wanted).dataobj)
            assert list(counts.values()) == np.bincount(found.ravel(), minlength=3).tolist()
    assert verify(done.path.parent)[1] == []


def test_a_network_that_is_gone_is_told_and_a_damaged_one_made_again(
    copy: ProtocolFolder, data: Path, trm_bench: Run
) -> None:
    gone, damaged = sorted(copy.networks.glob("*.safetensors"))
    gone.unlink()
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-3])
    records = {path: path.read_bytes() for path in copy.records.iterdir()}
    protocol = toy.write_protocol(
        copy.path.parent / "toy.yaml",
        data,
        methods=["scratch", "finetune"],
        seeds=[0, 1],
        keep="best",
        data={"dataset": "decathlon", "root": str(data), "volume": {"crop": "brain"}},
    )
    code, said = trm_bench("run", protocol, "--out", copy.path.parent, "--device", "cpu")
    assert code == 0 and "1 of 2 networks to keep are not there" in " ".join(said.split())
    assert [p.stem for p in copy.networks.glob("*.safetensors")] == [damaged.stem]
    changed = {path.stem for path in records if path.read_bytes() != records[path]}
    assert changed == {damaged.stem}, "the run of the damaged one alone is done again"
    assert {f.kind for f in verify(copy.path.parent)[1]} == {"set aside"}


def test_settle_keeps_all_where_all_are_wanted(copy: ProtocolFolder) -> None:
    before = sorted(copy.networks.iterdir())
    assert keeping.settle(copy, "none") == "" and sorted(copy.networks.iterdir()) == before
    assert "2 of 4 networks to keep are not there" in keeping.settle(copy, "all")
    assert sorted(copy.networks.iterdir()) == before


def test_keeping_changes_no_run(toy_data: Path, tmp_path: Path) -> None:
    plans = [plan(toy_data, tmp_path, keep=keep) for keep in ("none", "all")]
    assert [job.id for job in plans[0].runs] == [job.id for job in plans[1].runs]
    assert plans[0].settings == plans[1].settings
    assert [{job.keep for job in p.runs} for p in plans] == [{False}, {True}]
    assert not any(job.keep for p in plans for job in p.sources)


# The command alone


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint(tmp_path / "a.safetensors", weights()),
        "images": [write(tmp_path / "image.nii.gz", voxels()[0])],
        "out": tmp_path / "new" / "classes.nii.gz",
        "values": "classes",
        "device": CPU,
    }


def test_label_values_are_written_on_request(files: dict[str, Any], tmp_path: Path) -> None:
    prediction.write(**files)
    indices = np.asarray(nib.load(files["out"]).dataobj)
    two = LabelMap(("background", "ball"), {0: 0, 3: 0, 4: 1})
    domain = RunDomain.of(("mri",), "ball", two)
    made = checkpoint(tmp_path / "b.safetensors", weights(), domain=domain)
    prediction.write(**{**files, "checkpoint": made, "values": "labels"})
    found = nib.load(files["out"])
    np.testing.assert_array_equal(np.asarray(found.dataobj), 4 * indices)
    np.testing.assert_allclose(found.affine, AFFINE)
    assert found.shape == SHAPE and set(np.unique(indices)) == {0, 1}
    assert found.header["descrip"].item() == b"0 background, 4 ball"


@pytest.mark.parametrize(
    ("values", "said"), [({0: 0, 1: 1, 2: 1}, "but 1, 2"), ({0: 0}, "but none"), ({}, "but none")]
)
def test_a_class_without_one_label_value_is_told(values: dict[int, int], said: str) -> None:
    domain = RunDomain.of(("mri",), "ball", LabelMap(("background", "ball"), values))
    with pytest.raises(UserError, match=said):
        prediction.label_values(domain)


def with_nan(files: dict[str, Any], folder: Path) -> None:
    files["images"] = [write(folder / "nan.nii", np.full(SHAPE, np.nan, np.float32))]


FAULTS: dict[str, tuple[Callable[[dict[str, Any], Path], object], str]] = {
    "two images": (lambda f, p: f["images"].append(f["images"][0]), "2 images, but"),
    "no image": (lambda f, p: f["images"].clear(), "0 images, but"),
    "NaN": (with_nan, "NaN or infinite"),
    "missing": (lambda f, p: f.update(images=[p / "none.nii"]), "is missing"),
    "not a network": (lambda f, p: f.update(checkpoint=f["images"][0]), "not a checkpoint"),
    "no network": (lambda f, p: f.update(checkpoint=p / "none"), "cannot be read"),
    "out is a PNG": (lambda f, p: f.update(out=p / "a.png"), "NIfTI"),
    "out in a file": (lambda f, p: f.update(out=f["images"][0] / "a.nii"), "cannot be written"),
    "other values": (lambda f, p: f.update(values="names"), "no values 'names'"),
    "other weights": (
        lambda f, p: checkpoint(f["checkpoint"], {"a": weights()["model.2.conv.bias"]}),
        "not those of its network",
    ),
    "other classes": (
        lambda f, p: checkpoint(
            f["checkpoint"],
            weights(),
            domain=config().domain.model_copy(update={"classes": ("background", "a", "b")}),
        ),
        "not those of its network",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_used_is_told(name: str, files: dict[str, Any], tmp_path: Path) -> None:
    change, said = FAULTS[name]
    change(files, tmp_path)
    with pytest.raises(UserError, match=said):
        prediction.write(**files)
    assert not files["out"].exists()


def test_the_commands(files: dict[str, Any], tmp_path: Path, trm_bench: Run) -> None:
    given = ["--checkpoint", files["checkpoint"]]
    more = ["--image", files["images"][0], "--out", files["out"], "--device", "cpu"]
    code, said = trm_bench("predict", *given, *more)
    assert code == 0 and "background" in said and nib.load(files["out"]).shape == SHAPE
    bundle = tmp_path / "bundle"
    code, said = trm_bench("export", *given, "--out", bundle)
    assert code == 0 and json.loads((bundle / "configs" / "metadata.json").read_text())
    code, said = trm_bench("export", *given, "--out", bundle)
    assert code == 2 and "is there already" in said
