"""Clusters without a queue: what listens where, who is let in, and that nothing is left."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from loopback import LONGEST, until

from trm_bench.cluster.folder import ClusterFolder

pytest.importorskip("distributed", reason="needs trm-bench[cluster]")

import distributed
import psutil


def of(folder: ClusterFolder) -> list[Any]:
    """All processes of a cluster, by their command lines."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder.path) in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[ClusterFolder]:
    made = ClusterFolder.at(tmp_path / "a cluster")
    yield made
    for process in of(made):
        process.kill()


def start(folder: ClusterFolder, *command: str, **environment: str) -> subprocess.Popen[str]:
    """`trm-bench cluster ...`, once it says how to go on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trm_bench", "cluster", *command, "--folder", str(folder.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("end"):
            return process
    raise AssertionError("".join(said))


def listening(folder: ClusterFolder) -> set[tuple[str, int]]:
    """Addresses of all open ports of a cluster."""
    sockets = [c for process in of(folder) for c in process.net_connections("tcp")]
    return {(c.laddr.ip, c.laddr.port) for c in sockets if c.status == psutil.CONN_LISTEN}


def open_doors(folder: ClusterFolder) -> list[tuple[str, int]]:
    """Ports that answer who has no certificate, but for web servers of loopback without a page."""
    return [(ip, port) for ip, port in listening(folder) if not _is_shut(ip, port)]


def _is_shut(ip: str, port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 10) as there:
        there.sendall(b"GET /info/main/workers.html HTTP/1.0\r\n\r\n")
        try:
            answer = there.recv(1000)
        except ConnectionError:
            answer = b""
    if answer.startswith(b"HTTP"):
        return b" 404 " in answer and ip == "127.0.0.1"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 10) as there,
            context.wrap_socket(there) as secure,
        ):
            return not secure.recv(1)  # TLS 1.3 refuses with the first byte
    except (ssl.SSLError, ConnectionError):
        return True


@pytest.mark.slow
def test_a_local_cluster_is_shut_to_others_and_ends_with_its_command(folder: ClusterFolder) -> None:
    process = start(folder, "local", "--workers", "2", CUDA_VISIBLE_DEVICES="")
    address = folder.address()
    assert address and urlsplit(address).hostname == "127.0.0.1"
    from trm_bench.cluster.engine import security

    ours = security(folder.path)
    with distributed.Client(address, security=ours, timeout=30, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=LONGEST)
        assert set(client.nthreads().values()) == {1}
    ports = listening(folder)
    assert len(ports) >= 3 and {ip for ip, _ in ports} == {"127.0.0.1"}
    assert not open_doors(folder)
    for other in (distributed.Security(), None):
        with pytest.raises((OSError, TypeError, RuntimeError)):
            distributed.Client(address.replace("tls", "tcp"), security=other, timeout=1)
    process.send_signal(signal.SIGINT)
    assert process.wait(LONGEST) == 130
    until(lambda: not of(folder), f"left: {of(folder)}")
    assert not folder.scheduler_file.exists()


SSH = """\
#!/bin/bash
echo "$*" >>{notes}
eval "${{!#}}"
"""


@pytest.fixture
def ssh(tmp_path: Path) -> Path:
    """A stand-in of ssh on this machine, which notes how it is called."""
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()
    (programs / "ssh").write_text(SSH.format(notes=shlex.quote(str(notes))))
    (programs / "ssh").chmod(0o755)
    return notes


@pytest.mark.slow
def test_workers_of_other_machines_end_when_the_command_is_killed(
    folder: ClusterFolder, ssh: Path
) -> None:
    path = f"{ssh.parent / 'bin'}:{os.environ['PATH']}"
    process = start(folder, "ssh", "one", "two", "--gpus", "5", PATH=path)
    address = folder.address()
    from trm_bench.cluster.engine import security

    ours = security(folder.path)
    with distributed.Client(address, security=ours, timeout=30, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=LONGEST)
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
    assert sorted(seen.values()) == ["5", "5"]
    hosts = [line.partition(" -- ")[2].split()[0] for line in ssh.read_text().splitlines()]
    assert sorted(hosts) == ["one", "two"]
    assert {ip for ip, _ in listening(folder)} > {"127.0.0.1"} and not open_doors(folder)
    process.kill()
    process.wait()
    until(lambda: not of(folder), f"left: {of(folder)}")


@pytest.mark.slow
def test_a_machine_that_cannot_be_reached_is_named(folder: ClusterFolder, ssh: Path) -> None:
    (ssh.parent / "bin" / "ssh").write_text("#!/bin/bash\necho 'no route to host' >&2; exit 255\n")
    path = f"{ssh.parent / 'bin'}:{os.environ['PATH']}"
    process = start(folder, "ssh", "nowhere", PATH=path)
    said = process.communicate(timeout=LONGEST)[0]
    assert process.returncode == 2 and "no route to host" in said and "no worker is left" in said
    until(lambda: not of(folder), f"left: {of(folder)}")
