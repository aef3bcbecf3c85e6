"""A connection to a cluster whose workers are fit for the same work as this process.

A cluster is a scheduler of dask.distributed and workers that somebody started: `trm-bench cluster`,
dask-jobqueue, Kubernetes. A port of theirs is the right to run code, so that anything but loopback
is reached by TLS alone, where both sides have a certificate.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import torch

from trm_bench import environment
from trm_bench.cluster.certificates import Certificates
from trm_bench.cluster.folder import ClusterFolder, read_address, require_distributed
from trm_bench.environment import has_bf16
from trm_bench.errors import UserError
from trm_bench.fingerprint import code_fingerprint
from trm_bench.plurals import counted

if TYPE_CHECKING:
    from distributed import Client, Security, Worker

CONNECT = 30.0  # seconds to reach the scheduler
LOOK_EVERY = 0.5  # at whether a worker has come
GONE = "the cluster's scheduler is gone"
SHOWN = 8  # differences that are listed


@dataclass(frozen=True)
class Engine:
    """A connected cluster.

    Attributes:
        client: Of dask.distributed.
        address: Of its scheduler.
        device: That a run uses there, as its worker sees it.
        has_bf16: Whether that device computes in bfloat16.
        about: What every worker must have; see `about`.
    """

    client: Client
    address: str
    device: torch.device
    has_bf16: bool
    about: Mapping[str, str]


def address_of(where: str) -> tuple[str, Path | None]:
    """The address that `--on` names, and the cluster's folder where it names one.

    Args:
        where: scheduler.json, the folder that it lies in, or an address.

    Raises:
        UserError: There is no such file, it is no scheduler's, or the address is open to others.
    """
    folder = None
    if "://" in where:
        address = where
    else:
        path = Path(where)
        path = ClusterFolder(path).scheduler_file if path.is_dir() else path
        address, folder = read_address(path), path.absolute().parent
    _refuse_open(address)
    return address, folder


def _refuse_open(address: str) -> None:
    try:
        parts = urlsplit(address)
        host, protocol = parts.hostname or "", parts.scheme
        port = parts.port
    except ValueError:
        host, protocol, port = "", "", None
    fix = "tls://HOST:PORT, or tcp:// on this machine's 127.0.0.1"
    if protocol not in ("tls", "tcp") or not host or not port:
        raise UserError(f"'{address}' is no scheduler's address", "--on", fix)
    if protocol == "tcp" and not is_loopback(host):
        what = f"{address} is not encrypted: whoever reaches its port runs code as you"
        raise UserError(what, "--on", "start it by trm-bench cluster, which makes certificates")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def security(folder: Path | None) -> Security:
    """Certificates for all roles: those of a cluster's folder, else of dask's own configuration.

    Args:
        folder: With `tls` in it; a cluster on loopback has none.
    """
    from distributed import Security

    files = folder and Certificates.of(folder)
    if not files or not files.ca.is_file():
        return Security()
    roles = {
        f"tls_{role}_{part}": str(file)
        for role in ("client", "scheduler", "worker")
        for part, file in (("cert", files.cert), ("key", files.key))
    }
    return Security(tls_ca_file=str(files.ca), require_encryption=True, **roles)


@contextmanager
def connected(where: str, device: str, say: Callable[[str], None]) -> Iterator[Engine]:
    """A cluster whose workers were compared with this process, and with each other.

    Args:
        where: See `address_of`.
        device: auto, cpu or cuda.
        say: Called with what a person waits for, and with what was found.

    Raises:
        UserError: It cannot be reached, or its workers differ; see `refuse_differences`.
    """
    require_distributed()
    from distributed import Client

    _hush()
    address, folder = address_of(where)
    if device not in ("auto", "cpu", "cuda"):
        fix = "choose auto, cpu or cuda: each worker has a device of its own"
        raise UserError(f"'{device}' is no device of a cluster", "--device", fix)
    try:
        client = Client(address, security=security(folder), timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        what = f"the scheduler at {address} does not answer: {error}"
        fix = "see that it runs, with the certificates that lie beside its file"
        raise UserError(what, where, fix) from error
    try:
        workers = _found(client, address, say)
        yield _compared(client, address, device, workers, say)
    finally:
        client.close()


def _found(client: Client, address: str, say: Callable[[str], None]) -> dict[str, dict[str, str]]:
    """What the workers are, once there is one."""
    try:
        if not client.nthreads():
            say("waiting for a worker")
        while not client.nthreads():
            time.sleep(LOOK_EVERY)
        return dict(client.run(about_worker))
    except OSError as error:
        raise gone(address) from error


def gone(address: str) -> UserError:
    """What is raised where a scheduler no longer answers, which is no failure of a run."""
    fix = "start it again and give the same command: what is done stays done"
    return UserError(GONE, address, fix)


def _hush() -> None:
    """What goes wrong with a connection is told by this package's errors, without tracebacks."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _compared(
    client: Client,
    address: str,
    device: str,
    workers: Mapping[str, Mapping[str, str]],
    say: Callable[[str], None],
) -> Engine:
    ours = about()
    refuse_differences(ours, workers)
    kinds = {worker["device"] for worker in workers.values()}
    if device != "cpu" and len({(w["device"], w["bf16"]) for w in workers.values()}) > 1:
        what = f"has workers of different kinds ({', '.join(sorted(kinds))})"
        raise UserError(what, address, "start them alike, or choose --device cpu")
    kind = "cpu" if device == "cpu" else kinds.pop()
    if device == "cuda" and kind != "cuda":
        raise UserError("has workers without a GPU", address, "choose --device auto or cpu")
    bf16 = kind == "cuda" and next(iter(workers.values()))["bf16"] == "yes"
    hosts = len({worker["host"] for worker in workers.values()})
    say(f"{counted(len(workers), 'worker')} on {counted(hosts, 'machine')}, {kind}")
    return Engine(client, address, torch.device(kind), bf16, ours)


