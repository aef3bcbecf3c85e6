"""Loading a protocol: YAML, overrides, and messages that name the key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trm_bench.errors import UserError, nearest
from trm_bench.inputs import exists, is_file
from trm_bench.protocol.markup import parse_yaml, read_yaml
from trm_bench.protocol.schema import DomainConfig, Protocol, SetConfig

MOST_PROBLEMS = 20  # that one message lists
DEEPEST = 10  # protocols that extend one another


def bundled() -> dict[str, Path]:
    """The protocols that come with the package, by name."""
    folder = Path(str(resources.files("trm_bench.protocols")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_protocol(name: str, overrides: Sequence[str] = (), phantom: bool = False) -> Protocol:
    """Loads a protocol by path or bundled name.

    Args:
        name: A YAML file, or the bare name of a bundled protocol.
        overrides: `key.path=value`, the value read as YAML.
        phantom: Apply the protocol's `phantom.overrides`, before `overrides`.

    Raises:
        UserError: The file is missing or not YAML, a key is unknown, or a value does not fit.
    """
    path = find(name)
    raw = _extended(path, ())
    settings = [_parse(item) for item in overrides]
    if phantom:
        block = raw.get("phantom")
        if not isinstance(block, dict):
            raise UserError(
                "this protocol has no phantom",
                path,
                "leave --phantom out, or add a `phantom` block",
            )
        own = block.get("overrides") or {}
        for key, value in own.items() if isinstance(own, dict) else ():
            _set(raw, key, value, f"{path} (phantom.overrides)")
    for key, value in settings:
        _set(raw, key, value, "--set")
    protocol = parse(raw, path)
    _refuse_unlisted(protocol, path)
    return protocol


def _refuse_unlisted(protocol: Protocol, path: Path) -> None:
    """Raises `UserError` where a declared family names a method that the file does not list.

    A command may run some of the methods alone; what the file declares stays declared.
    """
    family = protocol.claim.family if protocol.claim else ()
    if isinstance(family, str):
        return
    labels = {method.label for method in protocol.methods}
    if unlisted := sorted({name for pair in family for name in pair} - labels):
        what = f"names methods that are not listed: {', '.join(unlisted)}"
        raise UserError(what, f"{path}: claim.family", "add them under methods, or leave them out")


def _extended(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """What a protocol's file says, over what the one says that it extends.

    Args:
        path: The file.
        below: Those that extend it.

    Raises:
        UserError: The file is no mapping, or what it extends is not there, lies elsewhere, or
            extends it in turn.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(
            "a protocol is a YAML mapping", path, "see the bundled ones: trm-bench protocols"
        )
    raw.pop("x-shared", None)  # a place for YAML anchors
    name = raw.pop("extends", None)
    if name is None:
        return raw
    where, known = f"{path}: extends", bundled()
    if not isinstance(name, str):
        raise UserError("is not the name of a protocol", where, "give a file, or a bundled one")
    base = known.get(name) or path.parent / name
    if not is_file(base):  # so that it can be resolved
        raise UserError(f"no protocol '{name}'", where, nearest(name, list(known)))
    if name not in known and not base.resolve().is_relative_to(path.parent.resolve()):
        raise UserError(f"'{name}' lies outside the protocol's folder", where, "copy it there")
    if base.resolve() in (path.resolve(), *below) or len(below) > DEEPEST:
        raise UserError(f"'{name}' extends this protocol in turn", where, "remove one of the two")
    return _over(_extended(base, (*below, path.resolve())), raw)


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A mapping over another, block by block.

    A block with another `name` is another thing, and takes nothing from the one below.
    """
    joined = dict(base)
    for key, value in own.items():
        below = joined.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            names = below.get("name"), value.get("name")
            if names[1] is None or names[0] == names[1]:
                value = _over(below, value)
        joined[key] = value
    return joined


def parse(raw: Mapping[str, Any], where: object) -> Protocol:
    """Validates a protocol.

    Every problem is listed with its key path, and unknown keys with the nearest valid one.
    """
    try:
        return Protocol.model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        # a list with a wrong item is too short for pydantic as well
        inner = {problem["loc"][:-1] for problem in problems if len(problem["loc"]) > 1}
        problems = [p for p in problems if p["type"] != "too_short" or p["loc"] not in inner]
        lines = []
        for problem in problems[:MOST_PROBLEMS]:
            # parts with brackets are not of the file: pydantic's names for what was tried
            key = ".".join(str(part)[:80] for part in problem["loc"] if "[" not in str(part))
            if problem["type"] == "extra_forbidden":
                known = _keys_at(problem["loc"][:-1])
                lines.append(f"{key}: unknown key; {nearest(str(problem['loc'][-1]), known)}")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                lines.append(f"{key}: {message[0].lower()}{message[1:]}" if key else message)
        if len(problems) > MOST_PROBLEMS:
            lines.append(f"and {len(problems) - MOST_PROBLEMS} more")
        raise UserError(
            "the protocol is not valid:\n    " + "\n    ".join(lines), where, "fix these keys"
        ) from error


def find(name: str) -> Path:
    """The file of a protocol: a path, or the name of a bundled one.

    Raises:
        UserError: There is none.
    """
    path = Path(name)
    known = bundled()
    if is_file(path) or (name not in known and exists(path)):
        return path  # what is no file is refused by its reader
    if name in known:
        return known[name]
    hint = f"give a path, or a bundled protocol: {nearest(Path(name).stem, list(known))}"
    raise UserError("no such protocol", name, hint)


def _parse(item: str) -> tuple[str, Any]:
    key, equals, value = item.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(
            f"'{item}' is not key.path=value",
            "--set",
            "for example --set training.target.steps=100",
        )
    return key, parse_yaml(value, f"--set {key}")


def _set(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Sets a dotted path.

    Missing mappings on the way are made, so that validation names the unknown key.
    """
    node: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        at: Any = _index(node, part, key, where) if isinstance(node, list) else part
        below = node[at] if isinstance(node, list) else node.get(at)
        if not isinstance(below, dict | list):
            below = node[at] = {}
        node = below
    if isinstance(node, list):
        node[_index(node, last, key, where)] = value
    else:
        node[last] = value


