"""Parameter-efficient methods: what they train, what they add, and that it ends in the weights."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from harness import CPU, context, random, same, state, trained
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from trm_bench.baselines import adapters, bitfit, lora, norm_tuning

from trm_bench import networks
from trm_bench.errors import UserError
from trm_bench.methods.registry import create
from trm_bench.protocol.schema import NetworkConfig
from trm_bench.seeds import deterministic
from trm_bench.training.loop import Curves, train

ADDING = pytest.mark.parametrize("name", ["lora", "adapters"])
EFFICIENT = pytest.mark.parametrize("name", ["lora", "adapters", "bitfit", "norm_tuning"])
TASKS = pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
MOMENTUM = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
LAYERS: list[nn.Module] = [
    nn.Conv3d(4, 6, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(3, 5, (1, 3), dilation=2, padding=(0, 2)),
    nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def name_of(layer: nn.Module) -> str:
    return type(layer).__name__


# ------------------------------------------------------------------------------------ what is added


@pytest.mark.parametrize("layer", [*LAYERS, nn.Linear(4, 3)], ids=name_of)
def test_lora_adds_a_product_of_low_rank(layer: Any) -> None:
    """W[o, ...] = W_0[o, ...] + scale sum_r B[o, r] A[r, ...], in the weights' order."""
    weight = layer.weight.detach()
    low = lora.LowRank(weight, 2, 1.5, torch.Generator().manual_seed(1))
    assert torch.equal(low(weight), weight), "it starts at the source's weights"
    rows, *rest = weight.shape
    assert low.a.shape == (2, math.prod(rest)) and low.b.shape == (rows, 2)
    low.b.data = random(rows, 2, seed=2)
    a, b = low.a.detach().double().numpy(), low.b.double().detach().numpy()
    found = low(weight).detach()
    for o in range(rows):
        for column, place in enumerate(itertools.product(*map(range, rest))):
            wanted = float(weight[(o, *place)]) + 1.5 * sum(b[o, r] * a[r, column] for r in (0, 1))
            assert float(found[(o, *place)]) == pytest.approx(wanted, abs=1e-6)
    last = weight.ndim == 5 and weight.to(memory_format=torch.channels_last_3d)
    assert last is False or low(last).stride() == last.stride(), "the order in memory is kept"


def test_the_first_factor_keeps_the_scale_of_what_it_reads() -> None:
    weight = torch.zeros(64, 64, 3, 3, 3)
    low = lora.LowRank(weight, 16, 1.0, torch.Generator().manual_seed(0))
    assert float(low.a.detach().std()) == pytest.approx(1 / math.sqrt(64 * 27), rel=0.02)
    assert lora.LowRank(torch.zeros(2, 5), 16, 1.0, torch.Generator()).a.shape == (2, 5)


@pytest.mark.parametrize("layer", LAYERS, ids=name_of)
def test_an_adapter_is_a_small_convolution_beside_a_large_one(layer: Any) -> None:
    """y = W_0 * x + A * x, A with the same stride and groups, and nothing around the image."""
    dims = layer.weight.ndim - 2
    x = random(2, layer.in_channels, *(7, 6, 5)[:dims])
    middle = adapters.Middle(layer.weight)
    assert torch.equal(middle(layer.weight), layer.weight)
    middle.map.data = random(*middle.map.shape, seed=1)
    alone = middle.map.detach().reshape(*middle.map.shape, *[1] * dims)
    before = layer(x).detach()
    if layer.transposed:
        small = getattr(functional, f"conv_transpose{dims}d")
        size = before.shape[2:]
        beside = small(x, alone, stride=layer.stride, groups=layer.groups)
        room = [n - m for n, m in zip(size, beside.shape[2:], strict=True)]
        beside = functional.pad(beside, [p for n in reversed(room) for p in (0, n)])
    else:
        small = getattr(functional, f"conv{dims}d")
        beside = small(x, alone, stride=layer.stride, groups=layer.groups)
    both = torch.func.functional_call(layer, {"weight": middle(layer.weight)}, x)
    assert before.shape == beside.shape
    assert torch.allclose(both, before + beside, atol=1e-5)


