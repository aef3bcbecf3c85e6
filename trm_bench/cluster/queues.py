"""Queues that jobs are given to: SLURM, LSF and PBS, by arguments of their own commands."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trm_bench.errors import UserError

NAME = "trm-bench"
NOTICE = 120  # seconds before its time is over that a job is told; SLURM may tell it a minute early
LIMIT = re.compile(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)")
JOB = re.compile(r"[0-9]+(?:\[\])?")


@dataclass(frozen=True)
class Job:
    """What one job, or each of an array of them, is to have.

    Attributes:
        script: That it runs.
        logs: Folder of what it prints.
        seconds: That it may take.
        cpus: Cores.
        gpus: On one machine.
        memory: GB, or the site's own choice.
        partition: Or queue.
        account: Or project.
        array: How many of them, None for one job alone.
        after: Id of a job that must have started before.
        options: More arguments of the submitting command.
    """

    script: Path
    logs: Path
    seconds: int
    cpus: int = 1
    gpus: int = 0
    memory: int | None = None
    partition: str | None = None
    account: str | None = None
    array: int | None = None
    after: str | None = None
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the job, and of its log."""
        return f"{NAME}-{self.script.stem}"


@dataclass(frozen=True)
class Queue:
    """A scheduler of jobs.

    Attributes:
        title: Its name.
        submit: The command that takes a script from standard input.
        cancel: The command that ends a job.
        requeue: What a job calls, in bash, to be queued again.
        notices: Whether it tells a job that its time is nearly over.
        tested: Whether this was ever tried on a real one.
        arguments: Those of `submit` for a job.
    """

    title: str
    submit: str
    cancel: str
    requeue: str
    notices: bool
    tested: bool
    arguments: Callable[[Job], list[str]]

    def command(self, job: Job) -> list[str]:
        """The whole of what submits a job, but for its script."""
        return [self.submit, *self.arguments(job), *job.options]

    def give(self, job: Job) -> str:
        """Submits a job and returns its id.

        Raises:
            UserError: The queue refuses it.
        """
        with job.script.open("rb") as script:
            done = subprocess.run(
                self.command(job), stdin=script, capture_output=True, text=True, errors="replace"
            )
        found = JOB.search(done.stdout)
        if done.returncode or not found:
            said = (done.stderr.strip() or done.stdout.strip())[-1000:]
            fix = "change the options, or see by --dry-run what is submitted"
            raise UserError(f"the job was refused: {said}", self.submit, fix)
        return found[0]

    def is_here(self) -> bool:
        """Whether jobs can be submitted on this machine."""
        return shutil.which(self.submit) is not None


def seconds(limit: str) -> int:
    """A limit of time such as 24:00:00 or 7-00:00:00.

    Raises:
        UserError: It is no such thing, or too short to be told before its end.
    """
    found = LIMIT.fullmatch(limit.strip())
    days, hours, minutes, rest = (int(n or 0) for n in found.groups()) if found else (0, 0, 0, 0)
    total = ((24 * days + hours) * 60 + minutes) * 60 + rest
    if total <= 2 * NOTICE:
        fix = f"give hours:minutes:seconds or days-hours:minutes:seconds, over {2 * NOTICE} s"
        raise UserError(f"'{limit}' is no time that a job could have", "--time", fix)
    return total


def _clock(total: int) -> str:
    return f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}"


def _chosen(*options: tuple[str, object]) -> list[str]:
    """The words of those options that have a value, which stands in the place of {}."""
    return [word.format(value) for words, value in options if value for word in words.split()]


def _slurm(job: Job) -> list[str]:
    logs = str(job.logs / job.name).replace("%", "%%")  # which begins a pattern
    arguments = [
        "--parsable",
        f"--job-name={job.name}",
        f"--output={logs}-{'%j' if job.array is None else '%A_%a'}.log",
        "--open-mode=append",
        *("--nodes=1", "--ntasks=1", f"--cpus-per-task={job.cpus}"),
        f"--time={_clock(job.seconds)}",
    ]
    if job.array is None:
        arguments.append("--no-requeue")
    else:
        told = f"--signal=B:USR1@{NOTICE}"
        arguments += [f"--array=0-{job.array - 1}", "--requeue", told]
    return arguments + _chosen(
        ("--gres=gpu:{}", job.gpus),
        ("--mem={}G", job.memory),
        ("--dependency=after:{}", job.after),
        ("--partition={}", job.partition),
        ("--account={}", job.account),
    )


def _lsf(job: Job) -> list[str]:
    array = "" if job.array is None else f"[1-{job.array}]"
    log = str(job.logs / job.name)
    arguments = ["-J", f"{job.name}{array}", "-o", f"{log}-%J{'_%I' if array else ''}.log"]
    arguments += ["-n", str(job.cpus), "-R", "span[hosts=1]"]
    arguments += ["-W", f"{job.seconds // 3600}:{job.seconds // 60 % 60:02}"]
    if array:
        arguments.append("-r")
    return arguments + _chosen(
        ("-gpu num={}", job.gpus),
        ("-M {}G -R rusage[mem={}G]", job.memory),
        ("-w started({})", job.after),
        ("-q {}", job.partition),
        ("-P {}", job.account),
    )


def _pbs(job: Job) -> list[str]:
    chunk = f"select=1:ncpus={job.cpus}"
    chunk += f":ngpus={job.gpus}" if job.gpus else ""
    chunk += f":mem={job.memory}gb" if job.memory else ""
    arguments = ["-N", job.name, "-j", "oe", "-o", f"{job.logs}/", "-l", chunk]
    arguments += ["-l", f"walltime={_clock(job.seconds)}"]
    arguments += ["-r", "n" if job.array is None else "y"]
    if job.array is not None and job.array > 1:  # an array of one is refused
        arguments += ["-J", f"0-{job.array - 1}"]
    return arguments + _chosen(
        ("-W depend=after:{}", job.after), ("-q {}", job.partition), ("-A {}", job.account)
    )


QUEUES = {
    "slurm": Queue(
        title="SLURM",
        submit="sbatch",
        cancel="scancel",
        # by its index, since one of an array has the id of all of it
        requeue='scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"',
        notices=True,
        tested=True,
        arguments=_slurm,
    ),
    "lsf": Queue(
        title="LSF",
        submit="bsub",
        cancel="bkill",
        requeue='brequeue "$LSB_JOBID[$LSB_JOBINDEX]"',
        notices=False,
        tested=False,
        arguments=_lsf,
    ),
    "pbs": Queue(
        title="PBS",
        submit="qsub",
        cancel="qdel",
        requeue='qrerun "$PBS_JOBID"',
        notices=False,
        tested=False,
        arguments=_pbs,
    ),
}
