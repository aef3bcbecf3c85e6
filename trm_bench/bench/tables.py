"""What a person sees of a report; 80 columns suffice."""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.table import Column, Table

from trm_bench.bench.machine import Machine
from trm_bench.bench.suite import Report
from trm_bench.bench.targets import Target
from trm_bench.bench.timing import Row, Section, ratio


def of(report: Report) -> list[Table]:
    """All tables of a report."""
    sections = [section_table(section, report.machine) for section in report.sections.values()]
    return [*sections, targets_table(report.targets)]


def section_table(section: Section, machine: Machine) -> Table:
    """A section: times, ratios to its reference, share of the peak, memory, where there are."""
    unit, scale = ("ms", 1000) if min(row.median for row in section.rows) < 0.5 else ("s", 1)
    headers = [section.title, f"{unit} a {section.unit}"]
    reference = section.row(section.reference)
    counted = any(row.flops for row in section.rows)
    headers += ["ratio", "range"] if reference else []
    headers += ["peak", "MiB"] if counted else []
    table = _table(headers, section.note)
    for row in section.rows:
        cells = [row.name, f"{scale * row.median:.{1 if scale > 1 else 2}f}"]
        if reference:
            cells += _compared(row, reference)
        if counted:
            cells += [_share(row, machine), _mebibytes(row)]
        table.add_row(*cells)
    return table


def _compared(row: Row, reference: Row) -> list[str]:
    if len(row.seconds) != len(reference.seconds):
        return ["", ""]
    value = ratio(row, reference)
    spread = f"{value.least:.3f} - {value.most:.3f}" if len(row.seconds) > 1 else ""
    return [f"{value.median:.3f}", spread]


def _share(row: Row, machine: Machine) -> str:
    share = machine.share(row)
    return "" if share is None else f"{share:.0%}"


def _mebibytes(row: Row) -> str:
    return "" if row.peak_memory is None else f"{row.peak_memory / 2**20:.0f}"


def targets_table(targets: list[Target]) -> Table:
    """Figure, what was measured, what is to be reached, and whether it is."""
    table = _table(["figure", "measured", "range", "reach", "met"], "")
    said = {True: "yes", False: "NO", None: "-"}
    for target in targets:
        value, one = target.value, ""
        if value and value.least < value.most:
            one = f"{value.least:.2f} - {value.most:.2f}"
        measured = f"{value.median:.2f}" if value else "-"
        table.add_row(target.figure, measured, one, f">= {target.reach:.2f}", said[target.met])
    return table


def machine_text(machine: Machine) -> str:
    """The machine in a few lines."""
    peaks = ", ".join(f"{kind} {peak:.0f}" for kind, peak in machine.peaks.items())
    load = "" if machine.load is None else f", load {machine.load:.1f}"
    threads = f", {machine.threads} thread a training" if machine.device == "cpu" else ""
    flags = f"\n{' '.join(machine.flags)}" if machine.device == "cpu" and machine.flags else ""
    return (
        f"{machine.name}, {machine.cores} cores{threads}{load}; torch {machine.torch}{flags}\n"
        f"matrix products, GFLOP/s: {peaks}"
    )


def _table(headers: list[str], note: str) -> Table:
    def column(index: int, header: str) -> Column:
        side: Literal["left", "right"] = "right" if index else "left"
        return Column(header, no_wrap=True, justify=side)

    columns = [column(i, header) for i, header in enumerate(headers)]
    return Table(
        *columns,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        caption=note or None,
        caption_justify="left",
        min_width=78 if note else None,  # which the note is set in
    )
