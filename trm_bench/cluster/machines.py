"""A cluster without a queue: a scheduler on this machine, workers here or through ssh.

All are children of this process and end when it does, however it ends: they read its end from their
standard input.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trm_bench.cluster.folder import ClusterFolder
from trm_bench.errors import UserError

PATIENCE = 60.0  # seconds for a scheduler to start; a second where Python is not on a slow disk
POLL = 0.1
LINES = 8  # of a log
LEAVE = 1.5  # seconds for children to end; afterwards they end without being waited for

Tell = Callable[[str], None]


def detach(folder: ClusterFolder) -> int:
    """Starts the scheduler, which goes on when this process ends.

    Returns:
        Its process id.

    Raises:
        UserError: It does not start.
    """
    process = _start(["bash", str(folder.scheduler_script)], _log(folder, "scheduler"), False)
    _wait(folder, process)
    return process.pid


def hold(
    folder: ClusterFolder, hosts: Sequence[str], gpus: str | None, ready: Tell, tell: Tell
) -> None:
    """Runs a scheduler and the workers of each host until the scheduler or all of those end.

    Args:
        folder: Of the cluster, prepared.
        hosts: Names for ssh; none means workers on this machine.
        gpus: Those to be used on each, comma-separated; all where not given.
        ready: Called with the scheduler's address when everything is started.
        tell: Hears of workers that ended before the others.

    Raises:
        UserError: The scheduler does not start, or all workers ended while it is at work.
    """
    script, log = str(folder.scheduler_script), _log(folder, "scheduler")
    scheduler = _start(["bash", script], log, tied=True)
    working: dict[str, subprocess.Popen[bytes]] = {}
    try:
        ready(_wait(folder, scheduler))
        for host, command in commands(folder, hosts, gpus).items():
            working[host] = _start(command, _log(folder, host), tied=True)
        while scheduler.poll() is None:
            for host in [host for host, process in working.items() if process.poll() is not None]:
                log = _log(folder, host)
                tell(f"{host}: the workers have ended; {log} says\n{_tail(log)}")
                del working[host]
            if not working and scheduler.poll() is None:
                fix = "see to what they say, and start again"
                raise UserError("no worker is left", folder.logs, fix)
            time.sleep(POLL)
    finally:
        _end(list(working.values()))  # they take leave of the scheduler
        _end([scheduler])


def commands(folder: ClusterFolder, hosts: Sequence[str], gpus: str | None) -> dict[str, list[str]]:
    """What starts the workers of each host; see `hold`."""
    chosen = [] if gpus is None else ["env", f"CUDA_VISIBLE_DEVICES={gpus}"]
    script = [*chosen, "bash", str(folder.workers_script)]
    # ssh gives one line to the shell over there; BatchMode: it asks for no password
    line = shlex.join(script)
    there = {host: ["ssh", "-o", "BatchMode=yes", "--", host, line] for host in hosts}
    return there or {"workers": script}


def _log(folder: ClusterFolder, name: str) -> Path:
    return folder.logs / f"{name.replace(os.sep, '_').replace(' ', '-')}.log"


def _start(command: Sequence[str], log: Path, tied: bool) -> subprocess.Popen[bytes]:
    """A child in a session of its own, since Ctrl-C is for this process."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(folder: ClusterFolder, scheduler: subprocess.Popen[bytes]) -> str:
    """The address of the scheduler, once it can be reached."""
    end, log = time.monotonic() + PATIENCE, _log(folder, "scheduler")
    while not (address := folder.address()):
        if scheduler.poll() is not None:
            what = f"the scheduler ended while it started:\n{_tail(log)}"
        elif time.monotonic() > end:
            scheduler.terminate()
            what = f"the scheduler does not start within {PATIENCE:.0f} s:\n{_tail(log)}"
        else:
            time.sleep(POLL)
            continue
        raise UserError(what, log, "see to what it says, and start again")
    return address


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return "\n".join([f"  {line}" for line in lines if line.strip()][-LINES:])


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + LEAVE
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, end - time.monotonic()))
