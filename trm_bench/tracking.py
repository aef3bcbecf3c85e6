"""MLflow: a mirror of the records, one parent run a protocol and one child a cell; never in the way of a benchmark."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm_bench import results
from trm_bench.protocol import Protocol
from trm_bench.runs import Job, read_record

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from trm_bench.display import Display

Track = Callable[[Job], None]
PARENT, CELL = "trm_bench.parent", "trm_bench.cell"  # tags by which a resumed command finds what is logged already
BATCH = 900  # metrics a request; MLflow takes 1000


def store_uri(output: Path) -> str:
    """The tracking store: MLFLOW_TRACKING_URI, or an sqlite file in the folder of the results."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(output / 'mlflow.db').resolve()}"


@contextmanager
def tracker(protocol: Protocol, folder: Path, display: Display) -> Iterator[Track]:
    """Yields a function that logs a job's record, in all the cells that it fills.

    A store that cannot be reached or written is said once, and the benchmark goes on without.

    Args:
        protocol: With `tracking: off`, nothing is logged.
        folder: The protocol's folder of results, with its plan.
        display: Where a fault is said.
    """
    if protocol.tracking == "off":
        yield lambda job: None
        return
    mirror: _Mirror | None = None
    try:
        display.say(f"tracking with MLflow: {store_uri(folder.parent)}")
        mirror = _Mirror(protocol, folder)
    except Exception as error:  # MLflow raises what its store raises
        display.warn(f"MLflow is not available, so nothing is tracked: {error}")

    def track(job: Job) -> None:
        nonlocal mirror
        if mirror is None:
            return
        try:
            mirror.log(job)
        except Exception as error:
            display.warn(f"MLflow failed, so tracking stops here (the records are complete): {error}")
            mirror = None

    yield track
    if mirror is not None:
        try:
            mirror.close()
        except Exception as error:
            display.warn(f"MLflow failed at the end: {error}")


