"""What all cases share: toy data, protocols, and finished results that cases copy and damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import toy
import yaml

from faults.runner import Runner

TRAINING = {
    "steps": 2,
    "batch": 1,
    "patch": [16, 16, 16],
    "optimizer": {"name": "adamw", "lr": 0.01},
}
HERE = ("--jobs", "1", "--device", "cpu")
TIMED = (".html", "provenance.json", "sweep/trials.csv", "sweep/summary.md")
"""Files that say when they were made or what it took; two are equal by chance alone."""
COMMANDS = (["run"], ["sweep", "--trials", "1", "--methods", "finetune,trm"])
READ = {  # readers of results, each with what follows its name; {out} is the results folder
    "report": ["{out}"],
    "verdict": ["{out}"],
    "power": ["{out}"],
    "compare": ["{out}", "{whole}", "--out", "compared"],
    "readings": ["{out}", "--out", "read"],
}


def write_protocol(path: Path, root: Path, /, **changes: Any) -> Path:
    """The smallest run there is: one source network and three runs of two steps."""
    training = {"source": dict(TRAINING), "target": dict(TRAINING)}
    return toy.write_protocol(path, root, **({"training": training} | changes))


def write_network(file: Path, seed: int) -> Path:
    """The toy protocol's network with two classes, as torch.save writes it."""
    import torch

    from trm_bench import networks
    from trm_bench.protocol.schema import NetworkConfig

    config = NetworkConfig.model_validate(toy.protocol(file)["network"])
    torch.save({"state_dict": networks.build(config, 1, 2, 3, seed).state_dict()}, file)
    return file


def across(root: Path, checkpoints: Path, /, **changes: Any) -> dict[str, Any]:
    """What makes the toy protocol one from two networks from elsewhere, which keeps its own."""
    volume = {"crop": "none", "intensity": "zscore"}
    classes = ["background", "whole"]
    elsewhere = {
        name: {"checkpoint": str(checkpoints / f"{name}.pt"), "classes": classes}
        for name in ("one", "two")
    }
    return {
        "data": {"dataset": "decathlon", "root": str(root), "labels": "whole", "volume": volume},
        "domains": {"here": {}, **elsewhere},
        "transfers": {"kind": "cross_dataset", "pairs": [["one", "here"], ["two", "here"]]},
        "methods": ["finetune"],
        "keep": "all",
    } | changes


@dataclass(frozen=True)
class Base:
    """Made once; nothing in it is changed by a case.

    Attributes:
        folder: Where all of it lies.
        reference: Name to bytes of the files that come out the same whenever they are made.
        printed: Reader to what it prints of whole results.
        beside: Name to what is made likewise of another protocol, in a folder of its own: of
            networks from elsewhere (`elsewhere`), and what a command that was stopped has left
            (`stopped`), whose reference is what comes of it.
    """

    folder: Path
    reference: dict[str, bytes]
    printed: dict[str, str]
    beside: dict[str, Base] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The toy dataset."""
        return self.folder / "data"

    @property
    def sites(self) -> Path:
        """A toy dataset of two sites in nnU-Net's layout."""
        return self.folder / "sites"

    @property
    def protocol(self) -> Path:
        """A protocol on it, without tracking."""
        return self.folder / "p.yaml"

    @property
    def results(self) -> Path:
        """Results of that: a run and a sweep."""
        return self.folder / "out"

    @property
    def whole(self) -> Path:
        """Results of the same commands."""
        return self.folder / "again"

    @property
    def source(self) -> Path:
        """A source network."""
        return next((self.results / "sources").glob("*.safetensors"))

    @cached_property
    def text(self) -> str:
        """Of the protocol."""
        return self.protocol.read_text(encoding="utf-8")

    @cached_property
    def cells(self) -> set[str]:
        """The ids of the runs that are in the table; other records are of the sweep."""
        plan = json.loads((self.results / "toy" / "plan.json").read_text(encoding="utf-8"))
        return {cell["run"] for cell in plan["cells"]}

    def raw(self) -> dict[str, Any]:
        """The protocol, with every key that has a default."""
        from trm_bench.protocol import load_protocol

        whole = load_protocol(str(self.protocol)).model_dump(mode="json")
        return {k: v for k, v in whole.items() if v is not None}


