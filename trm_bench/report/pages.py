"""Self-contained HTML pages: of one protocol, of a comparison, and the index of a results folder.

Jinja2 escapes every text; scripts run by their hash alone, so that nothing in a record can act.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from trm_bench import __version__
from trm_bench.analysis.table import HIGHER_IS_BETTER, OVERALL
from trm_bench.analysis.transferability import predicts
from trm_bench.analysis.verdict import RULES
from trm_bench.analysis.voxels import REFERENCE
from trm_bench.errors import UserError
from trm_bench.report import comparison, particulars, tables, transferability, words
from trm_bench.report.captions import WORSE
from trm_bench.report.compared import Compared, of_files
from trm_bench.report.comparison import Beside
from trm_bench.report.drawing import Chart
from trm_bench.report.evidence import NAMES, PHANTOM, Evidence, direction
from trm_bench.runs.folders import ResultsFolder, run_folders

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
TONES = {
    "reproduced": "good",
    "smaller than claimed": "open",
    "contradicted": "bad",
    "not reproduced": "bad",
}
HARM = {words.YES: "bad", words.NO: "good"}
MOST_VALUES = 60_000  # of subjects, that a page holds to compare any two methods


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["version"] = __version__
    environment.globals["beside_reference"] = comparison.beside_reference
    for name, file in (("style", "style.css"), ("script", "page.js")):
        text = (TEMPLATES / file).read_text(encoding="utf-8")
        environment.globals[name] = Markup(text)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        environment.globals[f"{name}_hash"] = Markup(f"sha256-{digest}")
    return environment


def page(template: str, **values: Any) -> str:
    """A template, filled."""
    return _environment().get_template(template).render(**values)


# ----------------------------------------------------------------------------------- one protocol


def report(
    evidence: Evidence,
    charts: Sequence[Chart],
    absent: Sequence[str],
) -> str:
    """The page of one protocol.

    Args:
        evidence: What to show.
        charts: Written, pictures of subjects among them.
        absent: Lines on the charts that do not apply.
    """
    import yaml

    plan, unfinished = evidence.results.plan, evidence.results.unfinished()
    found = words.found(evidence)
    protocol = plan.protocol.model_dump(mode="json")
    return page(
        "report.html",
        e=evidence,
        description=plan.protocol.description,
        size=_size(evidence),
        found=found,
        harm_tone=HARM.get(found.harm, "open"),
        phantom=PHANTOM,
        problems=evidence.problems,
        tone=_tone(evidence.words),
        verdict_lines=words.reasons(evidence),
        verdict_rows=list(words.gains(evidence)),
        controls=list(words.controls(evidence)),
        main_gaps=words.main_gaps(evidence),
        gaps=_gaps(evidence),
        table_mark=WORSE,
        gone=words.gone(evidence),
        judge_notes=words.notes(evidence),
        tables=[_scores(evidence, metric) for metric in evidence.scores],
        compared=_each_subject(evidence),
        pictures=[*map(picture, charts)],
        lost_by=REFERENCE,
        absent=absent,
        sensitivity=list(words.sensitivity(evidence)),
        over_transfers=words.over_transfers(evidence),
        family=_without_banner(tables.family_table(evidence)),
        costs=list(words.costs(evidence)),
        confusion=list(words.confusion(evidence)),
        confusion_columns=["noise", "seeds", "true gain", *RULES, "half is shown"],
        unit=evidence.gain_unit(evidence.main.metric),
        rates=list(words.rates(evidence)),
        findings=list(words.findings(evidence)),
        transferability=transferability.section(
            evidence.predicts, evidence.reference, transferability.what_counts(evidence)
        ),
        unfinished=[(c.transfer, c.method, c.seed, why) for c, why in unfinished],
        left_out=[(x.subject, x.file, x.reason) for x in plan.left_out],
        **particulars.of(evidence),
        config=yaml.safe_dump(protocol, sort_keys=False, allow_unicode=True),
    )


def _size(evidence: Evidence) -> str:
    data = evidence.results.plan.data.capitalize()
    return f"{data} data; cells of the table: {_states(evidence.states()) or 'none'}."


def _states(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in sorted(numbers.items()))


def _without_banner(table: tables.Table | None) -> tables.Table | None:
    """A table whose notes leave to the page's head that the data are the stand-in."""
    if table is None:
        return None
    return replace(table, notes=[note for note in table.notes if note != PHANTOM])


