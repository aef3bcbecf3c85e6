"""CSV files that a spreadsheet shows, and does not run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# what makes a spreadsheet take a text for a formula, and what marks a text, doubled for who undoes
STARTS = ("=", "+", "-", "@", "\t", "\r", "'")


def defused(cell: object) -> object:
    """A cell as it is written: an apostrophe stands before a text that could be a formula.

    Numbers stay, those in texts too. Who reads the file leaves out the first apostrophe of a cell.
    """
    if not isinstance(cell, str) or not cell.startswith(STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def of_rows(rows: Iterable[Sequence[object]]) -> str:
    """A CSV file of rows, the head first."""
    return _written([defused(cell) for cell in row] for row in rows)


def of_frame(frame: pd.DataFrame) -> str:
    """A CSV file of a table, without its index; where a number or a name is missing, nothing."""
    head = [defused(name) for name in frame]
    columns = [_cells(frame[name]) for name in frame]
    return _written([head, *zip(*columns, strict=True)])


def _cells(column: pd.Series) -> list[object]:
    """A column's cells; a name that comes in many rows is looked at once."""
    if column.dtype == "category":
        names = [*map(defused, column.cat.categories), ""]  # the code of a missing one is -1
        return [names[code] for code in column.cat.codes.tolist()]
    cells = column.astype(object).where(column.notna(), "").tolist()
    return cells if column.dtype.kind in "biuf" else [defused(cell) for cell in cells]


def _written(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
