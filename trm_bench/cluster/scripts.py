"""Scripts that start a scheduler or workers: the same ones in a queue's job and on a machine.

Each starts its processes, passes signals on to them, and ends when they have ended. USR1 says that
the time of a job is nearly over: its workers save what they train and end, and the job is queued
again.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from trm_bench.cluster.folder import ClusterFolder
from trm_bench.errors import UserError

Gpus = Literal["none", "given", "found"]
LOOPBACK = "127.0.0.1"
IDLE = re.compile(r"[1-9]\d{0,5}[smhd]")

SETTINGS = {
    "PYTHONSAFEPATH": "1",  # no module of the working directory
    "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",  # a run that kills its workers ends
    "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES": "[]",  # no page is served
    "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]",
}

HEAD = """\
#!/bin/bash
# {about}
{exports}
cd -- {directory} || exit

"""

PROCESSES = """\
processes=() watchers=() told=
start() {{ "$@" & processes+=("$!"); }}
pass() {{ kill -s "$1" "${{processes[@]}}" 2>/dev/null; }}
trap 'told=TERM; pass TERM' TERM
trap 'told=USR1; pass USR1' USR1
trap 'kill "${{watchers[@]}}" 2>/dev/null' EXIT
{watch}
{start}
[ -z "$told" ] || pass "$told"  # while they started

status=0
for process in "${{processes[@]}}"; do
  while wait "$process"; kill -0 "$process" 2>/dev/null; do :; done  # a signal ends a wait, too
  wait "$process" || status=$?
done
{requeue}exit "$status"
"""

REQUEUE = """\
if [ "$told" = USR1 ] && [ -e {scheduler_file} ]; then
  {command}
fi
"""

END_WITH_INPUT = """\
exec 3<&0
{ while read -r _; do :; done <&3; kill -s TERM $$; } &
watchers+=("$!")
"""

WARN = """\
{{ sleep {seconds} & trap 'kill $!' TERM; wait $! && kill -s USR1 $$; }} &
watchers+=("$!")
"""

ASK_FOR_GPUS = """\
if [ -z "${CUDA_VISIBLE_DEVICES+set}" ]; then
  CUDA_VISIBLE_DEVICES=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>&- | paste -sd,)
fi
IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
"""

FOR_EACH_GPU = """\
for gpu in {gpus}; do
  start env CUDA_VISIBLE_DEVICES="$gpu" {worker} --processes {processes}
done"""


def scheduler(
    folder: ClusterFolder, idle: str, host: str = "", about: str = "", tied: bool = False
) -> str:
    """The script of the scheduler.

    Args:
        folder: Of the cluster.
        idle: How long it waits for work before it ends, and its workers with it.
        host: Address to listen on, where not on all of the machine's.
        about: A comment.
        tied: It ends when its standard input does.

    Raises:
        UserError: `idle` is no time.
    """
    if not IDLE.fullmatch(idle):
        raise UserError(f"'{idle}' is no time", "--idle", "give one such as 30m, 1h or 2d")
    keys = folder.certificates
    command = [
        *_python("distributed.cli.dask_scheduler"),
        *("--scheduler-file", folder.scheduler_file, "--protocol", "tls"),
        *("--host", f"tls://{host}", "--port", "0"),
        *("--tls-ca-file", keys.ca, "--tls-cert", keys.cert, "--tls-key", keys.key),
        *("--no-dashboard", "--dashboard-address", f"{LOOPBACK}:0", "--no-jupyter"),
        *("--idle-timeout", idle),
    ]
    forget = f"rm -f -- {_quoted([folder.scheduler_file])}  # of one that was killed\n"
    if tied:
        rest = _processes(f"start {_quoted(command)}", END_WITH_INPUT)
    else:  # one process, since it dies of the second TERM: SLURM gives one to every process
        rest = f"exec {_quoted(command)}\n"
    return _head(about) + forget + rest


def workers(
    folder: ClusterFolder,
    gpus: Gpus,
    processes: int = 1,
    number: int | None = None,
    about: str = "",
    tied: bool = False,
    warn_after: int | None = None,
    requeue: str = "",
) -> str:
    """The script of one job's or machine's workers.

    Args:
        folder: Of the cluster.
        gpus: `none` is used, those of the job (`given`), or any that are `found`.
        processes: On each GPU; without GPUs, for each worker.
        number: Of workers; by default one a GPU, or core where none is found.
        about: A comment.
        tied: They end when standard input does.
        warn_after: Seconds after which the script sends USR1 to itself.
        requeue: Command that queues the job again; "" for none.
    """
    worker = _quoted([*_python("trm_bench.cluster.worker"), "--folder", folder.path])
    on_cpu = f"start env CUDA_VISIBLE_DEVICES= {worker} --processes"
    most = "" if number is None else f":0:{number}"
    each = FOR_EACH_GPU.format(gpus=f'"${{gpus[@]{most}}}"', worker=worker, processes=processes)
    if gpus == "none":
        start = f"{on_cpu} {processes * (number or 1)}"
    elif gpus == "given":
        complain = "echo 'this job was given no GPU' >&2"
        start = f"{ASK_FOR_GPUS}[ ${{#gpus[@]}} -gt 0 ] || {{ {complain}; exit 1; }}\n{each}"
    else:
        many = f'"$(({processes} * {number or "$(nproc)"}))"'
        inner = each.replace("\n", "\n  ")
        start = f"{ASK_FOR_GPUS}if [ ${{#gpus[@]}} -gt 0 ]; then\n  {inner}\n"
        start += f"else\n  {on_cpu} {many}\nfi"
    watch = END_WITH_INPUT if tied else ""
    watch += "" if warn_after is None else WARN.format(seconds=warn_after)
    if requeue:
        file = _quoted([folder.scheduler_file])  # gone where the scheduler ended in good order
        requeue = REQUEUE.format(scheduler_file=file, command=requeue)
    return _head(about) + _processes(start, watch, requeue)


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _head(about: str) -> str:
    settings = dict(SETTINGS)
    if path := os.environ.get("PYTHONPATH"):
        settings["PYTHONPATH"] = path
    exports = "\n".join(f"export {name}={shlex.quote(v)}" for name, v in settings.items())
    return HEAD.format(about=about, exports=exports, directory=_quoted([Path.cwd()]))


def _processes(start: str, watch: str, requeue: str = "") -> str:
    return PROCESSES.format(start=start, watch=watch, requeue=requeue)


def _quoted(words: Iterable[object]) -> str:
    return shlex.join(map(str, words))
