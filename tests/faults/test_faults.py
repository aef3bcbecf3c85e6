"""A few cases of every kind, and whether the suite would notice faults that are planted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from faults import arguments, checkpoints, disks, kills, nnunet, protocols, results, scans, tracking
from faults.base import Base, build
from faults.case import (
    CODE,
    DIED,
    HANG,
    SILENT,
    SURVIVORS,
    TRACEBACK,
    UNEXPECTED,
    WORDS,
    Case,
    Fault,
    sample,
)
from faults.runner import Runner

SEED = 0
QUICK = {
    "protocols": (protocols.cases, 18),
    "results": (results.cases, 5),
    "tracking": (tracking.cases, 6),
    "scans": (scans.cases, 20),
    "checkpoints": (checkpoints.cases, 10),
    "nnunet": (nnunet.cases, 12),
    "arguments": (arguments.cases, 40),
}
"""Kind to what makes its cases, and how many of each of its kinds are played here."""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def runner(scratch: Path) -> Iterator[Runner]:
    with Runner(scratch, ["faults.plants:no_pictures"]) as one:
        yield one


@pytest.fixture(scope="module")
def base(scratch: Path, runner: Runner) -> Base:
    return build(scratch / "base", runner)


def told(found: list[tuple[Case, Fault]]) -> str:
    return "\n".join(f"--- {c.kind} | {c.name} | {f.what}\n{f.detail}" for c, f in found)


def played(cases: list[Case], base: Base, runner: Runner, scratch: Path) -> str:
    assert cases
    return told([(c, f) for c in cases for f in c.run(base, runner, scratch).faults])


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_bad_inputs_end_with_a_message(
    name: str, base: Base, runner: Runner, scratch: Path
) -> None:
    cases, number = QUICK[name]
    found = played(sample(cases(base, SEED), number, SEED), base, runner, scratch)
    assert not found, found


@pytest.mark.slow
@pytest.mark.parametrize("i", range(2))
def test_kills_and_signals_lose_nothing(i: int, base: Base, runner: Runner, scratch: Path) -> None:
    few = [Case("kills", "a few", lambda scene: kills.killed("run", 2, f"{SEED} {i}", scene))]
    of_signals = [c for c in kills.cases(base, SEED) if c.kind == "signals"]
    found = played([*few, of_signals[i]], base, runner, scratch)
    assert not found, found


@pytest.mark.slow
def test_a_full_disk_is_told_and_loses_nothing(base: Base, runner: Runner, scratch: Path) -> None:
    if not disks.possible(scratch):
        pytest.skip("no file system can be mounted here")
    found = played(list(disks.cases(base, SEED))[:1], base, runner, scratch)
    assert not found, found


# The suite sees what it is for


def found_with(plant: str, case: Case, base: Base, runner: Runner, scratch: Path) -> set[str]:
    """Kinds of fault that a case finds where one is planted."""
    plants, longest = runner.plants, runner.longest
    runner.plants, runner.longest = [*plants, f"faults.plants:{plant}"], 5.0
    try:
        return {fault.what for fault in case.run(base, runner, scratch).faults}
    finally:
        runner.plants, runner.longest = plants, longest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "what"),
    [
        ("raises", TRACEBACK),
        ("fails", UNEXPECTED),
        ("waits", HANG),
        ("dies", DIED),
        ("says_nothing", WORDS),
        ("leaves_a_process", SURVIVORS),
    ],
)
def test_a_command_that_goes_wrong_is_a_fault(
    plant: str, what: str, base: Base, runner: Runner, scratch: Path
) -> None:
    case = Case("planted", plant, lambda scene: scene.call("methods", codes=(0, 2)) and None)
    assert not case.run(base, runner, scratch).faults
    assert what in found_with(plant, case, base, runner, scratch)


@pytest.mark.slow
def test_other_numbers_without_a_word_are_a_fault(
    base: Base, runner: Runner, scratch: Path
) -> None:
    again = partial(results.again, "slices", results.gone, "0")
    case = Case("planted", "other numbers", again)
    assert not case.run(base, runner, scratch).faults
    assert SILENT in found_with("other_numbers", case, base, runner, scratch)


@pytest.mark.slow
def test_records_that_are_believed_unread_are_a_fault(
    base: Base, runner: Runner, scratch: Path
) -> None:
    again = partial(results.again, "audit", results.digit, "0")
    case = Case("planted", "a digit of an audit", again)
    assert not case.run(base, runner, scratch).faults
    assert found_with("no_seals", case, base, runner, scratch) >= {SILENT, CODE}


def test_a_sample_has_some_of_every_kind_and_is_the_same_again(base: Base) -> None:
    every = list(results.cases(base, SEED))
    few = sample(every, 2, SEED)
    assert {c.kind for c in few} == {c.kind for c in every}
    assert len(few) == 2 * len(results.ARTEFACTS)
    assert [c.name for c in few] == [c.name for c in sample(every, 2, SEED)]
    assert len({(c.kind, c.name) for c in every}) == len(every)
