"""The datasets by name: the built-in ones, and those of installed packages.

A package adds one through the entry-point group ``trm_bench.datasets``, ``name = "module:Class"``, with a subclass of
`trm_bench.datasets.base.Dataset` whose `name` is that name.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from trm_bench.datasets.base import BadSubject, Dataset, LabelMap, NiftiDataset, Scan, Subject
from trm_bench.errors import UserError, nearest

GROUP = "trm_bench.datasets"
BUILTIN = {
    "decathlon": "trm_bench.datasets.decathlon:Decathlon",
    "fets2021": "trm_bench.datasets.fets2021:Fets2021",
    "iseg2019": "trm_bench.datasets.iseg2019:Iseg2019",
    "lgg": "trm_bench.datasets.lgg:Lgg",
}


def names() -> list[str]:
    """All names, sorted; raises `UserError` where two packages claim one."""
    return sorted([*BUILTIN, *_plugins()])


def get(name: str) -> type[Dataset]:
    """The dataset's class, imported on demand.

    Raises:
        UserError: No dataset has that name (with the nearest one), or the package that has it is broken.
    """
    plugins = _plugins()
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name not in plugins:
        raise UserError(f"there is no dataset '{name}'", "data.dataset", nearest(name, names()))
    return _load(plugins[name])


def open_dataset(name: str, root: Path) -> Dataset:
    """The dataset in the folder `root`; raises `UserError` where it is not there."""
    return get(name)(root)


def _plugins() -> dict[str, EntryPoint]:
    plugins: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in BUILTIN or entry.name in plugins:
            other = "is built in" if entry.name in BUILTIN else f"comes from {_distribution(plugins[entry.name])} too"
            raise UserError(
                f"the package {_distribution(entry)} brings a dataset '{entry.name}', which {other}",
                "data.dataset",
                "uninstall the package, or ask its authors for another name",
            )
        plugins[entry.name] = entry
    return plugins


def _load(entry: EntryPoint) -> type[Dataset]:
    where, fix = "data.dataset", f"update or uninstall the package {_distribution(entry)}"
    try:
        loaded = entry.load()
    except Exception as error:  # whatever a package's import raises
        what = f"the dataset '{entry.name}' of the package {_distribution(entry)} cannot be imported"
        raise UserError(f"{what} ({type(error).__name__}: {error})", where, fix) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Dataset) and getattr(loaded, "name", None) == entry.name):
        what = f"{entry.value} of the package {_distribution(entry)} is no Dataset named '{entry.name}'"
        raise UserError(what, where, fix)
    return loaded


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "(unknown)"


__all__ = [
    "BadSubject",
    "Dataset",
    "LabelMap",
    "NiftiDataset",
    "Scan",
    "Subject",
    "get",
    "names",
    "open_dataset",
]
