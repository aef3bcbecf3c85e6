"""What MLflow is told of a run and of a table: parameters, metrics by name and unit, a note."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from trm_bench.analysis.table import SCALE, UNITS
from trm_bench.protocol.schema import Protocol
from trm_bench.runs.config import Imported, RunConfig
from trm_bench.runs.records import Record, StoredPlan

Point = tuple[str, int, float]
"""Name, step and value of a metric."""

LONGEST = 250  # characters of a name, for MLflow
LONGEST_NOTE = 7500  # characters; MLflow takes 8000 in a tag
WIDTH = 190  # of a column, for names to be seen whole
VALIDATION = "validation_dice_percent"
CURVES = {"loss": "train_loss", "validation": f"{VALIDATION}_curve", "voxel_share": "voxel_share"}
NOT_PARAMETERS = {
    "schema_version": True,
    "subjects": True,  # counted instead; the record lists them
    "source": True,
    "code": True,
    "domain": {"values", "regions"},
    "method": True,  # flattened by one level more
}


def parameters(config: RunConfig) -> dict[str, Any]:
    """A run's parameters, dotted."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[safe(prefix)] = value

    walk("", config.model_dump(mode="json", exclude=NOT_PARAMETERS))  # type: ignore[arg-type]
    walk("subjects", {part: len(members) for part, members in config.subjects.parts().items()})
    walk("method", {**config.method.parameters, "name": config.method.name})
    if config.source is not None:
        walk("source", _of_source(config.source))
    return flat


def _of_source(source: RunConfig | Imported) -> dict[str, Any]:
    """What a run's parameters say of its source."""
    if isinstance(source, Imported):
        return {"id": source.id, "sha256": source.sha256, "classes": len(source.domain.classes)}
    seen = {"images": list(source.domain.images), "labels": source.domain.labels}
    return {"id": source.id, "dataset": source.dataset, **seen}


def metrics(record: Record, distance_unit: str) -> Iterator[Point]:
    """The few numbers by which runs are compared; the record, an artifact, has all others.

    Args:
        record: Of the run.
        distance_unit: Of distances between surfaces.

    Yields:
        Means over test subjects and classes, validation Dice, cost.
    """
    collected: dict[str, list[float]] = {}
    for regions in record.metrics.values():
        for values in regions.values():
            for metric, value in values.items():
                collected.setdefault(metric, []).append(SCALE[metric] * value)
    for metric, all_values in collected.items():
        yield tested(metric, distance_unit), 0, sum(all_values) / len(all_values)
    if record.validation_dice is not None:
        yield VALIDATION, 0, SCALE["dice"] * record.validation_dice
    if record.trained:
        yield "trained_parameters", 0, record.trained
    if "train" in record.seconds:
        yield "train_seconds", 0, record.seconds["train"]
    if record.peak_memory_bytes is not None:
        yield "peak_memory_gib", 0, record.peak_memory_bytes / 2**30


def tested(metric: str, distance_unit: str) -> str:
    """A metric's name, with its unit."""
    unit = {"%": "percent", "mm": distance_unit}[UNITS[metric]]
    return f"test_{metric}_{unit}"


def curves(record: Record, suffix: str = "") -> Iterator[Point]:
    """All that a training logged on its way; validation Dice in per cent."""
    for name, curve in record.curves.items():
        scale = SCALE["dice"] if name == "validation" else 1.0
        for step, value in curve:
            yield f"{CURVES[name]}{suffix}", step, scale * value


def view(plan: StoredPlan) -> dict[str, Any]:
    """How MLflow shows the runs of a plan: in which columns, and sorted by the first metric."""
    units = sorted({cell.distance_unit for cell in plan.cells})
    names = [tested(metric, unit) for metric in plan.protocol.metrics for unit in units]
    shown = [*dict.fromkeys(names), VALIDATION, "train_seconds"]
    columns = ["tags.`transfer`", *(f"metrics.`{name}`" for name in shown)]
    return {
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": dict.fromkeys(columns, WIDTH),
        "orderByKey": columns[1],
        "orderByAsc": UNITS[plan.protocol.metrics[0]] != "%",  # distances: the lower the better
    }


def summarised(summary: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Of summary.json and each method: its mean in the first metric, and its gain with interval."""
    metric, methods = next(iter(summary["metrics"].items()))
    unit = summary["units"][metric].replace("%", "percent")
    gain = f"gain_{unit.replace('percent', 'points')}"
    for method, numbers in methods.items():
        low, high = numbers["gain_interval"]
        values = {f"test_{metric}_{unit}": numbers["mean"], gain: numbers["gain"]}
        values |= {f"{gain}_low": low, f"{gain}_high": high}
        for name, value in values.items():
            if value is not None:
                yield f"{safe(name)}/{safe(method)}", value


def note(protocol: Protocol, found: str, table: str) -> str:
    """The description of a benchmark's run, in Markdown.

    Args:
        protocol: Of the benchmark.
        found: What came out, in sentences.
        table: table.md.
    """
    head = "\n\n".join(filter(None, (protocol.description, f"**{found}**")))
    how = (
        "The runs below this one are the cells of the table: one for each transfer, method and "
        "seed. Tick some and press *Compare* to see their curves and parameters side by side. "
        "*Artifacts* holds the whole report (`report.html`) and every number."
    )
    room = LONGEST_NOTE - len(head) - len(how)
    if len(table) > room:
        table = f"The table is long: see `table.md` in *Artifacts*, or {protocol.name}/report.html."
    return f"{head[:LONGEST_NOTE]}\n\n{table.strip()}\n\n{how}"


def safe(name: str) -> str:
    """A name that MLflow takes: letters, digits and _ - . / in no more than `LONGEST` characters.

    It must not read as a path that leads elsewhere, such as ../x, /x or x//y, either.
    """
    kept = "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)[:LONGEST]
    if kept != posixpath.normpath(kept) or kept.startswith(("/", ".")):
        kept = f"_{kept[1:]}".replace("/", "_")
    return kept
