"""Cases of results: every kind of artefact, damaged in every way, read, verified and made again."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from faults.base import COMMANDS, HERE, Base, copied, files, reader
from faults.case import CODE, LOST, SILENT, WORDS, Case, Scene, shown
from trm_bench.runs.config import SCHEMA

# Kind of artefact to where it lies in a results folder.
ARTEFACTS = {
    "plan": "toy/plan.json",
    "record": "toy/records/*.json",
    "source": "sources/*.safetensors",
    "prepared": "prepared/decathlon/*.safetensors",
    "prediction": "toy/predictions/*/*.nii.gz",
    "slices": "toy/slices/*.safetensors",
    "audit": "toy/voxels/*.json",
    "tuned": "toy/sweep/tuned.yaml",
    "trials": "toy/sweep/trials.json",
    "import": "sources/*.safetensors",
    "network": "toy/networks/*.safetensors",
    "savepoint": "toy/savepoints/*.safetensors",
}
ELSEWHERE = ("import", "network")  # what the results lack that are made from sources of their own
SWEPT = ("tuned", "trials")
FLIPS = 100  # of each kind

SAID = re.compile(
    "damaged|left out|error|warning|checksum|cannot|not run|missing|no results|not a |does not",
    re.IGNORECASE,
)

Damage = Callable[[Path, random.Random, list[Path]], None]


# Damages; each gets the file, draws, and the other files of its kind


def flip(path: Path, draws: random.Random, others: list[Path]) -> None:
    content = bytearray(path.read_bytes())
    at = draws.randrange(len(content))
    content[at] ^= draws.randrange(1, 256)
    path.write_bytes(content)


def digit(path: Path, draws: random.Random, others: list[Path]) -> None:
    """One digit more or less, which every parser takes."""
    content = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
    at = draws.choice(places)
    content[at] = draws.choice([b for b in range(48, 58) if b != content[at]])
    path.write_bytes(content)


def cut(path: Path, draws: random.Random, others: list[Path]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draws.randrange(1, len(content))])


def longer(path: Path, draws: random.Random, others: list[Path]) -> None:
    path.write_bytes(path.read_bytes() + draws.randbytes(draws.choice((1, 100, 10_000))))


def empty(path: Path, draws: random.Random, others: list[Path]) -> None:
    path.write_bytes(b"")


def zeros(path: Path, draws: random.Random, others: list[Path]) -> None:
    """As after a crash of a file system that had kept the size alone."""
    path.write_bytes(bytes(path.stat().st_size))


def garbage(path: Path, draws: random.Random, others: list[Path]) -> None:
    path.write_bytes(draws.randbytes(draws.choice((3, 500, 5000))))


def gone(path: Path, draws: random.Random, others: list[Path]) -> None:
    path.unlink()


def exchange(path: Path, draws: random.Random, others: list[Path]) -> None:
    other = draws.choice(others)
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def another(path: Path, draws: random.Random, others: list[Path]) -> None:
    path.write_bytes(draws.choice(others).read_bytes())


def a_folder(path: Path, draws: random.Random, others: list[Path]) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


def a_link_out(path: Path, draws: random.Random, others: list[Path]) -> None:
    path.unlink()
    path.symlink_to(draws.choice(("/etc/passwd", "nowhere", path.name, "/dev/zero", "/dev/null")))


def a_pipe(path: Path, draws: random.Random, others: list[Path]) -> None:
    import os

    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Damage] = {
    "a digit": digit, "cut": cut, "longer": longer, "empty": empty, "zeros": zeros,
    "garbage": garbage, "gone": gone, "exchanged": exchange, "a copy of another": another,
    "a folder": a_folder, "a link": a_link_out, "a pipe": a_pipe,
}  # fmt: skip
OF_SEVERAL = ("exchanged", "a copy of another")
OF_TEXT = ("a digit",)

# Other contents of a JSON or YAML file: JSON, which YAML is too.
SHAPES = {
    "null": "null",
    "a list": "[]",
    "a number": "3",
    "a text": '"text"',
    "an empty mapping": "{}",
    "a state alone": '{"state": "finished"}',
    "a version alone": f'{{"schema_version": {SCHEMA}}}',
    "another version": '{"schema_version": 99, "more": 1}',
    "a version of text": '{"schema_version": "two"}',
    "deep lists": "[" * 20_000 + "]" * 20_000,
    "deep mappings": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "NaN": '{"a": NaN}',
    "a long number": "1" + "0" * 5000,
    "a half character": '{"a": "\\ud800"}',
}
INNER = (
    None, True, -1, 0, 3.5, "", "text", [], {}, [[]], {"a": {}}, {"auroc": {}}, float("nan"),
    float("inf"), 10**30, "9" * 4000,
)  # fmt: skip


def shape(text: str, path: Path, draws: random.Random, others: list[Path]) -> None:
    path.write_text(text, encoding="utf-8")


def inner(index: int, path: Path, draws: random.Random, others: list[Path]) -> None:
    """Some value in the file becomes another one, or its key goes; the rest is as it was."""
    import yaml

    is_yaml = path.suffix == ".yaml"
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text) if is_yaml else json.loads(text)
    node, parts = content, []
    while isinstance(node, dict | list) and node and (not parts or draws.random() < 0.75):
        key = draws.choice(list(node) if isinstance(node, dict) else range(len(node)))
        parts.append((node, key))
        node = node[key]
    if parts:
        holder, key = parts[-1]
        if index < len(INNER):
            holder[key] = INNER[index]
        else:
            del holder[key]
    path.write_text(yaml.safe_dump(content) if is_yaml else json.dumps(content), encoding="utf-8")


# What must come of it


def of(base: Base, kind: str) -> Base:
    """The results that have such artefacts."""
    name = "elsewhere" if kind in ELSEWHERE else "stopped" if kind == "savepoint" else ""
    return base.beside[name] if name else base


def chosen(base: Base, out: Path, kind: str, draws: random.Random) -> tuple[Path, list[Path]]:
    """A file of the kind, and the others of its kind."""
    paths = sorted(out.glob(ARTEFACTS[kind]))
    one = draws.choice(paths)
    return one, [p for p in paths if p != one and p.read_bytes() != one.read_bytes()]


def is_same(path: Path, before: bytes) -> bool:
    """Whether what is in a damaged file is what was in it: white space of JSON, say."""
    if path.is_symlink() or not path.is_file():
        return False
    now = path.read_bytes()
    try:
        if path.suffix == ".json":
            return bool(json.loads(now) == json.loads(before))
        if path.suffix == ".yaml":
            import yaml

            return bool(yaml.safe_load(now) == yaml.safe_load(before))
        if path.suffix == ".gz":
            return gzip.decompress(now) == gzip.decompress(before)
    except Exception:  # whatever a damaged file makes a parser raise
        return False
    return now == before


def again(kind: str, damage: Damage, seed: str, scene: Scene) -> None:
    """`verify` sees it and changes nothing; the command says so, mends it, and files are equal."""
    draws, base = random.Random(seed), of(scene.base, kind)
    out = copied(base, scene.folder / "out")
    path, others = chosen(base, out, kind, draws)
    before = path.read_bytes()
    damage(path, draws, others)
    harmless, is_gone = is_same(path, before), not (path.exists() or path.is_symlink())
    # nothing says that it was there
    unknown = is_gone and kind in ("prepared", "audit", "tuned", "network", "savepoint")
    seen = _verify(scene, out, (0, 1) if harmless or unknown else (1,))
    run, sweep = COMMANDS
    is_trial = kind == "record" and path.stem not in base.cells
    command = sweep if kind in SWEPT or is_trial else run
    if kind == "record" and damage is exchange:  # with one of the other command, which mends it
        other = run if is_trial else sweep
        scene.call(*other, base.protocol, "--out", out, *HERE, codes=(0,))
    answer = scene.call(*command, base.protocol, "--out", out, *HERE, codes=(0,))
    if answer.code == 0:
        said = "damaged" in answer.output
        if seen and not said and not is_gone and not harmless:
            scene.fault(WORDS, f"does not say that {path.name} was damaged: {shown(answer)}")
        reference = dict(base.reference)
        if kind == "network" and is_gone:  # a run is not done again for it
            del reference[path.relative_to(out).as_posix()]
            if "networks to keep are not there" not in answer.output:
                scene.fault(WORDS, f"does not say that {path.name} is gone: {shown(answer)}")
        equal(scene, out, reference, records(base.whole), f"{path.name}\n{shown(answer)}")
        _verify(scene, out, (0,))


def _verify(scene: Scene, out: Path, codes: tuple[int, ...]) -> bool:
    """Calls `verify`; it must change nothing. Returns whether it found something."""
    before = files(out)
    answer = scene.call("verify", out, codes=codes)
    if files(out) != before:
        scene.fault(CODE, f"changed the folder: {shown(answer)}")
    if answer.code == 1 and not answer.output.strip():
        scene.fault(WORDS, shown(answer))
    return answer.code == 1


def equal(
    scene: Scene, out: Path, reference: Mapping[str, bytes], theirs: set[str], detail: str
) -> None:
    """Notes what is not as in the reference: files that differ, records lost and doubled."""
    now = files(out)
    differ = sorted(n for n, content in reference.items() if n in now and now[n] != content)
    absent = sorted(reference.keys() - now.keys())
    if differ or absent:
        scene.fault(SILENT, f"differ: {differ[:8]}, absent: {absent[:8]}: {detail}")
    mine = records(out)
    if mine != theirs:
        scene.fault(LOST, f"{sorted(mine ^ theirs)}: {detail}")
    own = (".lock", ".settled")
    if left := [n for n in now if Path(n).name.startswith(".") and not n.endswith(own)]:
        scene.fault(LOST, f"temporary files are left: {left}: {detail}")


def records(out: Path) -> set[str]:
    """The names of the records of a results folder."""
    return {p.name for p in out.glob("*/records/*.json")}


def read(kind: str, damage: Damage, seed: str, name: str, scene: Scene) -> None:
    """A reader of damaged results says so, or gives the numbers of whole ones."""
    draws, base = random.Random(seed), of(scene.base, kind)
    out = copied(base, scene.folder / "out")
    path, others = chosen(base, out, kind, draws)
    damage(path, draws, others)
    answer = scene.call(*reader(base, name, out), codes=(0, 1, 2))
    if answer.hung or answer.code not in (0, 1, 2):
        return
    told = bool(SAID.search(answer.output.replace(str(out), "")))
    whole = base.printed[name].replace(str(base.results), str(out))
    if not told and name in ("verdict", "power") and answer.output != whole:
        scene.fault(SILENT, f"{path.name}: {shown(answer)}")
    if not told and name == "report":
        now = files(out)
        tables = {n: c for n, c in base.reference.items() if n.endswith((".csv", ".md", ".tex"))}
        if differ := [n for n, content in tables.items() if now.get(n) != content]:
            scene.fault(SILENT, f"{path.name}, {differ}: {shown(answer)}")


def used(kind: str, damage: Damage, seed: str, scene: Scene) -> None:
    """A damaged tuned.yaml given to `run`, a damaged network to the commands that apply one."""
    draws, base = random.Random(seed), of(scene.base, kind)
    out = copied(base, scene.folder / "out")
    path, others = chosen(base, out, kind, draws)
    before = path.read_bytes()
    damage(path, draws, others)
    is_whole = is_same(path, before) or (kind in ELSEWHERE and damage in (exchange, another))
    codes = (0, 2) if is_whole else (2,)  # a network may be copied, under any name
    if kind == "tuned":
        tail = ("--out", scene.folder / "new", "--dry-run")
        scene.call("run", base.protocol, "--tuned", path, *tail, codes=codes, names=[path.name])
    else:
        image, label = (base.data / f / "toy_000.nii.gz" for f in ("imagesTr", "labelsTr"))
        given = {
            "risk-map": ("--image", image, "--label", label, "--out", "m.nii.gz"),
            "predict": ("--image", image, "--out", "p.nii.gz"),
            "export": ("--out", "bundle"),
        }
        command = draws.choice([*given])
        tail = ("--checkpoint", path, *given[command])
        scene.call(command, *tail, codes=codes, names=[path.name])


def damages(kind: str) -> Iterator[tuple[str, Damage]]:
    """Every way to damage an artefact of a kind, but flips."""
    is_text = ARTEFACTS[kind].endswith((".json", ".yaml"))
    is_one = kind in ("plan", "audit", *SWEPT, "source", "savepoint")
    for name, damage in DAMAGES.items():
        if not (is_one and name in OF_SEVERAL) and (is_text or name not in OF_TEXT):
            for i in range(3):
                yield f"{name} {i}", damage
    if is_text:
        for name, text in SHAPES.items():
            yield name, partial(shape, text)
        for i in range(len(INNER) + 1):
            yield f"inner {i}", partial(inner, i)


def cases(base: Base, seed: int) -> Iterator[Case]:
    """Every artefact with every damage: made again, and read by one of the readers in turn."""
    turn = 0
    for kind in ARTEFACTS:
        flips: list[tuple[str, Damage]] = [(f"flip {i}", flip) for i in range(FLIPS)]
        readers = ("readings", "report") if kind in SWEPT else tuple(of(base, kind).printed)
        for name, damage in [*flips, *damages(kind)]:
            drawn = f"{seed} {kind} {name}"
            if name != "another version":  # which is refused, so that nothing of it is lost
                made = partial(again, kind, damage, drawn)
                yield Case(f"results: {kind}", f"{name}, made again", made)
            if kind in ("tuned", "source", *ELSEWHERE):
                uses = partial(used, kind, damage, drawn)
                yield Case(f"results: {kind}", f"{name}, used", uses)
            if kind == "savepoint":  # which no reader reads
                continue
            if name.startswith("flip") and int(name.split()[1]) % 2:
                continue
            one, turn = readers[turn % len(readers)], turn + 1
            reads = partial(read, kind, damage, drawn, one)
            yield Case(f"results: {kind}", f"{name}, read by {one}", reads)
