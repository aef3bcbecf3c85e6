"""Cases of protocols: every key with every bad value, through the file and --set, and bad files."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

import yaml

from faults.base import Base, dumped
from faults.case import CODE, Case, Scene, shown
from trm_bench.seals import digest_of_file

HOLE = "HERE_A_BAD_VALUE"  # a word that YAML writes without quotes

# What a value of a key may be replaced by, as YAML.
VALUES = {
    "null": "null",
    "true": "true",
    "minus one": "-1",
    "zero": "0",
    "a tiny number": "1.0e-320",
    "nan": ".nan",
    "inf": ".inf",
    "minus inf": "-.inf",
    "1e400": "1.0e+400",
    "10^30": "1" + "0" * 30,
    "10^5000": "1" + "0" * 5000,
    "empty text": '""',
    "text": "nonsense",
    "long text": '"' + "x" * 5000 + '"',
    "NUL": '"a\\0b"',
    "superscript": '"²"',
    "markup": '"<script>[red]alert(1)[/red]"',
    "way up": '"../../../etc"',
    "nobody's home": '"~nosuchuser/data"',
    "empty list": "[]",
    "list": "[1, two, null]",
    "list of lists": "[[[[[[1]]]]]]",
    "empty mapping": "{}",
    "mapping": "{a: 1}",
    "mapping of numbers": "{1: 2, 3.5: 4}",
    "a mapping as key": "{{a: b}: c}",
    "date": "2020-01-01",
    "binary": '!!binary "gIGC"',
    "set": "!!set {a, b}",
    "odd tag": "!odd thing",
    "code": '!!python/object/apply:os.system ["touch owned"]',
    "itself": "&a [*a]",
    "itself in a mapping": "&a {b: *a}",
    "alias of nothing": "*nowhere",
    "merge of a number": "{<<: 3}",
}
# No key takes these, so that a command that goes on has believed something impossible.
NEVER = {
    "nan", "inf", "minus inf", "1e400", "10^5000", "binary", "set", "odd tag", "code", "itself",
    "itself in a mapping", "alias of nothing", "a mapping as key", "mapping of numbers",
    "merge of a number",
}  # fmt: skip
NO_NUMBER = NEVER | {"true", "10^30", "text", "mapping", "list", "empty mapping", "empty text"}

COMMANDS: dict[str, tuple[str, ...]] = {
    "check": ("check", "{}", "--out", "out"),
    "run": ("run", "{}", "--out", "out", "--dry-run"),
    "power": ("power", "{}"),
    "data check": ("data", "check", "{}"),
}


def paths(raw: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key and every item."""
    inner = (
        raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    )
    for key, value in inner:
        yield (*at, key)
        yield from paths(value, (*at, key))


