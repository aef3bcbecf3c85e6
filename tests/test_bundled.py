"""Every bundled protocol runs end to end, cut down to seconds.

On the phantom if it has one, else on real data.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from layouts import real_data

from trm_bench import pipeline
from trm_bench.data.splits import split
from trm_bench.datasets.base import Subject
from trm_bench.protocol import bundled, load_protocol

REAL = {
    "hippocampus_cross_task": ["Task04_Hippocampus"],
    "hippocampus_few_shot": ["Task04_Hippocampus"],
    "hippocampus_gamma": ["Task04_Hippocampus"],
    "hippocampus_to_cardiac": ["Task04_Hippocampus", "Dataset101_MMsED"],
    "lgg_cross_institution": ["kaggle_3m"],
    "lgg_cross_modality": ["kaggle_3m"],
    "lgg_few_shot": ["kaggle_3m"],
    "lgg_gamma": ["kaggle_3m"],
    "mms_cross_vendor": ["Dataset101_MMsED"],
    "msd_brain_cross_modality": ["Task01_BrainTumour"],
    "msd_prostate_cross_modality": ["Task05_Prostate"],
    "neonatal_cross_modality": ["iSeg-2019-Training"],
}
SHORT = [
    "training.source.steps=2",
    "training.target.steps=2",
    "training.source.batch=1",
    "training.target.batch=1",
    "seeds=[0, 1]",
]


# Protocol, on the phantom?, usable subjects that the target may have, whether the source has the
# same, and the test subjects that the comments count on.
COHORTS = [
    ("demo", True, 20, True, 8),
    ("fets_binary_institution", True, 12, True, 4),
    ("fets_cross_institution", True, 12, False, 8),
    ("fets_cross_institution", True, 7, False, 3),
    ("fets_cross_modality", False, 341, True, 91),
    ("fets_cross_modality", True, 28, True, 10),
    ("fets_cross_task", False, 341, True, 91),
    ("fets_cross_task", True, 28, True, 10),
    ("fets_few_shot", False, 341, True, 126),
    ("fets_few_shot", True, 28, True, 10),
    ("fets_to_iseg", False, 10, False, 5),
    ("fets_to_iseg", True, 10, False, 5),
    ("hippocampus_cross_task", False, 180, True, 60),
    ("hippocampus_few_shot", False, 180, True, 60),
    ("hippocampus_gamma", False, 180, True, 60),
    ("hippocampus_to_cardiac", False, 72, False, 37),
    ("iseg_cross_modality", False, 10, True, 3),
    ("iseg_cross_modality", True, 10, True, 3),
    ("iseg_cross_task", False, 10, True, 3),
    ("iseg_few_shot", False, 10, True, 2),
    ("lgg_cross_institution", False, 6, False, 3),
    ("lgg_cross_modality", False, 24, True, 9),
    ("lgg_few_shot", False, 24, True, 9),
    ("lgg_gamma", False, 24, True, 9),
    ("mms_cross_vendor", False, 36, False, 16),
    ("msd_brain_cross_modality", False, 484, True, 162),
    ("msd_prostate_cross_modality", False, 32, True, 11),
    ("neonatal_cross_modality", False, 10, True, 3),
]


@pytest.mark.parametrize(("name", "stand_in", "number", "shared", "test"), COHORTS)
def test_the_design_suits_the_number_of_subjects(
    name: str, stand_in: bool, number: int, shared: bool, test: int
) -> None:
    loaded = load_protocol(name, phantom=stand_in)
    subjects = [Subject(f"{i:03d}", {}, Path("label")) for i in range(number)]
    divisions = [split(subjects, loaded.split, seed, shared) for seed in loaded.seeds]
    assert [len(d.test) for d in divisions] == [test] * len(loaded.seeds)
    assert stand_in or loaded.seeds == (0, 1, 2, 3, 4)
    if loaded.split.design == "disjoint":
        assert len({d.test for d in divisions}) == 1
        trained = [i for d in divisions for i in d.train]
        assert len(trained) == len(set(trained)) == loaded.split.target.train * len(divisions)
        assert loaded.split.sets == len(loaded.seeds), "no patient is set aside in vain"
    else:
        assert len({d.test for d in divisions}) > 1


def test_every_protocol_has_its_number_of_subjects() -> None:
    """But those for institutions whose sizes are not known here."""
    assert {name for name, *_ in COHORTS} == set(bundled())


def cut(name: str) -> list[str]:
    """Settings under which a protocol runs in seconds."""
    small = [
        *SHORT,
        "tracking=off",
        "seeds=[0]",
        "methods=[scratch, finetune, trm]",
        "metrics=[dice]",
        "claim=null",  # which may name other methods
    ]
    if name in REAL:
        small.append("split.target.test=2")
        flat = ["data.volume.spacing=[4, 4, 2]"]
        flat += [f"training.{part}.patch=[64, 64]" for part in ("source", "target")]
        return small + flat * name.startswith("lgg")
    small += [f"training.{part}.patch=[16, 16, 16]" for part in ("source", "target")]
    if "institution" in name:  # 7 and 4 of 16 phantoms
        sizes = ["phantom.subjects=16", "split.target={train: 1, val: 1, test: 1}"]
        return [*small, *sizes, "phantom.spacing=6", "split.source=2"]
    sizes = ["phantom.subjects=9", "split.target={train: 4, val: 1, test: 1}"]
    return [*small, *sizes, "phantom.spacing=6", "split.source=3", "split.sets=1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(bundled()))
def test_runs_end_to_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in REAL:
        roots = {real_data(folder).parent for folder in REAL[name]}  # or skips the test
        monkeypatch.setenv("TRM_DATA", str(*roots))
    loaded = load_protocol(name, cut(name), phantom=name not in REAL)
    outcome = pipeline.run(loaded, tmp_path, stand_in=name not in REAL, jobs=1, pages=False)
    assert set(outcome.states) == {"finished"}
    table = pd.read_csv(outcome.folder.path / "metrics.csv")
    assert table.value.between(0, 100).all() and set(table.method) == {"scratch", "finetune", "trm"}
    summary = json.loads((outcome.folder.path / "summary.json").read_text())
    assert summary["data"] == ("real" if name in REAL else "phantom")
    assert list((outcome.folder.path / "figures").glob("risk_*.png"))


@pytest.mark.slow
def test_fets_runs_on_real_patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's setting on scans of its kind: BraTS patients in the layout of FeTS2021."""
    monkeypatch.setenv("TRM_DATA", str(real_data("MICCAI_FeTS2021_TrainingData").parent))
    small = [f"training.{part}.patch=[32, 32, 32]" for part in ("source", "target")]
    small += ["data.volume.spacing=[6, 6, 6]", "transfers.pairs=[[flair, t1]]"]
    small += ["split={source: 4, target: {train: 2, val: 1, test: 2}, design: fixed}"]
    small += ["tracking=off", "methods=[scratch, trm]", "metrics=[dice]", *SHORT, "seeds=[0]"]
    loaded = load_protocol("fets_cross_modality", small)
    outcome = pipeline.run(loaded, tmp_path, jobs=1, pages=False)
    assert set(outcome.states) == {"finished"}
    table = pd.read_csv(outcome.folder.path / "metrics.csv")
    assert table.subject.str.startswith("Brats18").all() and table.subject.nunique() == 2
