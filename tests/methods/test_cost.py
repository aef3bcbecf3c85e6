"""What a method says that a step costs, by which long runs start first, beside what it counts."""

from __future__ import annotations

import pytest
from harness import CPU, trained

from trm_bench.methods.registry import BUILTIN, create
from trm_bench.seeds import deterministic

STEPS = 8


@pytest.mark.parametrize("name", BUILTIN)
def test_a_method_says_about_how_many_passes_it_makes(name: str) -> None:
    deterministic(CPU)
    method = create(name, {})
    result = trained(name, steps=STEPS)
    counted = result.curves.passes / result.run.config.steps
    # passes without a gradient, of a frozen network beside, are cheaper and are not counted
    assert counted <= method.passes() * 1.01
    assert method.passes() <= 1.5 * counted
