"""The store that MLflow tracks in: made whole, shared by commands that run at the same time."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trm_bench.errors import UserError
from trm_bench.fingerprint import digest_of
from trm_bench.runs.folders import ResultsFolder, run_folders
from trm_bench.runs.locks import NoLocks, take
from trm_bench.runs.store import read_plan
from trm_bench.urls import POSTGRESQL, shown, told, with_driver

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

VARIABLE = "MLFLOW_TRACKING_URI"
# tags of our runs, by which a resumed command sees what is logged already
PARENT, CELL = "trm_bench.parent", "trm_bench.cell"
NOTE = "mlflow.note.content"  # the tag that MLflow shows as a description
VIEW = "trm-bench"  # names the columns and the order in which MLflow shows our runs ...
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"  # ... which this tag of an experiment holds
PATIENCE = 45.0  # seconds to wait for other commands; making a store takes about five
AGAIN = "give the same command again, which logs all that is missing"
TRIES = 3  # to open a database; MLflow's own ten take minutes
DATABASES = ("sqlite", "postgres", "mysql", "mssql")  # those that MLflow takes
POLL = 0.05  # seconds between two looks at a lock
MOST = 50_000  # runs that MLflow returns at once


class Store:
    """Where MLflow tracks: what MLFLOW_TRACKING_URI names, or an sqlite file among the results.

    Args:
        folder: Of the results.
    """

    def __init__(self, folder: ResultsFolder) -> None:
        # the folder may be a link, the file may not: what a link names is not ours to replace
        store = folder.mlflow_store
        self.folder, self.path = folder, store.parent.resolve() / store.name
        self.own = not os.environ.get(VARIABLE)
        self.uri = os.environ.get(VARIABLE) or f"sqlite:///{self.path}"

    @property
    def shown(self) -> str:
        """The URI as it may be printed."""
        return shown(self.uri)

    @property
    def is_database(self) -> bool:
        """Whether there is no server between this process and the store."""
        return self.uri.startswith(DATABASES)

    @property
    def ui(self) -> str:
        """How to look at what is tracked: a command for a shell, or the address of a server."""
        if self.own:
            return f"trm-bench mlflow {shlex.quote(str(self.folder.path))}"
        if self.uri.startswith("http"):
            return self.shown
        return f'mlflow ui --backend-store-uri "${VARIABLE}" --host 127.0.0.1'

    def told(self, error: Exception) -> str:
        """What went wrong with the store, and how to mend it; of an exception of MLflow's."""
        if isinstance(error, UserError):
            return str(error)
        said, again = told(error, self.uri), AGAIN
        if not self.own:
            mend = f"see to the store that {VARIABLE} names"
            if isinstance(error, ImportError):
                mend = "pip install 'trm-bench[export]' for PostgreSQL"
            return f"{self.shown}: {said}\n  {mend}, and {again}"
        if "full" in said or "No space" in said:
            return f"{self.path}: {said}\n  free some space, and {again}"
        mend = f"move {self.path} aside, and give the same command again, which logs all of its"
        return f"{self.path}: {said}\n  {mend} runs again"

    def parent(self, settings: str) -> str:
        """By what a later command finds its parent again: one a folder, where many share a store.

        Else two who run one bundled protocol would end each other's children as cut off.
        """
        place = "" if self.own else f"-{digest_of(str(self.folder.path.resolve()))[:8]}"
        return settings + place

    @contextmanager
    def making(self) -> Iterator[None]:
        """Holds what lets one command at a time make the store, and experiments in it.

        Two that make the tables of a new PostgreSQL at once both fail, by MLflow itself.
        """
        if self.own or not POSTGRESQL.match(self.uri):
            with self.locked():
                yield
            return
        from sqlalchemy import create_engine, text
        from sqlalchemy.pool import NullPool

        # ends with the transaction, thus with the process, and passes through a pgbouncer
        with create_engine(with_driver(self.uri), poolclass=NullPool).begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE:g}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('trm-bench'))"))
            yield

    @contextmanager
    def locked(self, patience: float = PATIENCE) -> Iterator[None]:
        """Holds the lock of our own store, so that commands write to it one after the other.

        Raises:
            UserError: Another command has held it for so many seconds, or there are no locks,
                without which sqlite cannot be written by two.
        """
        if not self.own:
            yield
            return
        path, end = self.path.with_name(f".{self.path.name}.lock"), time.monotonic() + patience
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
        try:
            try:
                while not take(lock, path):
                    if time.monotonic() > end:
                        fix = f"when that has ended, {AGAIN}"
                        raise UserError("another command writes to the tracking store", path, fix)
                    time.sleep(POLL)
            except NoLocks as error:
                fix = f"name a store elsewhere in {VARIABLE}, and {AGAIN}"
                raise NoLocks(error.what, path, fix) from error
            yield
        finally:
            os.close(lock)

    def client(self) -> MlflowClient:
        """A client; our own store, where there is none, is made first. Called under a lock.

        Raises:
            UserError: MLflow cannot have a store in the folder of the results.
        """
        client = _mlflow()
        if self.own:
            if {"?", "%"} & {*str(self.path)}:
                fix = f"name another --out, or a store in {VARIABLE}"
                raise UserError("MLflow takes no ? and no % in a path", self.path, fix)
            self._make()
        return client(tracking_uri=with_driver(self.uri))

    def pages(self) -> dict[str, str]:
        """Experiment to where MLflow's server shows its runs, of our own store.

        A server's root, and an experiment's own page, open on traces, which a benchmark has not.

        Raises:
            UserError: There is no store here, runs are tracked elsewhere, or MLflow cannot read it.
        """
        if not self.own:
            fix = f"look there: {self.ui}\n  or unset it to see a store in {self.folder.path}"
            raise UserError(f"is set, so that runs are tracked in {self.shown}", VARIABLE, fix)
        if not (self.path.is_file() and self.path.stat().st_size):
            raise UserError("there is no MLflow store", self.path, self._why_none())
        try:
            with self.locked():
                found = self.client().search_experiments(order_by=["name"])
        except UserError:
            raise
        except Exception as error:  # MLflow raises what its store raises
            fix = "move it aside, and give the run's command again, which logs all of its runs"
            raise UserError(told(error, self.uri), self.path, fix) from error
        return {
            e.name: f"/#/experiments/{e.experiment_id}/runs?workflowType=machine_learning"
            + (f"&viewStateShareKey={VIEW}" if VIEW_TAG in e.tags else "")
            for e in found
            if e.experiment_id != "0"  # MLflow's Default, which no command of ours uses
        }

    def _why_none(self) -> str:
        """What a person can do where there is no store."""
        folders = run_folders(self.folder.path)
        if folders and all(read_plan(f).protocol.tracking == "off" for f in folders):
            off = "runs here have tracking: off; the same run command with --set tracking=mlflow"
            return f"{off} trains nothing again, and logs what is there"
        return f"a run makes one: trm-bench run PROTOCOL --out {self.folder.path}"

    def _make(self) -> None:
        """In another file: a store whose making is cut off is never whole again."""
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            fix = f"move it aside, and {AGAIN}; a store elsewhere is named in {VARIABLE}"
            raise UserError("is a link or no file", self.path, fix)
        temporary = self.path.with_name(f".{self.path.name}.new")
        for left in self.path.parent.glob(f"{temporary.name}*"):  # by a kill, with sqlite's journal
            left.unlink()
        if self.path.is_file() and self.path.stat().st_size:
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        artifacts = self.folder.mlflow_artifacts("").resolve().as_uri()
        try:
            SqlAlchemyStore(f"sqlite:///{temporary}", artifacts).engine.dispose()
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def end_dead(self, client: MlflowClient, ours: str) -> None:
        """Ends as KILLED what dead commands left RUNNING in our own store.

        Args:
            client: Of the store.
            ours: The experiment whose lock this process holds, so that all of it is of the dead.
        """
        if not self.own:
            return
        names = {e.experiment_id: e.name for e in client.search_experiments()}
        running = client.search_runs([*names], "attributes.status = 'RUNNING'", max_results=MOST)
        by_name: dict[str, list[str]] = {}
        for run in running:
            if run.data.tags.keys() & {PARENT, CELL}:
                by_name.setdefault(names[run.info.experiment_id], []).append(run.info.run_id)
        for name, runs in by_name.items():
            if name == ours or not _is_held(self.folder.protocol(name).lock):
                for run_id in runs:
                    client.set_terminated(run_id, "KILLED")


def load() -> None:
    """Imports MLflow, which takes seconds, and does not belong under a lock."""
    _mlflow()


def _mlflow() -> type[MlflowClient]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # a dead server must not hold up a benchmark
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow.store.db import utils
    from mlflow.tracking import MlflowClient

    utils.MAX_RETRY_COUNT = TRIES
    for logger in ("mlflow", "alembic"):  # a new store's migrations would be told by line
        logging.getLogger(logger).setLevel(logging.ERROR)
    return MlflowClient


def _is_held(lock: Path) -> bool:
    """Whether a process holds a lock; one that nobody has made is held by none."""
    try:
        opened = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not take(opened, lock, shared=True)
    finally:
        os.close(opened)
