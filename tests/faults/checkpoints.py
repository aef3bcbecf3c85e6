"""Cases of checkpoints from elsewhere: damaged, hostile and odd files, inspected and imported."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from faults.base import Base, dumped
from faults.case import CODE, SILENT, Case, Scene, shown
from faults.results import DAMAGES, Damage, flip, is_same
from trm_bench.seals import digest_of_file

FLIPS = 60
COMMANDS = ("inspect", "inspect --network", "check", "run")
IMPORTS = ("check", "run")


def state_of(base: Base) -> dict[str, Any]:
    """The tensors of a whole checkpoint, which fit the protocol's network."""
    import torch

    file = base.beside["elsewhere"].folder / "one.pt"
    state: dict[str, Any] = torch.load(file, weights_only=True)["state_dict"]
    return state


def call(
    scene: Scene, file: Path, command: str, codes: tuple[int, ...], **domain: object
) -> tuple[int, str]:
    """Inspects a file, or has a protocol import it; no code of it may run."""
    protocol, own = scene.folder / "p.yaml", dict(domain)
    raw = scene.base.beside["elsewhere"].raw()
    raw["domains"] = {"here": {}, "x": {"checkpoint": str(file), **own}}
    raw["transfers"] = {"kind": "cross_dataset", "pairs": [["x", "here"]]}
    protocol.write_text(dumped(raw))
    lines: dict[str, tuple[object, ...]] = {
        "inspect": ("sources", "inspect", file),
        "inspect --network": ("sources", "inspect", file, "--network", protocol),
        "check": ("check", protocol, "--out", "out"),
        "run": ("run", protocol, "--out", "out", "--dry-run"),
    }
    keys = ("checkpoint", "network") if "inspect" in command else ("domains.x",)
    answer = scene.call(*lines[command], codes=codes, names=[file.name, *keys])
    if (scene.folder / "owned").exists():
        scene.fault(CODE, f"executed code of a checkpoint: {shown(answer)}")
    left = list((scene.folder / "out" / "sources").glob("*"))
    if answer.code != 0 and left:
        scene.fault(CODE, f"left {left} of what it refuses: {shown(answer)}")
    return answer.code, answer.output


# Bytes


def as_torch(state: dict[str, Any], path: Path, legacy: bool = False) -> None:
    import torch

    torch.save(state, path, _use_new_zipfile_serialization=not legacy)


def as_safetensors(state: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path)


FORMATS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "torch": as_torch,
    "torch before 1.6": partial(as_torch, legacy=True),
    "safetensors": as_safetensors,
}


def damaged(kind: str, damage: Damage, seed: str, command: str, sealed: bool, scene: Scene) -> None:
    """A whole checkpoint, whose sha256 the protocol may know, is damaged."""
    draws, path = random.Random(seed), scene.folder / "net.bin"
    FORMATS[kind](state_of(scene.base), path)
    before, digest = path.read_bytes(), digest_of_file(path)
    damage(path, draws, [])
    known = {"sha256": digest} if sealed else {}
    must = sealed and command in IMPORTS and not is_same(path, before)
    if not path.is_file() or path.is_symlink():
        must = True
    call(scene, path, command, (2,) if must else (0, 2), classes=["background", "x"], **known)


# Contents


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, by: Any, *given: Any) -> None:
        self.by, self.given = by, given

    def __reduce__(self) -> Any:
        return self.by, self.given


SHELL = Evil(os.system, "touch owned")
EVALUATED = Evil(eval, "open('owned', 'w')")
BY_HAND = {
    "GLOBAL": b"cos\nsystem\n(S'touch owned'\ntR.",
    "INST": b"(S'touch owned'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch owned'\no.",
    "a name of dots": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x11open('owned','w')\x85R.",
    "EXT1": b"\x80\x02\x82\x01.",
    "a pickle in a pickle": b"c_pickle\nloads\n(S'cos\\nsystem\\n(S\"touch owned\"\\ntR.'\ntR.",
    "no end": b"\x80\x02}",
    "marks alone": b"\x80\x02" + b"(" * 100_000 + b".",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "a dict of itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "memo of 2^31": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a text of 2^62": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "digits": b"I" + b"9" * 20_000 + b"\n.",
    "a long of 100 MB": b"\x80\x02\x8b" + struct.pack("<i", 100_000_000) + b"1.",
}


def zipped(pickled: bytes, path: Path, compress: int = zipfile.ZIP_STORED, copies: int = 1) -> None:
    with zipfile.ZipFile(path, "w", compress) as archive:
        for i in range(copies):
            archive.writestr(f"net{i or ''}/data.pkl", pickled)
        archive.writestr("net/version", "3\n")
        archive.writestr("net/data/0", bytes(64))


def by_hand(name: str, inside: bool, path: Path, base: Base) -> None:
    if inside:
        zipped(BY_HAND[name], path)
    else:
        path.write_bytes(BY_HAND[name])


