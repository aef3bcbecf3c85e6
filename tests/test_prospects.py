"""`trm-bench power`: what could be found, before a benchmark and after a pilot."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import toy
from helpers import Run
from reported import small

from trm_bench import report
from trm_bench.runs.folders import ProtocolFolder

METHODS = ["scratch", "finetune", "trm", "trm_prior", "trm_uniform", "trm_shuffled"]
CLAIM = {"gain": 1.0, "unit": "points"}


def rows_of(text: str) -> dict[str, list[str]]:
    """Number of seeds to the rest of its row."""
    rows = [line.replace("no marks", "none").split() for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if row and row[0].isdigit()}


@pytest.fixture
def protocol(tmp_path: Path, toy_data: Path) -> Path:
    """With a claim of one point and a family of four."""
    return toy.write_protocol(tmp_path / "toy.yaml", toy_data, methods=METHODS, claim=CLAIM)


def test_a_protocol_has_the_power_that_simulation_gives(trm_bench: Run, protocol: Path) -> None:
    """Simulated with 70 subjects, and each combination 2,000 times; docs/statistics.md."""
    given = ("--subjects", 70, "--sd", "1.5,0.5,1.7")
    code, text = trm_bench("power", protocol, *given)
    assert code == 0
    rows = rows_of(text)
    assert list(rows) == ["3", "5", "8", "10", "15", "20"]
    assert rows["3"][1:] == ["none", "none"], "four comparisons need five seeds"
    for seeds, simulated in (("5", 0.45), ("10", 0.89)):
        assert float(rows[seeds][2]) == pytest.approx(simulated, abs=0.03)
    assert "a gain of +1 points takes 9 seeds with these subjects (power 0.8)" in text
    assert "70 test subjects, splits fixed" in text
    assert "subjects 1.50, seeds 0.50, residual 1.70 (stated)" in text
    smallest = [[float(x) for x in row[:2]] for seeds, row in rows.items() if seeds != "3"]
    assert all(alone < family for alone, family in smallest)
    assert smallest == sorted(smallest, reverse=True), "more seeds find smaller gains"


def test_subjects_come_from_the_data_and_spread_is_assumed(trm_bench: Run, protocol: Path) -> None:
    code, text = trm_bench("power", protocol)
    assert code == 0 and "3 test subjects" in text and "assumed; --sd states others" in text
    code, text = trm_bench("power", protocol, "--set", "split.design=resampled")
    assert code == 0 and "splits resampled" in text


def test_without_a_claim_there_is_no_power_for_it(
    trm_bench: Run, tmp_path: Path, toy_data: Path
) -> None:
    file = toy.write_protocol(tmp_path / "toy.yaml", toy_data)
    code, text = trm_bench("power", file, "--subjects", 20)
    assert code == 0 and "power for" not in text and "takes" not in text
    assert all(len(row) == 2 for row in rows_of(text).values())
    assert "in a family of 1" in text


def test_results_are_told_by_their_own_spread(trm_bench: Run, tmp_path: Path) -> None:
    folder = small(tmp_path / "p", metrics=("dice",))
    report.write(ProtocolFolder(folder))
    code, text = trm_bench("power", folder)
    assert code == 0 and "p: trm over finetune, 16 test subjects" in text
    assert "measured with 3 seeds" in text
    known = pd.read_csv(folder / "sensitivity.csv").query("transfer == 'mean'")
    own = known.set_index("method").loc["trm"]
    assert float(rows_of(text)["3"][0]) == pytest.approx(own["smallest_gain"], abs=0.006)
    parts = (f"{own[f'sd_of_{part}']:.2f}" for part in ("subjects", "seeds", "residual"))
    assert "subjects {}, seeds {}, residual {}".format(*parts) in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("FILE", "--sd", "1,2"), "'1,2' is not three standard deviations"),
        (("FILE", "--sd", "a,b,c"), "'a,b,c' is not three standard deviations"),
        (("FILE", "--sd", "1,-2,1"), "is not three standard deviations"),
        (("FILE", "--subjects", 1), "greater than or equal to 2"),
        (("nowhere.yaml",), "no such protocol"),
        (("EMPTY",), "no results of trm-bench here"),
        (("FEW",), "no results with 3 seeds"),
        (("FEW", "--sd", "1,1,1"), "results are judged by their own subjects and spread"),
        (("FEW", "--subjects", 9), "leave them out, or name a protocol"),
    ],
)
def test_errors_are_told(
    trm_bench: Run, protocol: Path, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    small(tmp_path / "few", seeds=(0, 1), subjects=3, metrics=("dice",))
    named = {"FILE": protocol, "EMPTY": tmp_path / "empty", "FEW": tmp_path / "few"}
    code, text = trm_bench("power", *(named.get(str(a), a) for a in arguments))
    assert code == 2 and said in " ".join(text.replace("│", " ").split())
