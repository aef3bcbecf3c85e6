"""Commands that start a scheduler and workers, by whatever a site has."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trm_bench.cli.options import app, err, example, written
from trm_bench.errors import UserError

if TYPE_CHECKING:
    from trm_bench.cluster.folder import ClusterFolder
    from trm_bench.cluster.queues import Job, Queue

clusters_app = typer.Typer(
    no_args_is_help=True, help="Start workers on several machines, for `run --on` and `sweep --on`."
)
app.add_typer(clusters_app, name="cluster")

Folder = Annotated[
    Path,
    typer.Option("--folder", help="Of the cluster, where all its machines see it; yours alone."),
]
RunsPerGpu = Annotated[
    int,
    typer.Option("--runs-per-gpu", min=1, max=64, help="At a time; without GPUs: of a worker."),
]
Idle = Annotated[
    str,
    typer.Option("--idle", metavar="30m|1h|2d", help="Without work for so long, all ends."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the scripts and the commands, and do nothing.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="On a machine; by default one a GPU, or a core without GPUs."
    ),
]
Gpus = Annotated[
    str | None,
    typer.Option("--gpus", metavar="0,1", help="To use on a machine; by default all it has."),
]


Jobs = Annotated[int, typer.Option("--workers", min=1, max=10_000, help="Jobs, as an array.")]
GpusPerWorker = Annotated[
    int, typer.Option("--gpus-per-worker", min=0, max=64, help="0: trains on the CPU.")
]
Cpus = Annotated[int | None, typer.Option(min=1, help="Of a worker; by default one a run.")]
Memory = Annotated[int | None, typer.Option(min=1, metavar="GB", help="Of a worker.")]
Time = Annotated[str, typer.Option("--time", metavar="[D-]HH:MM:SS", help="Of each job.")]
Partition = Annotated[str | None, typer.Option(help="Or queue, of all jobs.")]
Account = Annotated[str | None, typer.Option(help="Or project, of all jobs.")]
More = Annotated[
    list[str] | None, typer.Option("--option", help="One more, of the workers; repeatable.")
]
SchedulerTime = Annotated[
    str | None,
    typer.Option(
        "--scheduler-time",
        metavar="[D-]HH:MM:SS",
        help="Of the scheduler, for as long as there is work; by default that of a worker.",
    ),
]
SchedulerMore = Annotated[
    list[str] | None, typer.Option("--scheduler-option", help="Of the scheduler; repeatable.")
]
Scheduler = Annotated[
    Literal["job", "here"],
    typer.Option(help="As a job, or as a process on this machine, which goes on."),
]


def _queue_command(name: str, title: str, note: str) -> Callable[..., None]:
    """The command of one queue; they differ in the queue alone."""

    def submit(
        folder: Folder = Path("cluster"),
        workers: Jobs = 1,
        gpus_per_worker: GpusPerWorker = 1,
        runs_per_gpu: RunsPerGpu = 1,
        cpus: Cpus = None,
        memory: Memory = None,
        time: Time = "24:00:00",
        partition: Partition = None,
        account: Account = None,
        option: More = None,
        scheduler: Scheduler = "job",
        scheduler_time: SchedulerTime = None,
        scheduler_option: SchedulerMore = None,
        idle: Idle = "1h",
        dry_run: DryRun = False,
    ) -> None:
        from trm_bench.cluster import queues, scripts
        from trm_bench.cluster.folder import ClusterFolder

        queue, where = queues.QUEUES[name], ClusterFolder.at(folder)
        job = queues.Job(
            where.scheduler_script,
            where.logs,
            queues.seconds(scheduler_time or time),
            partition=partition,
            account=account,
            options=tuple(scheduler_option or ()),
        )
        array = replace(
            job,
            script=where.workers_script,
            seconds=queues.seconds(time),
            cpus=cpus or runs_per_gpu * max(1, gpus_per_worker),
            gpus=gpus_per_worker,
            memory=memory,
            array=workers,
            options=tuple(option or ()),
        )
        about = f"Of a trm-bench cluster on {queue.title}, by `trm-bench cluster {name}`."
        gpus: scripts.Gpus = "given" if gpus_per_worker else "none"
        limit = None if queue.notices else array.seconds - queues.NOTICE
        texts = (
            scripts.scheduler(where, idle, about=about),
            scripts.workers(where, gpus, runs_per_gpu, None, about, False, limit, queue.requeue),
        )
        _submit(where, queue, job if scheduler == "job" else None, array, texts, dry_run)

    submit.__doc__ = f"Submit a scheduler and an array of workers to {title}.{note}"
    return submit


for _name, _title, _note in (
    ("slurm", "SLURM", "\n\nWorkers near their time limit save what they train and are requeued."),
    ("lsf", "LSF", "\n\nUntested: nobody has tried it on a real one. See --dry-run."),
    ("pbs", "PBS", "\n\nUntested: nobody has tried it on a real one. See --dry-run."),
):
    clusters_app.command(
        _name,
        epilog=example(f"trm-bench cluster {_name} --workers 8 --time 12:00:00 --partition gpu"),
    )(_queue_command(_name, _title, _note))


@clusters_app.command(epilog=example("trm-bench cluster ssh host1 host2 host3"))
def ssh(
    hosts: Annotated[
        list[str], typer.Argument(metavar="HOST...", help="Each with this folder and this Python.")
    ],
    folder: Folder = Path("cluster"),
    workers: Workers = None,
    gpus: Gpus = None,
    runs_per_gpu: RunsPerGpu = 1,
    idle: Idle = "1h",
    dry_run: DryRun = False,
) -> None:
    """Run a scheduler here and workers on machines that ssh reaches; Ctrl-C ends all."""
    _hold(folder, hosts, workers, gpus, runs_per_gpu, idle, dry_run)


@clusters_app.command(epilog=example("trm-bench cluster local --workers 2"))
def local(
    folder: Folder = Path("cluster"),
    workers: Workers = None,
    gpus: Gpus = None,
    runs_per_gpu: RunsPerGpu = 1,
    idle: Idle = "1h",
    dry_run: DryRun = False,
) -> None:
    """Run a scheduler and workers on this machine alone; Ctrl-C ends all."""
    _hold(folder, [], workers, gpus, runs_per_gpu, idle, dry_run)


def _submit(
    folder: ClusterFolder,
    queue: Queue,
    scheduler: Job | None,
    workers: Job,
    texts: tuple[str, str],
    dry_run: bool,
) -> None:
    """Submits both jobs, or starts the scheduler on this machine."""
    from trm_bench.cluster import machines
    from trm_bench.cluster.folder import require_distributed

    if scheduler is None:
        shown = [_shown(queue, workers)]
    else:
        shown = [_shown(queue, scheduler), _shown(queue, replace(workers, after="ITS_ID"))]
    if dry_run:
        _print(folder, texts, shown)
        return
    require_distributed()
    folder.prepare(*texts)
    if not queue.is_here():
        fix = "\n  ".join(["the scripts are written; where it is, give", *shown])
        raise UserError("is not on this machine", queue.submit, fix)
    jobs = []
    if scheduler is None:
        with err.status("starting the scheduler", spinner="line"):
            process = machines.detach(folder)
        written(f"scheduler   process {process} of this machine")
        end = [f"kill {process}"]
    else:
        jobs.append(queue.give(scheduler))
        written(f"scheduler   job {jobs[0]}")
        end = []
    jobs.append(queue.give(replace(workers, after=jobs[0] if jobs else None)))
    written(f"workers     job {jobs[-1]}, an array of {workers.array}")
    end.append(shlex.join([queue.cancel, *jobs]))
    _tell(folder, "; ".join(end), more=_shown(queue, workers))


def _shown(queue: Queue, job: Job) -> str:
    return f"{shlex.join(queue.command(job))} < {shlex.quote(str(job.script))}"


def _hold(
    folder: Path,
    hosts: list[str],
    workers: int | None,
    gpus: str | None,
    runs_per_gpu: int,
    idle: str,
    dry_run: bool,
) -> None:
    """Runs a cluster of machines until Ctrl-C."""
    from trm_bench.cluster import machines, scripts
    from trm_bench.cluster.folder import ClusterFolder, require_distributed

    where = ClusterFolder.at(folder)
    if gpus is not None and not all(part.strip() for part in gpus.split(",")):
        raise UserError(f"'{gpus}' names no GPUs", "--gpus", "give their numbers: 0,1")
    host = "" if hosts else scripts.LOOPBACK
    name = "ssh" if hosts else "local"
    about = f"Of a trm-bench cluster, by `trm-bench cluster {name}`."
    texts = (
        scripts.scheduler(where, idle, host, about, tied=True),
        scripts.workers(where, "found", runs_per_gpu, workers, about, tied=True),
    )
    if dry_run:
        there = machines.commands(where, hosts, gpus)
        _print(where, texts, [shlex.join(command) for command in there.values()])
        return
    require_distributed()
    where.prepare(*texts)
    with err.status("starting the scheduler", spinner="line") as status:

        def ready(address: str) -> None:
            status.stop()
            written(f"scheduler   {address}")
            _tell(where, "Ctrl-C")

        machines.hold(where, hosts, gpus, ready, written)
    written(f"the scheduler has ended: it had no work for {idle}, or was told to")


def _tell(folder: ClusterFolder, end: str, **others: str) -> None:
    """What to do next."""
    lines = {"logs": str(folder.logs), "use": folder.use(), "end": end, **others}
    for name, line in lines.items():
        written(f"{name:11} {line}")


def _print(folder: ClusterFolder, texts: tuple[str, str], commands: list[str]) -> None:
    """What would be written, and called."""
    for path, text in zip((folder.scheduler_script, folder.workers_script), texts, strict=True):
        written(f"==> {path} <==\n{text}")
    for command in commands:
        written(command)
