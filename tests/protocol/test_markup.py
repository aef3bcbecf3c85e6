"""The reader of YAML: what it takes, and that whatever else is one message."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from trm_bench.errors import UserError
from trm_bench.protocol import bundled
from trm_bench.protocol.markup import MOST_NODES, parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize("name", list(bundled()))
def test_what_pyyaml_reads_is_read_the_same(name: str) -> None:
    text = bundled()[name].read_text()
    assert parse_yaml(text, name) == yaml.safe_load(text)


def test_merges_and_aliases_are_copies() -> None:
    text = "a: &a {x: {y: 1}, z: 1}\nb: {<<: *a, z: 2}\nc: {<<: [{x: 0}, *a]}\nd: *a"
    found = parse_yaml(text, "x")
    assert found["b"] == {"x": {"y": 1}, "z": 2} and found["c"] == {"x": 0, "z": 1}
    assert found["b"]["x"] is not found["a"]["x"] and found["d"] is not found["a"]


def test_dates_stay_text() -> None:
    assert parse_yaml("[2020-01-01, 2001-12-14t21:59:43.10-05:00]", "x") == [
        "2020-01-01",
        "2001-12-14t21:59:43.10-05:00",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", r"'a' comes twice \(line 3\)"),
        ("a:\n  1: 2", r"the key 1 is no text.*\(line 2\)"),
        ("on: 1", "the key on is no text"),
        ("? [a]\n: 1", "a list or mapping is no text"),
        ("a: &a [*a]", "holds itself"),
        ("a: &a {<<: *a}", "holds itself"),
        (BOMB, f"more than {MOST_NODES} values"),
        ("a: !!set {b}", r"!!set is not taken here \(line 1\)"),
        ("a: !!python/name:os.system", "is not taken here"),
        ("a: !!binary aGk=", "is not taken here"),
        ("a: !!timestamp 2020-01-01", "is not taken here"),
        ("a: !!int b", "'b' is no int"),
        ("a: !!bool b", "'b' is no bool"),
        ("a: " + "9" * 5000, "is no int"),
        ("a: 0x" + "f" * 5000, "more than 300 digits"),
        ("a: [" * 5000, "too deep|nested"),
        ("[" * 20 + "]" * 20, "nested over 16 deep"),
        ('a: "\\ud800"', "no text"),
        ("a: {<<: 3}", "takes a mapping"),
        ("a: [1", "not YAML"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("a: *b", "not YAML"),
    ],
)
def test_what_is_refused_is_one_message(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        parse_yaml(text, "the file")
    assert caught.value.where == "the file"


@examples(300)
@given(st.text(st.sampled_from("ab1:-[]{}&*!<'\"\n .,?|>%@#~e²\0\ud800"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_yaml(text, "x")
    except UserError as error:
        assert "not YAML" in error.what


def test_files_that_are_none(tmp_path: Path) -> None:
    pipe, large, binary, zeros = (tmp_path / name for name in ("pipe", "large", "binary", "zeros"))
    os.mkfifo(pipe)
    large.write_bytes(b"a" * 3_000_000)
    binary.write_bytes(b"\xff\xfe\x00")
    zeros.write_bytes(b"a: \0")
    for path, said in (
        (pipe, "not a regular file"),
        (tmp_path, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (large, "larger than"),
        (binary, "not text in UTF-8"),
        (zeros, "holds NUL"),
        (tmp_path / "none", "cannot be read"),
        (tmp_path / ("a" * 300), "cannot be read"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            read_yaml(path)
        assert caught.value.where == str(path)
