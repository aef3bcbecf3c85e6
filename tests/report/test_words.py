"""The finding says what the numbers say, whatever the methods are called."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reported import METHODS, change, collected, small

from trm_bench import report
from trm_bench.report import words
from trm_bench.runs.folders import ProtocolFolder

LEVEL = dict.fromkeys(METHODS, 0.0)
OWN = {"methods": ["scratch", "topk", "focal"], "gains": {"scratch": -3, "topk": 2, "focal": 0}}


@pytest.mark.parametrize(
    ("changes", "best", "told", "harm"),
    [
        ({}, "trm beats finetune", True, words.NO),
        ({"gains": LEVEL}, "No method can be told from finetune", False, words.OPEN),
        ({"gains": LEVEL | {"scratch": 9}}, "No method can be told from finetune", False,
         words.YES),
        ({"seeds": (0, 1)}, "trm is ahead", False, words.OPEN),
        ({"seeds": (0,), "data": "phantom"}, "trm is ahead", False, words.OPEN),
        ({"subjects": 1}, "trm is ahead", False, words.OPEN),
        ({"methods": ["finetune", "focal"], "gains": {"finetune": 0, "focal": -9}},
         "No method reaches finetune", True, words.UNKNOWN),
        ({"methods": ["focal"]}, "No method can be compared yet", False, words.UNKNOWN),
        ({"methods": ["scratch", "focal"], "gains": {"scratch": 0, "focal": 9}},
         "focal beats scratch", True, words.NO),
    ],
)  # fmt: skip
def test_a_finding(
    changes: dict[str, Any], best: str, told: bool, harm: str, tmp_path: Path
) -> None:
    shown = collected(
        small(tmp_path / "p", **({"claim": None, "subjects": 12, "noise": 1.0} | changes))
    )
    found, text = words.found(shown), words.finding(shown)
    assert (found.best, found.told, found.harm) == (best, told, harm)
    assert text.startswith(f"{best}. ") and f"Negative transfer: {harm}." in text
    assert ("STAND-IN" in text) == shown.phantom and "  " not in text
    if shown.best:
        assert f"{shown.best.gain:+.2f} points of Dice" in text
    assert ("95 % interval" in found.gain) == bool(shown.best and np.isfinite(shown.best.low))


def test_a_loss_in_single_transfers_is_named(tmp_path: Path) -> None:
    """Where fine-tuning loses in one transfer and gains as much in the other."""
    folder = small(tmp_path / "p", claim=None, gains=LEVEL, noise=1.0, subjects=12)

    def better(record: dict[str, Any]) -> None:
        for of_class in record["metrics"].values():
            for scores in of_class.values():
                scores["dice"] += 0.1

    seeds = 3
    of_transfer = len(METHODS) * seeds
    for seed in range(seeds):
        assert change(folder, seed, better)["method"] == "scratch"
        assert change(folder, of_transfer + seeds + seed, better)["method"] == "finetune"
    found = words.found(collected(folder))
    assert found.harm == "in 1 of 2 transfers" and found.transfer.endswith("loses in t1->t2.")


def test_methods_of_others_come_first_too(tmp_path: Path) -> None:
    """A claim on a method against another; no word of methods that are not there."""
    claim = {"method": "topk", "versus": "focal", "gain": 1.0, "unit": "points"}
    seeds = range(5)
    folder = small(tmp_path / "own" / "p", claim=claim, seeds=seeds, noise=1.0, **OWN)
    change(folder, 5, lambda r: r["environment"]["packages"].update({"topk-package": "1.2"}))
    report.write_pages(folder)
    shown = collected(folder)
    assert shown.holds and shown.words == ["reproduced"], "controls of a map are not asked for"
    assert words.found(shown).best == "topk beats focal"
    page = (folder / "report.html").read_text()
    head = page[page.index("<h1>") : page.index('id="figures"')]
    known = re.sub(r"The method finetune_longer .*?\.", "", head, flags=re.S)
    assert not re.search(r"\b(finetune|trm)\b(?!-bench)", known), "a method that is not there"
    assert "passes / focal" in head and "topk-package 1.2" in page
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finding"] == words.finding(shown)


def test_a_protocol_of_others_without_a_claim(tmp_path: Path) -> None:
    shown = collected(small(tmp_path / "p", claim=None, **OWN))
    assert (shown.reference, shown.focus) == ("scratch", "topk")
    assert words.found(shown).best == "topk beats scratch"
    assert shown.transferability.empty, "no gain of scratch over itself"
    report.write(ProtocolFolder(tmp_path / "p"))


def test_without_an_interval_nothing_is_said_of_what_to_avoid(tmp_path: Path) -> None:
    few, enough = (
        collected(small(tmp_path / f"p{n}", seeds=range(n), subjects=6, noise=1.0)) for n in (2, 3)
    )
    assert words.gone(few) == "" and "none to avoid" in words.gone(enough)