def made(runner: Runner, folder: Path, results: Path, commands: Sequence[list[str]]) -> None:
    """Runs and sweeps the protocol in a folder.

    Raises:
        RuntimeError: A command did not end well, so that no case could say anything.
    """
    for command in commands:
        answer = runner.call(folder, *command, folder / "p.yaml", "--out", results, *HERE)
        if answer.code != 0:
            raise RuntimeError(f"the base cannot be made: {answer}")


def warm(runner: Runner, data: Path, folder: Path) -> None:
    """Has the warm process do once what most cases do, so that a fork takes a tenth of a second."""
    protocol = write_protocol(folder / "p.yaml", data)
    there = ("--out", folder / "out")
    for command in ("check", "run", "sweep"):
        tail = {"check": (), "sweep": (*HERE, "--trials", "1")}.get(command, HERE)
        runner.warm(command, protocol, *there, *tail)
    runner.warm("readings", folder / "out", "--out", folder / "read")


def files(folder: Path) -> dict[str, bytes]:
    """Every regular file below a folder, by its name there."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def build(folder: Path, runner: Runner) -> Base:
    """Makes the base, and what lies beside it."""
    data = toy.write_dataset(folder / "data", 8)
    toy.write_sites(folder / "sites", {"A": 4, "B": 4}, channels=2)
    (folder / "warm").mkdir()
    warm(runner, data, folder / "warm")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for seed, name in enumerate(("one", "two")):
        write_network(elsewhere / f"{name}.pt", seed)
    write_protocol(folder / "p.yaml", data)
    write_protocol(elsewhere / "p.yaml", data, **across(data, elsewhere))
    beside = {"elsewhere": _twice(elsewhere, runner, COMMANDS[:1], ("report", "compare"))}
    beside["elsewhere"].folder.joinpath("data").symlink_to(data)
    beside["stopped"] = _stopped(folder / "stopped", runner, data)
    return _twice(folder, runner, COMMANDS, READ, beside)


def _stopped(folder: Path, runner: Runner, data: Path) -> Base:
    folder.mkdir()
    write_protocol(folder / "p.yaml", data)
    base = _twice(folder, runner, COMMANDS[:1], ())
    shutil.rmtree(base.results)
    plants = runner.plants
    runner.plants = [*plants, "faults.plants:stops_a_run"]
    answer = runner.call(folder, "run", base.protocol, "--out", base.results, *HERE)
    runner.plants = plants
    if not list(base.results.glob("toy/savepoints/*.safetensors")):
        raise RuntimeError(f"no run was stopped: {answer}")
    return base


def _twice(
    folder: Path,
    runner: Runner,
    commands: Sequence[list[str]],
    readers: Iterable[str],
    beside: Mapping[str, Base] | None = None,
) -> Base:
    """Makes the results of a folder's protocol twice: what differs between the two holds times."""
    made(runner, folder, folder / "out", commands)
    made(runner, folder, folder / "again", commands)
    one, other = files(folder / "out"), files(folder / "again")
    if one.keys() != other.keys():
        raise RuntimeError(f"two runs leave different files: {sorted(one.keys() ^ other.keys())}")
    steady = [n for n, content in one.items() if content == other[n] and not n.endswith(TIMED)]
    reference = {name: one[name] for name in steady}
    needed = {"toy/table.md", "toy/metrics.csv"}
    needed |= {n for n in one if n.startswith(("sources/", "toy/networks/", "toy/sweep/tuned"))}
    if gone := needed - reference.keys():
        raise RuntimeError(f"two runs differ in {sorted(gone)}")
    base = Base(folder, reference, {}, dict(beside or {}))
    for name in readers:
        base.printed[name] = runner.call(folder, *reader(base, name, folder / "out")).output
    return base


def reader(base: Base, name: str, out: Path) -> list[str]:
    """The command line of a reader of results."""
    places = {"out": str(out), "whole": str(base.whole)}
    return [name, *(part.format(**places) for part in READ[name])]


def copied(base: Base, to: Path) -> Path:
    """A copy of the results, to be damaged."""
    shutil.copytree(base.results, to, symlinks=True)
    return to


def dumped(raw: Any, hole: Callable[[str], str] = lambda text: text) -> str:
    """A mapping as YAML text, passed through `hole`."""
    return hole(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
