"""Which target networks stay in a protocol's folder once its runs have ended."""

from __future__ import annotations

from typing import Literal

from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Record
from trm_bench.runs.store import Results, read_results


def settle(folder: ProtocolFolder, keep: Literal["none", "best", "all"]) -> str:
    """Removes the networks that only stood by until the best one was known.

    Networks of runs that are in no cell of the plan stay as they are, and so do all under `none`.

    Returns:
        A sentence on networks that should be there and are not; "" where there are none.
    """
    if keep == "none":
        return ""
    results = read_results(folder)
    runs = {record.id for _, record in results.finished()}
    wanted = best(results) if keep == "best" else runs
    for run in runs - wanted:
        folder.network(run).unlink(missing_ok=True)
    missing = sum(not folder.network(run).exists() for run in wanted)
    if not missing:
        return ""
    why = "the runs were done without `keep`, or the files deleted since"
    return (
        f"{missing} of {len(wanted)} networks to keep are not there: {why}; delete the runs' "
        "records to train them again"
    )


def best(results: Results) -> set[str]:
    """Of each transfer and method the finished run with the best validation Dice.

    Of equal ones it is the first in the order of the cells.
    """
    found: dict[tuple[str, str], Record] = {}
    for cell, record in results.finished():
        so_far = found.setdefault((cell.transfer, cell.method), record)
        if (record.validation_dice or 0) > (so_far.validation_dice or 0):
            found[cell.transfer, cell.method] = record
    return {record.id for record in found.values()}
