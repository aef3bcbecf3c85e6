"""The folder of a cluster, on a file system that all its machines see."""

from __future__ import annotations

import json
import os
import shlex
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from trm_bench import files, inputs
from trm_bench.cluster import certificates
from trm_bench.cluster.certificates import Certificates
from trm_bench.errors import UserError

MOST_BYTES = 1_000_000  # of a scheduler file
INSTALL = "pip install 'trm-bench[cluster]', here and wherever workers are to run"
PATIENCE = 2.0  # seconds for a scheduler to be reached


def require_distributed() -> None:
    """Refuses to go on without the extra; imports nothing large.

    Raises:
        UserError: dask.distributed is not installed.
    """
    if find_spec("distributed") is None:
        raise UserError("dask.distributed is not installed", "clusters", INSTALL)


def read_address(path: Path) -> str:
    """The address in a scheduler's file.

    Raises:
        UserError: There is no such file, or it is no scheduler's.
    """
    fix = "start one (trm-bench cluster), or wait until its job runs and writes the file"
    try:
        content = json.loads(inputs.read_text(path, MOST_BYTES, fix))
    except (ValueError, RecursionError) as error:
        raise UserError("is no scheduler's file", path, fix) from error
    address = content.get("address") if isinstance(content, dict) else None
    if not isinstance(address, str) or "://" not in address:
        raise UserError("holds no scheduler's address", path, fix)
    return address


@dataclass(frozen=True)
class ClusterFolder:
    """Where a cluster's processes find each other.

    Attributes:
        path: Absolute.
    """

    path: Path

    @classmethod
    def at(cls, path: Path) -> ClusterFolder:
        """The folder of that name, whether it is there or not.

        Raises:
            UserError: Its path holds what no script should, such as a line break.
        """
        absolute = path.absolute()
        if not str(absolute).isprintable():
            fix = "name a folder of printable characters"
            raise UserError(f"{str(absolute)!a} cannot stand in a script", "--folder", fix)
        return cls(absolute)

    @property
    def scheduler_file(self) -> Path:
        """Says where the scheduler is; dask writes it when it starts, and removes it."""
        return self.path / "scheduler.json"

    @property
    def scheduler_script(self) -> Path:
        """Starts the scheduler."""
        return self.path / "scheduler.sh"

    @property
    def workers_script(self) -> Path:
        """Starts the workers of one job or machine."""
        return self.path / "workers.sh"

    @property
    def logs(self) -> Path:
        """What they print."""
        return self.path / "logs"

    @property
    def certificates(self) -> Certificates:
        """What lets a process in."""
        return Certificates.of(self.path)

    def prepare(self, scheduler: str, workers: str) -> None:
        """Makes the folder ready for a new scheduler.

        Args:
            scheduler: Text of its script.
            workers: Text of theirs.

        Raises:
            UserError: A scheduler is at work here, or others could get in.
        """
        if address := self.address():
            what = f"a scheduler is at work here already, at {address}"
            fix = "use it (--on), end it first, or name another --folder"
            raise UserError(what, self.path, fix)
        certificates.make(self.path)
        self.scheduler_file.unlink(missing_ok=True)  # of one that was killed
        self.logs.mkdir(exist_ok=True)
        files.write_text(self.scheduler_script, scheduler)
        files.write_text(self.workers_script, workers)

    def address(self) -> str | None:
        """Where the scheduler is; None where none can be reached."""
        if not inputs.exists(self.scheduler_file):
            return None
        try:
            address = read_address(self.scheduler_file)
            where = urlsplit(address)
            with socket.create_connection((where.hostname, where.port), PATIENCE):
                return address
        except (UserError, OSError, ValueError):  # of one that was killed, or cut off
            return None

    def use(self) -> str:
        """What to type next, for a person in the directory of this command."""
        shown = os.path.relpath(self.scheduler_file)
        shown = shown if not shown.startswith("..") else str(self.scheduler_file)
        return f"trm-bench run PROTOCOL --on {shlex.quote(shown)}"