class _Mirror:
    """Writes one protocol's runs to one MLflow experiment."""

    def __init__(self, protocol: Protocol, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a dead server must not hold up a benchmark
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # migrations of a new store would be told line by line
            logging.getLogger(name).setLevel(logging.WARNING)
        uri = store_uri(folder.parent)
        self.client: MlflowClient = MlflowClient(tracking_uri=uri)
        self.folder = folder
        found = results.read(folder)
        self.plan = found.plan
        experiment = self.client.get_experiment_by_name(protocol.name)
        if experiment is None:
            local = uri.startswith("sqlite:")
            artifacts = (folder.parent / "mlartifacts" / protocol.name).resolve().as_uri() if local else None
            self.experiment = self.client.create_experiment(protocol.name, artifact_location=artifacts)
        else:
            self.experiment = experiment.experiment_id
        settings = f"{self.plan['data']}-{self.plan['settings']}"
        self.parent = self._find(PARENT, settings) or self._new(protocol.name, {PARENT: settings, "data": self._data})
        logged = self.client.search_runs(
            [self.experiment], f"tags.`mlflow.parentRunId` = '{self.parent}'", max_results=50_000
        )
        self.logged = {run.data.tags.get(CELL) for run in logged if run.info.status != "RUNNING"}

    @property
    def _data(self) -> str:
        return str(self.plan["data"])

    def log(self, job: Job) -> None:
        record = read_record(job.result)
        if record is None:
            return
        for cell in self.plan["cells"]:
            key = f"{cell['transfer']}|{cell['method']}|{cell['seed']}|{cell['run']}|{record['state']}"
            if cell["run"] == job.id and key not in self.logged:
                self._log_cell(cell, record, key, job.result)
                self.logged.add(key)

    def _log_cell(self, cell: dict[str, Any], record: dict[str, Any], key: str, path: Path) -> None:
        from mlflow.entities import Metric, Param

        name = f"{cell['transfer']} {cell['method']} seed {cell['seed']}"
        tags = {
            "mlflow.parentRunId": self.parent,
            CELL: key,
            "data": self._data,
            "method": cell["method"],
            "transfer": cell["transfer"],
            "seed": str(cell["seed"]),
            "run_id": record["id"],
            "state": record["state"],
        }
        run = self._new(name, tags)
        params = [Param(k, str(v)[:6000]) for k, v in sorted(_parameters(record["config"]).items())]
        metrics = [Metric(k, v, 0, step) for k, step, v in _metrics(record)]
        self.client.log_batch(run, params=params[:100])
        for i in range(0, len(metrics), BATCH):
            self.client.log_batch(run, metrics=metrics[i : i + BATCH])
        self.client.log_artifact(run, str(path))
        self.client.set_terminated(run, "FINISHED" if record["state"] == "finished" else "FAILED")

    def close(self) -> None:
        """Brings the numbers of the tables, the tables, the charts and the page to the parent, and ends it."""
        from mlflow.entities import Metric

        summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        metrics = [Metric(k, v, 0, len(self.plan["cells"])) for k, v in _summarised(summary)]
        for i in range(0, len(metrics), BATCH):
            self.client.log_batch(self.parent, metrics=metrics[i : i + BATCH])
        self.client.set_tag(self.parent, "verdict", " / ".join(summary["verdict"]["words"]) or "no verdict")
        for pattern in ("*.csv", "table.*", "*.json", "report.html"):
            for path in sorted(self.folder.glob(pattern)):
                self.client.log_artifact(self.parent, str(path))
        for path in sorted(self.folder.glob("figures/*.png")):
            self.client.log_artifact(self.parent, str(path), "figures")
        self.client.set_terminated(self.parent)

    def _new(self, name: str, tags: dict[str, str]) -> str:
        return str(self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id)

    def _find(self, tag: str, value: str) -> str | None:
        found = self.client.search_runs([self.experiment], f"tags.`{tag}` = '{value}'", max_results=1)
        return str(found[0].info.run_id) if found else None


def _parameters(config: dict[str, Any]) -> dict[str, Any]:
    """A run's parameters, dotted; subjects are counted, not listed (the record has them)."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    counted = {part: len(ids) for part, ids in config["subjects"].items()}
    kept = {k: v for k, v in config.items() if k not in ("subjects", "source", "domain", "code")}
    walk("", {**kept, "subjects": counted, "images": config["domain"]["images"], "labels": config["domain"]["labels"]})
    return flat


def _metrics(record: dict[str, Any]) -> Iterator[tuple[str, int, float]]:
    """Curves, mean test metrics per class and over classes, diagnostics and costs: (name, step, value)."""
    for name, curve in record.get("curves", {}).items():
        for step, value in curve:
            yield f"{name}_curve", step, value
    by_metric: dict[str, list[float]] = {}
    by_class: dict[str, list[float]] = {}
    for regions in record.get("metrics", {}).values():
        for region, values in regions.items():
            for metric, value in values.items():
                by_metric.setdefault(metric, []).append(value)
                by_class.setdefault(f"{metric}.{_safe(region)}", []).append(value)
    for name, collected in {**by_metric, **by_class}.items():
        yield f"test.{name}", 0, sum(collected) / len(collected)
    if "validation_dice" in record:
        yield "validation.dice", 0, record["validation_dice"]
    for name, value in record.get("diagnostics", {}).items():
        if isinstance(value, int | float):
            yield f"diagnostics.{_safe(name)}", 0, float(value)
    for name, value in record.get("seconds", {}).items():
        yield f"seconds.{name}", 0, value
    if "peak_memory_bytes" in record:
        yield "peak_memory_gib", 0, record["peak_memory_bytes"] / 2**30


def _summarised(summary: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What summary.json says of each method, as metrics of the parent: `dice.gain_points.trm` and the like."""
    for metric, methods in summary["metrics"].items():
        for method, found in methods.items():
            low, high = found["gain_interval"]
            values = {k: found[k] for k in ("mean", "sd_over_seeds", "gain_points", "gain_relative_percent")}
            for name, value in {**values, "gain_low": low, "gain_high": high}.items():
                if value is not None:
                    yield f"{metric}.{name}.{_safe(method)}", value
    voxels = {k: v.items() for k, v in summary["voxel_level"].items()}
    gaps = {"negative_transfer_gap": [(m, found["gap"]) for m, found in summary["negative_transfer"].items()]}
    for name, items in {**voxels, **gaps}.items():
        yield from ((f"{name}.{_safe(key)}", value) for key, value in items if value is not None)


def _safe(name: str) -> str:
    """MLflow takes letters, digits and _ - . / in names."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)
