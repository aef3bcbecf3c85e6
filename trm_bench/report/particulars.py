"""What a report says of its runs: risk maps, time, data, networks and machines, as rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trm_bench.analysis.transferability import CLASSES, variable_of
from trm_bench.environment import PACKAGES
from trm_bench.report import sides
from trm_bench.report.evidence import Evidence
from trm_bench.report.tables import MISSING
from trm_bench.runs.records import Record

# what the columns of a conditional matrix are, by LEEP's source variable, and the head of one
CONDITIONS = {
    CLASSES: ("source class", "source"),
    "clusters": ("cluster", "cluster"),
    "probe": ("class of the probe", "probe"),
}


def of(evidence: Evidence) -> dict[str, list[tuple[Any, ...]]]:
    """The rows by the names that the page's template has for them."""
    return {
        "diagnostics": list(_diagnostics(evidence)),
        "matrices": list(_matrices(evidence)),
        "balance": list(_balance(evidence)),
        "spent": list(_spent(evidence)),
        "data": list(_data(evidence)),
        "data_sets": list(_data_sets(evidence)),
        "networks": list(_networks(evidence)),
        "environments": list(_environments(evidence)),
    }


def _of_runs(evidence: Evidence) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Diagnostics of the runs that made a risk map, by transfer and method."""
    by_cell: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell, record in evidence.results.finished():
        if "leep" in record.diagnostics:
            by_cell.setdefault((cell.transfer, cell.method), []).append(record.diagnostics)
    return by_cell


def _diagnostics(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    for (transfer, method), runs in _of_runs(evidence).items():
        leep, explained, risk = (
            np.mean([r.get(k, np.nan) for r in runs])
            for k in ("leep", "class_explained", "risk_mean")
        )
        # null of a class that no voxel of the sum has, such as the background of `over: foreground`
        several = np.array([r.get("risk_per_class", [np.nan]) for r in runs], float)
        listed = ", ".join(MISSING if np.isnan(x) else f"{x:.4g}" for x in several.mean(axis=0))
        share = f"{100 * explained:.2f} %"
        variable = variable_of(runs[0])
        method = method if variable == CLASSES else f"{method}, {variable}"
        yield transfer, method, f"{leep:.4f}", share, f"{risk:.4g}", listed, len(runs)


def _matrices(evidence: Evidence) -> Iterator[tuple[str, str, list[str], list[list[object]]]]:
    """Title, what it conditions on, head and rows: of the focus, or else of all that made a map."""
    shows_focus = any(method == evidence.focus for _, method in _of_runs(evidence))
    for (transfer, method), runs in _of_runs(evidence).items():
        several = [np.array(r["conditional"], float) for r in runs if r.get("conditional")]
        if not several or (method != evidence.focus and shows_focus):
            continue
        matrix = np.mean([m for m in several if m.shape == several[0].shape], axis=0)
        on, noun = CONDITIONS.get(variable_of(runs[0]), CONDITIONS[CLASSES])
        header = ["target class", *[f"{noun} {c}" for c in range(matrix.shape[1])]]
        rows = [[k, *[f"{x:.4f}" for x in row]] for k, row in enumerate(matrix)]
        yield f"{transfer}, {method}", on, header, rows


def _spent(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    for method in evidence.methods:
        runs = [r for c, r in evidence.results.finished() if c.method == method]
        if not runs:
            yield method, 0, *([MISSING] * 5)
            continue
        train, test = ([r.seconds.get(k, np.nan) for r in runs] for k in ("train", "test"))
        memory = max(r.peak_memory_bytes or 0 for r in runs)
        total = float(np.nansum([sum(r.seconds.values()) for r in runs]))
        mean = [
            f"{np.nanmean(x):.1f} s" if np.isfinite(x).any() else MISSING for x in (train, test)
        ]
        gib = f"{memory / 2**30:.2f} GiB"
        yield method, len(runs), *mean, duration(total), gib, _plugins(runs) or MISSING


def _plugins(runs: Sequence[Record]) -> str:
    """Packages that brought a method or data set, with their versions."""
    packages = {name: v for r in runs for name, v in r.environment.packages.items()}
    return ", ".join(f"{name} {v}" for name, v in packages.items() if name not in PACKAGES)


def _balance(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    """Each method's share of the voxel-wise term in the gradient; see `training.loop.Curves`."""
    for method in evidence.methods:
        runs = [r for c, r in evidence.results.finished() if c.method == method]
        curves = [[y for _, y in r.curves.get("voxel_share", [])] for r in runs]
        if logged := [curve for curve in curves if curve]:
            ends = ([curve[i] for curve in logged] for i in (0, -1))
            first, last = (f"{np.mean(values):.2f}" for values in ends)
            yield method, len(logged), first, f"{np.mean(np.concatenate(logged)):.2f}", last


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _data(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    by_transfer: dict[str, dict[str, dict[str, Any]]] = {}
    for cell, record in evidence.results.finished():
        parts = by_transfer.setdefault(cell.transfer, {})
        for part, subjects in record.manifest.items():
            parts.setdefault(part, {}).update(subjects)
    for transfer, parts in by_transfer.items():
        files = {  # files of two data sets may have one name
            (name, digest): size
            for part in parts.values()
            for of_subject in part.values()
            for name, (size, digest) in of_subject.items()
        }
        counts = [len(parts.get(part, ())) for part in ("train", "val", "test")]
        yield transfer, *counts, len(files), f"{sum(files.values()) / 2**20:.1f} MiB"


def _data_sets(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    for about in sides.data_sets(evidence.results):
        yield tuple(about[key] or MISSING for key in ("name", "title", "licence", "citation"))


def _networks(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    results = evidence.results
    for name, config in sides.imported(results).items():
        channels = ", ".join(config.domain.images)
        head, took = sides.classes_of(config), sides.account(results, config)
        yield name, config.sha256, config.network.name, channels, head, took


def _environments(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    records = filter(None, map(evidence.results.record, evidence.results.cells))
    counts = Counter(
        (
            f"{about.device} ({about.device_name})",
            about.python,
            f"trm-bench {about.trm_bench}, "
            + ", ".join(f"{k} {v}" for k, v in about.packages.items()),
            about.platform,
        )
        for about in (record.environment for record in records)
    )
    for described, n in counts.items():
        yield n, *described