def evil(thing: Evil, protocol: int, path: Path, base: Base) -> None:
    import torch

    torch.save({**state_of(base), "x": thing}, path, pickle_protocol=protocol)


def evil_alone(thing: Evil, protocol: int, path: Path, base: Base) -> None:
    path.write_bytes(pickle.dumps(thing, protocol))


def changed(change: Callable[[dict[str, Any]], Any], path: Path, base: Base) -> None:
    """What `change` makes of a whole state, saved by PyTorch."""
    import torch

    state = state_of(base)
    made = change(state)
    torch.save(state if made is None else made, path)


def first(make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    """The first tensor becomes another."""

    def change(state: dict[str, Any]) -> dict[str, Any]:
        name = next(iter(state))
        return {**state, name: make(state[name])}

    return change


def named(name: object) -> Callable[[dict[str, Any]], Any]:
    """The first tensor has another name."""

    def change(state: dict[Any, Any]) -> dict[Any, Any]:
        key = next(iter(state))
        return {name: state[key], **{k: v for k, v in state.items() if k != key}}

    return change


def nested(state: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = state
    for _ in range(200):
        whole = {"state_dict": whole}
    return whole


def of_itself(state: dict[str, Any]) -> dict[str, Any]:
    state["model"] = state
    return state


def module(state: dict[str, Any]) -> Any:
    import torch

    return torch.nn.Linear(3, 3)


def many(state: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {f"t{i}": torch.zeros(1) for i in range(20_001)}


def safetensors_of(header: bytes, payload: bytes, path: Path, base: Base) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + payload)


def one_tensor(path: Path, base: Base, **about: object) -> None:
    whole = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **about}
    safetensors_of(json.dumps({"a": whole}).encode(), bytes(16), path, base)


def bundle(change: Callable[[dict[str, Any]], object], path: Path, base: Base) -> None:
    """The folder of a bundle of this network, with another configuration."""
    import torch

    for folder in ("configs", "models"):
        (path / folder).mkdir(parents=True)
    torch.save(state_of(base), path / "models" / "model.pt")
    network: dict[str, Any] = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1}
    network |= {"out_channels": 2, "channels": [4, 8], "strides": [2]}
    config = {"network_def": network, "a": 4}
    change(config)
    (path / "configs" / "inference.json").write_text(json.dumps(config))


