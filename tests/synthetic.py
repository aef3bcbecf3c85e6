"""Synthetic results with known gains: plan and records as runs leave them, without training.

    python tests/synthetic.py FOLDER          # 12 transfers, 20 methods, 5 seeds, 100 subjects

A subject's Dice is the transfer's level + the method's gain + effects of subject, seed and class +
noise.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from trm_bench import protocol
from trm_bench.analysis import voxels
from trm_bench.environment import Environment
from trm_bench.protocol.schema import MethodConfig, Protocol
from trm_bench.runs.config import Member, RunConfig, RunDomain, RunMethod, Subjects
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Cell, Record, StoredPlan, VoxelAudit
from trm_bench.runs.store import write_model

FAMILY = ["scratch", "finetune", "trm", "trm_prior", "trm_uniform", "trm_shuffled"]
OTHERS = [
    *["frozen_encoder", "lp_ft", "l2_sp", "delta", "bss", "stochnorm", "co_tuning", "wise_ft"],
    *["auto_rgn", "forkmerge", "source_weighting", "focal", "topk"],
]
METHODS = [*FAMILY, *OTHERS, "surgical"]
CLAIM = {
    "source": "arXiv:2502.02340",
    "metric": "dice",
    "gain": 4.37,
    "unit": "points",
    "method": "trm",
    "versus": "finetune",
}
MODALITIES = ["t1", "t1ce", "t2", "flair"]
WON = 0.03  # share of the tumour that transfer wins
AREA = 0.9  # under the ROC curve of the map of trm


def known_gains(methods: Sequence[str] = METHODS) -> dict[str, float]:
    """Gain over fine-tuning of each method, Dice points."""
    family = {
        "scratch": -3.0,
        "finetune": 0.0,
        "trm": 4.0,
        "trm_prior": 3.0,
        "trm_uniform": 1.0,
        "trm_shuffled": 3.0,
    }
    return {m: family.get(m, -2.0 + 0.25 * i) for i, m in enumerate(methods)}


def write(
    folder: Path,
    *,
    methods: Sequence[str] = METHODS,
    transfers: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    subjects: int = 100,
    classes: Sequence[str] = ("whole", "core"),
    metrics: Sequence[str] = ("dice", "hd95"),
    gains: Mapping[str, float] | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    noise: float = 4.0,
    claim: Mapping[str, Any] | None = CLAIM,
    data: str = "real",
    kind: str = "cross_modality",
    files: int = 5,
    seed: int = 0,
) -> Path:
    """Writes the results of one protocol.

    Args:
        folder: Of the protocol; its name becomes the protocol's.
        methods: In the table's order.
        transfers: Names; the 12 ordered pairs of four modalities by default.
        seeds: Of the trainings.
        subjects: Number of test subjects.
        classes: Scored regions.
        metrics: The protocol's.
        gains: Method to gain over fine-tuning in Dice points; `known_gains` by default.
        configs: Label to name and parameters, of methods that are not called as they are labelled.
        noise: Standard deviation of a scan's Dice, points.
        claim: The protocol's claim.
        data: "real" or "phantom".
        kind: Of the transfers.
        files: Files of a subject in the manifest.
        seed: Of the numbers.
    """
    transfers = transfers or [f"{a}->{b}" for a, b in permutations(MODALITIES, 2)]
    gains = known_gains(methods) if gains is None else gains
    draws = np.random.default_rng(seed)
    ids = _ids(subjects)
    of_subject = draws.normal(0, 8, subjects)[:, None]
    of_class = np.linspace(0, -6, len(classes))
    listed = [
        MethodConfig(**{"name": m, **(configs or {}).get(m, {}), "label": m}) for m in methods
    ]
    made_by = _protocol(folder.name, listed, seeds, metrics, claim, kind)
    base = _record(made_by, data, {"train": _ids(12), "val": _ids(4), "test": ids}, files)
    measures = _measures(transfers, seeds, seed)
    place, cells = ProtocolFolder(folder), []
    for transfer in transfers:
        level = draws.uniform(58, 66)
        for listed_method in listed:
            method = listed_method.label
            # shared by the scans of a training; centred, so that the known gain is the mean's
            of_seed = draws.normal(0, 0.4, len(seeds))
            for s, effect in zip(seeds, of_seed, strict=True):
                dice = level + gains[method] + of_subject + of_class + effect - of_seed.mean()
                dice = np.clip((dice + draws.normal(0, noise, dice.shape)) / 100, 0, 1)
                scores = _scores(dice, ids, classes, metrics)
                place_in = (transfer, listed_method, s)
                record = _of_cell(base, place_in, scores, measures[transfer, s], draws)
                write_model(place.record(record.id), record)
                cells.append(Cell(transfer=transfer, method=method, seed=s, run=record.id))
    _write_audits(place, cells, ids, draws)
    plan = StoredPlan(protocol=made_by, data=data, settings="synthetic", cells=tuple(cells))
    write_model(place.plan, plan)
    return folder


def _ids(number: int) -> list[str]:
    return [f"FeTS21_Training_{i + 1:03d}" for i in range(number)]


def _measures(
    transfers: Sequence[str], seeds: Sequence[int], seed: int
) -> dict[tuple[str, int], dict[str, float]]:
    """LEEP and mean risk of each transfer and seed, of which no score knows anything."""
    draws = np.random.default_rng([seed, 1])  # the scores' draws stay what they are without these
    measures = {}
    for transfer in transfers:
        level = draws.normal(-3, 0.5)
        for s in seeds:
            leep = -float(np.exp(level + draws.normal(0, 0.1)))
            measures[transfer, s] = {"leep": leep, "risk_mean": -leep * draws.uniform(0.3, 0.5)}
    return measures


def _audit(
    transfer: str,
    seed: int,
    runs: Mapping[str, str],
    subjects: Sequence[str],
    draws: np.random.Generator,
) -> VoxelAudit:
    """Every method loses about 1 % of the tumour and wins `WON`; trm's map finds what is lost."""
    places = [voxels.ALL_VOXELS, voxels.LOST_OR_WON, "background", "tumour"]
    shown = {name: area for name, area in {"trm": AREA, "trm_prior": 0.6}.items() if name in runs}

    def counts(size: int, won: float) -> tuple[int, ...]:
        return (size, *draws.binomial(size, [0.01, won]).tolist())

    return VoxelAudit(
        transfer=transfer,
        seed=seed,
        runs=dict(runs),
        code="synthetic",
        classes=("background", "tumour"),
        outcomes={
            m: {s: [counts(90_000, 0.01), counts(10_000, WON)] for s in subjects}
            for m in runs
            if m != "scratch"
        },
        auroc={
            name: {
                s: {p: float(np.clip(area + draws.normal(0, 0.05), 0, 1)) for p in places}
                for s in subjects
            }
            for name, area in shown.items()
        },
        roc={name: np.linspace(0, 1, 101).tolist() for name in shown},
    )


