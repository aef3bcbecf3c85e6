"""Tables that say something about each subject: two columns of a csv file."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from trm_bench.datasets.subjects import LONGEST_ID
from trm_bench.errors import UserError
from trm_bench.inputs import read_text

MOST_BYTES = 2**24
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def read_column(file: Path, subject: str, column: str, fix: str) -> dict[str, str]:
    """What a column says of each subject.

    Args:
        file: The csv file, with a line of names; other columns do not matter.
        subject: The column of the subjects' ids.
        column: The column that is wanted.
        fix: What the person can do about a malformed file.

    Raises:
        UserError: A column is missing, a row is not one value of each, a name is too long or
            holds control characters, or a subject has two values; with the line.
    """
    found: dict[str, str] = {}
    try:
        rows = csv.DictReader(
            io.StringIO(read_text(file, MOST_BYTES, fix), newline=""), strict=True
        )
        missing = {subject, column} - {*(rows.fieldnames or ())}
        if missing:
            raise UserError(f"no column {' and no column '.join(sorted(missing))}", file, fix)
        for row in rows:
            where = f"{file}:{rows.line_num}"
            name, value = ((row[key] or "").strip() for key in (subject, column))
            if not name or not value or None in row:
                raise UserError(f"the row is not one {column} and one {subject}", where, fix)
            if max(len(name), len(value)) > LONGEST_ID:
                raise UserError(f"a name of more than {LONGEST_ID} letters", where, fix)
            if CONTROL.search(name + value):
                raise UserError("a name holds a control character", where, fix)
            if found.setdefault(name, value) != value:
                what = f"{name} has the {column} {found[name]} and the {column} {value}"
                raise UserError(what, where, fix)
    except csv.Error as error:
        raise UserError(f"the file is no csv table ({error})", file, fix) from error
    return found
