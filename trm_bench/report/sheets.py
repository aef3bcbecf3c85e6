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
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([defused(c) for c in row] for row in rows)
    return text.getvalue()


def of_frame(frame: pd.DataFrame) -> str:
    """A CSV file of a table, without its index."""
    written = frame.rename(columns=defused)
    for name in written.select_dtypes(["object", "string"]):
        written[name] = written[name].map(defused)
    for name in written.select_dtypes("category"):  # of which each text is kept once
        written[name] = written[name].cat.rename_categories(defused)
    return str(written.to_csv(index=False, lineterminator="\n"))