def _index(node: list[Any], part: str, key: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", part) or int(part) >= len(node):
        raise UserError(
            f"'{part}' in '{key}' is not an index of that list of {len(node)}",
            where,
            "count from 0",
        )
    if isinstance(node[int(part)], str):
        node[int(part)] = {"name": node[int(part)]}  # a method in its short form
    return int(part)


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """The valid keys of the block at a location of the schema."""
    model: Any = Protocol
    for part in location:
        if isinstance(part, int) or not hasattr(model, "model_fields"):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        inner = [
            a
            for a in (annotation, *getattr(annotation, "__args__", ()))
            if hasattr(a, "model_fields")
        ]
        model = inner[0] if inner else None
    return list(model.model_fields) if model is not None else []


def resolved(path: str, where: str, hint: str = "") -> Path:
    """A path of a protocol with `${VARIABLE}` and `~` resolved.

    Args:
        path: As the protocol has it.
        where: Its key.
        hint: What else may be done where a variable is not set.

    Raises:
        UserError: A variable is not set, or `~` stands for no user of this machine.
    """
    missing = [name for name in re.findall(r"\$\{(\w+)\}", path) if name not in os.environ]
    if missing:
        raise UserError(
            f"the environment variable {missing[0]} is not set",
            f"{where} = {path}",
            f"export {missing[0]}=FOLDER, or --set {where}=FOLDER{hint}",
        )
    text = re.sub(r"\$\{(\w+)\}", lambda m: os.environ[m[1]], path)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        fix = "write the folder's whole path"
        raise UserError(f"'{text}': no such user", where, fix) from error


def folder_of(protocol: Protocol, data: SetConfig) -> Path:
    """The folder of a data set of a protocol; see `resolved`."""
    mine = [
        name
        for name, domain in protocol.domains.items()
        if isinstance(domain, DomainConfig) and domain.root and protocol.set_of(domain) == data
    ]
    hint = ", or --phantom for the stand-in" if protocol.phantom else ""
    return resolved(data.root, f"domains.{mine[0]}.root" if mine else "data.root", hint)
