"""MLflow: a mirror of the records, one parent run a protocol and one child a cell.

It never stands in the way of a benchmark.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from trm_bench.files import TEMPORARY
from trm_bench.protocol.schema import Protocol
from trm_bench.report.logged import (
    CURVES,
    LONGEST,
    Point,
    curves,
    metrics,
    note,
    parameters,
    safe,
    summarised,
    view,
)
from trm_bench.report.tracking import CELL, MOST, NOTE, PARENT, VIEW_TAG, Store, load
from trm_bench.runs.executors import Event, Listen
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Cell, Record
from trm_bench.runs.store import read_plan, read_record
from trm_bench.runs.times import span

if TYPE_CHECKING:
    from trm_bench.display import Display

LIVE_SECONDS = 3.0  # between two requests with points of runs that are at work
M = TypeVar("M", bound="Mirror")
Timed = tuple[Point, int]
"""A point, and when it was, in ms."""

BATCH = 900  # metrics a request; MLflow takes 1000
# what a command that was stopped waits for: what it has heard, and its runs' end
HEARD_SECONDS, END_SECONDS = 1.0, 2.5


@dataclass
class Tracker:
    """What mirrors the runs of a command.

    Attributes:
        hear: To be told of every event of a run.
        whole: At the end, whether nothing is missing in the store.
    """

    hear: Listen
    whole: bool = False


@contextmanager
def tracker(protocol: Protocol, folder: ProtocolFolder, display: Display) -> Iterator[Tracker]:
    """Yields what hears of runs, and lets them appear in all the cells that they fill.

    A run that starts appears, follows its training and ends with it. One that is `done` or `failed`
    without having started was trained by an earlier command, and is logged from its record.

    Args:
        protocol: With `tracking: off`, nothing is logged.
        folder: Of the protocol, with its plan.
        display: Where a fault is reported.
    """
    with guarded(protocol, folder, display, partial(_RunMirror, protocol, folder)) as act:
        with following(act) as hear:
            tracked = Tracker(hear)
            yield tracked
        closed = act(lambda mirror: mirror.close())
        tracked.whole = closed or protocol.tracking == "off"


@contextmanager
def guarded(
    protocol: Protocol, folder: ProtocolFolder, display: Display, make: Callable[[Store], M]
) -> Iterator[Callable[[Callable[[M], None]], bool]]:
    """Yields a function that lets something be done with a mirror, which is made here.

    It says whether that was done.

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
            with store.making():
                mirror = make(store)
        except Exception as error:  # MLflow raises what its store raises
            broken("MLflow is not available, so nothing is tracked", error)

    def act(what: Callable[[M], None]) -> bool:
        nonlocal mirror
        if mirror is None:
            return False
        try:
            with store.locked():
                what(mirror)
        except Exception as error:
            broken("MLflow failed, so tracking stops here (the records are complete)", error)
            mirror = None
        return mirror is not None

    try:
        yield act
    except BaseException as error:
        if mirror is not None:
            _end(mirror, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise


def _end(mirror: Mirror, status: str) -> None:
    """Ends the runs of a command that ends early; a store that does not answer is not waited for.

    The next command ends what stays RUNNING.
    """

    def end() -> None:
        with contextlib.suppress(Exception), mirror.store.locked(END_SECONDS):
            for run in (mirror.parent, *mirror.running()):
                mirror.client.set_terminated(run, status)

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
        settings = store.parent(settings)
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
        if self.store.is_database:  # which has no place for files
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

    def running(self) -> list[str]:
        """The children that have not ended."""
        return []

    def log(
        self,
        run: str,
        points: Iterable[Timed],
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Logs points, up to a hundred parameters, and tags."""
        from mlflow.entities import Metric, Param, RunTag

        logged = [Metric(safe(name), value, at, step) for (name, step, value), at in points]
        named = {safe(k): str(v)[:6000] for k, v in sorted((parameters or {}).items())}
        params = [Param(k, v) for k, v in named.items()][:100]
        of_run = [RunTag(k, v) for k, v in (tags or {}).items()]
        self.client.log_batch(run, logged[:BATCH], params, of_run)
        for i in range(BATCH, len(logged), BATCH):
            self.client.log_batch(run, logged[i : i + BATCH])

    def log_files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Brings files to the parent."""
        for path in sorted(paths):
            if TEMPORARY.fullmatch(path.name):  # a killed command was writing it
                continue
            self.client.log_artifact(self.parent, str(path), folder)


class _RunMirror(Mirror):
    """The runs of a protocol: a child a cell.

    Args:
        protocol: The protocol.
        folder: Of its results, with its plan.
        store: Where to.
    """

    def __init__(self, protocol: Protocol, folder: ProtocolFolder, store: Store) -> None:
        self.plan = plan = read_plan(folder)
        self.live: dict[str, _Live] = {}  # by the id of the run
        settings, tags = f"{plan.data}-{plan.settings}", {"data": plan.data}
        super().__init__(protocol.name, folder, settings, protocol.name, tags, store)
        self.client.set_experiment_tag(self.experiment, VIEW_TAG, json.dumps(view(plan)))

    def running(self) -> list[str]:
        """See `Mirror`."""
        return [child for live in self.live.values() for child in live.children.values()]

    def start(self, run_id: str, at: int) -> None:
        """A run is at work since a time in ms."""
        children = {cell: self._child(cell, "running", at) for cell in self._cells(run_id)}
        self.live[run_id] = _Live(children, set())

    def follow(self, run_id: str, points: Sequence[Timed]) -> None:
        """Logs points of a run that is at work."""
        live = self.live[run_id]
        live.logged |= {point for point, _ in points}
        for child in live.children.values():
            self.log(child, points)

    def end(self, run_id: str, at: int, late: Sequence[Timed] = ()) -> None:
        """Logs the record of a run, which has ended, where it is not logged yet.

        Args:
            run_id: Of the run.
            at: The time in ms, where the run was seen at work; else its record says when it was.
            late: Points that `follow` was not given.
        """
        live = self.live.pop(run_id, None)
        record = read_record(self.folder.record(run_id))
        if record is None:
            for child in live.children.values() if live else ():
                self.client.set_terminated(child, "FAILED", end_time=at)
            return
        if live is None:
            begun, at = self._times(record)
        for cell in self._cells(run_id):
            key = _key(cell, record.state)
            if live is not None:
                self._log_cell(live.children[cell], cell, record, at, late, live.logged)
            elif key not in self.logged:
                self._log_cell(self._child(cell, "running", begun), cell, record, at)
            self.logged.add(key)

    def _cells(self, run_id: str) -> list[Cell]:
        return [cell for cell in self.plan.cells if cell.run == run_id]

    def _times(self, record: Record) -> tuple[int, int]:
        """When a run started and ended, in ms; one that failed says no seconds, its file does."""
        times = span([record])
        written = self.folder.record(record.id).stat().st_mtime
        start = times[0].timestamp() if times else written
        end = times[1].timestamp() if times and record.seconds else max(start, written)
        return int(1000 * start), int(1000 * end)

    def _child(self, cell: Cell, state: str, start: int) -> str:
        tags = {
            "mlflow.parentRunId": self.parent,
            CELL: _key(cell, state),
            "data": self.plan.data,
            "method": cell.method,
            "transfer": cell.transfer,
            "seed": str(cell.seed),
            "run_id": cell.run,
            "state": state,
        }
        # the method first: MLflow's table cuts names
        return self.new(f"{cell.method} seed {cell.seed} {cell.transfer}", tags, start)

    def _log_cell(
        self,
        child: str,
        cell: Cell,
        record: Record,
        at: int,
        late: Sequence[Timed] = (),
        logged: AbstractSet[Point] = frozenset(),
    ) -> None:
        """Logs what is not logged of a child, and ends it."""
        known = logged | {point for point, _ in late}
        points = [point for point in curves(record) if point not in known]
        points += metrics(record, cell.distance_unit)
        tags = {CELL: _key(cell, record.state), "state": record.state}
        self.log(child, [*late, *timed(points, at)], parameters(record.config), tags)
        self.client.log_artifact(child, str(self.folder.record(cell.run)))
        state = "FINISHED" if record.state == "finished" else "FAILED"
        self.client.set_terminated(child, state, end_time=at)

    def close(self) -> None:
        """Brings description, tables, their numbers, charts and the page to the parent; ends it."""
        summary = json.loads(self.folder.report("summary.json").read_text(encoding="utf-8"))
        table = self.folder.report("table.md").read_text(encoding="utf-8")
        step = len(self.plan.cells)
        words = " / ".join(summary["verdict"]["words"])
        found = f"Verdict: {words}. {summary['finding']}" if words else summary["finding"]
        tags = {"verdict": words or "no verdict", NOTE: note(self.plan.protocol, found, table)}
        points = ((name, step, value) for name, value in summarised(summary))
        self.log(self.parent, timed(points), tags=tags)
        for pattern in ("*.csv", "table.*", "*.json", "report.html"):
            self.log_files(self.folder.path.glob(pattern))
        self.log_files(self.folder.figures.glob("*.png"), "figures")
        self.client.set_terminated(self.parent)


@dataclass
class _Live:
    """A run that is at work.

    Attributes:
        children: Of each cell that it fills.
        logged: The points that are logged.
    """

    children: dict[Cell, str]
    logged: set[Point]


def _key(cell: Cell, state: str) -> str:
    """By which a later command sees that a cell is logged."""
    return f"{cell.transfer}|{cell.method}|{cell.seed}|{cell.run}|{state}"


@contextmanager
def following(act: Callable[[Callable[[_RunMirror], None]], bool]) -> Iterator[Listen]:
    """Yields a function that hears events, which a thread mirrors: training never waits for MLflow.

    Args:
        act: Lets something be done with the mirror.
    """
    follower = _Follower(act)
    thread = threading.Thread(target=follower.work, daemon=True)
    thread.start()
    patience: float | None = None
    try:
        yield lambda event: follower.heard.put((event, now()))
    except BaseException:
        patience = HEARD_SECONDS
        raise
    finally:
        follower.heard.put(None)
        thread.join(patience)
        follower.stopped = True


class _Follower:
    """Mirrors events in their order; of points, those of one run in a request, and few of these."""

    def __init__(self, act: Callable[[Callable[[_RunMirror], None]], bool]) -> None:
        self.act, self.stopped = act, False
        self.heard: SimpleQueue[tuple[Event, int] | None] = SimpleQueue()
        self.waiting: dict[str, list[Timed]] = {}  # points by run, the oldest first

    def work(self) -> None:
        """Until None is heard."""
        due = 0.0
        while True:
            with contextlib.suppress(Empty):
                heard = self.heard.get(timeout=LIVE_SECONDS if self.waiting else None)
                if heard is None or self.stopped:
                    return
                self._take(*heard)
            if self.waiting and time.monotonic() >= due:
                run = next(iter(self.waiting))
                points = self.waiting.pop(run)
                self.act(partial(_follow, run=run, points=points))
                due = time.monotonic() + LIVE_SECONDS

    def _take(self, event: Event, at: int) -> None:
        run = event.task
        if event.kind == "started":
            self.act(lambda mirror: mirror.start(run, at))
        elif event.kind == "progress":
            step, _, loss = event.value
            if loss is not None:
                self.waiting.setdefault(run, []).append(((CURVES["loss"], step, loss), at))
        else:
            late = self.waiting.pop(run, [])
            self.act(lambda mirror: mirror.end(run, at, late))


def _follow(mirror: _RunMirror, run: str, points: Sequence[Timed]) -> None:
    mirror.follow(run, points)


def timed(points: Iterable[Point], at: int | None = None) -> Iterator[Timed]:
    """Points at a time in ms, or now."""
    at = now() if at is None else at
    return ((point, at) for point in points)


def now() -> int:
    """In ms, as MLflow counts."""
    return int(1000 * time.time())
