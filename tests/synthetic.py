"""Synthetic results with known gains: plan.json and records as runs leave them, without training anything.

    python tests/synthetic.py FOLDER          # 12 transfers, 20 methods, 5 seeds, 100 subjects

A subject's Dice is the transfer's level + the method's gain + effects of subject, seed and class + noise.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from trm_bench import negative_transfer, protocol
from trm_bench.results import audit_path

FAMILY = ["scratch", "finetune", "trm", "trm_prior", "trm_uniform", "trm_shuffled"]
OTHERS = ["frozen_encoder", "lp_ft", "l2_sp", "delta", "bss", "stochnorm", "co_tuning", "wise_ft", "auto_rgn",
          "forkmerge", "source_weighting", "focal", "topk"]  # fmt: skip
METHODS = [*FAMILY, *OTHERS, "surgical"]
CLAIM = {"source": "arXiv:2502.02340", "metric": "dice", "gain": 4.37, "unit": "points", "method": "trm",
         "versus": "finetune"}  # fmt: skip
MODALITIES = ["t1", "t1ce", "t2", "flair"]
WON, AREA = 0.03, 0.9  # share of the tumour that transfer wins; area under the ROC curve of the map of trm


def known_gains(methods: Sequence[str] = METHODS) -> dict[str, float]:
    """Gain over fine-tuning of each method, Dice points."""
    family = {"scratch": -3.0, "finetune": 0.0, "trm": 4.0, "trm_prior": 3.0, "trm_uniform": 1.0, "trm_shuffled": 3.0}
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
    ids = [f"FeTS21_Training_{i + 1:03d}" for i in range(subjects)]
    of_subject = draws.normal(0, 8, subjects)
    of_class = np.linspace(0, -6, len(classes))
    manifest = {"train": _manifest(12, files), "val": _manifest(4, files), "test": _manifest(subjects, files)}
    (folder / "records").mkdir(parents=True, exist_ok=True)
    cells = []
    for transfer in transfers:
        level = draws.uniform(58, 66)
        for method in methods:
            # a seed's effect is shared by the scans of one training; centred, so that the known gain is the mean's
            of_seed = draws.normal(0, 0.4, len(seeds))
            for i, s in enumerate(seeds):
                shape = (subjects, len(classes))
                dice = level + gains[method] + of_subject[:, None] + of_class + of_seed[i] - of_seed.mean()
                dice = np.clip((dice + draws.normal(0, noise, shape)) / 100, 0, 1)
                run = f"{len(cells):016x}"
                cells.append({"transfer": transfer, "method": method, "seed": s, "run": run})
                record = _record(run, method, s, transfer, data, manifest, draws)
                record["metrics"] = {
                    subject: {c: _metrics(float(dice[j, k]), metrics) for k, c in enumerate(classes)}
                    for j, subject in enumerate(ids)
                }
                (folder / "records" / f"{run}.json").write_text(json.dumps(record))
    for transfer in transfers if "scratch" in methods else ():
        for s in seeds:
            runs = {c["method"]: c["run"] for c in cells if (c["transfer"], c["seed"]) == (transfer, s)}
            made = _audit(transfer, s, runs, ids, draws)
            path = audit_path(folder, transfer, s)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(made))
    plan = {
        "protocol": _protocol(folder.name, methods, seeds, metrics, claim, kind),
        "data": data,
        "settings": "synthetic",
        "left_out": [],
        "cells": cells,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def _audit(
    transfer: str, seed: int, runs: Mapping[str, str], subjects: Sequence[str], draws: np.random.Generator
) -> dict[str, Any]:
    """A voxel-level audit: every method loses about 1 % of the tumour and wins `WON`; trm's map finds what is lost."""
    places = [negative_transfer.ALL_VOXELS, negative_transfer.LOST_OR_WON, "background", "tumour"]
    shown = {"trm": AREA, "trm_prior": 0.6}

    def counts(size: int, won: float) -> list[int]:
        return [size, *draws.binomial(size, [0.01, won]).tolist()]

    return {
        "transfer": transfer,
        "seed": seed,
        "runs": dict(runs),
        "code": "synthetic",
        "classes": ["background", "tumour"],
        "outcomes": {
            m: {s: [counts(90_000, 0.01), counts(10_000, WON)] for s in subjects} for m in runs if m != "scratch"
        },
        "auroc": {
            name: {s: {p: float(np.clip(area + draws.normal(0, 0.05), 0, 1)) for p in places} for s in subjects}
            for name, area in shown.items()
            if name in runs
        },
        "roc": {name: np.linspace(0, 1, 101).tolist() for name in shown if name in runs},
    }


def _metrics(dice: float, metrics: Sequence[str]) -> dict[str, float]:
    values = {"dice": dice, "hd95": 60 * (1 - dice), "surface_dice": dice * 0.9}
    return {m: values[m] for m in metrics}


def _manifest(subjects: int, files: int) -> dict[str, dict[str, list[Any]]]:
    ids = [f"FeTS21_Training_{i + 1:03d}" for i in range(subjects)]
    return {s: {f"{s}_{k}.nii.gz": [1000, "0" * 64] for k in range(files)} for s in ids}


def _record(
    run: str, method: str, seed: int, transfer: str, data: str, manifest: Any, draws: np.random.Generator
) -> dict[str, Any]:
    steps = np.arange(10, 310, 10)
    loss = (1 + 0.5 * draws.random()) * np.exp(-steps / 120) + 0.2 + draws.normal(0, 0.01, len(steps))
    record: dict[str, Any] = {
        "id": run,
        "state": "finished",
        "reason": "",
        "config": {
            "kind": "run",
            "data": data,
            "dataset": "fets2021",
            "domain": {"images": [transfer.split("->")[-1]], "labels": "whole_tumor"},
            "subjects": {part: [[s, "0"] for s in found] for part, found in manifest.items()},
            "seed": seed,
            "method": {"name": method},
            "source": None,
        },
        "environment": {
            "trm-bench": "0.1.0",
            "python": "3.11.7",
            "platform": "Linux",
            "packages": {"torch": "2.8.0", "monai": "1.6.0"},
            "device": "cuda",
            "device_name": "synthetic",
            "threads": 1,
        },
        "started": "2026-01-01T00:00:00+0000",
        "curves": {"loss": np.stack([steps, loss], 1).tolist(), "validation": []},
        "validation_dice": 0.6,
        "manifest": manifest,
        "diagnostics": {},
        "seconds": {"prepare": 0.5, "train": 30.0, "test": 5.0},
        "peak_memory_bytes": 2**30,
    }
    if method.startswith("trm") and method != "trm_uniform":
        record["diagnostics"] = {
            "leep": -0.06,
            "risk_mean": 0.02,
            "risk_per_class": [0.01, 0.98],
            "class_explained": 0.98,
            "conditional": [[0.99, 0.83], [0.01, 0.17]],
            "prior": [0.984, 0.016],
        }
    return record


def _protocol(
    name: str, methods: Sequence[str], seeds: Sequence[int], metrics: Sequence[str], claim: Any, kind: str
) -> dict[str, Any]:
    training = {"steps": 300, "batch": 2, "patch": [64, 64, 64]}
    labels = {"labels": "whole_tumor"} if kind == "cross_modality" else {}
    made = protocol.parse(
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
    ).model_dump(mode="json")
    return made | {"methods": [{"name": m, "label": m} for m in methods]}


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
