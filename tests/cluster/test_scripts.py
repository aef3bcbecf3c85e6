"""What the scripts do, with stand-ins for Python, for queues and for ssh."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Run
from loopback import LONGEST, until

from trm_bench.cluster import queues, scripts
from trm_bench.cluster.folder import ClusterFolder
from trm_bench.errors import UserError

NAMES = ["plain", 'it\'s "one" $(touch oops) `touch oops` a%j\\b', "-rf ü"]

# notes each start and each signal; ends on TERM and USR1, or at once where the folder says so
STAND_IN = """\
#!/bin/bash
trap 'echo TERM >>{notes}; exit' TERM
trap 'echo USR1 >>{notes}; exit' USR1
echo "start ${{CUDA_VISIBLE_DEVICES-unset}} $PYTHONSAFEPATH $PWD $*" >>{notes}
[ -z "$END_WITH" ] || exit "$END_WITH"
while :; do read -rt 0.05 <> <(:); done
"""


class Stand:
    """Programs on the path that write down how they are called."""

    def __init__(self, folder: Path) -> None:
        self.notes, self.bin = folder / "notes", folder / "bin"
        self.bin.mkdir()
        self.notes.touch()
        self.python = self.program("python", STAND_IN.format(notes=shlex.quote(str(self.notes))))

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def noting(self, name: str, more: str = "") -> None:
        notes = shlex.quote(str(self.notes))
        self.program(name, f'#!/bin/bash\necho "{name} $*" >>{notes}\n{more}\n')

    def lines(self, start: str = "") -> list[str]:
        return [line for line in self.notes.read_text().splitlines() if line.startswith(start)]

    def wait(self, start: str, number: int = 1) -> list[str]:
        until(lambda: len(self.lines(start)) >= number, f"{number} x {start}")
        return self.lines(start)


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    made = Stand(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    monkeypatch.setattr(scripts.sys, "executable", str(made.python))
    monkeypatch.setattr("trm_bench.cluster.folder.find_spec", lambda name: name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path)
    return made


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Runs a script, in a process group that ends with the test."""
    started = []

    def run(text: str, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["bash", "-c", text],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def cluster(name: str = "plain") -> ClusterFolder:
    made = ClusterFolder.at(Path(name))
    made.path.mkdir()
    made.scheduler_file.touch()
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_one_word(stand: Stand, start: Start, name: str) -> None:
    folder = cluster(name)
    for text in (scripts.scheduler(folder, "1h"), scripts.scheduler(folder, "1h", tied=True)):
        folder.scheduler_file.touch()
        process = start(text, END_WITH="3")
        assert process.wait(LONGEST) == 3
        assert not folder.scheduler_file.exists()
    folder.scheduler_file.touch()
    for gpus in ("given", "none", "found"):
        text = scripts.workers(folder, gpus, tied=True, warn_after=3600, requeue="true")
        assert start(text, END_WITH="0", CUDA_VISIBLE_DEVICES="0").wait(LONGEST) == 0
    starts = stand.lines("start")
    assert len(starts) == 5 and not Path("oops").exists()
    assert sum(f"--folder {folder.path}" in line for line in starts) == 3
    assert sum(f"--scheduler-file {folder.scheduler_file} " in line for line in starts) == 2
    assert all(line.split(" ")[2:4] == ["1", str(Path.cwd())] for line in starts)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J"])
def test_a_folder_that_no_script_can_name_is_refused(trm_bench: Run, name: str) -> None:
    code, said = trm_bench("cluster", "slurm", "--folder", name, "--dry-run")
    assert code == 2 and "cannot stand in a script" in said and "\x1b" not in said


def test_the_scheduler_opens_nothing_without_certificates() -> None:
    text = scripts.scheduler(ClusterFolder.at(Path("c")), "1h")
    assert "--protocol tls" in text and "--host tls://" in text and "tcp" not in text
    assert "--dashboard-address 127.0.0.1:0" in text and "REQUIRE_ENCRYPTION=True" in text


@pytest.mark.parametrize(
    ("gpus", "number", "seen", "started"),
    [
        ("given", None, "4,7", ["4 --processes 2", "7 --processes 2"]),
        ("none", None, "4,7", [" --processes 2"]),
        ("found", None, "4,7", ["4 --processes 2", "7 --processes 2"]),
        ("found", 1, "4,7", ["4 --processes 2"]),
        ("found", None, None, ["0 --processes 2", "1 --processes 2", "2 --processes 2"]),
        ("found", 2, None, ["0 --processes 2", "1 --processes 2"]),
        ("found", 3, "", [" --processes 6"]),
    ],
)
def test_each_gpu_has_its_processes(
    stand: Stand, start: Start, gpus: Any, number: int | None, seen: str | None, started: list[str]
) -> None:
    stand.program("nvidia-smi", "#!/bin/bash\nprintf '0\\n1\\n2\\n'\n")
    text = scripts.workers(cluster(), gpus, processes=2, number=number)
    given = {} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}
    assert start(text, END_WITH="0", **given).wait(LONGEST) == 0
    lines = [line.split(" ", 3) for line in stand.lines("start")]
    shown = [f"{line[1]} {' '.join(line[3].split()[-2:])}" for line in lines]
    assert sorted(shown) == started


