"""What evidence is gathered from: the methods compared, judgement, comparisons, what is missing."""

from __future__ import annotations

import numpy as np
import pandas as pd

from trm_bench.analysis import table, tests, verdict
from trm_bench.analysis.intervals import Design
from trm_bench.analysis.table import Grid
from trm_bench.analysis.voxels import REFERENCE, SCRATCH
from trm_bench.errors import UserError
from trm_bench.protocol.schema import CONTROLS, Claim, Protocol
from trm_bench.runs.store import Results


def sides(protocol: Protocol) -> tuple[str, str]:
    """Reference and focus: the claim's; else plain fine-tuning and trm, or what is in their place.

    Without fine-tuning training from scratch is the reference, or the first method; without a
    reading of trm the first other method that transfers is the focus.

    Args:
        protocol: With its methods.

    Returns:
        The method that others are compared with, and the one that is compared with all.
    """
    if protocol.claim:
        return protocol.claim.versus, protocol.claim.method
    of_name: dict[str, list[str]] = {}
    for method in protocol.methods:
        of_name.setdefault(method.name, []).append(method.label)
    labels = [method.label for method in protocol.methods]
    reference = [*of_name.get(REFERENCE, []), *of_name.get(SCRATCH, []), *labels][0]
    others = [label for label in labels if label != reference]
    readings = sorted(of_name.get("trm", []), key=lambda label: label != "trm")
    focus = [*readings, *(m for m in others if m != SCRATCH), *others, reference][0]
    return reference, focus


def judged(
    long: pd.DataFrame, protocol: Protocol, design: Design
) -> tuple[verdict.Judgement | None, str]:
    """The judgement on a protocol's claim, None where none can be made, and why no verdict.

    Args:
        long: The long table.
        protocol: With its claim.
        design: Of the splits.
    """
    claim = protocol.claim
    if claim is None or claim.gain is None:
        return None, "no verdict: this protocol holds no claim to judge"
    names = {m.label: m.name for m in protocol.methods}
    reading = names.get(claim.method, claim.method).startswith("trm")
    mapped = reading or not names.keys().isdisjoint(CONTROLS)
    try:
        judgement = verdict.judge(long, claim, design=design, mapped=mapped)
    except UserError as error:
        return None, f"no verdict: {error}"
    return judgement, judgement.no_verdict


def compared(
    rows: pd.DataFrame,
    metric: str,
    reference: str,
    focus: str,
    claim: Claim | None,
    design: Design,
) -> tuple[Grid | None, pd.DataFrame, str]:
    """Values, comparisons, and why there are none.

    Args:
        rows: Of the long table, of one metric.
        metric: Its name.
        reference: The method that all are compared with.
        focus: The method that is compared with all.
        claim: Declares the family.
        design: Of the splits.
    """
    try:
        grid = table.grid(rows, metric)
    except UserError as error:
        return None, pd.DataFrame(), "no run has finished" if rows.empty else str(error)
    if len(grid.methods) < 2 or not {reference, focus} & set(grid.methods):
        return grid, pd.DataFrame(), ""
    made = tests.compare(grid, metric, reference, focus, claim=claim, design=design)
    return grid, made, ""


def incomplete(results: Results, grid: Grid) -> dict[tuple[str, str], str]:
    """What each (transfer, method) lacks: seeds, or subjects that another method has."""
    planned: dict[tuple[str, str], set[int]] = {}
    done: dict[tuple[str, str], set[int]] = {}
    for cell in results.cells:
        planned.setdefault((cell.transfer, cell.method), set()).add(cell.seed)
    for cell, _ in results.finished():
        done.setdefault((cell.transfer, cell.method), set()).add(cell.seed)
    lacks = {}
    for (transfer, method), seeds in planned.items():
        finished = len(done.get((transfer, method), ()))
        if finished < len(seeds):
            lacks[transfer, method] = f"{finished} of {len(seeds)} seeds"
        elif method in grid.methods and transfer in grid.transfers:
            t = grid.transfers.index(transfer)
            has, all_have = int(np.isfinite(grid.of(method)[t]).sum()), int(grid.cells[t].sum())
            if has < all_have:
                lacks[transfer, method] = f"{has} of {all_have} scans"
    return lacks


def problems(long: pd.DataFrame, resampled: bool) -> list[str]:
    """Faults of the table; with a split a seed, each seed has its own test subjects."""
    if long.empty:
        return []
    parts = [part for _, part in long.groupby("seed")] if resampled else [long]
    return list(dict.fromkeys(problem for part in parts for problem in table.check(part)))
