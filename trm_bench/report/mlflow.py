"""MLflow: a mirror of the records, one parent run a protocol and one child a cell.

It never stands in the way of a benchmark.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trm_bench.analysis.table import SCALE
from trm_bench.files import TEMPORARY
from trm_bench.protocol.schema import Protocol
from trm_bench.report.tracking import CELL, MOST, PARENT, Store, load
from trm_bench.runs.config import Imported, RunConfig
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Cell, Record
from trm_bench.runs.store import read_plan, read_record

if TYPE_CHECKING:
    from trm_bench.display import Display

Track = Callable[[str], None]
M = TypeVar("M", bound="Mirror")
BATCH = 900  # metrics a request; MLflow takes 1000
LONGEST = 250  # characters of a name, for MLflow
END_SECONDS = 3.0  # that a command which was stopped waits for its parent run to be ended
NOT_PARAMETERS = {
    "schema_version": True,
    "subjects": True,  # counted instead; the record lists them
    "source": True,
    "code": True,
    "domain": {"values", "regions"},
    "method": True,  # flattened by one level more
}


@contextmanager
def tracker(protocol: Protocol, folder: ProtocolFolder, display: Display) -> Iterator[Track]:
    """Yields a function that logs the record of a run, in all the cells that it fills.

    Args:
        protocol: With `tracking: off`, nothing is logged.
        folder: Of the protocol, with its plan.
        display: Where a fault is reported.
    """
    with guarded(protocol, folder, display, partial(_RunMirror, protocol, folder)) as act:
        yield lambda run_id: act(lambda mirror: mirror.log(run_id))
        act(lambda mirror: mirror.close())


@contextmanager
def guarded(
    protocol: Protocol, folder: ProtocolFolder, display: Display, make: Callable[[Store], M]
) -> Iterator[Callable[[Callable[[M], None]], None]]:
    """Yields a function that lets something be done with a mirror, which is made here.

    A store that cannot be reached or written is reported once, and the work goes on without.

    Args:
        protocol: With `tracking: off`, nothing is done.
        folder: Of the protocol.
        display: Where a fault is reported.
        make: Makes the mirror.
    """
    mirror, store = None, Store(folder.results)

    def broken(what: str, error: Exception) -> None:
        display.warn(f"{what}: {store.told(error)}")

    if protocol.tracking != "off":
        display.say(f"tracking with MLflow: {store.shown}")
        try:
            load()
            with store.locked():
                mirror = make(store)
        except Exception as error:  # MLflow raises what its store raises
            broken("MLflow is not available, so nothing is tracked", error)

    def act(what: Callable[[M], None]) -> None:
        nonlocal mirror
        if mirror is None:
            return
        try:
            with store.locked():
                what(mirror)
        except Exception as error:
            broken("MLflow failed, so tracking stops here (the records are complete)", error)
            mirror = None

    try:
        yield act
    except BaseException as error:
        if mirror is not None:
            _end(mirror, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise


def _end(mirror: Mirror, status: str) -> None:
    """Ends the parent of a command that ends early; a store that does not answer is not waited for.

    The next command ends what stays RUNNING.
    """

    def end() -> None:
        with contextlib.suppress(Exception), mirror.store.locked(END_SECONDS):
            mirror.client.set_terminated(mirror.parent, status)

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(END_SECONDS)


class Mirror:
    """One parent run with its children, in the experiment of a protocol.

    Args:
        name: Of the protocol.
        folder: Of its results.
        settings: By which a later command finds the parent again.
        title: Of the parent.
        tags: Of the parent.
        store: Where to; its lock is held wherever a mirror is made or used.
    """

    def __init__(
        self,
        name: str,
        folder: ProtocolFolder,
        settings: str,
        title: str,
        tags: Mapping[str, str],
        store: Store,
    ) -> None:
        self.folder, self.store, self.client = folder, store, store.client()
        store.end_dead(self.client, name)
        self.experiment = self._experiment(name)
        self.parent = self._parent(settings) or self.new(title, {PARENT: settings, **tags})
        children = self.client.search_runs(
            [self.experiment], f"tags.`mlflow.parentRunId` = '{self.parent}'", max_results=MOST
        )
        # a child that is still running was cut off by a kill, and is logged again
        for child in children:
            if child.info.status == "RUNNING":
                self.client.set_terminated(child.info.run_id, "KILLED")
        whole = ("FINISHED", "FAILED")
        self.logged = {c.data.tags.get(CELL) for c in children if c.info.status in whole}

    def _experiment(self, name: str) -> str:
        """The id of the experiment, which is made where there is none."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        artifacts = None
        if self.store.uri.startswith("sqlite:"):
            artifacts = self.folder.results.mlflow_artifacts(name).resolve().as_uri()
        return str(self.client.create_experiment(name, artifact_location=artifacts))

    def _parent(self, settings: str) -> str | None:
        """The parent of earlier commands with these settings, which runs again."""
        tagged = f"tags.`{PARENT}` = '{settings}'"
        runs = self.client.search_runs([self.experiment], tagged, max_results=1)
        for run in runs:
            self.client.update_run(run.info.run_id, "RUNNING")
        return str(runs[0].info.run_id) if runs else None

    def new(self, name: str, tags: dict[str, str], start: int | None = None) -> str:
        """The id of a new run, which starts now or at a time in ms."""
        run = self.client.create_run(
            self.experiment, start_time=start, run_name=name[:LONGEST], tags=tags
        )
        return str(run.info.run_id)

    def log_parameters(self, run: str, parameters: Mapping[str, Any]) -> None:
        """Logs up to a hundred parameters."""
        from mlflow.entities import Param

        named = {safe(k): str(v)[:6000] for k, v in sorted(parameters.items())}
        params = [Param(k, v) for k, v in named.items()]
        self.client.log_batch(run, params=params[:100])

    def log_metrics(self, run: str, values: Iterable[tuple[str, int, float]]) -> None:
        """Logs names, steps and values, as many a request as MLflow takes."""
        from mlflow.entities import Metric

        metrics = [Metric(safe(name), value, 0, step) for name, step, value in values]
        for i in range(0, len(metrics), BATCH):
            self.client.log_batch(run, metrics=metrics[i : i + BATCH])

    def log_files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Brings files to the parent."""
        for path in sorted(paths):
            if TEMPORARY.fullmatch(path.name):  # a killed command was writing it
                continue
            self.client.log_artifact(self.parent, str(path), folder)


class _RunMirror(Mirror):
    """The runs of a protocol: a child a cell."""

    def __init__(self, protocol: Protocol, folder: ProtocolFolder, store: Store) -> None:
        self.plan = plan = read_plan(folder)
        settings, tags = f"{plan.data}-{plan.settings}", {"data": plan.data}
        super().__init__(protocol.name, folder, settings, protocol.name, tags, store)

    def log(self, run_id: str) -> None:
        """Logs a run's record in every cell that it fills and where it is not logged yet."""
        record = read_record(self.folder.record(run_id))
        if record is None:
            return
        for cell in self.plan.cells:
            key = f"{cell.transfer}|{cell.method}|{cell.seed}|{cell.run}|{record.state}"
            if cell.run == run_id and key not in self.logged:
                self._log_cell(cell, record, key)
                self.logged.add(key)

    def _log_cell(self, cell: Cell, record: Record, key: str) -> None:
        tags = {
            "mlflow.parentRunId": self.parent,
            CELL: key,
            "data": self.plan.data,
            "method": cell.method,
            "transfer": cell.transfer,
            "seed": str(cell.seed),
            "run_id": record.id,
            "state": record.state,
        }
        run = self.new(f"{cell.transfer} {cell.method} seed {cell.seed}", tags)
        self.log_parameters(run, _parameters(record.config))
        self.log_metrics(run, _metrics(record))
        self.client.log_artifact(run, str(self.folder.record(cell.run)))
        finished = record.state == "finished"
        self.client.set_terminated(run, "FINISHED" if finished else "FAILED")

    def close(self) -> None:
        """Brings tables, their numbers, charts and the page to the parent, and ends it."""
        summary = json.loads(self.folder.report("summary.json").read_text(encoding="utf-8"))
        step = len(self.plan.cells)
        self.log_metrics(self.parent, ((k, step, v) for k, v in _summarised(summary)))
        verdict = " / ".join(summary["verdict"]["words"]) or "no verdict"
        self.client.set_tag(self.parent, "verdict", verdict)
        for pattern in ("*.csv", "table.*", "*.json", "report.html"):
            self.log_files(self.folder.path.glob(pattern))
        self.log_files(self.folder.figures.glob("*.png"), "figures")
        self.client.set_terminated(self.parent)


