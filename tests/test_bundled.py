"""Every bundled protocol runs end to end, cut down to seconds.

On the phantom if it has one, else on real data.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from layouts import real_data

from trm_bench import pipeline
from trm_bench.data.splits import split
from trm_bench.datasets.base import Subject
from trm_bench.protocol import bundled, load_protocol

REAL = {"hippocampus_cross_task": "Task04_Hippocampus", "lgg_cross_modality": "kaggle_3m"}
SHORT = [
    "training.source.steps=2",
    "training.target.steps=2",
    "training.source.batch=1",
    "training.target.batch=1",
    "seeds=[0, 1]",
]


# Protocol, on the phantom?, usable subjects, and the test subjects that its comments count on.
COHORTS = [
    ("fets_cross_modality", False, 341, 91),
    ("fets_cross_modality", True, 28, 10),
    ("fets_cross_task", False, 341, 91),
    ("fets_cross_task", True, 28, 10),
    ("fets_few_shot", False, 341, 126),
    ("fets_few_shot", True, 28, 10),
    ("hippocampus_cross_task", False, 180, 60),
    ("iseg_cross_modality", False, 10, 3),
    ("iseg_cross_modality", True, 10, 3),
    ("lgg_cross_modality", False, 24, 9),
]


@pytest.mark.parametrize(("name", "stand_in", "number", "test"), COHORTS)
def test_the_design_suits_the_number_of_subjects(
    name: str, stand_in: bool, number: int, test: int
) -> None:
    loaded = load_protocol(name, ["data.root=."], phantom=stand_in)
    if stand_in and loaded.phantom:
        assert loaded.phantom.subjects == number
    subjects = [Subject(f"{i:03d}", {}, Path("label")) for i in range(number)]
    divisions = [split(subjects, loaded.split, seed) for seed in loaded.seeds]
    assert [len(d.test) for d in divisions] == [test] * len(loaded.seeds)
    assert stand_in or loaded.seeds == (0, 1, 2, 3, 4)
    if loaded.split.design == "disjoint":
        assert len({d.test for d in divisions}) == 1
        trained = [i for d in divisions for i in d.train]
        assert len(trained) == len(set(trained)) == loaded.split.target.train * len(divisions)
        assert loaded.split.sets == len(loaded.seeds), "no patient is set aside in vain"
    else:
        assert len({d.test for d in divisions}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", list(bundled()))
def test_runs_end_to_end(name: str, tmp_path: Path) -> None:
    small = [
        *SHORT,
        "tracking=off",
        "seeds=[0]",
        "methods=[scratch, finetune, trm]",
        "metrics=[dice]",
    ]
    if name in REAL:
        small += [f"data.root={real_data(REAL[name])}", "split.target.test=2"]
        small += [
            "data.volume.spacing=[4, 4, 2]",
            "training.source.patch=[64, 64]",
            "training.target.patch=[64, 64]",
        ] * (name == "lgg_cross_modality")
    else:
        small += [
            "phantom.subjects=9",
            "phantom.spacing=6",
            "split.source=3",
            "split.target={train: 4, val: 1, test: 1}",
        ]
        small += [f"training.{part}.patch=[16, 16, 16]" for part in ("source", "target")]
    loaded = load_protocol(name, small, phantom=name not in REAL)
    outcome = pipeline.run(
        loaded, tmp_path, stand_in=name not in REAL, device=torch.device("cpu"), jobs=1, pages=False
    )
    assert set(outcome.states) == {"finished"}
    table = pd.read_csv(outcome.folder.path / "metrics.csv")
    assert table.value.between(0, 100).all() and set(table.method) == {"scratch", "finetune", "trm"}
    summary = json.loads((outcome.folder.path / "summary.json").read_text())
    assert summary["data"] == ("real" if name in REAL else "phantom")
    assert list((outcome.folder.path / "figures").glob("risk_*.png"))
