"""MLflow: a mirror of a sweep's trials, one parent run a sweep and one child a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trm_bench.analysis.table import SCALE
from trm_bench.fingerprint import digest_of
from trm_bench.protocol.schema import Protocol
from trm_bench.report.logged import VALIDATION, Point, curves
from trm_bench.report.mlflow import Mirror, guarded, timed
from trm_bench.report.tracking import CELL, Store
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Record, SweptTrial
from trm_bench.runs.times import span
from trm_bench.sweep.proposals import Trial
from trm_bench.sweep.tuned import swept

if TYPE_CHECKING:
    from trm_bench.display import Display

Track = Callable[[str, "str | None", Sequence[Trial], Mapping[str, Record]], object]
"""Logs what is not logged yet of the trials of a method (its label) and transfer, from records."""

FILES = ("*.yaml", "*.json", "*.html", "*.md", "*.csv")


@contextmanager
def tracker(
    protocol: Protocol,
    folder: ProtocolFolder,
    display: Display,
    data: str,
    conditions: Mapping[str, str],
) -> Iterator[Track]:
    """Yields a function that logs trials; at the end the parent gets the sweep's files.

    Args:
        protocol: With `tracking: off`, nothing is logged.
        folder: Of its results.
        display: Where a fault is reported.
        data: Whether the subjects are real or the stand-in.
        conditions: Of the sweep's plan. A sweep under other ones has a parent of its own; one that
            only has more trials has not.
    """
    budget = protocol.sweep.model_dump(mode="json", exclude={"trials"})
    settings = f"sweep-{data}-{digest_of(budget, dict(conditions))[:16]}"

    def make(store: Store) -> _SweepMirror:
        tags, title = {"data": data, "kind": "sweep"}, f"sweep of {protocol.name}"
        return _SweepMirror(protocol.name, folder, settings, title, tags, store)

    with guarded(protocol, folder, display, make) as act:
        yield lambda *of_study: act(lambda mirror: mirror.log_trials(*of_study))
        act(lambda mirror: mirror.close())


class _SweepMirror(Mirror):
    """The trials of a sweep: a child a trial, from the start of its first run to its last's end."""

    def log_trials(
        self,
        method: str,
        transfer: str | None,
        trials: Sequence[Trial],
        records: Mapping[str, Record],
    ) -> None:
        """Logs those trials that are not logged yet; see `Track`."""
        title = " ".join(filter(None, (method, transfer)))
        for trial in trials:
            own = [records[run] for run in trial.runs if run in records]
            states = ",".join(record.state for record in own)
            key = f"{title}|{trial.number}|{','.join(trial.runs)}|{states}"
            if key not in self.logged:
                tags = {"method": method, "transfer": transfer or "all", CELL: key}
                self._log_trial(f"{title} trial {trial.number}", tags, trial, own)
                self.logged.add(key)
        scores = [t.score for t in trials if t.score is not None]
        found = {"best": max(scores, default=None), "default": trials[0].score}
        points = (
            (f"{name}_{VALIDATION}/{title}", len(trials), SCALE["dice"] * value)
            for name, value in found.items()
            if value is not None
        )
        self.log(self.parent, timed(points))

    def _log_trial(
        self, name: str, tags: dict[str, str], trial: Trial, records: Sequence[Record]
    ) -> None:
        told, times = swept(trial, records), span(records)
        start, end = (None, None) if times is None else (int(1000 * t.timestamp()) for t in times)
        more = {
            "mlflow.parentRunId": self.parent,
            "trial": str(trial.number),
            "runs": " ".join(trial.runs),
            "reason": told.reason[:500],
        }
        run = self.new(name, {**tags, **more}, start)
        own = {"method": tags["method"], "trial": trial.number}
        self.log(run, timed(_metrics(told, records), end), {**trial.values, **own})
        state = "FAILED" if trial.score is None else "FINISHED"
        self.client.set_terminated(run, state, end_time=end)

    def close(self) -> None:
        """Brings the sweep's files to the parent, and ends it."""
        for pattern in FILES:
            self.log_files(self.folder.sweep.glob(pattern))
        self.log_files((self.folder.sweep / "figures").glob("*.png"), "figures")
        self.client.set_terminated(self.parent)


def _metrics(trial: SweptTrial, records: Sequence[Record]) -> Iterator[Point]:
    """Score, balance, seconds, and the curves of each run, numbered where there are several."""
    if trial.validation_dice is not None:
        yield VALIDATION, 0, SCALE["dice"] * trial.validation_dice
    if trial.voxel_share is not None:
        yield "voxel_share", 0, trial.voxel_share
    yield "seconds", 0, trial.seconds
    for i, record in enumerate(records):
        yield from curves(record, f".run{i}" if len(records) > 1 else "")
