"""Loading a protocol: YAML, overrides, and messages that name the key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trm_bench.errors import UserError, nearest
from trm_bench.protocol.schema import Protocol


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
    path = _find(name)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"not a YAML file: {' '.join(str(error).split())}", path, "fix the YAML"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}", path, "check the path and its permissions"
        ) from error
    if not isinstance(raw, dict):
        raise UserError(
            "a protocol is a YAML mapping", path, "see the bundled ones: trm-bench protocols"
        )
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
    raw.pop("x-shared", None)  # a place for YAML anchors
    return parse(raw, path)


def parse(raw: Mapping[str, Any], where: object) -> Protocol:
    """Validates a protocol.

    Every problem is listed with its key path, and unknown keys with the nearest valid one.
    """
    try:
        return Protocol.model_validate(raw)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                known = _keys_at(problem["loc"][:-1])
                lines.append(f"{key}: unknown key; {nearest(str(problem['loc'][-1]), known)}")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                lines.append(f"{key}: {message[0].lower()}{message[1:]}" if key else message)
        raise UserError(
            "the protocol is not valid:\n    " + "\n    ".join(lines), where, "fix these keys"
        ) from error


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    known = bundled()
    if name in known:
        return known[name]
    hint = f"give a path, or a bundled protocol: {nearest(Path(name).stem, list(known))}"
    raise UserError("no such protocol", name, hint)


def _parse(item: str) -> tuple[str, Any]:
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise UserError(
            f"'{item}' is not key.path=value",
            "--set",
            "for example --set training.target.steps=100",
        )
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(
            f"the value of '{key}' is not YAML: {value}", "--set", "quote it"
        ) from error


def _set(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Sets a dotted path.

    Missing mappings on the way are made, so that validation names the unknown key.
    """
    node: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(node, list):
            node = node[_index(node, part, key, where)]
        else:
            if not isinstance(node.get(part), dict | list):
                node[part] = {}
            node = node[part]
    if isinstance(node, list):
        node[_index(node, last, key, where)] = value
    else:
        node[last] = value


def _index(node: list[Any], part: str, key: str, where: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
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


def data_root(protocol: Protocol) -> Path:
    """`data.root` with `${VARIABLE}` and `~` resolved.

    Raises:
        UserError: A variable is not set.
    """
    text = protocol.data.root
    missing = [name for name in re.findall(r"\$\{(\w+)\}", text) if name not in os.environ]
    if missing:
        raise UserError(
            f"the environment variable {missing[0]} is not set",
            f"data.root = {text}",
            f"export {missing[0]}=FOLDER, or --set data.root=FOLDER"
            + (", or --phantom for the stand-in" if protocol.phantom else ""),
        )
    return Path(re.sub(r"\$\{(\w+)\}", lambda m: os.environ[m[1]], text)).expanduser()
