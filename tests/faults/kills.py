"""Cases of kills and signals: spawned workers, MLflow on, at any moment; then again to the end."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from heard import heard

from faults.base import HERE, TIMED, TRAINING, Base, files, write_protocol
from faults.case import CODE, LOST, SURVIVORS, WORDS, Case, Scene
from faults.results import equal, records
from faults.runner import Answer, environment

FOLDERS, KILLS = 16, 10  # so many folders, and at most so many kills in each before it may end
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
LONGEST = 300.0  # seconds of a command in processes of its own, on a busy machine

heard(SIGNALS)
COMMANDS: dict[str, tuple[str, ...]] = {"run": (), "sweep": ("--trials", "2")}
STEADY = (".csv", ".md", ".tex", ".nii.gz", "tuned.yaml")
"""Ends of the names of files that come out the same, with tracking and without."""


def alive(group: int) -> list[int]:
    """The processes of a group that are not just waiting to be counted as ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            _, _, rest = stat.read_text().rpartition(")")
            state, _, of = rest.split()[:3]
            if int(of) == group and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def wait_for_none(group: int, longest: float = 60.0) -> list[int]:
    """Waits until no process of a group is left; returns those that stay."""
    last = time.monotonic() + longest
    while (left := alive(group)) and time.monotonic() < last:
        time.sleep(0.05)
    return left


@dataclass
class Started:
    """A command in a process of its own, which leads a group."""

    process: subprocess.Popen[bytes]
    arguments: tuple[str, ...]
    printed: Path

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.printed.read_text(encoding="utf-8", errors="replace")

    def end(self) -> Answer:
        """Waits for the end."""
        hung, start = False, time.monotonic()
        try:
            self.process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            hung = True
        left = [] if hung else wait_for_none(self.process.pid, 10)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code, seconds = self.process.wait(), time.monotonic() - start
        return Answer(self.arguments, code, self.output, seconds, hung, bool(left))


def start(scene: Scene, *arguments: object) -> Started:
    """Starts `trm-bench ARGUMENTS` in the scene's folder."""
    words, printed = tuple(map(str, arguments)), scene.folder / "printed"
    with printed.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "trm_bench", *words],
            cwd=scene.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Started(process, words, printed)


def reference(scene: Scene, command: str) -> Path:
    """What the command leaves where nothing kills it; made once, without tracking."""
    folder = scene.base.folder / f"unkilled {command} {os.getpid()}"
    if not folder.is_dir():
        folder.mkdir()
        protocol = write(folder, scene.base, tracking="off")
        tail = ("--out", "out", *COMMANDS[command], *HERE)
        answer = scene.runner.call(folder, command, protocol, *tail)
        if answer.code != 0:
            raise RuntimeError(f"the reference cannot be made: {answer}")
    return folder / "out"


@lru_cache(maxsize=1)
def whole_seconds(folder: Path) -> float:
    """What importing everything and running the command in two workers takes here, about."""
    began = time.monotonic()
    code = "import mlflow.tracking, monai.networks.nets, trm_bench.pipeline"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
    return max(8.0, 3 * (time.monotonic() - began))


def write(folder: Path, base: Base, **changes: object) -> Path:
    """The protocol that is killed: six runs of some steps."""
    training = TRAINING | {"steps": 30}
    both = {"source": training, "target": training}
    return write_protocol(folder / "p.yaml", base.data, training=both, seeds=[0, 1], **changes)


def same(scene: Scene, command: str, answer: Answer) -> None:
    """Notes what is not as if nothing had been killed."""
    out, whole = scene.folder / "out", reference(scene, command)
    steady = {
        n: content
        for n, content in files(whole).items()
        if n.endswith(STEADY) and not n.endswith(TIMED)
    }
    equal(scene, out, steady, records(whole), answer.output[-1500:])
    scene.call("verify", out, codes=(0,))


def tracked(scene: Scene, command: str) -> None:
    """Notes runs that MLflow has twice, not at all, or still running."""
    store = scene.folder / "out" / "mlflow.db"
    query = (
        "select runs.run_uuid, runs.status, tags.key, tags.value from runs join tags on "
        "runs.run_uuid = tags.run_uuid where runs.lifecycle_stage = 'active'"
    )
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
            rows = connection.execute(query).fetchall()
    except sqlite3.Error as error:
        scene.fault(LOST, f"MLflow's store cannot be read: {error}")
        return
    status = {run: state for run, state, _, _ in rows}
    if running := [run for run, state in status.items() if state == "RUNNING"]:
        scene.fault(LOST, f"MLflow says that {len(running)} runs of dead processes are running")
    if command == "run":
        whole = {run for run, state in status.items() if state == "FINISHED"}
        cells = sorted(v for run, _, k, v in rows if run in whole and k == "trm_bench.cell")
        wanted = len(records(reference(scene, command)))
        if len(cells) != wanted or len(set(cells)) != wanted:
            scene.fault(LOST, f"MLflow has {len(cells)} finished cells of {wanted}: {cells}")