def _gaps(evidence: Evidence) -> tables.Table | None:
    """The negative transfer gap of each method (row), over all transfers and in each (columns)."""
    rows = words.overall_classes(evidence).to_dict("records")
    known = {(row["method"], row["transfer"]): _gap(row) for row in rows}
    methods = list(dict.fromkeys(method for method, _ in known))
    places = [*([OVERALL] if len(evidence.transfers) > 1 else []), *evidence.transfers]
    if not methods:
        return None
    return tables.Table(
        "Negative transfer gap of each method",
        [words.ALL_TRANSFERS if place == OVERALL else place for place in places],
        [(m, [known.get((m, place), tables.Cell(None)) for place in places]) for m in methods],
        [],
    )


def _gap(row: Mapping[Hashable, Any]) -> tables.Cell:
    """A gap with its interval, marked where there is negative transfer."""
    low, high = (x if np.isfinite(x) else None for x in (row["low"], row["high"]))
    mark = WORSE if row["low"] > 0 else ""
    return tables.Cell(float(row["gap"]), low=low, high=high, signed=True, mark=mark)


def _scores(evidence: Evidence, metric: str) -> dict[str, Any]:
    """The table of a metric, with its heading and which way is better."""
    unit = evidence.unit(metric)
    return {
        "table": _without_banner(tables.build(evidence, metric)),
        "name": NAMES[metric],
        "unit": unit,
        "lower": not HIGHER_IS_BETTER[metric],
        "direction": direction(metric),
    }


def _each_subject(evidence: Evidence) -> dict[str, Any]:
    """The main metric of every test subject under every method, as the page's script reads it."""
    scores, found = evidence.main, evidence.best
    numbers = {
        transfer: {method: scores.by_subject(transfer, method) for method in evidence.methods}
        for transfer in evidence.transfers
    }
    count = sum(len(of) for methods in numbers.values() for of in methods.values())
    if len(evidence.methods) < 2 or not 0 < count <= MOST_VALUES:
        return {}
    transfers = {}
    for transfer, by_method in numbers.items():
        subjects = list(dict.fromkeys(s for of in by_method.values() for s in of))
        transfers[transfer] = {
            "subjects": subjects,
            "values": {
                method: [round(of[s], 2) if s in of else None for s in subjects]
                for method, of in by_method.items()
            },
        }
    content = {
        "points": evidence.gain_unit(scores.metric),
        "lower": not HIGHER_IS_BETTER[scores.metric],
        "transfers": transfers,
    }
    return {
        "metric": NAMES[scores.metric],
        "unit": evidence.unit(scores.metric),
        "method": found.method if found else evidence.focus,
        "numbers": json.dumps(content, separators=(",", ":"), ensure_ascii=False),
    }


def _tone(words: Sequence[str]) -> str:
    tones = {TONES.get(word, "open") for word in words}
    return tones.pop() if len(tones) == 1 else "open" if tones else ""


# --------------------------------------------------------------------------------------- pictures


def picture(chart: Chart) -> dict[str, Any]:
    """A chart as templates take it: as elements of the page, or as an image where it is pixels."""
    from markupsafe import Markup

    drawn = [path for path in (chart.svg, chart.narrow) if path]
    return {
        "title": chart.title,
        "caption": chart.caption,
        "alt": chart.alt,
        "source": "" if drawn else _embedded(chart.png),
        "svgs": [Markup(path.read_text(encoding="utf-8")) for path in drawn],
    }


def _embedded(png: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}"


# ------------------------------------------------------------------------------- several protocols


def index(folder: ResultsFolder) -> str:
    """The index of a results folder: what the summary of each report in it says."""
    rows = []
    for protocol in run_folders(folder.path):
        report = protocol.report("report.html")
        if not report.is_file():
            continue
        link = quote(report.relative_to(folder.path).as_posix())
        row: dict[str, Any] = {"link": link, "name": protocol.path.name, "trouble": ""}
        try:
            said = of_files(protocol.path).summary
        except UserError as error:
            row["trouble"] = str(error)
        else:
            row |= {"said": said, "runs": _states(said.states)}
            row["verdict"] = " / ".join(said.verdict.words)
        rows.append(row)
    return page("index.html", rows=rows)


def compare(labelled: Mapping[str, Compared], pairs: Sequence[Beside]) -> str:
    """The page of several results side by side.

    Args:
        labelled: Label to result.
        pairs: Two of one protocol each.
    """
    real = all(c.summary.data == "real" for c in labelled.values())
    references = dict.fromkeys(c.summary.reference for c in labelled.values())
    cells = comparison.foreseen(labelled)
    return page(
        "compare.html",
        rows=list(comparison.verdicts(labelled)),
        tables=comparison.by_metrics(labelled),
        pairs=pairs,
        stand_in="" if real else PHANTOM,
        transferability=transferability.section(predicts(cells), " or ".join(references)),
    )