def test_a_job_without_its_gpu_does_not_train_on_the_cpu(stand: Stand, start: Start) -> None:
    process = start(scripts.workers(cluster(), "given"), CUDA_VISIBLE_DEVICES="")
    assert process.wait(LONGEST) == 1 and not stand.lines()
    assert process.stderr is not None and b"was given no GPU" in process.stderr.read()


def test_what_a_worker_ends_with_is_told(stand: Stand, start: Start) -> None:
    assert start(scripts.workers(cluster(), "none"), END_WITH="5").wait(LONGEST) == 5


@pytest.mark.parametrize(("name", "again"), [("USR1", 1), ("TERM", 0)])
def test_signals_reach_all_and_one_of_them_requeues(
    stand: Stand, start: Start, name: str, again: int
) -> None:
    stand.noting("requeue")
    process = start(
        scripts.workers(cluster(), "given", requeue="requeue me"), CUDA_VISIBLE_DEVICES="0,1"
    )
    stand.wait("start", 2)
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.wait(LONGEST) == 0
    assert stand.lines(name) == [name, name]
    assert stand.lines("requeue") == ["requeue me"] * again


def test_nothing_is_requeued_where_the_scheduler_has_ended(stand: Stand, start: Start) -> None:
    stand.noting("requeue")
    folder = cluster()
    process = start(scripts.workers(folder, "none", requeue="requeue me"))
    stand.wait("start")
    folder.scheduler_file.unlink()
    process.send_signal(signal.SIGUSR1)
    assert process.wait(LONGEST) == 0 and stand.lines("USR1") and not stand.lines("requeue")


def test_a_script_tells_itself_where_the_queue_does_not(stand: Stand, start: Start) -> None:
    stand.noting("requeue")
    stand.noting("sleep", f"until grep -q start {shlex.quote(str(stand.notes))}; do :; done")
    process = start(scripts.workers(cluster(), "none", warn_after=77, requeue="requeue me"))
    assert process.wait(LONGEST) == 0
    assert stand.lines("sleep") == ["sleep 77"]
    assert stand.lines("USR1") and stand.lines("requeue")


@pytest.mark.parametrize("gpus", ["found", None])
def test_a_tied_script_ends_with_its_input(stand: Stand, start: Start, gpus: Any) -> None:
    folder = cluster()
    text = (
        scripts.workers(folder, gpus, tied=True)
        if gpus
        else scripts.scheduler(folder, "1h", tied=True)
    )
    process = start(text, CUDA_VISIBLE_DEVICES="")
    stand.wait("start")
    assert process.poll() is None and process.stdin is not None
    process.stdin.close()
    process.wait(LONGEST)
    assert stand.lines("TERM") == ["TERM"]


QUEUED = {
    "slurm": ("sbatch", "echo 41", "--dependency=after:41", "--array=0-3", "--gres=gpu:2"),
    "lsf": (
        "bsub",
        "echo 'Job <41> is submitted to queue <q>.'",
        "-w started(41)",
        "[1-4]",
        "num=2",
    ),
    "pbs": ("qsub", "echo 41.server1", "depend=after:41", "-J 0-3", "ngpus=2"),
}