def test_only_odd_kernels_larger_than_one_have_a_middle() -> None:
    kernels = {(3, 3, 3): True, (1, 3, 3): True, (5,): True, (1, 1): False, (2, 2): False}
    kernels |= {(2, 3): False, (): False}
    for kernel, has in kernels.items():
        assert adapters.has_middle(torch.zeros(2, 2, *kernel)) == has
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Linear(2, 2), nn.Conv2d(2, 2, 3))
    with pytest.raises(UserError, match="odd kernel larger than 1"):
        create("adapters", {}).check(network, networks.Parts("2", (), ()))


# --------------------------------------------------------------------------------- in the network


@ADDING
@TASKS
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_what_was_added_ends_in_the_weights(name: str, same_task: bool, norm: str) -> None:
    run = context(same_task=same_task, norm=norm, optimizer=MOMENTUM)
    before, kinds = state(run.network), [type(module) for module in run.network.modules()]
    layouts = {n: p.stride() for n, p in run.network.named_parameters()}
    method, seen = create(name, {}), {}
    image, finish = run.patches.batch(0).image, method.finish

    def watched(run: Any) -> None:
        run.network.eval()
        assert any(parametrize.is_parametrized(module) for module in run.network.modules())
        seen["before"] = run.network(image).detach()
        finish(run)
        seen["after"] = run.network(image).detach()

    method.finish = watched  # type: ignore[method-assign]
    train(run, method, Curves())
    assert torch.allclose(seen["before"], seen["after"], atol=1e-5)
    after = state(run.network)
    assert [type(module) for module in run.network.modules()] == kinds
    assert {n: p.stride() for n, p in run.network.named_parameters()} == layouts
    run.fresh().load_state_dict(after)
    head = run.parts.in_head
    moved = {n for n in after if not torch.equal(after[n], before[n]) and not head(n)}
    assert moved == {n for n in after if n.endswith("conv.weight") and not head(n)}
    for added in (after[n] - before[n] for n in moved):
        if name == "lora":
            rank = torch.linalg.matrix_rank(added.flatten(1).double(), rtol=1e-4)
            assert 0 < int(rank) <= 4
        else:
            middle = added[..., 1, 1, 1].clone()
            added[..., 1, 1, 1] = 0
            assert middle.count_nonzero() and not added.count_nonzero()


@EFFICIENT
def test_training_starts_at_the_source_network(name: str) -> None:
    run = context(same_task=True)
    image = run.patches.batch(0).image
    before = run.network.eval()(image)
    create(name, {}).prepare(run)
    assert torch.equal(run.network.eval()(image), before)


@TASKS
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_lora_of_rank_0_trains_the_head_alone(same_task: bool, norm: str) -> None:
    nothing = trained("lora", {"rank": 0}, same_task=same_task, norm=norm)
    probed = trained("lp_ft", {"share": 1}, same_task=same_task, norm=norm)
    assert same(nothing.after, probed.after) and nothing.curves == probed.curves
    assert all(nothing.moved(n) == nothing.run.parts.in_head(n) for n in nothing.before)


def test_lora_draws_from_the_runs_seed_and_scales_by_alpha() -> None:
    def factors(alpha: float = 8.0, axes: tuple[object, ...] = ("test",)) -> tuple[Tensor, float]:
        run = context()
        run.seed_axes = axes
        method: Any = create("lora", {"rank": 2, "alpha": alpha})
        method.prepare(run)
        low = method.layers[0].parametrizations.weight[0]
        return low.a.detach(), low.scale

    assert torch.equal(factors()[0], factors()[0])
    assert not torch.equal(factors()[0], factors(axes=("other",))[0])
    assert factors()[1] == 4 and factors(alpha=1.0)[1] == 0.5


@ADDING
def test_the_best_weights_are_those_that_were_validated(name: str) -> None:
    options = {"select": "best", "validate_every": 2, "steps": 8, "optimizer": MOMENTUM}
    result = trained(name, same_task=True, **options)
    assert len(result.curves.validation) == 4
    best = max(score for _, score in result.curves.validation)
    assert result.run.validate(result.run.network) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_weights_are_computed_in_float32(precision: str) -> None:
    run = context(precision=precision)
    method: Any = create("lora", {})
    method.prepare(run)
    low = method.layers[0].parametrizations.weight[0]
    low.b.data += 1
    weights: list[Tensor] = []
    low.register_forward_hook(lambda module, inputs, output: weights.append(output))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        run.network(run.patches.batch(0).image)
    assert weights[0].dtype == torch.float32
    assert torch.equal(weights[0], low(method.layers[0].parametrizations.weight.original))


