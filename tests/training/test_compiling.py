"""Training steps through torch.compile: as without it, compiled once, and evaluated without."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import context, same, state
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from trm_bench.errors import UserError
from trm_bench.methods.registry import BUILTIN, create
from trm_bench.seeds import deterministic
from trm_bench.training import compiling
from trm_bench.training.loop import Curves, train

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deterministic(CPU)
    monkeypatch.setenv(compiling.VARIABLE, str(tmp_path))
    torch.compiler.reset()


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Has networks captured as they are for compiling, and then run as they are."""
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    return counter


def trained(name: str, **training: Any) -> tuple[dict[str, torch.Tensor], Curves]:
    method = create(name, {})
    run = context(method=method, **training)
    run.config, curves = method.adjusted(run.config), Curves()
    torch.manual_seed(0)
    train(run, method, curves)
    return state(run.network), curves


@pytest.mark.parametrize("name", BUILTIN)
def test_every_method_trains_as_without(name: str, captured: CompileCounterWithBackend) -> None:
    plain, curves = trained(name)
    assert not captured.frame_count
    compiled, its = trained(name, compile=True)
    assert captured.frame_count, "nothing was compiled"
    assert same(plain, compiled) and its == curves


def test_a_step_is_compiled_once_and_validation_never(captured: CompileCounterWithBackend) -> None:
    trained("finetune", compile=True, steps=1)
    once = captured.frame_count
    torch.compiler.reset()
    captured.clear()
    _, curves = trained("finetune", compile=True, steps=12, select="best", validate_every=3)
    assert captured.frame_count == once and len(curves.validation) == 4


def test_a_copy_of_a_compiled_network_is_its_own(captured: CompileCounterWithBackend) -> None:
    network = nn.Conv3d(1, 2, 1)
    compiling.compile_steps(network)
    image = torch.ones(1, 1, 2, 2, 2)
    before = network(image)
    other = copy.deepcopy(network)
    nn.init.zeros_(other.weight)
    assert not torch.equal(other(image), before) and torch.equal(network(image), before)


@pytest.mark.slow
def test_compiled_steps_learn_the_same_and_repeat_themselves() -> None:
    """With the compiler itself, which sums in another order."""
    try:
        compiling.require_compiler(CPU)
    except UserError as error:
        pytest.skip(error.what)
    sgd = {"name": "sgd", "lr": 0.05}  # AdamW makes steps of gradients that are rounding alone
    plain, _ = trained("finetune", optimizer=sgd)
    compiled, again = (trained("finetune", optimizer=sgd, compile=True)[0] for _ in range(2))
    assert same(compiled, again)
    for name, weights in plain.items():
        assert torch.allclose(weights, compiled[name], rtol=1e-3, atol=1e-4), name


def test_without_a_compiler_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        compiling.require_compiler(CPU)
    compiling.require_compiler(torch.device("cuda"))


def test_the_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv(compiling.VARIABLE, default_cache_dir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiling.compile_steps(nn.Conv3d(1, 1, 1))
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(tmp_path / "trm-bench" / "compiled")
