"""Everything a person reads, computed from records alone: it may be written again at any time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trm_bench.analysis.table import HIGHER_IS_BETTER
from trm_bench.errors import UserError
from trm_bench.files import write_json, write_text
from trm_bench.report import figures, sheets, tables, transferability
from trm_bench.report.evidence import Evidence, collect
from trm_bench.report.provenance import provenance
from trm_bench.report.summary import summary
from trm_bench.runs.folders import (
    ProtocolFolder,
    ResultsFolder,
    distinct_names,
    protocol_folders,
)
from trm_bench.runs.store import read_results


def write(folder: ProtocolFolder) -> list[Path]:
    """Writes metrics.csv, table.{md,csv,tex}, the other CSV files, two JSON files and pictures.

    comparisons.csv holds all tests, negative_transfer.csv the gaps to scratch, voxel_rates.csv and
    voxel_auroc.csv the voxel level, sensitivity.csv what the tests could have found and what the
    seed changes, transferability.csv LEEP, mean risk and gain of each transfer and seed.
    summary.json has the numbers that a script wants, provenance.json what they come from. Charts
    and pages take longer to draw: `write_pages`.

    Returns:
        The files written.

    Raises:
        UserError: The folder holds no results.
    """
    evidence = collect(read_results(folder))
    return [*_write(evidence), *(picture.png for picture in figures.draw(evidence))]


def write_pages(output: Path) -> list[Path]:
    """Writes all of `write`, the charts and report.html of every protocol, and the index over them.

    Args:
        output: A folder of results, or of one protocol.

    Returns:
        The files written, the index (only of a folder of results) last.

    Raises:
        UserError: There are no results.
    """
    from trm_bench.report import charts, pages

    written, listed = [], []
    for folder in protocol_folders(output):
        evidence = collect(read_results(folder))
        page = folder.report("report.html")
        written += _write(evidence)
        drawn, absent = charts.draw(evidence)
        drawn += figures.draw(evidence)
        write_text(page, pages.report(evidence, drawn, absent))
        written += [*(path for chart in drawn for path in chart.files), page]
        if folder.path != output:
            listed.append((page.relative_to(output).as_posix(), evidence))
    if listed:
        index = ResultsFolder(output).index
        write_text(index, pages.index(listed))
        written.append(index)
    return written


def compare(several: Sequence[Path], output: Path) -> list[Path]:
    """Writes compare.{html,md,csv,tex}, several results side by side, and transferability.csv.

    Args:
        several: Folders of results or of protocols.
        output: The folder to write to.

    Returns:
        The files written.

    Raises:
        UserError: There are no results, fewer than two, or phantom beside real data.
    """
    from trm_bench.report import pages

    paths = dict.fromkeys(f.path.resolve() for path in several for f in protocol_folders(path))
    results = [collect(read_results(ProtocolFolder(path))) for path in paths]
    if len(results) < 2:
        raise UserError("there is only one result here", several[0], "name two folders or more")
    if len({e.phantom for e in results}) > 1:
        listed = ", ".join(f"{e.results.folder.path} ({e.results.plan.data})" for e in results)
        what = f"phantom and real data never stand in one table: {listed}"
        raise UserError(what, fix="compare each kind by itself")
    labels = distinct_names([(e.name, e.results.folder) for e in results])
    labelled = dict(zip(labels, results, strict=True))
    metrics = list(dict.fromkeys(m for e in results for m in e.scores))
    by_metric = [tables.compare(labelled, m) for m in metrics]
    lower = [not HIGHER_IS_BETTER[m] for m in metrics]
    cells = transferability.pooled(labelled)
    texts = {
        "compare.md": "\n".join(t.markdown() for t in by_metric),
        "compare.csv": by_metric[0].csv(),
        "compare.tex": "\n".join(t.latex() for t in by_metric),
        "compare.html": pages.compare(labelled, by_metric, lower, cells),
        "transferability.csv": sheets.of_frame(cells),
    }
    for name, text in texts.items():
        write_text(output / name, text)
    return [output / name for name in texts]


def verdict(output: Path) -> tuple[bool, str]:
    """Judges every protocol of a folder.

    Returns:
        Whether each claim is upheld (`verdict.Judgement.holds`), and the verdicts in words.

    Raises:
        UserError: There are no results.
    """
    from trm_bench.report import words

    several = [collect(read_results(folder)) for folder in protocol_folders(output)]
    return all(e.holds for e in several), "\n\n".join(words.verdict(e) for e in several)


def _write(evidence: Evidence) -> list[Path]:
    """Writes tables and JSON files."""
    folder, table = evidence.results.folder, tables.build(evidence)
    frames = {
        "metrics.csv": evidence.long.drop(columns="data"),
        "negative_transfer.csv": evidence.gaps,
        "voxel_rates.csv": evidence.rates,
        "voxel_auroc.csv": evidence.findings,
        "sensitivity.csv": evidence.sensitivity,
        "transferability.csv": evidence.transferability,
    }
    declared = tables.family_table(evidence)
    both = [table, *([declared] if declared else [])]
    texts = {
        "table.md": "\n".join(t.markdown() for t in both),
        "table.csv": table.csv(),
        "table.tex": "\n".join(t.latex() for t in both),
        "comparisons.csv": tables.comparisons_csv(evidence),
    }
    texts |= {name: sheets.of_frame(f) for name, f in frames.items()}
    jsons = {
        "summary.json": summary(evidence),
        "provenance.json": provenance(evidence.results),
    }
    for name, text in texts.items():
        write_text(folder.report(name), text)
    for name, content in jsons.items():
        write_json(folder.report(name), content)
    return [folder.report(name) for name in (*texts, *jsons)]
