"""docs/results.md names every column and key that is written, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from reported import DICTIONARY, change, columns, documented, small

from trm_bench import report
from trm_bench.runs.folders import ProtocolFolder


def pattern(name: str) -> re.Pattern[str]:
    """Of the columns that a name with braces stands for."""
    return re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(name)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two reports, with a run missing, and their comparison."""
    output = tmp_path_factory.mktemp("dictionary")
    given = {"transfers": ["t1->t2"], "subjects": 4, "metrics": ("dice",)}
    methods = ["scratch", "finetune", "trm", "trm_prior"]
    for name in ("one", "two"):
        folder = small(output / name, methods=methods, **given)
        change(folder, 0, lambda r: r.update(state="failed", reason="out of luck"))
        report.write(ProtocolFolder(folder))
    report.compare([output], output / "both")
    return output


FIXED = [
    "metrics.csv",
    "comparisons.csv",
    "negative_transfer.csv",
    "voxel_rates.csv",
    "voxel_auroc.csv",
    "sensitivity.csv",
    "transferability.csv",
    "gamma.csv",
]


@pytest.mark.parametrize("name", FIXED)
def test_columns_in_their_order(written: Path, name: str) -> None:
    assert columns(written / "one" / name) == documented(f"### {name}")


@pytest.mark.parametrize(
    ("folder", "name"), [("one", "table.csv"), ("both", "compare.csv")], ids=["table", "compare"]
)
def test_columns_of_many_names(written: Path, folder: str, name: str) -> None:
    """Each column has one entry that fits best, and each entry has a column."""
    entries = documented(f"### {name}")
    found = {column: best_entry(column, entries) for column in columns(written / folder / name)}
    assert set(found.values()) == set(entries)


def best_entry(column: str, entries: list[str]) -> str:
    """The most literal entry that a column fits."""
    fitting = [e for e in entries if pattern(e).fullmatch(column)]
    assert fitting, column
    return max(fitting, key=lambda entry: len(re.sub(r"{\w+}", "", entry)))


def test_columns_of_the_agreement(written: Path) -> None:
    assert columns(written / "both" / "agreement.csv") == documented("### agreement.csv")


def test_transferability_of_several_has_one_column_more(written: Path) -> None:
    head = columns(written / "both" / "transferability.csv")
    assert head == ["results", *documented("### transferability.csv")]


def test_every_file_is_named(written: Path) -> None:
    for path in (p for folder in ("one", "both") for p in (written / folder).iterdir()):
        name = path.name if path.is_file() else f"{path.name}/"
        assert name in DICTIONARY, name


def test_keys_of_summary(written: Path) -> None:
    summary = json.loads((written / "one" / "summary.json").read_text())
    assert list(summary) == documented("## summary.json", "key")
    (keys,) = {tuple(own) for of in summary["metrics"].values() for own in of.values()}
    assert list(keys) == documented("## summary.json", "key of a method")
    for key in ("design", "verdict", "voxel_level"):
        (line,) = [x for x in DICTIONARY.splitlines() if x.startswith(f"| {key} |")]
        assert all(f"`{inner}`" in line for inner in summary[key]), key
