"""The boundary between what is parsed and the types: numbers, names, and values of any kind."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic.types import Strict as StrictKind

LARGEST = 2**63 - 1  # of whole numbers: what other programs that read JSON can hold
LARGEST_SEED = 2**31 - 1
MOST_NUMBERS = 10_000_000  # of a field
LONGEST = 200  # characters of a name
DEEPEST, MOST, LONGEST_TEXT = 16, 100_000, 10_000  # of a plain value

T = TypeVar("T")


class Strict(BaseModel):
    """A block of what is parsed: unknown keys are errors, and numbers are numbers.

    NaN, infinity, `true` and whole numbers beyond 64 bits are refused where a number is wanted;
    text that is a number is taken, since YAML 1.1 reads `1e-3` as text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if _holds_numbers_alone(cls, info.field_name or ""):
            _refuse_odd_numbers(value)
        return value


@cache
def _holds_numbers_alone(model: type[BaseModel], field: str) -> bool:
    """Whether a field has numbers, and nothing that may be `true` or that checks itself."""
    leaves = set(_leaves(model.model_fields[field].annotation))
    own = any(issubclass(leaf, bool | BaseModel) or leaf is object for leaf in leaves)
    return not own and bool(leaves & {int, float})


def _leaves(annotation: Any) -> Iterator[type]:
    """The classes that an annotation has; `object` for what is not known or checks itself."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield from map(type, get_args(annotation))
    elif origin is Annotated:
        kind, *others = get_args(annotation)
        itself = any(isinstance(other, StrictKind) for other in others)
        yield from [object] if itself else _leaves(kind)
    elif origin is not None:
        for argument in get_args(annotation):
            if argument is not Ellipsis:
                yield from _leaves(argument)
    else:
        known = isinstance(annotation, type) and annotation is not Any
        yield annotation if known else object


def _refuse_odd_numbers(value: Any) -> None:
    """Raises ValueError for `true`, `false` and over-long numbers, in lists and mappings too."""
    waiting: list[Iterable[Any]] = [[value]]
    held = 0
    for items in waiting:  # which grows
        if {float, str}.issuperset(map(type, items)):
            continue  # a report reads millions of numbers here
        for item in items:
            kind = type(item)
            if kind is dict or kind is list or kind is tuple:
                held += len(item)
                if held > MOST_NUMBERS:  # as of a list that holds itself
                    raise ValueError(f"holds more than {MOST_NUMBERS} values")
                waiting.append(item.values() if kind is dict else item)
            elif kind is bool:
                raise ValueError(f"{str(item).lower()} is not a number")
            elif kind is int and not -LARGEST <= item <= LARGEST:
                raise ValueError("the number is beyond 64 bits")


def _plain(value: Any) -> Any:
    """Raises ValueError for what JSON has no value for, and for what is too much of it."""
    waiting, seen = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if seen > MOST or depth > DEEPEST:
            raise ValueError(f"holds more than {MOST} values, or is nested over {DEEPEST} deep")
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                raise ValueError("the keys of a mapping must be text")
            waiting += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple):
            waiting += [(part, depth + 1) for part in item]
        elif isinstance(item, str):
            _readable(item, LONGEST_TEXT, controls="\n\t")
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise ValueError("must be a finite number")
        elif isinstance(item, int):
            if not -LARGEST <= item <= LARGEST:
                raise ValueError("the number is beyond 64 bits")
        elif item is not None:
            raise ValueError(f"is a {type(item).__name__}, not a number, text, list or mapping")
    return value


def _readable(text: str, longest: int, controls: str = "") -> str:
    """Raises ValueError for text that is too long or holds control characters."""
    if len(text) > longest:
        raise ValueError(f"is longer than {longest} characters")
    for letter in text:
        # Cs: half of a pair of UTF-16, which no file can hold
        if unicodedata.category(letter) in ("Cc", "Cs") and letter not in controls:
            raise ValueError(f"holds the control character U+{ord(letter):04X}")
    return text


def different(items: tuple[T, ...]) -> tuple[T, ...]:
    """Raises ValueError where an item comes twice."""
    seen = set()
    for item in items:
        if item in seen:
            raise ValueError(f"must be different, but {item} is listed twice")
        seen.add(item)
    return items


Plain = Annotated[Any, AfterValidator(_plain)]
"""A value of any kind from outside: what JSON has, of bounded size."""

# Of these a file of results holds millions, which pydantic alone looks at: as text they are none.
Measured = Annotated[float, StrictKind()]
Count = Annotated[int, StrictKind(), Field(ge=0, le=LARGEST)]

Name = Annotated[str, AfterValidator(lambda text: _readable(text, LONGEST))]
Text = Annotated[str, AfterValidator(lambda text: _readable(text, LONGEST_TEXT, "\n\t"))]
PathText = Annotated[str, Field(min_length=1), AfterValidator(lambda text: _readable(text, 4096))]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000), AfterValidator(different)]
Names = Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000), AfterValidator(different)]
