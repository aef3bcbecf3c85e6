"""The mutants still fit the code: `make mutants` takes minutes, and must not rot in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import EQUIVALENT, MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_is_another_program(mutant: Mutant) -> None:
    changed = mutant.changed(ROOT)
    assert changed != mutant.path(ROOT).read_text(encoding="utf-8")
    compile(changed, mutant.module, "exec")
    named = [argument.partition("::")[0] for argument in mutant.tests]
    files = [argument for argument in named if argument.endswith(".py")]
    assert files and all((ROOT / file).is_file() for file in files)


def test_names_are_unique_and_survivors_are_known() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) >= 60 and len(set(names)) == len(names)
    assert set(EQUIVALENT) <= set(names)
