"""Cases of command lines: every option and argument of every command with every bad value."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from faults.base import Base, copied
from faults.case import Case, Scene

# What is given to the options and arguments that are not the bad one.
GIVEN: dict[str, list[str]] = {
    "run": ["{protocol}", "--out", "{out}", "--jobs", "1", "--device", "cpu", "--dry-run"],
    "sweep": ["{protocol}", "--out", "{out}", "--jobs", "1", "--device", "cpu", "--trials", "1",
              "--methods", "finetune"],
    "check": ["{protocol}", "--out", "{out}"],
    "list": ["{out}"],
    "show": ["{out}"],
    "report": ["{out}"],
    "compare": ["{out}", "{whole}", "--out", "new"],
    "verdict": ["{out}"],
    "verify": ["{out}"],
    "power": ["{protocol}"],
    "readings": ["{out}", "--out", "new"],
    "mlflow": ["{out}"],  # which has no store, so that no server starts
    "methods": ["trm"],
    "datasets": ["lgg"],
    "protocols list": [],
    "protocols show": ["{protocol}"],
    "protocols copy": ["{protocol}", "new.yaml"],
    "protocols schema": [],
    "doctor": [],
    "data phantom": ["--layout", "iseg2019", "--subjects", "1", "--spacing", "6", "--out", "new"],
    "data check": ["{protocol}"],
    "data download": ["fets2021"],
    "risk-map": ["--checkpoint", "{source}", "--image", "{image}", "--label", "{label}",
                 "--out", "map.nii.gz"],
    "predict": ["--checkpoint", "{source}", "--image", "{image}", "--out", "classes.nii.gz"],
    "export": ["--checkpoint", "{source}", "--out", "new"],
    "sources inspect": ["{source}"],
    "cluster slurm": ["--folder", "new", "--dry-run"],
    "cluster lsf": ["--folder", "new", "--dry-run"],
    "cluster pbs": ["--folder", "new", "--dry-run"],
    "cluster ssh": ["nowhere", "--folder", "new", "--dry-run"],
    "cluster local": ["--folder", "new", "--dry-run"],
    "bench": ["--methods", "finetune", "--sections", "steps", "--steps", "1", "--rounds", "3",
              "--patch", "16,16,16"],
}  # fmt: skip

VALUES = {
    "empty": "",
    "blank": "   ",
    "minus one": "-1",
    "zero": "0",
    "nan": "nan",
    "inf": "inf",
    "1e400": "1e400",
    "10^25": "1" + "0" * 25,
    "10^5000": "1" + "0" * 5000,
    "superscript": "²",
    "Arabic digits": "٣",
    "text": "nonsense",
    "long text": "x" * 5000,
    "long path": "y/" * 3000,
    "half a character": "a\udc80b",
    "control characters": "a\x1b[31m\x07\nb",
    "markup": "<script>[red]x[/red][/]",
    "a comma": ",",
    "commas": ",,a,,",
    "a name twice": "trm,trm",
    "way up": "../../../../../../etc/passwd",
    "nobody's home": "~nosuchuser/x",
    "a dash": "-",
    "a percent": "%s%n{0}{out}",
    "a folder": "{folder}",
    "a file": "{file}",
    "under a file": "{file}/inner",
    "a pipe": "{pipe}",
    "a link to itself": "{loop}",
    "/dev/zero": "/dev/zero",
    "/dev/null": "/dev/null",
    "/dev/full": "/dev/full",
    "/proc": "/proc/1",
    "a url": "sqlite:////nowhere/x.db",
}


def parameters() -> dict[str, list[tuple[str, str]]]:
    """Command to its parameters: the name, and whether it is an argument, an option, or a flag."""
    import typer

    from trm_bench.cli import app

    found: dict[str, list[tuple[str, str]]] = {}

    def walk(command: Any, name: str) -> None:
        if inner := getattr(command, "commands", None):
            for sub, one in inner.items():
                walk(one, f"{name} {sub}".strip())
            return
        found[name] = [
            (p.opts[0], "flag" if getattr(p, "is_flag", False) else p.param_type_name)
            for p in command.params
            if p.name != "help"
        ]

    walk(typer.main.get_command(app), "")
    return found


def places(scene: Scene) -> dict[str, str]:
    """What values and arguments may name; made in the scene's folder."""
    base, folder = scene.base, scene.folder
    (folder / "folder").mkdir()
    (folder / "file").write_text("some text\n")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    images = {n: base.data / f / "toy_000.nii.gz" for n, f in NIFTI.items()}
    named = {n: folder / n for n in ("folder", "file", "pipe", "loop")}
    other = {"protocol": base.protocol, "source": base.source, "whole": base.folder / "again"}
    return {k: str(v) for k, v in {**images, **named, **other, "out": folder / "out"}.items()}


NIFTI = {"image": "imagesTr", "label": "labelsTr"}


def filled(text: str, named: dict[str, str]) -> str:
    for name, place in named.items():
        text = text.replace("{" + name + "}", place)
    return text


def line(command: str, parameter: str, what: str, value: str) -> list[str]:
    """The command with its usual arguments, and the bad value in the place of one."""
    given = list(GIVEN.get(command, ()))
    if what == "flag":
        return [*command.split(), *given, f"{parameter}={value}"]
    if what == "option":
        if parameter in given:
            given[given.index(parameter) + 1] = value
            return [*command.split(), *given]
        return [*command.split(), *given, parameter, value]
    if given and not given[0].startswith("--"):
        given = given[1:]
    return [*command.split(), *given, "--", value]


def odd(command: str, parameter: str, what: str, value: str, scene: Scene) -> None:
    """One bad value."""
    named = places(scene)
    reading = ("list", "show", "report", "readings", "verify", "verdict", "compare")
    if command in (*reading, "sweep", "run"):
        copied(scene.base, scene.folder / "out")
    words = [filled(part, named) for part in line(command, parameter, what, VALUES[value])]
    scene.call(*words, codes=(0, 1, 2))


def bare(words: tuple[str, ...], codes: tuple[int, ...], scene: Scene) -> None:
    scene.call(*words, codes=codes)


def cases(base: Base, seed: int) -> Iterator[Case]:
    """Every parameter of every command with every value, and some lines of another shape."""
    draws = random.Random(seed)
    for command, several in parameters().items():
        for parameter, what in several:
            values = draws.sample(sorted(VALUES), 3) if what == "flag" else list(VALUES)
            for value in values:
                play = partial(odd, command, parameter, what, value)
                yield Case("arguments: values", f"{command}: {parameter} is {value}", play)
        shapes = {
            "nothing": ((), (0, 1, 2)),
            "too much": (("a", "b", "c", "d"), (1, 2)),
            "an unknown option": (("--no-such-option",), (2,)),
            "help": (("--help",), (0,)),
            "debug": (("--debug", "--no-such-option"), (2,)),
        }
        for name, (tail, codes) in shapes.items():
            if name == "nothing" and command in ("bench", "data phantom"):
                continue  # they work for minutes with their defaults
            if name in ("nothing", "too much") and command.startswith("cluster "):
                continue  # they start processes, or submit jobs
            words = (*command.split(), *tail)
            yield Case("arguments: lines", f"{command}: {name}", partial(bare, words, codes))
