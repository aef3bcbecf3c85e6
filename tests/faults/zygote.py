"""The warm process: imports everything once, then runs each command in a fork of itself.

It reads a request a line (see `runner.Runner.call`) and answers with one line. A fork shares the
imported libraries, cannot hurt the next command, and can be killed when it hangs.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

MEMORY = 24 * 2**30  # bytes of addresses; what wants more gets a MemoryError, not the machine


def warm() -> None:
    """Imports what commands import when they need it."""
    import matplotlib.figure
    import mlflow.tracking
    import monai.inferers
    import monai.losses
    import monai.metrics
    import monai.networks.nets
    import nibabel
    import optuna
    import pandas
    import scipy.stats
    import sklearn.metrics
    import statsmodels.formula.api
    import torch

    import trm_bench.pipeline
    from trm_bench.cli import app
    from trm_bench.seeds import CPU_THREADS

    torch.set_num_threads(CPU_THREADS)
    assert all((matplotlib, mlflow, monai, nibabel, optuna, pandas, scipy))
    assert all((sklearn, statsmodels, trm_bench, app))


def child(request: dict[str, Any], output: int) -> int:
    """Runs one command as the interpreter would; returns its exit code."""
    os.setsid()  # a group of its own, so that what it starts can be ended with it
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(request["folder"])
    os.environ |= request["environment"]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for name in request["plants"]:
        module, _, function = name.partition(":")
        getattr(importlib.import_module(module), function)()
    from trm_bench import cli

    sys.argv = ["trm-bench", *request["arguments"]]
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def here(request: dict[str, Any]) -> None:
    """Runs a request in this process, so that forks find loaded what it loaded."""
    from trm_bench import cli

    sys.argv = ["trm-bench", *request["arguments"]]
    with suppress(SystemExit), redirect_stderr(io.StringIO()):
        cli.main()
    # that of jemalloc, which pyarrow brings, is ready for forks
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    others = [name for name in names if name != "jemalloc_bg_thd"][1:]
    assert not others, f"threads: a fork of this process might wait for ever for {others}"


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Runs a request in a fork and waits for it, `longest` seconds at most."""
    file = Path(request["output"])
    output = os.open(file, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o644)
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = child(request, output)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(code & 0xFF)
    handle = os.pidfd_open(pid)
    ended, _, _ = select.select([handle], [], [], request["longest"])
    os.close(handle)
    if not ended:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    survivors = True
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        survivors = False
    os.close(output)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "hung": not ended,
        "survivors": survivors and bool(ended),
        "seconds": time.monotonic() - start,
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    warm()
    print("ready", file=answers, flush=True)
    requests = os.fdopen(os.dup(0), "r")
    os.dup2(nothing, 0)
    while line := requests.readline():
        request = json.loads(line)
        if request["warm"]:
            here(request)
            print("warm", file=answers, flush=True)
        else:
            print(json.dumps(serve(request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
