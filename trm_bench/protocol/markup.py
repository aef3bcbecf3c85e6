"""The one reader of YAML: plain values alone, from bounded text, with the line of a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from trm_bench.errors import UserError
from trm_bench.inputs import read_text
from trm_bench.protocol.strict import DEEPEST

MOST_BYTES = 2**20
MOST_NODES = 50_000  # with what aliases repeat
PREFIX = "tag:yaml.org,2002:"
MERGE = f"{PREFIX}merge"
SCALARS = tuple(PREFIX + name for name in ("str", "int", "float", "bool", "null"))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without dates, which stay text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as in PyYAML's own classes)
        first: [(tag, pattern) for tag, pattern in pairs if tag != f"{PREFIX}timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Fault(Exception):
    """What is wrong with a node."""

    def __init__(self, node: yaml.Node, what: str) -> None:
        super().__init__(f"{what} (line {node.start_mark.line + 1})")


def read_yaml(path: Path, most: int = MOST_BYTES) -> Any:
    """The content of a YAML file; see `parse_yaml`.

    Raises:
        UserError: The file cannot be read, is larger than `most` bytes, or is refused.
    """
    return parse_yaml(read_text(path, most), path)


def parse_yaml(text: str, where: object) -> Any:
    """What YAML text says, as None, bool, int, float, str, list and dict, none of them shared.

    Refused are keys that are no text or come twice, anchors that hold themselves or repeat too
    much, tags of other types, and whatever is no YAML.

    Args:
        text: One document.
        where: What it is, for the message.

    Raises:
        UserError: It is refused.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Builder(loader).value(node)
    except Exception as error:  # of any kind for odd text: the parser checks little
        reason = " ".join(str(error).split())[:500]
        if isinstance(error, RecursionError):
            reason = "nested too deep"
        fix = "fix the YAML; text with special characters needs quotes"
        raise UserError(f"not YAML: {reason}", where, fix) from error


class _Builder:
    """Builds values from nodes, anew wherever an alias repeats one."""

    def __init__(self, loader: _Loader) -> None:
        self.loader, self.nodes = loader, 0
        self.above: list[yaml.Node] = []

    def value(self, node: yaml.Node) -> Any:
        """The value of a node."""
        self.nodes += 1
        if any(node is other for other in self.above):
            raise _Fault(node, "an anchor holds itself")
        if len(self.above) > DEEPEST:
            raise _Fault(node, f"nested over {DEEPEST} deep")
        if self.nodes > MOST_NODES:
            raise _Fault(node, f"more than {MOST_NODES} values")
        self.above.append(node)
        try:
            if isinstance(node, yaml.ScalarNode) and node.tag in SCALARS:
                return self.scalar(node)
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{PREFIX}seq":
                return [self.value(item) for item in node.value]
            if isinstance(node, yaml.MappingNode) and node.tag == f"{PREFIX}map":
                return self.mapping(node)
        finally:
            self.above.pop()
        tag = node.tag.replace(PREFIX, "!!")
        raise _Fault(node, f"the tag {tag} is not taken here")

    def scalar(self, node: yaml.ScalarNode) -> Any:
        """The value of a leaf."""
        try:
            value = self.loader.construct_object(node)
        except (
            Exception
        ) as error:  # ValueError and KeyError for `!!int x`, `!!bool x`, long numbers
            kind = node.tag.removeprefix(PREFIX)
            raise _Fault(node, f"'{node.value[:40]}' is no {kind} that can be read") from error
        if isinstance(value, int) and value.bit_length() > 1024:
            raise _Fault(node, "a number of more than 300 digits")
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _Fault(node, "half of a pair of UTF-16, which is no text")
        return value

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        """The value of a mapping; its own keys count more than those that `<<` brings."""
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == MERGE:
                several = isinstance(value, yaml.SequenceNode)
                for part in value.value if several else [value]:
                    if not isinstance(part, yaml.MappingNode):
                        raise _Fault(part, "<< takes a mapping, or a list of mappings")
                    merged = {**self.value(part), **merged}  # the first counts most
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{PREFIX}str":
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _Fault(key, f"the key {shown} is no text: put it into quotes")
            name = self.value(key)
            if name in own:
                raise _Fault(key, f"the key '{name}' comes twice")
            own[name] = self.value(value)
        return {**merged, **own}
