"""Workers of a machine: `python -m trm_bench.cluster.worker --folder DIR --processes K`.

The process that is started keeps K others, each a worker of dask.distributed that does one task at
a time. One that a signal ended, of too little memory say, is started again. On SIGUSR1, which a
queueing system can send before a time limit, and on SIGTERM, trainings save where they are, and
all end.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trm_bench import signals
from trm_bench.cluster.engine import about, address_of, is_loopback, security
from trm_bench.errors import UserError
from trm_bench.files import HOST

ASKED = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
PATIENCE = 120.0  # seconds to wait for the scheduler
# A worker that dies within so many seconds, so many times in a row, is given up: it cannot even
# start. It takes longer for one that a run without memory kills.
SHORT, MOST_SHORT = 5.0, 10
LOOK_EVERY = 0.1


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trm_bench.cluster.worker", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="with scheduler.json and tls")
    parser.add_argument("--processes", type=int, default=1, help="workers on this device")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the name of a worker
    given = parser.parse_args()
    if given.one is None:
        sys.exit(keep(given.folder, given.processes))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)
    try:
        asyncio.run(work(given.folder, given.one))
    except (UserError, OSError, TimeoutError) as error:
        sys.exit(f"{given.one}: {error}")


def keep(folder: Path, processes: int) -> int:
    """Keeps workers running until the scheduler is gone or a signal comes; returns an exit code."""
    ending: list[int] = []

    def forward(number: int, frame: object) -> None:
        ending.append(number)
        for child in children.values():
            child.process.send_signal(number)

    for number in ASKED:
        signal.signal(number, forward)
    children = {place: _Child(folder, place) for place in range(processes)}
    failed = 0
    while children:
        time.sleep(LOOK_EVERY)
        for place, child in list(children.items()):
            code = child.process.poll()
            if code is None:
                continue
            if code < 0 and not ending and child.may_start_again():
                children[place] = _Child(folder, place, child.short)
                continue
            failed = failed or abs(code)
            del children[place]
    return 0 if ending else failed


class _Child:
    """A worker's process."""

    def __init__(self, folder: Path, place: int, short: int = 0) -> None:
        name = f"{HOST}-{os.getpid()}-{place}"
        command = [sys.executable, "-m", "trm_bench.cluster.worker", "--folder", str(folder)]
        # the pipe is never written to: it ends when this process does, however it ends
        self.process = subprocess.Popen([*command, "--one", name], stdin=subprocess.PIPE)
        self.started, self.short = time.monotonic(), short

    def may_start_again(self) -> bool:
        """Whether it lived long enough to be of use, or did not only now and then."""
        self.short = self.short + 1 if time.monotonic() < self.started + SHORT else 0
        return self.short < MOST_SHORT


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


async def work(folder: Path, name: str) -> None:
    """One worker, until the scheduler is gone or a signal comes."""
    import dask
    from distributed import Status, Worker

    about()  # before its first task, since what it imports takes seconds
    address = await _address(folder)
    dask.config.set({"distributed.worker.profile.enabled": False})
    worker = Worker(
        address,
        host="127.0.0.1" if is_loopback(urlsplit(address).hostname or "") else None,
        nthreads=1,
        name=name,
        security=security(folder),
        memory_limit=0,  # a training takes what it takes; the queueing system has limits
        dashboard=False,
        dashboard_address="127.0.0.1:0",  # what is served all the same is not for others
        death_timeout=PATIENCE,
    )
    loop, leaving = asyncio.get_running_loop(), list[Any]()

    def leave() -> None:
        if not leaving:
            # said first: the scheduler must not give the task that ends here to this worker again
            worker.status = Status.closing_gracefully
            signals.ask_to_stop()
            leaving.append(loop.create_task(_leave(worker)))

    async with worker:
        for number in ASKED:
            loop.add_signal_handler(number, leave)
        await worker.finished()


async def _address(folder: Path) -> str:
    """The scheduler's, whose file may not be written yet, or not wholly."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return address_of(str(folder))[0]
        except UserError:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(LOOK_EVERY)


async def _leave(worker: Any) -> None:
    """Hands results on, waits for the task at work, and ends."""
    await worker.scheduler.retire_workers(
        workers=[worker.address], close_workers=False, remove=False
    )
    while worker.state.executing_count:
        await asyncio.sleep(LOOK_EVERY)
    await worker.close(reason="asked to stop")


if __name__ == "__main__":
    main()