@pytest.mark.parametrize("queue", QUEUED)
def test_both_jobs_are_given_to_the_queue(trm_bench: Run, stand: Stand, queue: str) -> None:
    program, answer, after, array, gpus = QUEUED[queue]
    stand.noting(program, f"head -n 2 >>{shlex.quote(str(stand.notes))}\n{answer}")
    options = ("--workers", 4, "--gpus-per-worker", 2, "--memory", 9, "--time", "1-02:00:00")
    both = ("--partition", "gpu", "--account", "me", "--option=--one more", "--folder", "a b")
    code, said = trm_bench("cluster", queue, *options, *both, "--scheduler-option=--long")
    assert code == 0, said
    scheduler, workers = stand.lines(program)
    assert "--long" in scheduler and "gpu" in scheduler and "me" in scheduler
    assert array not in scheduler and gpus not in scheduler and "--one more" not in scheduler
    for part in (after, array, gpus, "--one more", "gpu", "me", "9"):
        assert part in workers, part
    assert all("26:00" in line for line in (scheduler, workers))
    assert stand.lines("# Of a trm-bench cluster")  # the script came by standard input
    assert "trm-bench run PROTOCOL --on 'a b/scheduler.json'" in said
    assert f"{queues.QUEUES[queue].cancel} 41 41" in said


def test_the_scheduler_may_last_longer_than_its_workers(trm_bench: Run, stand: Stand) -> None:
    stand.noting("sbatch", "echo 41")
    assert trm_bench("cluster", "slurm", "--scheduler-time", "7-00:00:00")[0] == 0
    scheduler, workers = stand.lines("sbatch")
    assert "--time=168:00:00" in scheduler and "--time=24:00:00" in workers


def test_a_job_that_is_refused_says_why(trm_bench: Run, stand: Stand) -> None:
    stand.program("sbatch", "#!/bin/bash\necho 'invalid partition' >&2; exit 1\n")
    code, said = trm_bench("cluster", "slurm")
    assert code == 2 and "sbatch: the job was refused: invalid partition" in said


def test_without_the_queue_the_commands_are_said(
    trm_bench: Run, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues.shutil, "which", lambda program: None)
    code, said = trm_bench("cluster", "slurm")
    assert code == 2 and "sbatch: is not on this machine" in said and not stand.lines()
    assert said.count("--parsable") == 2 and Path("cluster/workers.sh").is_file()


@pytest.mark.parametrize("command", [("slurm",), ("lsf",), ("pbs",), ("ssh", "host"), ("local",)])
def test_a_dry_run_does_nothing(trm_bench: Run, stand: Stand, command: tuple[str, ...]) -> None:
    for program in ("sbatch", "bsub", "qsub", "ssh"):
        stand.noting(program)
    code, said = trm_bench("cluster", *command, "--dry-run")
    assert code == 0 and "scheduler.sh <==" in said and "workers.sh" in said
    assert not Path("cluster").exists() and not stand.lines()
    for script in said.split("==> ")[1:]:
        text = script.partition("<==\n")[2].partition("\n\n\n")[0]
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize(
    ("limit", "seconds"), [("24:00:00", 86400), ("7-00:00:00", 604800), ("00:05:01", 301)]
)
def test_a_time_is_read(limit: str, seconds: int) -> None:
    assert queues.seconds(limit) == seconds


@pytest.mark.parametrize("limit", ["", "24", "1:00", "00:04:00", "1:60:00", "1h", "-1:00:00"])
def test_another_time_is_refused(limit: str) -> None:
    with pytest.raises(UserError, match="no time that a job could have"):
        queues.seconds(limit)


@pytest.mark.parametrize("options", [("--idle", "0h"), ("--idle", "1h; x"), ("--gpus", "0,,1")])
def test_odd_options_are_refused(trm_bench: Run, options: tuple[str, ...]) -> None:
    code, said = trm_bench("cluster", "local", *options, "--dry-run")
    assert code == 2 and options[0] in said
