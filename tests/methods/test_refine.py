"""REFINE: its forward pass, what is frozen, and the limits in which it is another training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from harness import CPU, TWO, context, random, same, state, trained, unet
from torch import Tensor, nn

from trm_bench import checkpoints, networks
from trm_bench.errors import UserError
from trm_bench.methods import Context
from trm_bench.methods.registry import create
from trm_bench.networks import Parts
from trm_bench.seeds import deterministic
from trm_bench.training.loop import Curves, train

DIMENSIONS = pytest.mark.parametrize("dims", [2, 3])
PLAIN = {"scratch": "scratch", "source": "finetune"}  # what each start is without features


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def started(start: str = "scratch", **options: Any) -> tuple[Context, Any]:
    method: Any = create("refine", {"start": start})
    run = context(method=method, **options)
    method.prepare(run)
    method.training_mode(run)
    return run, method


def finer(values: np.ndarray, axis: int, n: int) -> np.ndarray:
    """Value i of m at voxel i n / m, linear between, and the last one beyond."""
    m = values.shape[axis]
    at = np.arange(m) * n / m
    return np.apply_along_axis(lambda row: np.interp(np.arange(n), at, row), axis, values)


@DIMENSIONS
@pytest.mark.parametrize("start", PLAIN)
def test_logits_are_those_of_the_target_network_and_a_map_of_source_features(
    dims: int, start: str
) -> None:
    run, _ = started(start, dims=dims)
    assert run.source is not None
    plain = run.fresh() if start == "scratch" else context(dims).network
    plain.train()
    image = run.patches.batch(0).image
    assert torch.equal(run.network(image), plain(image)), "v begins at 0"
    v = run.network.get_parameter("refine.v")
    v.data = random(*v.shape)
    found = run.network(image) - plain(image)
    taken: list[Tensor] = []
    run.source.get_submodule(run.parts.head).register_forward_pre_hook(
        lambda module, inputs: taken.append(inputs[0])
    )
    run.source(image)
    expected = np.einsum("kc,bc...->bk...", v.detach().double().numpy(), taken[0].double().numpy())
    assert expected.shape[2:] != image.shape[2:], "the UNet's head undoes a stride"
    for axis in range(dims):
        expected = finer(expected, axis + 2, image.shape[axis + 2])
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("way", ["features 0", "rate 0"])
@pytest.mark.parametrize("start", PLAIN)
@pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
def test_without_features_it_is_the_target_network_alone_bit_for_bit(
    start: str, same_task: bool, way: str
) -> None:
    method = create("refine", {"start": start, "rate": 0 if way == "rate 0" else 1})
    run = context(same_task=same_task, method=method, clip=0.1)
    if way == "features 0":
        source = run.network.get_submodule("refine.source")
        source.register_forward_hook(lambda module, inputs, features: features * 0)
    curves = Curves()
    train(run, method, curves)
    alone = trained(PLAIN[start], same_task=same_task, clip=0.1)
    own = state(run.network)
    assert same({name: own[name] for name in alone.after}, alone.after)
    assert curves.loss == alone.curves.loss


@pytest.mark.parametrize("start", PLAIN)
def test_the_source_stays_as_it_is_and_is_kept(start: str) -> None:
    settings = {"optimizer": {"weight_decay": 0.1}, "select": "best", "validate_every": 2}
    result = trained("refine", {"start": start}, **settings)
    run = result.run
    assert run.source is not None
    trunk = {n: v for n, v in run.source.state_dict().items() if not run.parts.in_head(n)}
    kept = run.network.get_submodule("refine.source").state_dict()
    assert any("running_mean" in name for name in trunk) and same(kept, trunk)
    assert result.moved("refine.v")
    assert all(result.moved(n) for n in run.parts.decoder if "num_batches" not in n)


def test_v_learns_at_its_own_rate() -> None:
    sgd: Any = {"optimizer": {"name": "sgd", "lr": 0.01, "weight_decay": 0}, "steps": 1}
    slow, fast = (trained("refine", {"rate": rate}, clip=None, **sgd).after for rate in (1, 5))
    torch.testing.assert_close(fast.pop("refine.v"), 5 * slow.pop("refine.v"))
    assert same(slow, fast)


def test_what_is_trained_is_the_target_network_and_v() -> None:
    run, method = started()
    fresh = sum(p.numel() for p in run.fresh().parameters())
    groups = method.parameters(run)
    given = sum(p.numel() for group in groups for p in group["params"])
    assert given == fresh + 2 * 8  # two classes, eight channels into the head
    source = run.network.get_submodule("refine.source")
    assert not any(module.training for module in source.modules()) and run.network.training


def test_a_copied_network_has_its_own_modules() -> None:
    run, _ = started()
    image = run.patches.batch(0).image
    run.network.eval()
    before = run.network(image)
    other = copy.deepcopy(run.network)
    other.get_parameter("refine.v").data.fill_(1.0)
    assert not torch.equal(other(image), before) and torch.equal(run.network(image), before)


def test_a_head_that_takes_no_map_is_a_clear_error() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(UserError, match="takes no feature map"):
        create("refine", {}).architecture(
            network, Parts("1", (), ()), torch.empty(1, 1, 4, 4, device="meta")
        )


def test_a_kept_network_is_no_source_of_another_training() -> None:
    run, _ = started()
    bare = networks.build(unet(), 1, len(TWO.classes), 3, seed=0)
    with pytest.raises(UserError, match=r"'refine\.v' is not in the network"):
        checkpoints.fit(run.network.state_dict(), bare, run.parts, with_head=True)