def value_at(raw: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        raw = raw[part]
    return raw


def holed(raw: dict[str, Any], path: tuple[str | int, ...], text: str) -> str:
    """The protocol as YAML, with `text` at a path."""
    whole = yaml.safe_load(yaml.safe_dump(raw))
    value_at(whole, path[:-1])[path[-1]] = HOLE
    return yaml.safe_dump(whole, sort_keys=False).replace(HOLE, text)


def call(scene: Scene, command: str, *rest: str, names: list[str], refused: bool) -> None:
    """Calls a command on p.yaml of the scene; nothing is trained by it."""
    words = [part.format("p.yaml") for part in COMMANDS[command]]
    answer = scene.call(*words, *rest, codes=(2,) if refused else (0, 2), names=names)
    if (scene.folder / "owned").exists():
        scene.fault(CODE, f"executed code of a protocol: {shown(answer)}")


def domains(base: Base) -> dict[str, Any]:
    """A protocol of domains, with every key that they and what goes with them can have."""
    raw = base.beside["elsewhere"].raw()
    one = raw["domains"]["one"]
    one |= {"sha256": digest_of_file(Path(one["checkpoint"])), "network": raw["network"]}
    one |= {"rename": [["^net", "model"]], "partial": False}
    volume = raw["data"]["volume"]
    sites = {"dataset": "nnunet", "root": str(base.sites), "images": ["mr1"], "volume": volume}
    sites |= {"institutions": ["A", "B"], "labels": {"ball": [1, 2]}, "distance_unit": "voxels"}
    raw["domains"] = {"here": {}, "one": one, "sites": sites}
    raw["data"] |= {"label_maps": {"low": {"low": [1]}}, "distance_unit": "mm"}
    raw["transfers"] |= {"pairs": [["one", "here"], ["one", "sites", "here"]], "same_task": True}
    return raw


def in_file(
    scene: Scene, of: Callable[[Base], Any], path: tuple[str | int, ...], value: str, command: str
) -> None:
    """A bad value in the file."""
    raw = of(scene.base)
    text = holed(raw, path, VALUES[value])
    (scene.folder / "p.yaml").write_text(text, encoding="utf-8")
    refused = is_refused(path, value_at(raw, path), value)
    names = [*keys(path), "p.yaml", VALUES[value].strip('"') or "p.yaml"]  # it may name a file
    call(scene, command, names=names, refused=refused)


def in_option(
    scene: Scene, of: Callable[[Base], Any], path: tuple[str | int, ...], value: str, command: str
) -> None:
    """The same through --set."""
    raw = of(scene.base)
    (scene.folder / "p.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    where = ".".join(map(str, path))
    refused = is_refused(path, value_at(raw, path), value)
    setting = f"{where}={VALUES[value]}"
    call(scene, command, "--set", setting, names=[*keys(path), "--set"], refused=refused)


def is_refused(path: tuple[str | int, ...], now: Any, value: str) -> bool:
    """Whether a value must be refused where `now` stands, by every command.

    A network's own arguments mean something to the network alone, which not all commands build.
    """
    is_number = isinstance(now, int | float) and not isinstance(now, bool) and "network" not in path
    return value in (NO_NUMBER if is_number else NEVER)


def keys(path: tuple[str | int, ...]) -> list[str]:
    """The names on a path; a message must have one of them."""
    return [part for part in path if isinstance(part, str)]


# Whole files

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS: dict[str, Callable[[str], bytes]] = {
    "empty": lambda text: b"",
    "blank": lambda text: b"\n\n   \n",
    "a list": lambda text: b"- a\n- b\n",
    "a number": lambda text: b"7\n",
    "two documents": lambda text: f"{text}---\n{text}".encode(),
    "a key twice": lambda text: f"{text}seeds: [1]\n".encode(),
    "an inner key twice": lambda text: text.replace("  batch", "  batch: 2\n  batch").encode(),
    "an unknown key": lambda text: f"{text}sedes: [0]\n".encode(),
    "a bomb of aliases": lambda text: (text + BOMB).encode(),
    "a bomb in x-shared": lambda text: f"{text}x-shared:\n{indent(BOMB, '  ')}".encode(),
    "deep nesting": lambda text: f"{text}x-shared: {'[' * 5000}{']' * 5000}\n".encode(),
    "deep mappings": lambda text: f"{text}x-shared: {'{a: ' * 3000}1{'}' * 3000}\n".encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "Latin-1": lambda text: f"{text}description: für\n".encode("latin-1"),
    "a BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "tabs": lambda text: text.replace("  ", "\t").encode(),
    "NUL": lambda text: text.encode() + b"\0\0\0",
    "control characters": lambda text: text.encode() + b"description: \x07\x1b[31mred\n",
    "carriage returns": lambda text: text.replace("\n", "\r").encode(),
    "a zip": lambda text: b"PK\x03\x04" + bytes(range(256)) * 20,
    "null as key": lambda text: f"{text}null: 3\n".encode(),
    "a number as key": lambda text: f"{text}3: 3\n".encode(),
    "a date as key": lambda text: f"{text}2020-01-01: 3\n".encode(),
    "a sexagesimal": lambda text: f"{text}seeds: [1:30:00]\n".encode(),
    "merge of itself": lambda text: f"{text}x-shared: &x {{<<: *x}}\n".encode(),
    "a megabyte": lambda text: f"{text}description: {'x' * 2**20}\n".encode(),
    "many keys": lambda text: (text + "".join(f"k{i}: 1\n" for i in range(20_000))).encode(),
}  # fmt: skip
MUST_FAIL = {
    "empty", "blank", "a list", "a number", "two documents", "a key twice", "an inner key twice",
    "an unknown key", "a bomb of aliases", "deep nesting", "UTF-16 without a mark", "Latin-1",
    "NUL", "control characters", "a zip", "null as key", "a number as key", "a date as key",
    "many keys",
}  # fmt: skip


def whole_file(scene: Scene, content: bytes, refused: bool, command: str) -> None:
    (scene.folder / "p.yaml").write_bytes(content)
    call(scene, command, names=["p.yaml"] if refused else [], refused=refused)


def odd_text(scene: Scene, name: str, command: str) -> None:
    whole_file(scene, TEXTS[name](scene.base.text), name in MUST_FAIL, command)


def truncated(scene: Scene, share: float, command: str) -> None:
    content = scene.base.text.encode()
    whole_file(scene, content[: int(share * len(content))], False, command)


def flipped(scene: Scene, seed: str, command: str) -> None:
    draws, content = random.Random(seed), bytearray(scene.base.text.encode())
    for _ in range(draws.choice((1, 1, 3, 20))):
        content[draws.randrange(len(content))] = draws.randrange(256)
    whole_file(scene, bytes(content), False, command)


def odd_place(scene: Scene, place: str, command: str) -> None:
    path = scene.folder / "p.yaml"
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    elif place == "broken link":
        path.symlink_to("nowhere")
    elif place == "link to itself":
        path.symlink_to("p.yaml")
    else:
        path.symlink_to(place)
    call(scene, command, names=["p.yaml"], refused=True)


# What is well formed and makes no sense

TWICE = {
    "seeds": "seeds=[0,0]",
    "seeds as text": 'seeds=["0","00"]',
    "pairs": "transfers.pairs=[[whole,lower_upper],[whole,lower_upper]]",
    "shots": "transfers.shots=[1,1]",
    "methods": "methods=[scratch,finetune,trm,trm]",
    "metrics": "metrics=[dice,dice]",
    "seeds of the sweep": "sweep.seeds=[0,0]",
    "transfers of the sweep": "sweep.transfers=[a,a]",
    "a label of another method": "methods=[scratch,{name: finetune, label: trm},trm_prior]",
    "no loss": "training.target.loss={cross_entropy: 0, dice: 0}",
    "no pairs": "transfers.pairs=[]",
    "no methods": "methods=[]",
    "no seeds": "seeds=[]",
    "no metrics": "metrics=[]",
    "a huge network": "network.channels=[1000000,1000000]",
    "a deep network": "network.num_res_units=100000000000000000000",
    "no strides": "network.strides=[0]",
    "a kernel of 10^9": "network.kernel_size=1000000000",
    "a huge patch": "training.target.patch=[100000,100000,100000]",
    "a huge batch": "training.target.batch=1000000000",
}


def senseless(scene: Scene, name: str, command: str) -> None:
    (scene.folder / "p.yaml").write_text(scene.base.text)
    names = [*TWICE[name].partition("=")[0].split("."), "--set"]
    call(scene, command, "--set", TWICE[name], names=names, refused=True)


OF_DOMAINS = ("data", "domains", "transfers", "keep")
ACROSS = {
    "a pair of one": ("transfers.pairs", "[[here]]"),
    "a chain of eleven": ("transfers.pairs", f"[[{', '.join(f'd{i}' for i in range(11))}]]"),
    "a pair of an unknown domain": ("transfers.pairs", "[[one, their]]"),
    "a domain to itself": ("transfers.pairs", "[[here, here]]"),
    "a checkpoint as target": ("transfers.pairs", "[[here, one]]"),
    "a checkpoint in between": ("transfers.pairs", "[[sites, one, here]]"),
    "leave one out of domains": ("transfers.pairs", "leave_one_out"),
    "domains of another kind": ("transfers.kind", "cross_task"),
    "a single domain": ("domains", "{here: {}}"),
    "an unknown way of channels": ("transfers.channels", "median"),
    "an unknown image": ("domains.sites.images", "[mr2]"),
    "an image twice": ("domains.sites.images", "[mr1, mr1]"),
    "an unknown institution": ("domains.sites.institutions", "[A, C]"),
    "institutions of a set without": ("domains.here.institutions", "[A]"),
    "an unknown label map": ("domains.sites.labels", "wohle"),
    "an unknown label value": ("domains.sites.labels", "{ball: [3]}"),
    "the background as class": ("domains.sites.labels", "{ball: [0]}"),
    "a class called background": ("domains.sites.labels", "{background: [1]}"),
    "a label value in two classes": ("domains.sites.labels", "{a: [1], b: [1]}"),
    "a class without values": ("domains.sites.labels", "{a: []}"),
    "a class of the dataset's name": ("data.label_maps", "{whole: {x: [1]}}"),
    "an unknown dataset": ("domains.sites.dataset", "nnunett"),
    "another layout": ("domains.sites.dataset", "decathlon"),
    "no such folder": ("domains.sites.root", "nowhere"),
    "a variable that is not set": ("domains.sites.root", "${NOT_SET_ANYWHERE}/x"),
    "no such checkpoint": ("domains.one.checkpoint", "nowhere.pt"),
    "a variable in a checkpoint": ("domains.one.checkpoint", "${NOT_SET_ANYWHERE}.pt"),
    "a device as checkpoint": ("domains.one.checkpoint", "/dev/zero"),
    "a folder as checkpoint": ("domains.one.checkpoint", "/etc"),
    "the protocol as checkpoint": ("domains.one.checkpoint", "p.yaml"),
    "another sha256": ("domains.one.sha256", "0" * 63 + "1"),
    "a sha256 in capitals": ("domains.one.sha256", "F" * 64),
    "a short sha256": ("domains.one.sha256", "abc"),
    "another network": ("domains.one.network.channels", "[8, 8]"),
    "an unknown network": ("domains.one.network.name", "UNett"),
    "a class alone": ("domains.one.classes", "[background]"),
    "classes of another head": ("domains.one.classes", "[background, a, b]"),
    "a class twice": ("domains.one.classes", "[a, a]"),
    "more channels": ("domains.one.channels", "[a, b]"),
    "no channels": ("domains.one.channels", "[]"),
    "an open bracket": ("domains.one.rename", '[["(", ""]]'),
    "a rule of one": ("domains.one.rename", '[["a"]]'),
    "a group that is not there": ("domains.one.rename", r"[['model', '\9']]"),
    "a group of no name": ("domains.one.rename", r"[['model', '\g<x>']]"),
    "a rule that takes for ever": ("domains.one.rename", "[['((\\w*)*)*$', '']]"),
    "a rule of deep brackets": ("domains.one.rename", f"[['{'(' * 140}a{')' * 140}', '']]"),
    "a huge repetition": ("domains.one.rename", "[['a{4294967296}', '']]"),
    "a rule that spoils all names": ("domains.one.rename", "[['.*', '']]"),
    "a rule that makes names grow": ("domains.one.rename", f"[['.', '{'x' * 300}']]"),
    "a thousand rules": ("domains.one.rename", f"[{', '.join(['[a, b]'] * 1000)}]"),
    "both a checkpoint and a dataset": ("domains.one.dataset", "decathlon"),
    "a name like a path": ("domains", "{../a: {}, /etc/passwd: {}, here: {}}"),
    "the head of other classes": ("domains.here.labels", "lower_upper"),
    "an unknown unit": ("domains.sites.distance_unit", "inches"),
    "an unknown way to keep": ("keep", "some"),
}  # fmt: skip
"""A key of `domains` and a value that makes no sense there."""


def of_domains(scene: Scene, name: str, command: str) -> None:
    (scene.folder / "p.yaml").write_text(dumped(domains(scene.base)))
    key, value = ACROSS[name]
    names = [*key.split("."), value]
    call(scene, command, "--set", f"{key}={value}", names=names, refused=True)


EXTENDS: dict[str, tuple[str, dict[str, str]]] = {
    "itself": ("p.yaml", {}),
    "itself by a way": ("./../case/p.yaml", {}),
    "in turn": ("b.yaml", {"b.yaml": "extends: p.yaml\n"}),
    "a long chain": ("b0.yaml", {f"b{i}.yaml": f"extends: b{i + 1}.yaml\n" for i in range(2000)}),
    "nothing there": ("none.yaml", {}),
    "nothing": ('""', {}),
    "the folder": (".", {}),
    "the folder above": ("..", {}),
    "outside": ("../p.yaml", {}),
    "/etc/passwd": ("/etc/passwd", {}),
    "/dev/zero": ("/dev/zero", {}),
    "a home": ("~/p.yaml", {}),
    "a variable": ("${HOME}/p.yaml", {}),
    "a link out": ("link.yaml", {"link.yaml": "-> /etc/passwd"}),
    "a link to itself": ("link.yaml", {"link.yaml": "-> link.yaml"}),
    "a link back": ("link.yaml", {"link.yaml": "-> p.yaml"}),
    "a list": ("[b.yaml]", {"b.yaml": "{}"}),
    "a number": ("3", {}),
    "NUL": ('"a\\0b"', {}),
    "long text": ("x" * 5000, {}),
    "a list in it": ("b.yaml", {"b.yaml": "- 1\n"}),
    "no YAML in it": ("b.yaml", {"b.yaml": "{"}),
    "an unknown key in it": ("b.yaml", {"b.yaml": "sedes: [0]\n"}),
    "a wrong value in it": ("b.yaml", {"b.yaml": "keep: some\n"}),
    "code in it": ("b.yaml", {"b.yaml": '!!python/object/apply:os.system ["touch owned"]'}),
    "a bomb in it": ("b.yaml", {"b.yaml": f"x-shared:\n{indent(BOMB, '  ')}"}),
    "deep mappings in both": ("b.yaml", {"b.yaml": f"description: {'{a: ' * 900}1{'}' * 900}\n"}),
}
"""What the protocol extends, and the files beside it."""


def extended(scene: Scene, name: str, command: str) -> None:
    below, beside = EXTENDS[name]
    for file, text in beside.items():
        if text.startswith("-> "):
            (scene.folder / file).symlink_to(text.removeprefix("-> "))
        else:
            (scene.folder / file).write_text(text)
    own = scene.base.text.replace("seeds:", "description: x\nseeds:")
    (scene.folder / "p.yaml").write_text(f"{own}extends: {below}\n")
    call(scene, command, names=["extends", "p.yaml", *beside], refused=True)


CHOICES = {
    "a seed twice": ("--seeds", "0,00"),
    "a superscript seed": ("--seeds", "²"),
    "a seed of many digits": ("--seeds", "1" * 5000),
    "a method twice": ("--methods", "trm,trm"),
    "a method unknown": ("--methods", "trn"),
    "nan as seed": ("--seeds", "nan"),
    "a negative seed": ("--seeds", "-1"),
    "a setting without a value": ("--set", "seeds"),
    "a setting without a key": ("--set", "=3"),
    "a setting of dots": ("--set", "...=3"),
    "a superscript index": ("--set", "methods.².label=a"),
    "a huge index": ("--set", f"methods.{'9' * 5000}.label=a"),
    "an index of a word": ("--set", "methods.x=a"),
    "a setting under a number": ("--set", "name.x.y=3"),
    "a NUL in a key": ("--set", "na\x01me=3"),
}


def chosen(scene: Scene, name: str, command: str) -> None:
    (scene.folder / "p.yaml").write_text(scene.base.text)
    option, value = CHOICES[name]
    call(
        scene,
        command,
        option,
        value,
        names=[option, value[:20], "the protocol is not valid"],
        refused=True,
    )


def cases(base: Base, seed: int) -> Iterator[Case]:
    """All of them: every key with every value through the file, a part of them through --set."""
    draws = random.Random(seed)

    def case(kind: str, name: str, play: Callable[..., None], *given: Any) -> Case:
        is_choice = play is chosen and CHOICES[given[0]][0] != "--set"
        command = draws.choice(("check", "run") if is_choice else tuple(COMMANDS))
        if play in (senseless, of_domains):  # a network is built by these alone
            command = draws.choice(("check", "run"))
        if play is senseless:
            command = "check" if "network" in TWICE[given[0]] else command
        return Case(
            f"protocol: {kind}", f"{name} ({command})", partial(_play, play, given, command)
        )

    for kind, of, blocks in (("values", Base.raw, None), ("domains", domains, OF_DOMAINS)):
        for path in paths(of(base)):
            if blocks and path[0] not in blocks:
                continue
            where = ".".join(map(str, path))
            for value in VALUES:
                yield case(kind, f"{where} is {value}", in_file, of, path, value)
            for value in draws.sample(sorted(VALUES), 6):
                yield case("--set", f"{kind}: {where}={value}", in_option, of, path, value)
    for name in ACROSS:
        yield case("domains", name, of_domains, name)
    for name in EXTENDS:
        yield case("extends", name, extended, name)
    for name in TEXTS:
        yield case("files", name, odd_text, name)
    for i in range(60):
        yield case("files", f"truncated to {i}/60", truncated, i / 60)
    for i in range(120):
        yield case("files", f"flipped bytes {i}", flipped, f"{seed} {i}")
    for place in ("folder", "pipe", "broken link", "link to itself", "/dev/zero", "/dev/null"):
        yield case("files", place, odd_place, place)
    for name in TWICE:
        yield case("sense", name, senseless, name)
    for name in CHOICES:
        yield case("sense", name, chosen, name)


def _play(play: Callable[..., None], given: tuple[Any, ...], command: str, scene: Scene) -> None:
    play(scene, *given, command)
