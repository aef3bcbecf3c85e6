"""A result as comparisons take it: from records, from the files that a report left, or packed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trm_bench.errors import UserError
from trm_bench.inputs import is_file, read_text
from trm_bench.report.evidence import NAMES, Evidence, collect
from trm_bench.report.provenance import provenance
from trm_bench.report.summary import summary
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.store import read_results

MOST_BYTES = 64 * 2**20  # of a JSON file that a report left
REFERENCE = Path(__file__).parent / "reference"  # the packed reference results, by protocol
Ends = tuple[float | None, float | None]

# keys of a protocol that change no number, or that stand in a comparison by themselves
FREE = ("name", "description", "claim", "tracking", "keep", "phantom", "sweep", "seeds")


class Known(BaseModel):
    """What a comparison reads of a JSON file; other keys are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Numbers(Known):
    """A method under one metric; see docs/results.md."""

    mean: float | None = None
    mean_interval: Ends = (None, None)
    sd_over_seeds: float | None = None
    gain: float | None = None
    gain_interval: Ends = (None, None)
    n_subjects: int = 0
    per_transfer: dict[str, float | None]


class Verdict(Known):
    """Of the claim, in words."""

    words: tuple[str, ...] = ()
    none_because: str = ""


class Splits(Known):
    """Their design."""

    name: str = "not stated"


class Summary(Known):
    """summary.json, or what of it a comparison needs."""

    protocol: str
    description: str = ""
    data: Literal["phantom", "real"]
    reference: str = "finetune"
    units: dict[str, str]
    seeds: tuple[int, ...]
    design: Splits = Splits()
    verdict: Verdict = Verdict()
    finding: str = ""
    states: dict[str, int] = Field(default_factory=dict)
    metrics: dict[str, dict[str, Numbers]]

    @model_validator(mode="after")
    def _known(self) -> Summary:
        if not self.metrics or not self.metrics.keys() <= NAMES.keys() & self.units.keys():
            raise ValueError(f"metrics are some of {', '.join(NAMES)}, each with its unit")
        return self


@dataclass(frozen=True)
class Compared:
    """A result of one protocol.

    Attributes:
        path: Of its folder.
        summary: Its numbers.
        settings: Key of the protocol, with dots, to value; empty where they are not known.
        evidence: What its records say; None where there are none.
    """

    path: Path
    summary: Summary
    settings: Mapping[str, Any]
    evidence: Evidence | None = None

    @property
    def methods(self) -> list[str]:
        """In the protocol's order."""
        return list(dict.fromkeys(m for of in self.summary.metrics.values() for m in of))

    def numbers(self, metric: str, method: str) -> Numbers | None:
        """Of a method under a metric, where it has any."""
        return self.summary.metrics.get(metric, {}).get(method)

    def unit(self, metric: str, difference: bool = False) -> str:
        """Of a metric's values, or of differences between them."""
        unit = self.summary.units[metric]
        return "points" if difference and unit == "%" else unit


def read(path: Path) -> list[Compared]:
    """The results in a folder: of a protocol, or of those below it.

    Raises:
        UserError: There are none, or a file is not what a report writes.
    """
    folders = [path] if _holds(path) else [p for p in sorted(path.glob("*")) if _holds(p)]
    if not folders:
        fix = "give a folder with records, or with the summary.json of a report"
        raise UserError("no results of trm-bench here", path, fix)
    return [
        of_records(ProtocolFolder(folder)) if is_file(folder / "plan.json") else of_files(folder)
        for folder in folders
    ]


def _holds(path: Path) -> bool:
    return is_file(path / "plan.json") or is_file(path / "summary.json")


def of_records(folder: ProtocolFolder) -> Compared:
    """A result from its records."""
    folder.refuse_links()
    return of_evidence(collect(read_results(folder)))


def of_evidence(evidence: Evidence) -> Compared:
    """A result from what its records say."""
    results = evidence.results
    protocol = provenance(results)["protocol"]
    numbers = Summary.model_validate(summary(evidence))
    return Compared(results.folder.path, numbers, settings_of(protocol), evidence)


def of_files(folder: Path) -> Compared:
    """A result from summary.json and, where it is there, provenance.json.

    Raises:
        UserError: One of them is not what a report writes.
    """
    origin = folder / "provenance.json"
    protocol = _json(origin).get("protocol") if is_file(origin) else None
    settings = settings_of(protocol if isinstance(protocol, dict) else {})
    content = _json(folder / "summary.json")
    return Compared(folder, _summary(content, folder / "summary.json"), settings)


def packed(result: Compared) -> str:
    """A result as a file of `REFERENCE`: what a comparison needs of it, and no more."""
    content = {
        "summary": result.summary.model_dump(mode="json"),
        "settings": dict(result.settings),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def reference_of(protocol: str) -> Compared | None:
    """The reference results of a bundled protocol, where the package has some."""
    path = REFERENCE / f"{protocol}.json"
    if not is_file(path):
        return None
    content = _json(path)
    return Compared(path, _summary(content["summary"], path), content["settings"])


def settings_of(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol as JSON, key by key with dots, its methods by their labels.

    What is empty or off says no more than a key that is not there, and is left out.
    """
    blocks = {key: value for key, value in protocol.items() if key not in FREE}
    methods = blocks.get("methods")
    if isinstance(methods, list):
        named = [m for m in methods if isinstance(m, dict)]
        blocks["methods"] = {str(m.get("label", m.get("name"))): m for m in named}
        for label, method in blocks["methods"].items():
            blocks["methods"][label] = {k: v for k, v in method.items() if v != label}
    return {key: value for key, value in _flat(blocks, "") if value}


def _flat(value: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{before}{key}.")
        else:
            yield f"{before}{key}", inner


def _summary(content: Any, where: Path) -> Summary:
    try:
        return Summary.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"is no summary of a report ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        raise UserError(what, where, "write the report again: trm-bench report") from error


def _json(path: Path) -> dict[str, Any]:
    fix = "write the report again: trm-bench report"
    try:
        content = json.loads(read_text(path, MOST_BYTES, fix))
    except (ValueError, RecursionError) as error:
        raise UserError("is no JSON", path, fix) from error
    if not isinstance(content, dict):
        raise UserError("holds no JSON object", path, fix)
    return content
