"""Pickles read as data: nothing that one names is imported, called or built.

A pickle is a program for a small stack machine. Python's own `pickletools` takes it apart; here its
plain values are put together, and what would import a class or call a function stays a note of the
name and the arguments. So no name has to be trusted for safety; names that are not known to be
harmless are refused all the same, since nobody means to share such a file as weights.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MOST_BYTES = 32 * 2**20  # of a pickle; tensors lie beside it
MOST_OPERATIONS = 3_000_000  # about five seconds

HARMLESS = re.compile(
    r"__torch__\..+|__torch__ .+"  # TorchScript's own classes: data, and code that stays unread
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.jit\._pickle (build_\w+|restore_type_tag)"
    r"|torch (\w+Storage|Size|device|dtype|float\d*|double|half|bfloat16|u?int\d+|long|bool)"
    r"|torch\.storage (\w+Storage)"
    r"|torch\.serialization _get_layout"
    r"|collections (OrderedDict|defaultdict|Counter)"
    r"|numpy\._?core\.multiarray (scalar|_reconstruct)|numpy (dtype|ndarray)"
    r"|numpy\.dtypes \w+DType|_codecs encode"
    r"|(builtins|__builtin__) (set|frozenset|slice|complex|list|dict|int|float|bool|str)"
    r"|argparse Namespace|pathlib \w*Path|datetime (datetime|timedelta|date)"
)
"""`module name` of what weights and their settings are made of; none of it is ever looked up."""


class Refused(Exception):
    """A pickle that is not read; the text says why."""


@dataclass(frozen=True)
class Named:
    """A class or function that a pickle names: `module name`."""

    name: str


@dataclass(frozen=True)
class Persistent:
    """Something that lies outside the pickle: in torch's, a storage."""

    key: Any


@dataclass
class Made:
    """An object as a pickle describes it: what would be called, with what, and what it would hold.

    Attributes:
        by: The name of the class or function.
        arguments: Of the call.
        state: Attributes, or the items of what is like a dict.
    """

    by: str
    arguments: tuple[Any, ...]
    state: dict[Any, Any] = field(default_factory=dict)


def read(file: BinaryIO, most: int = MOST_BYTES, outside: list[Persistent] | None = None) -> Any:
    """The value of one pickle, which ends where `file` stands afterwards.

    Args:
        file: Standing at its start.
        most: Bytes that it may have.
        outside: Takes all that it says to lie outside, in order.

    Returns:
        None, bool, int, float, str, bytes, list, tuple, dict, set, `Named`, `Persistent`, `Made`.

    Raises:
        Refused: It is damaged, too large, or names what is not `HARMLESS`.
    """
    machine = _Machine([] if outside is None else outside)
    try:
        for count, (operation, argument, _) in enumerate(
            pickletools.genops(_Bounded(file, most))  # type: ignore[arg-type]
        ):
            if count > MOST_OPERATIONS:
                raise Refused(f"its pickle has more than {MOST_OPERATIONS} operations")
            if operation.name == "STOP":
                return machine.stack.pop()
            machine.do(operation.name, argument)
    except Refused:
        raise
    except Exception as error:  # of any kind for odd bytes: both check little
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refused(f"its pickle is damaged: {reason}") from error
    raise Refused("its pickle has no end")


class _Bounded:
    """A file of which at most so many bytes can be read, so that no claim of a length counts."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file, self.left = file, most

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError(f"{size} bytes are claimed where {self.left} may follow")
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(self.left)
        self.left -= len(line)
        return line


MARK = object()


class _Machine:
    """The stack machine, without the operations that would run anything."""

    def __init__(self, outside: list[Persistent]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.outside = outside

    def do(self, name: str, argument: Any) -> None:
        """One operation."""
        if name in IGNORED:
            return
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in LITERALS:
            self.stack.append(argument)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self.stack.append(_named(argument))
        elif name == "STACK_GLOBAL":
            module, attribute = self.many(2)
            self.stack.append(_named(f"{module} {attribute}"))
        elif name == "POP":
            self.stack.pop()
        elif name in BUILDERS:
            BUILDERS[name](self)
        else:
            raise ValueError(f"the operation {name} has no use in weights")

    def many(self, number: int) -> list[Any]:
        """Takes so many values from the top."""
        if number > len(self.stack):
            raise IndexError("the stack is empty")
        taken = self.stack[len(self.stack) - number :]
        del self.stack[len(self.stack) - number :]
        return taken

    def marked(self) -> list[Any]:
        """Takes the values above the last mark, and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:  # IndexError where there is none
            at -= 1
            if at < 0:
                raise IndexError("there is no mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def push(self, value: Any) -> None:
        """Puts a value on top."""
        self.stack.append(value)

    def extend(self, values: list[Any]) -> None:
        """Adds to the list or set on top, or to what stands for one."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def fill(self, values: list[Any]) -> None:
        """Adds keys and values to the dict on top, or to what stands for one."""
        top = self.stack[-1]
        held = top.state if isinstance(top, Made) else top
        held.update(_items(values))

    def call(self, arguments: Any) -> None:
        """Notes a call of what is on top."""
        by = self.stack.pop()
        if not isinstance(by, Named):
            raise TypeError("it calls what is no name")
        given = arguments if isinstance(arguments, tuple) else (arguments,)
        if by.name == "collections OrderedDict":  # Python 2 gives its pairs at once
            self.push(_items([part for pair in (*given, ())[0] for part in pair]))
        else:
            self.push(Made(by.name, given))

    def persist(self) -> None:
        """Notes that what the top names lies outside."""
        self.outside.append(Persistent(self.stack.pop()))
        self.push(self.outside[-1])

    def build(self) -> None:
        """Notes the attributes of what is below the top."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Made) and isinstance(state, dict):
            self.stack[-1].state.update(state)  # those of a dict, as `_metadata`, have no use


def _named(name: str) -> Named:
    if not HARMLESS.fullmatch(name):
        shown = "".join(letter for letter in name if letter.isprintable())[:100]
        raise Refused(f"names '{shown.replace(' ', '.')}': that is code, or no part of weights")
    return Named(name)


def _items(values: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn; what no plain value names is left out."""
    pairs = zip(values[::2], values[1::2], strict=True)
    return {k: v for k, v in pairs if isinstance(k, str | int | float | bytes | None)}


IGNORED = {"PROTO", "FRAME"}
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # sets are lists here: what they hold may not be hashable
    "MARK": lambda: MARK,
}
BUILDERS: dict[str, Callable[[_Machine], object]] = {
    "TUPLE1": lambda m: m.push(tuple(m.many(1))),
    "TUPLE2": lambda m: m.push(tuple(m.many(2))),
    "TUPLE3": lambda m: m.push(tuple(m.many(3))),
    "TUPLE": lambda m: m.push(tuple(m.marked())),
    "LIST": lambda m: m.push(m.marked()),
    "FROZENSET": lambda m: m.push(m.marked()),
    "DICT": lambda m: m.push(_items(m.marked())),
    "APPEND": lambda m: m.extend(m.many(1)),
    "APPENDS": lambda m: m.extend(m.marked()),
    "ADDITEMS": lambda m: m.extend(m.marked()),
    "SETITEM": lambda m: m.fill(m.many(2)),
    "SETITEMS": lambda m: m.fill(m.marked()),
    "REDUCE": lambda m: m.call(m.stack.pop()),
    "NEWOBJ": lambda m: m.call(m.stack.pop()),
    "BINPERSID": lambda m: m.persist(),
    "BUILD": lambda m: m.build(),
}
