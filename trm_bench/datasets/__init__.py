"""The datasets by name: the built-in ones, and those of installed packages.

A package adds one through the entry-point group ``trm_bench.datasets``, ``name = "module:Class"``,
with a subclass of `trm_bench.datasets.base.Dataset` whose `name` is that name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from trm_bench.datasets.base import BadSubject, Dataset, LabelMap, NiftiDataset, Scan, Subject
from trm_bench.plugins import Registry

REGISTRY: Registry[Dataset] = Registry(
    Dataset,  # type: ignore[type-abstract]  # mypy wants a class that can be made
    "dataset",
    "trm_bench.datasets",
    {
        "decathlon": "trm_bench.datasets.decathlon:Decathlon",
        "fets2021": "trm_bench.datasets.fets2021:Fets2021",
        "iseg2019": "trm_bench.datasets.iseg2019:Iseg2019",
        "lgg": "trm_bench.datasets.lgg:Lgg",
        "nnunet": "trm_bench.datasets.nnunet:NnUNet",
    },
    "data.dataset",
)


def open_dataset(
    name: str,
    root: Path,
    allow_links: bool = False,
    distance_unit: Literal["mm", "voxels"] | None = None,
) -> Dataset:
    """The dataset in the folder `root`.

    Args:
        name: A registered one.
        root: Its folder.
        allow_links: Whether symbolic links may lead outside the folder.
        distance_unit: What the files' distances are in, where the dataset cannot say it itself:
            `voxels` where published files have lost their voxel size.

    Raises:
        UserError: It is not there.
    """
    dataset = REGISTRY.get(name)(root)
    dataset.allow_links = allow_links
    if distance_unit is not None:
        dataset.distance_unit = distance_unit
    return dataset


__all__ = [
    "REGISTRY",
    "BadSubject",
    "Dataset",
    "LabelMap",
    "NiftiDataset",
    "Scan",
    "Subject",
    "open_dataset",
]