def wait_until(scene: Scene, started: Started, draws: random.Random) -> str:
    """Waits for the moment of a kill; returns what it is."""
    moment = draws.choice(("any", "any", "store", "record"))
    whole = whole_seconds(scene.base.folder)
    seconds = (
        draws.uniform(0.2, whole) if moment == "any" else draws.choice((0, draws.random() * 4))
    )
    last, out = time.monotonic() + 2 * whole, scene.folder / "out"
    if moment != "any":
        pattern = {"store": "*mlflow*", "record": "*/records/*.json"}[moment]
        before = set(out.glob(pattern))
        while not set(out.glob(pattern)) - before and time.monotonic() < last:
            if started.process.poll() is not None:
                return moment
            time.sleep(0.005)
    with suppress(subprocess.TimeoutExpired):
        started.process.wait(seconds)
    return moment


def killed(command: str, kills: int, seed: str, scene: Scene) -> None:
    """Kills the same command some times, then lets it end."""
    draws = random.Random(seed)
    protocol = write(scene.folder, scene.base, tracking="mlflow")
    words = (
        command,
        protocol,
        "--out",
        "out",
        *COMMANDS[command],
        "--jobs",
        "2",
        "--device",
        "cpu",
    )
    for _ in range(kills):
        started = start(scene, *words)
        wait_until(scene, started, draws)
        if started.process.poll() is not None:
            scene.judge(started.end(), (0,))
            continue
        scene.counts["kills"] += 1
        if draws.random() < 0.5:
            os.killpg(started.process.pid, signal.SIGKILL)
        else:
            started.process.kill()
        started.process.wait()
        if draws.random() < 0.5 and (left := wait_for_none(started.process.pid)):
            scene.fault(SURVIVORS, f"{len(left)} workers live on a minute after the kill")
        if "Traceback" in started.output:
            scene.judge(Answer(started.arguments, 1, started.output), (1,))
    answer = start(scene, *words).end()
    scene.judge(answer, (0,))
    if answer.code == 0:
        same(scene, command, answer)
        tracked(scene, command)


def signalled(number: int, group: bool, seed: str, scene: Scene) -> None:
    """Ends a command politely: one line, its exit code, and nothing lost."""
    draws, kind = random.Random(seed), signal.Signals(number)
    protocol = write(scene.folder, scene.base, tracking=draws.choice(("off", "mlflow")))
    started = start(scene, "run", protocol, "--out", "out", "--jobs", "2", "--device", "cpu")
    last = time.monotonic() + 60
    while not (scene.folder / "out").is_dir() and time.monotonic() < last:
        time.sleep(0.01)
    with suppress(subprocess.TimeoutExpired):
        started.process.wait(draws.uniform(0, whole_seconds(scene.base.folder) / 2))
    if started.process.poll() is None:
        scene.counts["signals"] += 1
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(started.process.pid, kind)
        answer = started.end()
        scene.judge(answer, (SIGNALS[kind], 0))
        if answer.code == SIGNALS[kind] and "same command" not in answer.output:
            scene.fault(WORDS, f"{kind.name}: no word of the same command: {answer.output[-800:]}")
        if answer.seconds > 30:
            scene.fault(CODE, f"{kind.name} took {answer.seconds:.0f} s to end it")
    else:
        scene.judge(started.end(), (0,))
    answer = scene.call("run", protocol, "--out", "out", *HERE, codes=(0,))
    if answer.code == 0:
        same(scene, "run", answer)


def cases(base: Base, seed: int) -> Iterator[Case]:
    """Folders that are killed some times each, and signals."""
    for i in range(FOLDERS):
        command = "sweep" if i % 4 == 3 else "run"
        play = partial(killed, command, KILLS, f"{seed} kill {i}")
        yield Case("kills", f"folder {i}, {command}", play, slow=True)
    for number in SIGNALS:
        for i in range(4):
            play = partial(signalled, int(number), i % 2 == 0, f"{seed} {number} {i}")
            to = "the group" if i % 2 == 0 else "the process"
            yield Case("signals", f"{number.name} to {to}, {i}", play, slow=True)
