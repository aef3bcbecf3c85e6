"""A toy benchmark.

A dozen 16^3 volumes with a two-part ball, and a protocol that trains on them in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml

SIDE = 16


def write_dataset(root: Path, subjects: int = 9, seed: int = 0) -> Path:
    """A Decathlon folder.

    Noise with a bright ball, its lower half class 1 and its upper half class 2.
    """
    names = [f"toy_{i:03d}" for i in range(subjects)]
    for i, name in enumerate(names):
        draws = np.random.default_rng([seed, i])
        centre, radius = draws.uniform(6, 9, 3), draws.uniform(4, 5)
        grid = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), axis=-1)
        ball = np.linalg.norm(grid - centre, axis=-1) < radius
        label = (ball * np.where(grid[..., 2] < centre[2], 1, 2)).astype(np.uint8)
        image = (
            draws.normal(100, 10, label.shape).astype(np.float32) + 40 * ball + 20 * (label == 2)
        )
        for folder, array in (("imagesTr", image), ("labelsTr", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), root / folder / f"{name}.nii.gz")
    about = {
        "name": "Toy",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "lower", "2": "upper"},
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names
        ],
    }
    (root / "dataset.json").write_text(json.dumps(about))
    return root


def write_sites(root: Path, sites: Mapping[str, int], channels: int = 1, seed: int = 100) -> Path:
    """The same volumes as another data set, nnU-Net's layout, with so many subjects of each site.

    A site's name begins its subjects' ids; all channels show the same.
    """
    made = write_dataset(root / "made", sum(sites.values()), seed)
    names = [f"{site}_{i:03d}" for site, n in sites.items() for i in range(n)]
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for i, name in enumerate(names):
        image, label = (made / f / f"toy_{i:03d}.nii.gz" for f in ("imagesTr", "labelsTr"))
        for channel in range(channels):
            noisy = np.asarray(nib.load(image).dataobj) + channel
            file = root / "imagesTr" / f"{name}_{channel:04d}.nii.gz"
            nib.save(nib.Nifti1Image(noisy, np.eye(4)), file)
        label.rename(root / "labelsTr" / label.name.replace(f"toy_{i:03d}", name))
    about = {
        "channel_names": {str(c): f"MR{c}" for c in range(channels)},
        "labels": {"background": 0, "lower": 1, "upper": 2},
        "numTraining": len(names),
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(about))
    rows = "".join(f"{name},{name.partition('_')[0]}\n" for name in names)
    (root / "institutions.csv").write_text(f"subject,institution\n{rows}")
    return root


def protocol(root: Path, **changes: Any) -> dict[str, Any]:
    """The toy protocol as a mapping; `changes` replace top-level keys."""
    training = {
        "steps": 6,
        "batch": 2,
        "patch": [16, 16, 16],
        "optimizer": {"name": "adamw", "lr": 0.01},
    }
    return {
        "name": "toy",
        "data": {
            "dataset": "decathlon",
            "root": str(root),
            "volume": {"crop": "none", "intensity": "zscore"},
        },
        "split": {"source": 3, "target": {"train": 2, "val": 1, "test": "rest"}},
        "transfers": {"kind": "cross_task", "pairs": [["whole", "lower_upper"]]},
        "network": {"name": "UNet", "channels": [4, 8], "strides": [2]},
        "training": {"source": dict(training), "target": dict(training)},
        "methods": ["scratch", "finetune", "trm"],
        "seeds": [0],
        "tracking": "off",
    } | changes


def write_protocol(path: Path, root: Path, **changes: Any) -> Path:
    """Writes the toy protocol as YAML."""
    path.write_text(yaml.safe_dump(protocol(root, **changes)))
    return path
