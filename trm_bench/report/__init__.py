"""Everything a person reads, computed from records alone: it may be written at any time, as often as one likes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trm_bench import statistics
from trm_bench.errors import UserError
from trm_bench.files import write_json, write_text
from trm_bench.report import evidence, figures, tables
from trm_bench.report.evidence import Evidence
from trm_bench.report.provenance import provenance
from trm_bench.results import folders, read


def write(folder: Path) -> list[Path]:
    """Writes metrics.csv, table.{md,csv,tex}, the other CSV files, two JSON files and risk maps.

    comparisons.csv holds all tests, negative_transfer.csv the gaps to scratch, voxel_rates.csv and voxel_auroc.csv the
    voxel level, sensitivity.csv what the tests could have found and what the seed changes.
    summary.json has the numbers that a script wants, provenance.json what they come from. Charts and pages take longer
    to draw: `write_pages`.

    Returns:
        The files written.

    Raises:
        UserError: The folder holds no results.
    """
    return _write(evidence.collect(read(folder)))


def write_pages(output: Path) -> list[Path]:
    """Writes all of `write`, the charts and report.html of every protocol, and the index over them.

    Args:
        output: A folder of results, or of one protocol.

    Returns:
        The files written, the index (only of a folder of results) last.

    Raises:
        UserError: There are no results.
    """
    from trm_bench.report import charts, html

    written, pages = [], []
    for folder in folders(output):
        found = evidence.collect(read(folder))
        files = _write(found)
        drawn, absent = charts.draw(found)
        overlays = [path for path in files if path.suffix == ".png"]
        write_text(folder / "report.html", html.report(found, drawn, absent, overlays))
        written += [*files, *(path for c in drawn for path in (c.png, c.svg)), folder / "report.html"]
        if folder != output:
            pages.append((f"{folder.name}/report.html", found))
    if pages:
        write_text(output / "index.html", html.index(pages))
        written.append(output / "index.html")
    return written


def compare(several: Sequence[Path], output: Path) -> list[Path]:
    """Writes compare.{html,md,csv,tex}: several results side by side.

    Args:
        several: Folders of results or of protocols.
        output: The folder to write to.

    Returns:
        The files written.

    Raises:
        UserError: There are no results, fewer than two, or phantom beside real data.
    """
    from trm_bench.report import html

    paths = list(dict.fromkeys(found.resolve() for path in several for found in folders(path)))
    found = [evidence.collect(read(path)) for path in paths]
    if len(found) < 2:
        raise UserError("there is only one result here", several[0], "name two folders or more")
    kinds = {e.results.plan["data"] for e in found}
    if len(kinds) > 1:
        listed = ", ".join(f"{e.results.folder} ({e.results.plan['data']})" for e in found)
        raise UserError(f"phantom and real data never stand in one table: {listed}", fix="compare each kind by itself")
    labelled = dict(zip(_labels(found), found, strict=True))
    metrics = list(dict.fromkeys(m for e in found for m in e.scores))
    made = [tables.compare(labelled, m) for m in metrics]
    texts = {
        "md": "\n".join(t.markdown() for t in made),
        "csv": made[0].csv(),
        "tex": "\n".join(t.latex() for t in made),
        "html": html.compare(labelled, made, [not statistics.HIGHER_IS_BETTER[m] for m in metrics]),
    }
    for suffix, text in texts.items():
        write_text(output / f"compare.{suffix}", text)
    return [output / f"compare.{suffix}" for suffix in texts]


def verdict(output: Path) -> tuple[bool, str]:
    """Judges every protocol of a folder.

    Returns:
        Whether each claim is reproduced, at least in its direction, and the verdicts in words.

    Raises:
        UserError: There are no results.
    """
    from trm_bench.report import words

    found = [evidence.collect(read(folder)) for folder in folders(output)]
    return all(e.holds for e in found), "\n\n".join(words.verdict(e) for e in found)


def _labels(found: Sequence[Evidence]) -> list[str]:
    """Each protocol's name; with the folder above it where a name comes twice; numbered where that does too."""
    names = [e.name for e in found]
    names = [
        n if names.count(n) == 1 else f"{e.results.folder.parent.name}/{n}" for n, e in zip(names, found, strict=True)
    ]
    return [n if names.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(names)]


def _write(found: Evidence) -> list[Path]:
    folder, table = found.results.folder, tables.build(found)
    texts = {
        "metrics.csv": found.long.drop(columns="data").to_csv(index=False, lineterminator="\n"),
        "table.md": table.markdown(),
        "table.csv": table.csv(),
        "table.tex": table.latex(),
        "comparisons.csv": tables.comparisons_csv(found),
        "negative_transfer.csv": found.gaps.to_csv(index=False, lineterminator="\n"),
        "voxel_rates.csv": found.rates.to_csv(index=False, lineterminator="\n"),
        "voxel_auroc.csv": found.findings.to_csv(index=False, lineterminator="\n"),
        "sensitivity.csv": found.sensitivity.to_csv(index=False, lineterminator="\n"),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / "summary.json", tables.summary(found))
    write_json(folder / "provenance.json", provenance(found.results))
    jsons = [folder / "summary.json", folder / "provenance.json"]
    return [*(folder / name for name in texts), *jsons, *figures.risk_overlays(found.results)]
