"""Names and texts of data, protocols and records act in nothing that a report writes."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from reported import change_plan, small

from trm_bench import report
from trm_bench.report import sheets
from trm_bench.report.sheets import STARTS, defused
from trm_bench.report.tables import Cell, Table

TRANSFERS = [
    "<script>alert(1)</script>->$x_{",
    "\"onmouseover=alert(1) '->]]>--><img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))->a|b\\|c`*",
    "=HYPERLINK(1)->@%#~^&\\",
]
METHODS = ["scratch", "finetune", "trm", "=1+1", "-x", "+^_", "_hidden"]
DESCRIPTION = "</pre></title><script>alert(1)</script> {{ 7 * 7 }} ]]> $\\frac{$"


class Acting(HTMLParser):
    """Counts what could act in a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag] if tag in ("script", "iframe", "object", "embed", "form") else []
        for name, value in attrs:
            link = name in ("href", "src") and not re.match(r"data:|#|[\w%/.-]+$", value or "")
            self.found += [f"{name}={value}"] if name.startswith("on") or link else []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two reports, and their comparison."""
    output = tmp_path_factory.mktemp("hostile")
    for name in ("one", "two"):
        given = {"methods": METHODS, "transfers": TRANSFERS, "seeds": (0, 1)}
        folder = small(output / name, subjects=4, metrics=("dice",), **given)
        change_plan(folder, lambda plan: plan["protocol"].update(description=DESCRIPTION))
    report.write_pages(output)
    report.compare([output / "one", output / "two"], output / "both")
    return output


def test_pages_hold_one_script_and_no_handler(written: Path) -> None:
    pages = sorted(written.rglob("*.html"))
    assert len(pages) == 4
    for path in pages:
        assert Acting(path).found == ["script"], path


def test_charts_are_images_alone(written: Path) -> None:
    charts = sorted(written.rglob("*.svg"))
    assert len(charts) > 6
    for path in charts:
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()}
        assert not tags & {"script", "a", "foreignObject", "image"}, path


def test_csv_files_hold_no_formula_and_all_names(written: Path) -> None:
    files = sorted(written.rglob("*.csv"))
    assert len(files) > 10
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [c for c in cells if c.startswith(STARTS[:-1]) and not is_number(c)], path
    table = pd.read_csv(written / "one" / "metrics.csv")
    assert table.value.dtype.kind == "f" and set(table.seed) == {0, 1}
    for column, names in (("transfer", TRANSFERS), ("method", METHODS)):
        assert set(table[column].str.removeprefix("'")) == set(names)


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@given(st.lists(st.text() | st.floats(allow_nan=False) | st.integers(), min_size=1))
@examples(200)
def test_a_cell_is_read_back_as_it_was(cells: list[object]) -> None:
    for cell in cells:
        shown = defused(cell)
        if isinstance(cell, str):
            assert str(shown).removeprefix("'") == cell
            assert not str(shown).startswith(STARTS[:-1]) or float(str(shown)) is not None
        else:
            assert shown is cell


def test_numbers_stay_numbers() -> None:
    frame = pd.DataFrame({"=n": [-1.5, None], "t": ["-1.5", "-x"], "m": [-2, "=1"]})
    assert sheets.of_frame(frame) == "'=n,t,m\n-1.5,-1.5,-2\n,'-x,'=1\n"
    kept_once = pd.DataFrame({"t": pd.Categorical(["=1", "b", "'=1", "=1"])})
    assert sheets.of_frame(kept_once) == "t\n'=1\nb\n''=1\n'=1\n"
    assert sheets.of_rows([["@a", -1, None], [True, "\t", "-2e3"]]) == "'@a,-1,\nTrue,'\t,-2e3\n"


def rows_of(text: str) -> Iterator[list[str]]:
    """The cells of each table row, split as GitHub's Markdown does."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield re.findall(r"(?:\\.|[^|\\])+", line.strip("|"))


def test_markdown_holds_no_tag_no_link_and_whole_rows(written: Path) -> None:
    for path in (written / "one" / "table.md", written / "both" / "compare.md"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<(?!/?u>)", text) and not re.search(r"(?<!\\)\]\(", text), path
        for part in text.split("\n\n"):
            assert len({len(row) for row in rows_of(part)}) <= 1, part


def test_latex_rows_begin_with_nothing_that_acts() -> None:
    names = ["[x]", "*", r"a&b\c%d$e#f_g{h}i~j^k", "x\n\ny"]
    table = Table("title\n\n[t]", names, [(n, [Cell(1.0)] * 4) for n in names], ["a\n\nb"])
    text = table.latex()
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 5 and not [row for row in rows if row.startswith(("[", "*"))]
    assert all(len(re.findall(r"(?<!\\)&", row)) == 4 for row in rows)
    escaped = r"a\&b\textbackslash{}c\%d\$e\#f\_g\{h\}i\~{}j\^{}k"
    assert rows[3].startswith(f"{escaped} & ") and "\n\n" not in text