def inside(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["network_def"].update(values)


Write = Callable[[Path, Base], None]
SHELL_TEXT = "$__import__('os').system('touch owned')"
HOSTILE: dict[str, Write] = {
    **{f"a shell in {p}": partial(evil, SHELL, p) for p in (2, 4)},
    **{f"eval in {p}": partial(evil, EVALUATED, p) for p in (2, 4)},
    **{f"a shell alone in {p}": partial(evil_alone, SHELL, p) for p in range(6)},
    **{f"{n}, by hand": partial(by_hand, n, False) for n in BY_HAND},
    **{f"{n}, in a zip": partial(by_hand, n, True) for n in BY_HAND},
    "a whole module": partial(changed, module),
    "a zip bomb": lambda p, b: zipped(bytes(300_000_000), p, zipfile.ZIP_DEFLATED),
    "a zip within": lambda p, b: zipped(b"PK\x03\x04" + bytes(100), p),
    "two contents": lambda p, b: zipped(pickle.dumps({}), p, copies=2),
    "a zip of nothing": lambda p, b: zipfile.ZipFile(p, "w").close(),
    "an empty dict": lambda p, b: zipped(pickle.dumps({}, 2), p),
    "no tensors": lambda p, b: zipped(pickle.dumps({"epoch": 3}, 2), p),
    "a text": lambda p, b: zipped(pickle.dumps("weights", 2), p),
    "a header of 2^60": lambda p, b: p.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
    "a header of deep lists": partial(safetensors_of, b"{" + b'"a":[' * 50_000, b""),
    "a header of nothing": partial(safetensors_of, b"{}", b""),
    "an unknown type": partial(one_tensor, dtype="F7"),
    "a shape that overflows": partial(one_tensor, shape=[2**40, 2**40]),
    "a negative shape": partial(one_tensor, shape=[-4]),
    "an end beyond the file": partial(one_tensor, data_offsets=[0, 2**40]),
    "another size": partial(one_tensor, shape=[5]),
    "a shell in a bundle": partial(bundle, inside(channels=SHELL_TEXT)),
    "code as a bundle's network": partial(bundle, lambda c: c.update(network_def=SHELL_TEXT)),
    "os.system as target": partial(bundle, inside(_target_="os.system", command="touch owned")),
    "a target outside MONAI": partial(bundle, inside(_target_="subprocess.Popen")),
    "a mode of a bundle": partial(bundle, inside(_mode_="debug")),
    "a reference to itself": partial(bundle, inside(channels="@network_def#channels")),
    "a reference to nothing": partial(bundle, inside(channels="@b")),
    "references in circles": partial(bundle, lambda c: c.update(network_def="@a", a="@a")),
    "a file in a bundle": partial(bundle, inside(channels="%/etc/passwd")),
    "no network in a bundle": partial(bundle, lambda c: c.pop("network_def")),
    "a list in a bundle": partial(bundle, lambda c: c.update(network_def=[1])),
}  # fmt: skip
"""What no command may take."""

UNFIT: dict[str, Write] = {
    "NaN": partial(changed, first(lambda t: t * float("nan"))),
    "infinity": partial(changed, first(lambda t: t + float("inf"))),
    "whole numbers": partial(changed, first(lambda t: t.long())),
    "complex numbers": partial(changed, first(lambda t: t + 1j)),
    "a sparse tensor": partial(changed, first(lambda t: t.to_sparse())),
    "another shape": partial(changed, first(lambda t: t[:1])),
    "a scalar": partial(changed, first(lambda t: t.sum())),
    "no numbers": partial(changed, first(lambda t: t[:0])),
    "seven axes": partial(changed, first(lambda t: t[None, None])),
    "a number for a tensor": partial(changed, first(lambda t: 3.5)),
    "an array for a tensor": partial(changed, first(lambda t: t.numpy())),
    "another name": partial(changed, named("other")),
    "an empty name": partial(changed, named("")),
    "a number as name": partial(changed, named(3)),
    "a name of lines": partial(changed, named("a\nb\x1b[31m")),
    "a name of markup": partial(changed, named("[red]a[/red] [/]")),
    "a long name": partial(changed, named("x" * 100_000)),
    "half a letter": partial(changed, named("\udc80")),
    "a tensor more": partial(changed, lambda s: {**s, "more": next(iter(s.values()))}),
    "a tensor less": partial(changed, lambda s: dict(list(s.items())[1:])),
    "module twice": partial(changed, lambda s: {**s, **{f"module.{k}": v for k, v in s.items()}}),
    "200 dicts deep": partial(changed, nested),
    "20,001 tensors": partial(changed, many),
    "optimiser alone": partial(changed, lambda s: {"optimizer": s}),
}
"""What can be looked at, and fits no network."""

ODD: dict[str, Write] = {
    "a dict of itself, saved": partial(changed, of_itself),
    "a huge network in a bundle": partial(bundle, inside(channels=[10**9, 10**9])),
    "an unknown network in a bundle": partial(bundle, inside(_target_="Unett")),
    "odd arguments in a bundle": partial(bundle, inside(channels={"a": None})),
}
"""What may be taken: weights that fit, beside other things that are wrong."""


def content(write: Write, codes: tuple[int, ...], command: str, partial_: bool, s: Scene) -> None:
    """A file of this content."""
    path = s.folder / "net.bin"
    write(path, s.base)
    more: dict[str, object] = {"partial": True} if partial_ else {}
    call(s, path, command, codes, classes=["background", "x"], **more)


def whole(kind: str, command: str, scene: Scene) -> None:
    """A good one, under any name of its format, is taken, whose numbers are those of the file."""
    path = scene.folder / "net.bin"
    FORMATS[kind](state_of(scene.base), path)
    code, said = call(scene, path, command, (0,), classes=["background", "x"])
    if code == 0 and "inspect" in command and digest_of_file(path) not in said:
        scene.fault(SILENT, said[-1000:])


def cases(base: Base, seed: int) -> Iterator[Case]:
    """Every format with every damage, and every content, through each command in turn."""
    turn = 0
    for kind in FORMATS:
        for command in COMMANDS:
            yield Case(
                "checkpoint: bytes", f"{kind}, whole ({command})", partial(whole, kind, command)
            )
        several: dict[str, Damage] = {f"flip {i}": flip for i in range(FLIPS)}
        several |= {
            f"{name} {i}": damage
            for name, damage in DAMAGES.items()
            for i in range(4)
            if name not in ("exchanged", "a copy of another", "a digit")
        }
        for name, damage in several.items():
            command, sealed, turn = COMMANDS[turn % 4], turn // 4 % 2 == 0, turn + 1
            play = partial(damaged, kind, damage, f"{seed} {kind} {name}", command, sealed)
            yield Case("checkpoint: bytes", f"{kind}, {name} ({command})", play)
    for contents, refuses in ((HOSTILE, COMMANDS), (UNFIT, IMPORTS), (ODD, ())):
        for name, write in contents.items():
            for command in COMMANDS:
                codes = (2,) if command in refuses else (0, 2)
                play = partial(content, write, codes, command, False)
                yield Case("checkpoint: content", f"{name} ({command})", play)
            if contents is UNFIT:
                play = partial(content, write, (0, 2), "run", True)
                yield Case("checkpoint: content", f"{name}, partial (run)", play)
