"""Cases of full disks: a file system of a few kilobytes, then room, then the same command."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from faults.base import Base, files, write_protocol
from faults.case import WORDS, Case, Scene
from faults.results import equal
from faults.runner import Answer, environment

DISKS = 12
STEADY = (".csv", ".md", ".tex", ".nii.gz")


def space() -> list[str]:
    """A command in front of others, that gives them mounts of their own."""
    return (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    )


@cache
def possible(folder: Path) -> bool:
    """Whether a file system can be mounted here."""
    if shutil.which("unshare") is None:
        return False
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return subprocess.run([*space(), *mount], capture_output=True).returncode == 0


SCRIPT = """
mount -t tmpfs -o size={small},nr_inodes={inodes} tmpfs out || exit 90
{command} > first 2>&1; echo $? > first.code
mount -o remount,size=1g,nr_inodes=100k out || exit 91
{command} > second 2>&1; echo $? > second.code
cp -a out whole
"""


def full(kilobytes: int, inodes: int, tracking: str, scene: Scene) -> None:
    """The disk gets full, at some file; then there is room."""
    (scene.folder / "out").mkdir()
    protocol = write_protocol(scene.folder / "p.yaml", scene.base.data, tracking=tracking)
    words = ("run", protocol, "--out", "out", "--jobs", "1", "--device", "cpu")
    command = shlex.join([sys.executable, "-m", "trm_bench", *map(str, words)])
    text = SCRIPT.format(small=f"{kilobytes}k", inodes=inodes, command=command)
    subprocess.run(
        [*space(), "sh", "-c", text], cwd=scene.folder, env=environment(), timeout=300, check=True
    )
    first, second = (answer(scene.folder / name, words) for name in ("first", "second"))
    scene.judge(first, (0, 1, 2))
    if first.code == 0 and "MLflow" not in first.output:
        scene.counts["disks that sufficed"] += 1
    else:
        scene.counts["full disks"] += 1
        if "out/" not in first.output and str(scene.folder / "out") not in first.output:
            scene.fault(WORDS, f"names no path: {first.output[-1500:]}")
    scene.judge(second, (0,))
    if second.code == 0:
        steady = {
            n: content
            for n, content in scene.base.reference.items()
            if n.endswith(STEADY) and "/sweep/" not in n
        }
        of_run = {f"{run}.json" for run in scene.base.cells}
        equal(scene, scene.folder / "whole", steady, of_run, second.output[-800:])
        scene.call("verify", scene.folder / "whole", codes=(0,))


def answer(printed: Path, words: tuple[object, ...]) -> Answer:
    code = int(printed.with_suffix(".code").read_text())
    return Answer(tuple(map(str, words)), code, printed.read_text(errors="replace"))


def cases(base: Base, seed: int) -> Iterator[Case]:
    """Sizes drawn below what whole results take; every third has files to spare, not bytes."""
    draws = random.Random(seed)
    whole = sum(len(content) for content in files(base.results).values()) // 1024
    for i in range(DISKS):
        tracking = "mlflow" if i % 2 else "off"
        kilobytes = draws.randrange(4, whole + (900 if tracking == "mlflow" else 0))
        inodes = draws.randrange(3, 60) if i % 3 == 2 else 10_000
        name = f"{i}: {kilobytes} KiB, {inodes} files, tracking {tracking}"
        yield Case("full disks", name, partial(full, kilobytes, inodes, tracking), slow=True)
