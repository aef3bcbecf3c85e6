"""MLflow's server: a child process that ends with the command that started it, however that ends.

The child holds the reading end of a pipe from the command, and ends its process group where the
pipe does. `python -m trm_bench.serving` is the child.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, NoReturn

from trm_bench.errors import UserError

HOST, PORT = "127.0.0.1", 5000  # MLflow's own port
PATIENCE = 300.0  # seconds; on a busy machine a server took 40 to answer
POLL = 0.1
LINES = 8  # of a server's log
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # scorers of language models: more processes
    "PYTHONSAFEPATH": "1",  # no module of the working directory
    "PYTHONUNBUFFERED": "1",
}


def free_port(wanted: int | None) -> int:
    """The port to listen on: the one that is wanted, else MLflow's own or any that is free.

    Raises:
        UserError: The one that is wanted cannot be had.
    """
    for port in (PORT, 0) if wanted is None else (wanted,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                why = error.strerror or str(error)
                continue
            return int(probe.getsockname()[1])
    fix = "name another one, or leave --port out"
    raise UserError(f"cannot listen on {HOST}:{wanted}: {why}", "--port", fix)


def serve(store: str, artifacts: str, port: int, ready: Callable[[], None]) -> NoReturn:
    """Runs MLflow's server until an exception, such as that of a signal, ends it.

    Args:
        store: URI of the tracking store.
        artifacts: URI of the folder for what is uploaded to the server.
        port: On this machine's own address.
        ready: Called when the server answers.

    Raises:
        UserError: The server ends by itself, or does not answer.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trm_bench.serving", store, artifacts, str(port)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | ENVIRONMENT,
        )
        assert process.stdin is not None
        try:
            _wait_for_answer(process, port, log)
            ready()
            process.wait()
            raise UserError(f"MLflow's server has ended:\n{_tail(log)}", f"{HOST}:{port}")
        finally:
            process.stdin.close()
            process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait_for_answer(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while not _answers(port):
        if process.poll() is not None:
            what = f"MLflow's server ended while it started:\n{_tail(log)}"
        elif time.monotonic() > end:
            what = f"MLflow's server does not answer after {PATIENCE:.0f} s:\n{_tail(log)}"
        else:
            time.sleep(POLL)
            continue
        raise UserError(what, f"{HOST}:{port}", "see to what it says, or name another --port")


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", errors="replace").split("\n")
    return "\n".join([f"  {line}" for line in lines if line.strip()][-LINES:])


def _child(store: str, artifacts: str, port: str) -> None:
    threading.Thread(target=_end_with_the_pipe, daemon=True).start()
    from mlflow.cli import cli

    where = ["--backend-store-uri", store, "--artifacts-destination", artifacts]
    how = ["--host", HOST, "--port", port, "--workers", "1"]
    cli(["server", *where, *how, "--uvicorn-opts", "--log-level warning"])


def _end_with_the_pipe() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _child(*sys.argv[1:])
