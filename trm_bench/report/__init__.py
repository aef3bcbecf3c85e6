"""Everything a person reads, computed from records alone: it may be written again at any time."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trm_bench.files import write_json, write_text
from trm_bench.report import comparison, figures, sheets, sources, tables
from trm_bench.report.evidence import Evidence, collect
from trm_bench.report.provenance import provenance
from trm_bench.report.summary import summary
from trm_bench.runs.folders import ProtocolFolder, ResultsFolder, protocol_folders
from trm_bench.runs.store import read_results, uncollected


def write(folder: ProtocolFolder) -> list[Path]:
    """Writes metrics.csv, table.{md,csv,tex}, the other CSV files, two JSON files and pictures.

    comparisons.csv holds all tests, negative_transfer.csv the gaps to scratch, voxel_rates.csv and
    voxel_auroc.csv the voxel level, sensitivity.csv what the tests could have found and what the
    seed changes, transferability.csv LEEP, mean risk and gain of each transfer and seed,
    gamma.csv the gains of methods that differ in gamma alone.
    summary.json has the numbers that a script wants, provenance.json what they come from. The
    indices of networks are written again too. Charts and pages take longer to draw: `write_pages`.

    Returns:
        The files written.

    Raises:
        UserError: The folder holds no results.
    """
    evidence = collect(read_results(folder))
    named = sources.write(folder.results)
    return [*_write(evidence), *(picture.png for picture in figures.draw(evidence)), *named]


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

    written, folders = [], protocol_folders(output)
    for folder in folders:
        with _read(folder) as evidence:
            page = folder.report("report.html")
            written += _write(evidence)
            gc.freeze()  # nor what is known of it by now
            drawn, absent = charts.draw(evidence)
            drawn += figures.draw(evidence)
            write_text(page, pages.report(evidence, drawn, absent))
            written += [*(path for chart in drawn for path in chart.files), page]
    written += sources.write(folders[0].results)
    if folders[0].path != output:
        written.append(write_index(ResultsFolder(output)))
    return written


@contextmanager
def _read(folder: ProtocolFolder) -> Iterator[Evidence]:
    """The evidence of a folder; what it holds is not looked through for circles while it is used.

    Millions of numbers have none, and Python would look anew whenever as much was drawn.
    """
    with uncollected():
        evidence = collect(read_results(folder))
        gc.freeze()
    try:
        yield evidence
    finally:
        gc.unfreeze()


def write_index(folder: ResultsFolder) -> Path:
    """Writes index.html over the reports that a results folder holds."""
    from trm_bench.report import pages

    write_text(folder.index, pages.index(folder))
    return folder.index


def compare(several: Sequence[Path], output: Path) -> tuple[list[Path], list[comparison.Beside]]:
    """Writes compare.{html,md,csv,tex}, several results side by side, agreement.csv and
    transferability.csv.

    Args:
        several: Folders of results or of protocols, with records or with a report alone.
        output: The folder to write to.

    Returns:
        The files written, and the first result of each protocol beside every other one of it.

    Raises:
        UserError: There are no results, fewer than two, or phantom beside real data.
    """
    from trm_bench.report import pages

    labelled = comparison.read_all(several)
    pairs = comparison.pairs(labelled)
    texts = comparison.texts(labelled, pairs)
    texts["compare.html"] = pages.compare(labelled, pairs)
    for name, text in texts.items():
        write_text(output / name, text)
    return [output / name for name in texts], pairs


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
        "gamma.csv": evidence.gamma,
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