# --------------------------------------------------------------------------------- what is trained


@EFFICIENT
@TASKS
def test_all_else_is_frozen_and_out_of_the_optimiser(name: str, same_task: bool) -> None:
    result = trained(name, same_task=same_task, optimizer={"lr": 0.01, "weight_decay": 0.5})
    inside = result.run.parts.in_head
    assert all(result.moved(n) for n in result.before if inside(n))
    ends = {
        "lora": ("conv.weight",),
        "adapters": ("conv.weight",),
        "bitfit": ("bias", "running_mean", "running_var", "num_batches_tracked"),
        "norm_tuning": ("N.weight", "N.bias", "running_mean", "running_var", "num_batches_tracked"),
    }[name]
    for key in result.before:
        if not inside(key):
            assert result.moved(key) == key.endswith(ends), key


NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"name": "UNet", "channels": (4, 8), "strides": (2,), "norm": "batch"},
    "basic": {"name": "BasicUNet", "features": (4, 4, 8, 8, 16, 4)},
    "swin": {
        "name": "SwinUNETR",
        "feature_size": 12,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 4, 8),
    },
}
UNET = ["model.0", "model.1.submodule"]


def built(network: str, **changes: Any) -> tuple[nn.Module, networks.Parts]:
    config = NetworkConfig.model_validate({**NETWORKS[network], **changes})
    return networks.build(config, 1, 2, 3, seed=0), networks.parts(config, 1, 3)


def test_the_biases_of_networks_by_name() -> None:
    found = set(bitfit.biases(*built("unet")))
    assert found == {f"{block}.{part}.bias" for block in UNET for part in ("conv", "adn.N")}
    network, parts = built("basic")
    found = set(bitfit.biases(network, parts))
    assert {
        "conv_0.conv_0.conv.bias",
        "conv_0.conv_0.adn.N.bias",
        "upcat_4.upsample.deconv.bias",
    } <= found
    assert not any(name.startswith("final_conv") for name in found)
    network, parts = built("swin")
    found = set(bitfit.biases(network, parts))
    block = "swinViT.layers1.0.blocks.0"
    assert {
        f"{block}.{part}.bias" for part in ("attn.qkv", "attn.proj", "mlp.linear1", "norm1")
    } <= found
    assert not any("relative" in name for name in found), "a table of positions is no bias"
    assert all(p.ndim == 1 for p in bitfit.biases(network, parts).values())
    left = {n for n, p in network.named_parameters() if n.endswith(".bias")} - found
    assert left == {"out.conv.conv.bias"}


def test_the_parameters_of_normalisation_by_name() -> None:
    found = set(norm_tuning.affine(*built("unet")))
    assert found == {f"{block}.adn.N.{part}" for block in UNET for part in ("weight", "bias")}
    found = set(norm_tuning.affine(*built("basic")))
    assert len(found) == 36 and all(".adn.N." in name for name in found)
    found = set(norm_tuning.affine(*built("swin")))
    block = "swinViT.layers1.0.blocks.0"
    assert {
        f"{block}.{norm}.{part}" for norm in ("norm1", "norm2") for part in ("weight", "bias")
    } <= found
    assert all(".norm" in name and name.startswith("swinViT") for name in found)
    assert "swinViT.layers1.0.downsample.norm.weight" in found


def test_without_such_parameters_it_is_said_what_to_set() -> None:
    network, parts = built("unet", norm="instance")
    with pytest.raises(UserError, match="normalisation with parameters") as refused:
        create("norm_tuning", {}).check(network, parts)
    assert "[instance, {affine: true}]" in str(refused.value.fix)
    create("norm_tuning", {}).check(*built("unet", norm=["instance", {"affine": True}]))
    with pytest.raises(UserError, match="needs biases outside the head"):
        create("bitfit", {}).check(*built("unet", norm="instance", bias=False))
    create("bitfit", {}).check(network, parts)


@ADDING
def test_transformers_are_trained_and_merged_too(name: str) -> None:
    network = NetworkConfig.model_validate(NETWORKS["swin"])
    result = trained(name, network=network, dims=2, steps=1, patch=(64, 64))
    attention = "swinViT.layers1.0.blocks.0.attn.qkv.weight"
    assert result.moved(attention) == (name == "lora")
    assert result.moved("encoder1.layer.conv1.conv.weight")
    assert result.after.keys() == result.before.keys()