def _write_audits(
    place: ProtocolFolder, cells: Sequence[Cell], ids: Sequence[str], draws: np.random.Generator
) -> None:
    by_audit: dict[tuple[str, int], dict[str, str]] = {}
    for cell in cells:
        by_audit.setdefault((cell.transfer, cell.seed), {})[cell.method] = cell.run
    for (transfer, seed), runs in by_audit.items():
        if "scratch" in runs:
            write_model(place.audit(transfer, seed), _audit(transfer, seed, runs, ids, draws))


def _scores(
    dice: np.ndarray, ids: Sequence[str], classes: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Subject to class to metric to value, from the Dice of each (subject, class)."""

    def of(value: float) -> dict[str, float]:
        values = {"dice": value, "hd95": 60 * (1 - value), "surface_dice": value * 0.9}
        return {m: values[m] for m in metrics}

    return {
        subject: {c: of(value) for c, value in zip(classes, row, strict=True)}
        for subject, row in zip(ids, dice.tolist(), strict=True)
    }


def _record(made_by: Protocol, data: str, parts: Mapping[str, Sequence[str]], files: int) -> Record:
    """What all records share; cells differ in what `_of_cell` replaces."""
    config = RunConfig(
        kind="run",
        data=data,
        dataset=made_by.data.dataset,
        domain=RunDomain(
            images=("t1",),
            labels="whole_tumor",
            classes=("background", "tumour"),
            values={0: 0, 1: 1},
            regions={"tumour": (1,)},
        ),
        volume=made_by.data.volume,
        subjects=Subjects(
            **{part: tuple(Member(s, "0") for s in ids) for part, ids in parts.items()}
        ),
        network=made_by.network,
        training=made_by.training.target.model_copy(update={"precision": "fp32"}),
        evaluation=made_by.evaluation,
        metrics=made_by.metrics,
        method=RunMethod(name="scratch"),
        seed=0,
        device="cuda",
        code="synthetic",
    )
    environment = Environment(
        trm_bench="0.1.0",
        python="3.11.7",
        platform="Linux",
        packages={"torch": "2.8.0", "monai": "1.6.0"},
        device="cuda",
        device_name="synthetic",
        threads=1,
    )
    manifest = {
        part: {s: {f"{s}_{k}.nii.gz": (1000, "0" * 64) for k in range(files)} for s in ids}
        for part, ids in parts.items()
    }
    return Record(
        id="",
        state="finished",
        config=config,
        environment=environment,
        started="2026-01-01T00:00:00+0000",
        validation_dice=0.6,
        manifest=manifest,
        seconds={"prepare": 0.5, "train": 30.0, "test": 5.0},
        peak_memory_bytes=2**30,
    )


def _of_cell(
    base: Record,
    place: tuple[str, MethodConfig, int],
    scores: dict[str, Any],
    measures: Mapping[str, float],
    draws: np.random.Generator,
) -> Record:
    """The record of one cell; checked by whoever reads it, since copying checks nothing."""
    steps = np.arange(10, 310, 10)
    loss = (
        (1 + 0.5 * draws.random()) * np.exp(-steps / 120) + 0.2 + draws.normal(0, 0.01, len(steps))
    )
    transfer, method, seed = place
    domain = base.config.domain.model_copy(update={"images": (transfer.split("->")[-1],)})
    trained = RunMethod(name=method.name, parameters=method.parameters)
    own = {"domain": domain, "method": trained, "seed": seed}
    config = base.config.model_copy(update={**own, "code": f"synthetic {transfer}"})
    changes = {
        "id": config.id,
        "config": config,
        "curves": {"loss": list(zip(steps.tolist(), loss.tolist(), strict=True)), "validation": []},
        "metrics": scores,
        "predictions": dict.fromkeys(scores, "0" * 64),
    }
    if method.name.startswith("trm") and method.name != "trm_uniform":
        changes["diagnostics"] = {
            **measures,
            "risk_per_class": [0.01, 0.98],
            "class_explained": 0.98,
            "conditional": [[0.99, 0.83], [0.01, 0.17]],
            "prior": [0.984, 0.016],
        }
    return base.model_copy(update=changes)


def _protocol(
    name: str,
    methods: Sequence[MethodConfig],
    seeds: Sequence[int],
    metrics: Sequence[str],
    claim: Any,
    kind: str,
) -> Protocol:
    training = {"steps": 300, "batch": 2, "patch": [64, 64, 64]}
    labels = {"labels": "whole_tumor"} if kind == "cross_modality" else {}
    parsed = protocol.parse(
        {
            "name": name,
            "description": "synthetic results",
            "claim": claim,
            "data": {"dataset": "fets2021", "root": "nowhere", **labels},
            "split": {"source": 0.5, "target": {"train": 12, "val": 4, "test": "rest"}},
            "transfers": {"kind": kind},
            "network": {"name": "UNet", "channels": [8, 16], "strides": [2]},
            "training": {"source": training, "target": training},
            "methods": ["scratch"],
            "seeds": list(seeds),
            "metrics": list(metrics),
        },
        "synthetic",
    )
    return parsed.model_copy(update={"methods": tuple(methods)})


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
