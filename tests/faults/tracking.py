"""Cases of MLflow's store, damaged: tracking may end, with a word; a run may not."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from faults.base import HERE, TIMED, Base, files, write_protocol
from faults.case import SILENT, WORDS, Case, Scene, shown
from faults.results import DAMAGES, FLIPS, OF_SEVERAL, OF_TEXT, Damage, flip

STEADY = (".csv", ".md", ".tex", ".nii.gz")


def tracked(scene: Scene) -> Path:
    """Results with a store, made once."""
    folder = scene.base.folder / f"tracked {os.getpid()} {id(scene.runner)}"
    if not folder.is_dir():
        folder.mkdir()
        protocol = write_protocol(folder / "p.yaml", scene.base.data, tracking="mlflow")
        answer = scene.runner.call(folder, "run", protocol, "--out", "out", *HERE)
        if answer.code != 0 or not (folder / "out" / "mlflow.db").is_file():
            raise RuntimeError(f"no store is made: {answer}")
    return folder


def damaged(damage: Damage, seed: str, scene: Scene) -> None:
    """The same command, with a store that is no longer what it was."""
    whole = tracked(scene)
    out = scene.folder / "out"
    shutil.copytree(whole / "out", out)
    damage(out / "mlflow.db", random.Random(seed), [])
    answer = scene.call("run", whole / "p.yaml", "--out", out, *HERE, codes=(0,))
    if answer.code == 0:
        then, now = files(whole / "out"), files(out)
        steady = [n for n in then if n.endswith(STEADY) and not n.endswith(TIMED)]
        if differ := [n for n in steady if now.get(n) != then[n]]:
            scene.fault(SILENT, f"{differ}: {shown(answer)}")
        if not (out / "mlflow.db").is_file() and "MLflow" not in answer.output:
            scene.fault(WORDS, f"nothing is tracked, and nothing says so: {shown(answer)}")
    scene.call("verify", out, codes=(0, 1))


def cases(base: Base, seed: int) -> Iterator[Case]:
    """Flipped bytes, and every other damage."""
    several: dict[str, Damage] = {f"flip {i}": flip for i in range(FLIPS)}
    several |= {n: d for n, d in DAMAGES.items() if n not in (*OF_SEVERAL, *OF_TEXT)}
    for name, damage in several.items():
        yield Case("results: mlflow.db", name, partial(damaged, damage, f"{seed} {name}"))
