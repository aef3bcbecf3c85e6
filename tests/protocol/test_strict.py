"""The boundary: what is a number, a name and a plain value."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trm_bench.protocol.strict import LARGEST, Count, Measured, Name, Plain, Seeds, Strict


class Inner(Strict):
    flag: bool = False


class Block(Strict):
    number: float = 0.0
    whole: int | None = None
    sides: tuple[int, ...] = ()
    named: dict[str, float] | None = None
    axes: tuple[Literal[0, 1], ...] = ()
    either: bool | int = 0
    inner: Inner = Inner()
    name: Name = ""
    seeds: Seeds = (0,)
    any: Plain = None
    many: dict[str, Measured] | None = None
    counts: tuple[tuple[Count, str], ...] = ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", float("nan")),
        ("number", "inf"),
        ("number", "1e400"),
        ("number", True),
        ("whole", False),
        ("whole", 2**63),
        ("whole", "9" * 5000),
        ("sides", [1, True]),
        ("named", {"a": True}),
        ("named", {"a": "-inf"}),
        ("axes", [True]),
        ("seeds", [0, "0"]),
        ("seeds", []),
        ("seeds", [2**31]),
        ("name", "a\0b"),
        ("name", "a\nb"),
        ("name", "\ud800"),
        ("name", "a" * 201),
        ("many", {"a": True}),
        ("many", {"a": "1"}),
        ("many", {"a": float("nan")}),
        ("many", {"a": 10**400}),
        ("counts", [[True, ""]]),
        ("counts", [["1", ""]]),
        ("counts", [[1.0, ""]]),
        ("counts", [[-1, ""]]),
        ("counts", [[2**63, ""]]),
        ("any", {"a": [float("inf")]}),
        ("any", {1: 2}),
        ("any", {"a": {1, 2}}),
        ("any", [2**63]),
        ("any", "a\0"),
        ("any", "a" * 20_000),
        ("any", [0] * 200_000),
    ],
)
def test_what_is_refused_is_refused_at_its_key(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Block.model_validate({field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def test_numbers_in_text_and_true_where_it_is_wanted_are_taken() -> None:
    block = Block.model_validate(
        {"number": "1e-3", "whole": "7", "either": True, "inner": {"flag": True}, "any": [True]}
    )
    assert (block.number, block.whole, block.either, block.inner.flag) == (1e-3, 7, True, True)
    assert block.any == [True]
    block = Block.model_validate({"many": {"a": 1, "b": 0.5}, "counts": [[0, "a"], [2, "b"]]})
    assert block.many == {"a": 1.0, "b": 0.5} and block.counts == ((0, "a"), (2, "b"))


def test_a_plain_value_is_bounded_in_depth_also_where_it_holds_itself() -> None:
    deep: Any = []
    deep.append(deep)
    with pytest.raises(ValidationError, match="nested"):
        Block(any=deep)
    with pytest.raises(ValidationError, match="holds more than"):
        Block.model_validate({"sides": deep})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGEST, LARGEST)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abc \n", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=20,
)


@examples(100)
@given(JSON)
def test_plain_values_are_kept_as_they_are(value: Any) -> None:
    assert Block(any=value).any == value
