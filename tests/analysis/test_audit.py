"""Voxel-level audits of whole runs.

Against the files that the runs left, and what makes one stale.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import toy
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

from trm_bench import pipeline
from trm_bench.analysis import audit
from trm_bench.display import Display
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import VoxelAudit
from trm_bench.runs.store import Results, read_model, read_results, write_model

METHODS = ["scratch", "finetune", "trm", "trm_prior"]


def run(output: Path, toy_data: Path, methods: list[str] = METHODS) -> Path:
    path = toy.write_protocol(output / "toy.yaml", toy_data)
    loaded = pipeline.load(str(path), ["tracking=false"], methods=methods)
    return pipeline.run(loaded, output / "out", jobs=1, pages=False).folder.path


def read(folder: Path) -> Results:
    return read_results(ProtocolFolder(folder))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """The toy benchmark with its audit; tests must not change it."""
    return run(tmp_path_factory.mktemp("audit"), toy_data)


def only(folder: Path) -> dict[str, Any]:
    (found,) = (folder / "voxels").iterdir()
    return json.loads(found.read_text())


def prediction(folder: Path, run: str, subject: str) -> np.ndarray:
    return np.asarray(nib.load(folder / "predictions" / run / f"{subject}.nii.gz").dataobj)


def label_of(folder: Path, subject: str) -> np.ndarray:
    """The classes of a prepared subject; the toy's label values are its classes."""
    for path in (folder.parent / "prepared").rglob("*.safetensors"):
        if json.loads(results_metadata(path))["about"]["subject"] == subject:
            return load_file(path)["label"]
    raise AssertionError(subject)


def results_metadata(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return next(iter(file.metadata().values()))


def test_every_test_prediction_is_kept(done: Path) -> None:
    for cell, record in read(done).finished():
        kept = {p.name.removesuffix(".nii.gz") for p in (done / "predictions" / cell.run).iterdir()}
        assert kept == set(record.metrics)


def test_outcomes_and_areas_are_those_of_the_files(done: Path) -> None:
    found = only(done)
    assert set(found["outcomes"]) == {"finetune", "trm", "trm_prior"} and set(found["auroc"]) == {
        "trm",
        "trm_prior",
    }
    # the prior's map is one value a class, 1 - its share of the voxels of the training subjects
    (record,) = (r for c, r in read(done).finished() if c.method == "trm")
    training = np.concatenate([label_of(done, s).ravel() for s, _ in record.config.subjects.train])
    risk = 1 - np.bincount(training) / len(training)
    for subject, counts in found["outcomes"]["finetune"].items():
        label = label_of(done, subject)
        scratch, tuned = (
            prediction(done, found["runs"][m], subject) for m in ("scratch", "finetune")
        )
        lost, won = (scratch == label) & (tuned != label), (scratch != label) & (tuned == label)
        for k, row in enumerate(counts):
            at = label == k
            assert row == [at.sum(), lost[at].sum(), won[at].sum()]
        area = roc_auc_score(lost.ravel(), risk[label].ravel())
        assert found["auroc"]["trm_prior"][subject]["all voxels"] == pytest.approx(area)
        for place, value in found["auroc"]["trm_prior"][subject].items():
            assert value == 0.5 or place in ("all voxels", "lost against won")


def test_the_report_shows_them(done: Path) -> None:
    rates, areas = (pd.read_csv(done / f"voxel_{name}.csv") for name in ("rates", "auroc"))
    assert set(rates["method"]) == {"finetune", "trm", "trm_prior"} and set(areas["map"]) == {
        "trm",
        "trm_prior",
    }
    summary = json.loads((done / "summary.json").read_text())["voxel_level"]
    overall = areas[(areas["transfer"] == "mean") & (areas["class"] == "all voxels")].set_index(
        "map"
    )
    assert summary["auroc_of_lost_voxels"]["trm"] == pytest.approx(overall.loc["trm", "auroc"])


def pending(folder: Path, toy_data: Path) -> list[audit.Audit]:
    results = read(folder)
    quiet = Display(quiet=True)
    data = pipeline.open_data(results.plan.protocol, results.folder.results, False, 1, quiet)
    return audit.pending(results, data.cohorts)


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done.parent, tmp_path / "out")
    return tmp_path / "out" / done.name


def test_nothing_is_done_twice(copy: Path, toy_data: Path) -> None:
    assert pending(copy, toy_data) == []


def test_another_run_makes_an_audit_stale(copy: Path, toy_data: Path) -> None:
    (path,) = (copy / "voxels").iterdir()
    found = json.loads(path.read_text())
    audited = read_model(VoxelAudit, path)
    assert audited is not None
    other = audited.model_copy(update={"runs": audited.runs | {"scratch": "other"}})
    write_model(path, other)
    assert read(copy).audits() == [], "it must not be shown beside other runs"
    (work,) = pending(copy, toy_data)
    assert audit.audit(work, torch.device("cpu"), lambda *at: None) == "finished"
    assert json.loads(path.read_text()) == found, "the same files give the same numbers"


def test_a_damaged_audit_is_made_again(copy: Path, toy_data: Path) -> None:
    (path,) = (copy / "voxels").iterdir()
    path.write_text(path.read_text()[:100])
    assert read(copy).audits() == [] and len(pending(copy, toy_data)) == 1


def test_runs_without_predictions_are_left_out(copy: Path, toy_data: Path) -> None:
    runs = only(copy)["runs"]
    shutil.rmtree(copy / "predictions" / runs["trm"])
    (work,) = pending(copy, toy_data)
    assert set(work.records) == {"scratch", "finetune", "trm_prior"} and not work.readings
    foreign, *_ = (copy / "predictions" / runs["scratch"]).iterdir()
    shutil.copy(foreign, copy / "predictions" / runs["trm_prior"])
    (work,) = pending(copy, toy_data)
    assert set(work.records) == {"scratch", "finetune"}, "nor those with another run's prediction"
    shutil.rmtree(copy / "predictions" / runs["scratch"])
    assert pending(copy, toy_data) == [], "without scratch nothing can be lost or won"


def test_maps_of_features_are_left_out_and_the_rest_is_not(tmp_path: Path, toy_data: Path) -> None:
    """Their readout is not in the record, so that the map could only be another one."""
    fitted = [{"name": "trm", "label": e, "evidence": e} for e in ("clusters", "probe")]
    methods = ["scratch", "finetune", "trm", *fitted]
    path = toy.write_protocol(tmp_path / "toy.yaml", toy_data, methods=methods)
    folder = pipeline.run(pipeline.load(str(path)), tmp_path / "out", jobs=1).folder.path
    assert len(list(read(folder).finished())) == 5
    found = only(folder)
    assert set(found["outcomes"]) == {"finetune", "trm", "clusters", "probe"}
    assert {"trm", "trm_prior"} >= set(found["auroc"]) > set()
    for cell, record in read(folder).finished():
        if cell.method in ("clusters", "probe"):
            assert record.diagnostics["evidence"]["kind"] == cell.method
