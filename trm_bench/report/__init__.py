"""Everything a person reads, computed from records alone: `write` may be run at any time, as often as one likes."""

from __future__ import annotations

from pathlib import Path

from trm_bench.files import write_json, write_text
from trm_bench.report import figures, tables
from trm_bench.results import read


def write(folder: Path) -> list[Path]:
    """Writes metrics.csv, table.{md,csv,tex}, summary.json and the risk-map overlays of a protocol's folder.

    Returns:
        The files written.

    Raises:
        UserError: The folder holds no results.
    """
    results = read(folder)
    long = results.table()
    write_text(folder / "metrics.csv", long.to_csv(index=False, lineterminator="\n"))
    table = tables.build(results, long)
    for suffix, text in (("md", table.markdown()), ("csv", table.csv()), ("tex", table.latex())):
        write_text(folder / f"table.{suffix}", text)
    write_json(folder / "summary.json", tables.summary(results, long))
    written = [folder / name for name in ("metrics.csv", "table.md", "table.csv", "table.tex", "summary.json")]
    return written + figures.risk_overlays(results)
