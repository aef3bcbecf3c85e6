"""The schema of protocols, and the commands that list, show and copy them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import Run

from trm_bench.protocol import bundled, load_protocol
from trm_bench.protocol.reference import json_schema

SCHEMA = json_schema()


def fitting(schema: dict[str, Any], value: Any) -> Iterator[dict[str, Any]]:
    """The alternatives of a schema that a value could be meant for."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    for one in schema.get("anyOf", [schema]) if "properties" not in schema else [schema]:
        if "$ref" in one:
            yield from fitting(one, value)
        elif isinstance(value, dict) == ("properties" in one or "additionalProperties" in one):
            yield one


def problems(schema: dict[str, Any], value: Any, where: str) -> list[str]:
    """Keys that no alternative knows; values are the loader's affair."""
    found = []
    for one in fitting(schema, value):
        here = []
        if isinstance(value, dict):
            for key, inner in value.items():
                below = one.get("properties", {}).get(key, one.get("additionalProperties", True))
                if below is False:
                    here.append(f"{where}.{key}")
                elif isinstance(below, dict):
                    here += problems(below, inner, f"{where}.{key}")
        elif isinstance(value, list) and isinstance(one.get("items"), dict):
            here += [p for item in value for p in problems(one["items"], item, where)]
        if not here:
            return []
        found += here
    return found


@pytest.mark.parametrize("name", list(bundled()))
def test_the_schema_knows_the_keys_of_every_protocol(name: str) -> None:
    raw = yaml.safe_load(bundled()[name].read_text())
    assert problems(SCHEMA, raw, name) == []
    assert "extends" in raw or raw.keys() >= set(SCHEMA["anyOf"][1]["required"])


def test_the_schema_knows_no_other_keys() -> None:
    raw = yaml.safe_load(bundled()["fets_cross_modality"].read_text())
    raw["splt"] = {}
    raw["training"]["target"]["stepz"] = 1
    assert problems(SCHEMA, raw, "p") == ["p.training.target.stepz", "p.splt"]


def test_every_key_is_described() -> None:
    blocks = {"": SCHEMA, **SCHEMA["$defs"]}
    silent = [
        f"{block}.{key}"
        for block, content in blocks.items()
        for key, entry in content.get("properties", {}).items()
        if not entry["description"]
    ]
    assert not silent and all(content["description"] for content in blocks.values())


def test_the_schema_is_printed_as_json(trm_bench: Run) -> None:
    code, text = trm_bench("protocols", "schema")
    assert code == 0 and json.loads(text) == json.loads(json.dumps(SCHEMA))


def test_the_list_has_a_readable_line_for_each(trm_bench: Run) -> None:
    code, text = trm_bench("protocols", "list")
    assert code == 0 and text == trm_bench("protocols")[1]
    assert max(map(len, text.splitlines())) <= 80
    first = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert first >= set(bundled())


@pytest.mark.parametrize("name", ["fets_cross_modality", "hippocampus_few_shot", "fets_to_iseg"])
def test_what_is_shown_is_the_protocol(trm_bench: Run, tmp_path: Path, name: str) -> None:
    code, text = trm_bench("protocols", "show", name)
    assert code == 0 and text == bundled()[name].read_text()
    code, text = trm_bench("protocols", "show", name, "--resolved")
    whole = tmp_path / "whole.yaml"
    whole.write_text(text)
    assert code == 0 and "extends" not in text and "overlap: 0.5" in text
    assert load_protocol(str(whole)) == load_protocol(name)


def test_a_copy_overwrites_nothing(
    trm_bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "iseg_few_shot"
    code, text = trm_bench("protocols", "copy", name)
    copied = tmp_path / f"{name}.yaml"
    assert code == 0 and copied.read_text() == bundled()[name].read_text()
    assert f"trm-bench check {name}.yaml" in text
    copied.write_text("mine: 1")
    for where in ((), (".",), (f"{name}.yaml",)):
        code, text = trm_bench("protocols", "copy", name, *where)
        assert code == 2 and "is there already" in text and copied.read_text() == "mine: 1"
    assert trm_bench("protocols", "copy", "nothing")[0] == 2