@cache
def about() -> dict[str, str]:
    """What must be alike wherever a run is computed: versions, and the code that computes."""
    from trm_bench.datasets import REGISTRY as DATASETS
    from trm_bench.methods.registry import REGISTRY as METHODS
    from trm_bench.runs.plan import NUMERIC

    machine = environment.describe(torch.device("cpu"))
    modules, brought = set[str](), dict[str, str]()
    for registry in (METHODS, DATASETS):
        for name in registry.names():
            with contextlib.suppress(UserError):  # a package that is broken; told where it is used
                modules.add(registry.get(name).__module__)
                brought |= registry.package(name)
    return {
        "trm-bench": machine.trm_bench,
        "Python": machine.python,
        **machine.packages,
        **brought,
        "code": code_fingerprint(*NUMERIC, *sorted(modules))[:16],
    }


def about_worker(dask_worker: Worker) -> dict[str, str]:
    """The same of a worker, called there, with its device and its slots."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return about() | {
        "slots": str(dask_worker.state.nthreads),
        "device": device.type,
        "bf16": "yes" if has_bf16(device) else "no",
        "host": platform.node(),
    }


def refuse_differences(ours: Mapping[str, str], workers: Mapping[str, Mapping[str, str]]) -> None:
    """Compares workers with this process.

    Args:
        ours: See `about`.
        workers: Address to the same of a worker; see `about_worker`.

    Raises:
        UserError: One has other versions or other code, or does several tasks in one process.
    """
    wanted = {**ours, "slots": "1"}
    lines = [
        f"{address}: {name} {worker.get(name) or 'not there'}, not {value or 'not there'}"
        for address, worker in sorted(workers.items())
        for name, value in wanted.items()
        if worker.get(name) != value
    ]
    if not lines:
        return
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    fix = (
        "install the same versions everywhere and start the workers again, as "
        "`trm-bench cluster` does (one thread a process)"
    )
    what = "workers are not like this process:\n" + "\n".join([*lines[:SHOWN], *more])
    raise UserError(what, "--on", fix)
