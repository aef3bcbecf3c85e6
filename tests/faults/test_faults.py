"""A few cases of every kind, and whether the suite would notice faults that are planted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import disks, kills, protocols, results, scans
from faults import arguments as arguments_
from faults.base import Base, build
from faults.case import CODE, HANG, SILENT, TRACEBACK, Case, Fault, sample
from faults.runner import Runner

SEED = 0
QUICK = {
    "protocols": (protocols.cases, 25),
    "results": (results.cases, 6),
    "scans": (scans.cases, 20),
    "arguments": (arguments_.cases, 40),
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
@pytest.mark.xdist_group("faults")
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