def _parameters(config: RunConfig) -> dict[str, Any]:
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


def _metrics(record: Record) -> Iterator[tuple[str, int, float]]:
    """Curves, mean test metrics per class and over classes, diagnostics, costs.

    Yields:
        Name, step and value.
    """
    yield from curves(record)
    by_metric: dict[str, list[float]] = {}
    by_class: dict[str, list[float]] = {}
    for regions in record.metrics.values():
        for region, values in regions.items():
            for metric, value in values.items():
                printed = SCALE[metric] * value
                by_metric.setdefault(metric, []).append(printed)
                by_class.setdefault(f"{metric}.{safe(region)}", []).append(printed)
    for name, collected in {**by_metric, **by_class}.items():
        yield f"test.{name}", 0, sum(collected) / len(collected)
    if record.validation_dice is not None:
        yield "validation.dice", 0, SCALE["dice"] * record.validation_dice
    for name, value in record.diagnostics.items():
        if isinstance(value, int | float):
            yield f"diagnostics.{safe(name)}", 0, float(value)
    for name, value in record.seconds.items():
        yield f"seconds.{name}", 0, value
    if record.peak_memory_bytes is not None:
        yield "peak_memory_gib", 0, record.peak_memory_bytes / 2**30


def curves(record: Record, suffix: str = "") -> Iterator[tuple[str, int, float]]:
    """Name, step and value of all that a training logged; validation Dice in per cent."""
    for name, curve in record.curves.items():
        scale = SCALE["dice"] if name == "validation" else 1.0
        for step, value in curve:
            yield f"{name}_curve{suffix}", step, scale * value


def _summarised(summary: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What summary.json says of each method: `dice.gain.trm` and the like, and the value."""
    for metric, methods in summary["metrics"].items():
        for method, numbers in methods.items():
            names = ("mean", "sd_over_seeds", "gain", "gain_relative_percent")
            values = {name: numbers[name] for name in names}
            values["gain_low"], values["gain_high"] = numbers["gain_interval"]
            for name, value in values.items():
                if value is not None:
                    yield f"{metric}.{name}.{safe(method)}", value
    gaps = {m: numbers["gap"] for m, numbers in summary["negative_transfer"].items()}
    for name, by_key in {**summary["voxel_level"], "negative_transfer_gap": gaps}.items():
        for key, value in by_key.items():
            if value is not None:
                yield f"{name}.{safe(key)}", value


def safe(name: str) -> str:
    """A name that MLflow takes: letters, digits and _ - . / in no more than `LONGEST` characters.

    It must not read as a path that leads elsewhere, such as ../x, /x or x//y, either.
    """
    kept = "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)[:LONGEST]
    if kept != posixpath.normpath(kept) or kept.startswith(("/", ".")):
        kept = f"_{kept[1:]}".replace("/", "_")
    return kept
