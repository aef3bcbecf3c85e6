"""Every method: what all must keep, the limits in which they are fine-tuning, and their numbers."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import (
    CPU,
    Result,
    context,
    positions,
    random,
    same,
    state,
    trained,
)
from torch import Tensor, nn
from torch.nn import functional
from trm_bench.baselines import (
    auto_rgn,
    bss,
    co_tuning,
    delta,
    disagreement,
    forkmerge,
    l2_sp,
    stochnorm,
)
from trm_bench.baselines.encoder import encoder_blocks, watch
from trm_bench.baselines.source_head import SourceHeadMethod, head_input, target_statistics

from trm_bench import networks
from trm_bench.data.patches import PatchSampler
from trm_bench.errors import UserError
from trm_bench.methods import Context, Method
from trm_bench.methods.registry import BUILTIN, REGISTRY, create
from trm_bench.plugins import Registry
from trm_bench.protocol.schema import NetworkConfig
from trm_bench.seeds import deterministic
from trm_bench.training.loop import Curves, learning_rate_factor, train

DIMENSIONS = pytest.mark.parametrize("dims", [2, 3])
SHAPES = pytest.mark.parametrize("shape", [(2, 5, 4, 3), (2, 5, 4, 3, 2)], ids=["2D", "3D"])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


# ----------------------------------------------------------------------- conformance of all methods


@pytest.fixture(scope="module")
def finetuned() -> dict[tuple[int, bool], Result]:
    deterministic(CPU)
    return {
        (dims, task): trained("finetune", dims=dims, same_task=task)
        for dims in (2, 3)
        for task in (False, True)
    }


@pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
@DIMENSIONS
@pytest.mark.parametrize("name", sorted(REGISTRY.names()))
def test_conformance(
    name: str, dims: int, same_task: bool, finetuned: dict[tuple[int, bool], Result]
) -> None:
    generator = torch.get_rng_state()
    once, twice = (trained(name, dims=dims, same_task=same_task) for _ in range(2))
    assert same(once.after, twice.after), "the same run gives other weights"
    assert torch.equal(generator, torch.get_rng_state()), "draws from the global generator"
    reference = finetuned[dims, same_task]
    assert set(once.batches) >= set(range(once.run.config.steps))
    assert all(
        torch.equal(reference.batches[step], once.batches[step]) for step in reference.batches
    )
    assert [step for step, _ in once.curves.loss][-1] == once.run.config.steps
    assert all(math.isfinite(loss) for _, loss in once.curves.loss)
    assert once.after.keys() == once.before.keys() and not once.run.network.training
    assert any(once.moved(n) for n in once.before if once.run.parts.in_head(n))
    assert all(bool(tensor.isfinite().all()) for tensor in once.after.values())
    assert 0 <= once.run.validate(once.run.network) <= 1


@pytest.mark.parametrize("name", sorted(REGISTRY.names()))
def test_runs_in_bf16(name: str) -> None:
    # deeper than what `formats.has_sound_bf16` tells of
    result = trained(name, dims=3, steps=2, precision="bf16", patch=(16, 16, 16))
    assert all(math.isfinite(loss) for _, loss in result.curves.loss)
    assert all(t.dtype == torch.float32 for t in result.after.values() if t.is_floating_point())


@pytest.mark.parametrize("name", sorted(REGISTRY.names()))
def test_is_documented_and_declares_its_search(name: str) -> None:
    kind = REGISTRY.get(name)
    assert kind.__doc__ and kind.paper
    parameters = kind.Parameters()
    for key, declared in kind.Parameters.model_fields.items():
        assert declared.description
        space: Any = declared.json_schema_extra or {}
        if not space:
            continue
        choices, default = space["search"], getattr(parameters, key)
        if space["range"]:
            assert choices[0] <= default <= choices[1] and (choices[0] > 0 or not space["log"])
        else:
            assert default in choices
        for value in choices:
            create(name, {key: value})


@pytest.mark.parametrize("name", sorted(REGISTRY.names()))
def test_declares_what_it_uses_beyond_fine_tuning(name: str) -> None:
    kind, used = REGISTRY.get(name), set()
    method = kind(kind.Parameters())
    run = context(method=method, steps=2)
    validate, source_patches = run.validate, run.source_patches
    run.validate = lambda network: used.add("validation") or validate(network)
    run.source_patches = lambda: used.add("source data") or source_patches()
    train(run, method, Curves())
    assert ("source data" in used) == kind.uses_source_data
    assert ("validation" in used or kind.validation_in_training_set) == kind.uses_validation


READING = {
    "evidence": "classes",
    "components": 5,
    "scope": "all",
    "risk": "one_minus",
    "normalise": "none",
    "weight": "power",
    "strength": 1.0,
    "base": 3.0,
    "denominator": "label_foreground",
    "over": "all",
    "with_dice": None,
}
DECOMPOSED = READING | {"gamma": 1.0, "balance": "prior", "floor": 0.1}
DEFAULTS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("scratch", "finetune", "finetune_with_validation", "frozen_encoder")},
    **{name: {} for name in ("adapters", "bitfit", "norm_tuning")},
    "lora": {"rank": 4, "alpha": 32.0},  # the paper's for GPT-2
    "spd": {"strength": 1.0},
    "ftp": {"radius": 1e-8, "rate": 1.0, "kappa": 1.0},  # the authors' code, but for the rate
    "finetune_longer": {"times": 2},
    **dict.fromkeys(("trm", "trm_prior", "trm_uniform", "trm_shuffled"), READING),
    "trm_paper_literal": READING | {"risk": "neg_log", "weight": "risk"},
    "trm_minmax_power": READING
    | {
        "risk": "neg_log",
        "normalise": "minmax_per_image",
        "base": 10,
        "over": "foreground",
    },
    "trm_decomposed": DECOMPOSED,
    "trm_oracle": DECOMPOSED | {"lost": "soft", "folds": 2, "share": 1.0},
    "transferability_weighted": READING
    | {
        "risk": "neg_log",
        "normalise": "mean_one",
        "weight": "affine",
        "denominator": "voxels",
        "region": 8,
    },
    "focal": {"gamma": 2.0},  # the paper's best
    "topk": {"share": 0.1},  # nnU-Net's
    "lp_ft": {"share": 0.2},
    "l2_sp": {"alpha": 0.012, "beta": 0.013},  # medians of tuned values
    "delta": {"alpha": 0.01, "beta": 0.01, "batches": 8},
    "bss": {"eta": 0.00018, "k": 1},  # likewise
    "stochnorm": {"p": 0.7},  # likewise
    "co_tuning": {"strength": 2.3, "temperature": 1.0},  # the authors' code
    "wise_ft": {"alphas": tuple(i / 10 for i in range(11))},
    "soup": {"over": "seeds", "ingredients": 3},
    "greedy_soup": {"over": "seeds", "ingredients": 3},
    "auto_rgn": {"every": 10},
    "forkmerge": {"weights": (0.0, 1.0), "rounds": 4, "alphas": tuple(i / 5 for i in range(6))},
    "disagreement": {"strength": 0.5, "gamma": 1.0, "reduce": 0.1},
    "refine": {"start": "scratch", "rate": 1.0},  # the paper's
    "style_contrast": {
        "source": 0.5,
        "style": 0.1,
        "content": 0.1,
        "temperature": 0.1,
        "condition": True,
        "size": 16,
        "voxels": 64,
    },
}


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_the_defaults_are_those_of_the_papers_and_of_the_reference_results(name: str) -> None:
    assert REGISTRY.get(name).Parameters().model_dump() == DEFAULTS[name]


@pytest.mark.slow
def test_a_method_of_another_package_is_found_and_conforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(__file__).parents[1] / "plugin"
    lines = [
        line
        for file in package.iterdir()
        if file.is_file()
        for line in file.read_text().splitlines()
    ]
    assert len(lines) <= 40
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    [(group, entries)] = project["entry-points"].items()
    (tmp_path / "label_smoothing.py").write_text((package / "label_smoothing.py").read_text())
    info = tmp_path / "trm_bench_label_smoothing-1.0.dist-info"  # what an installer would write
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items())
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    fresh = Registry(Method, "method", "trm_bench.methods", BUILTIN, "methods")
    assert "label_smoothing" in fresh.names()
    kind = fresh.get("label_smoothing")
    assert kind.name == "label_smoothing" and issubclass(kind, Method)
    sys.modules.pop("label_smoothing", None)
    search = os.pathsep.join([str(tmp_path), *sys.path])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "label_smoothing",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout, done.stdout


# ------------------------------------------------------------------------------------------- limits

NOTHING = {
    "transferability_weighted": {"strength": 0},
    "finetune_longer": {"times": 1},
    "l2_sp": {"alpha": 0, "beta": 0},
    "delta": {"alpha": 0, "beta": 0},
    "bss": {"eta": 0},
    "stochnorm": {"p": 1},
    "co_tuning": {"strength": 0},
    "spd": {"strength": 0},
    "ftp": {"radius": None},
    "disagreement": {"strength": 0},
    "style_contrast": {"source": 0, "style": 0, "content": 0, "condition": False},
    "lp_ft": {"share": 0},
    "wise_ft": {"alphas": [1]},
    "soup": {"ingredients": 1},
    "greedy_soup": {"ingredients": 1},
    "forkmerge": {"weights": [0], "rounds": 1},
}


@pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
@DIMENSIONS
@pytest.mark.parametrize("name", NOTHING)
def test_without_strength_is_finetuning_bit_for_bit(
    name: str, dims: int, same_task: bool, finetuned: dict[tuple[int, bool], Result]
) -> None:
    result = trained(name, NOTHING[name], dims=dims, same_task=same_task)
    assert same(result.after, finetuned[dims, same_task].after)
    assert result.curves.loss == finetuned[dims, same_task].curves.loss


@pytest.mark.parametrize("name", sorted(set(NOTHING) - {"wise_ft"}))
def test_with_strength_is_not_finetuning(
    name: str, finetuned: dict[tuple[int, bool], Result]
) -> None:
    assert not same(trained(name, dims=3).after, finetuned[3, False].after)


def test_finetune_longer_is_fine_tuning_of_more_steps() -> None:
    """The learning rate falls over all of them, and validations stay as many."""
    selected = {"select": "best", "warmup": 0.5, "same_task": True}
    longer = trained("finetune_longer", {"times": 3}, steps=4, validate_every=2, **selected)
    plain = trained("finetune", steps=12, validate_every=6, **selected)
    assert same(longer.after, plain.after) and longer.curves == plain.curves
    assert len(longer.curves.validation) == 2 and longer.curves.passes == 12


def test_strong_l2_sp_stays_at_the_source() -> None:
    sgd = {
        "optimizer": {"name": "sgd", "lr": 1e-3, "weight_decay": 0.0},
        "steps": 30,
        "same_task": True,
    }
    free, held = trained("finetune", **sgd), trained("l2_sp", {"alpha": 300}, **sgd)

    def distance(result: Result) -> float:
        return max(
            float((w.detach() - result.before[n]).abs().max())
            for n, w in result.run.network.named_parameters()
        )

    assert distance(held) < distance(free) / 20


@DIMENSIONS
def test_the_frozen_encoder_does_not_move_by_a_bit(dims: int) -> None:
    result = trained(
        "frozen_encoder",
        dims=dims,
        optimizer={"weight_decay": 0.1},
        select="best",
        validate_every=2,
    )
    encoder = set(result.run.parts.encoder)
    assert any("running_mean" in name for name in encoder)
    assert not any(result.moved(name) for name in encoder)
    decoder = result.run.parts.decoder
    assert decoder and all(result.moved(name) for name in decoder)


def test_lp_ft_moves_the_head_alone_and_then_everything() -> None:
    probed, both = trained("lp_ft", {"share": 1}), trained("lp_ft", {"share": 0.5})
    for name in probed.before:
        assert probed.moved(name) == (probed.run.parts.in_head(name))
    assert all(both.moved(name) for name, _ in both.run.network.named_parameters())
    assert len(both.batches) == both.run.config.steps
    assert all(p.requires_grad for p in probed.run.network.parameters())


@pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
def test_wise_ft_at_its_ends(same_task: bool, finetuned: dict[tuple[int, bool], Result]) -> None:
    result = trained("wise_ft", {"alphas": [0]}, same_task=same_task)
    tuned = finetuned[3, same_task].after
    for name, tensor in result.after.items():
        kept = "num_batches" in name or (result.run.parts.in_head(name) and not same_task)
        assert torch.equal(tensor, tuned[name] if kept else result.before[name]), name
    assert any("running_var" in name for name in tuned)


def test_wise_ft_takes_the_best_of_the_grid_by_validation() -> None:
    run = context(same_task=True)
    first = next(iter(run.network.state_dict()))
    start, looks = run.network.state_dict()[first].clone(), []

    def validate(network: nn.Module) -> float:
        looks.append(network.state_dict()[first].clone())
        return [0.3, 0.5, 0.5, 0.1][len(looks) - 1]

    run.validate = validate
    train(run, create("wise_ft", {"alphas": [0.75, 0, 1, 0.5]}), Curves())
    assert run.diagnostics["alpha"] == 0.75
    tuned = looks[3].double()
    expected = 0.25 * start.double() + 0.75 * tuned
    assert torch.allclose(run.network.state_dict()[first].double(), expected, atol=1e-7)


@pytest.mark.parametrize("name", ["frozen_encoder", "delta", "bss", "style_contrast"])
def test_an_unknown_encoder_is_a_clear_error(name: str) -> None:
    run = context()
    run.parts = networks.Parts(run.parts.head, (), tuple(run.network.state_dict()))
    with pytest.raises(UserError, match=f"{name} needs the encoder"):
        train(run, create(name, {}), Curves())


# ------------------------------------------------------------------------------------------ encoder


@pytest.mark.parametrize(
    "config",
    [
        {"name": "UNet", "channels": (4, 8, 16), "strides": (2, 2), "num_res_units": 1},
        {"name": "UNet", "channels": (4, 8, 16), "strides": (2, 2)},
        {"name": "AttentionUnet", "channels": (4, 8, 16), "strides": (2, 2)},
        {"name": "BasicUNet", "features": (4, 4, 8, 8, 16, 4)},
        {
            "name": "DynUNet",
            "kernel_size": (3, 3, 3),
            "strides": (1, 2, 2),
            "upsample_kernel_size": (2, 2),
            "filters": (4, 8, 16),
        },
        {"name": "SegResNet", "init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)},
        {"name": "PlainConvUNet", "features_per_stage": (4, 8, 8), "strides": (1, 2, 2)},
        {
            "name": "ResidualEncoderUNet",
            "features_per_stage": (4, 8, 8),
            "strides": (1, 2, 2),
            "n_blocks_per_stage": 1,
        },
    ],
    ids=lambda c: c["name"],
)
def test_encoder_blocks_are_the_levels_down_to_the_bottleneck(config: dict[str, Any]) -> None:
    network_config = NetworkConfig.model_validate(config)
    parts = networks.parts(network_config, 1, 2)
    network = networks.build(network_config, 1, 2, 2, seed=0)
    blocks = encoder_blocks(network, parts)
    with watch(blocks) as maps:
        network(torch.zeros(1, 1, 32, 32))
    sizes = [m.shape[2] for m in maps.values()]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) >= 3, "a decoder level is among them"
    inside = {id(p) for block in blocks.values() for p in block.parameters()}
    decoder = {
        id(p) for n, p in network.named_parameters() if n in parts.decoder or parts.in_head(n)
    }
    assert inside and decoder and not inside & decoder
    assert bss.deepest(maps) is list(maps.values())[-1]


# ------------------------------------------------------------------------------------------ numbers


@DIMENSIONS
@pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
def test_l2_sp_penalty(dims: int, same_task: bool) -> None:
    """Omega = alpha/2 ||w_S - w_S^0||^2 + beta/2 ||w_S'||^2."""
    run = context(dims, same_task)
    method = create("l2_sp", {"alpha": 0.3, "beta": 0.7})
    start = {n: p.detach().double() for n, p in run.network.named_parameters()}
    method.prepare(run)
    expected = 0.0
    with torch.no_grad():
        for i, (name, p) in enumerate(run.network.named_parameters()):
            p += 0.1 * random(*p.shape, seed=i)
            if run.parts.in_head(name) and not same_task:
                expected += 0.7 / 2 * float(p.double().square().sum())
            else:
                expected += 0.3 / 2 * float((p.double() - start[name]).square().sum())
    assert method.penalty(run).item() == pytest.approx(expected, rel=1e-5)
    assert l2_sp.flat([torch.ones(2, 2), torch.zeros(1)]).tolist() == [1, 1, 1, 1, 0]


@SHAPES
def test_delta_distance(shape: tuple[int, ...]) -> None:
    """C / (2 V) sum_b sum_c W_c ||FM_c - FM0_c||^2, summed over levels."""
    maps = {"a": random(*shape), "b": random(*shape, seed=1)}
    start = {"a": random(*shape, seed=2), "b": random(*shape, seed=3)}
    attention = {name: random(shape[1], seed=i).softmax(0) for i, name in enumerate(maps)}
    expected = 0.0
    for name in maps:
        where = positions(maps[name])
        for b, c in itertools.product(range(shape[0]), range(shape[1])):
            squares = sum(
                (float(maps[name][(b, c, *x)]) - float(start[name][(b, c, *x)])) ** 2 for x in where
            )
            expected += shape[1] / (2 * len(where)) * float(attention[name][c]) * squares
    assert float(delta.feature_distance(maps, start, attention)) == pytest.approx(
        expected, rel=1e-5
    )


@SHAPES
def test_delta_attention(shape: tuple[int, ...]) -> None:
    """Where the loss is linear in a channel, the first-order estimate is the rise on setting it to
    0.
    """
    features, weights = random(*shape).requires_grad_(), random(*shape, seed=1)
    effects = delta.channel_effects((features * weights).sum(), {"level": features})[0]
    for c in range(shape[1]):
        without = features.detach().clone()
        without[:, c] = 0
        rise = float((without * weights).sum() - (features.detach() * weights).sum())
        assert float(effects[c]) == pytest.approx(rise, abs=1e-4)
    attention = delta.channel_attention(torch.tensor([1.0, 3.0]))  # z = -1, 1
    assert float(attention[1]) == pytest.approx(1 / (1 + math.exp(-2 / 5)))
    assert delta.channel_attention(torch.ones(4)).tolist() == [0.25] * 4


@DIMENSIONS
@pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
def test_delta_adds_the_distance_to_the_source_and_the_head_penalty(
    dims: int, same_task: bool
) -> None:
    run = context(dims, same_task, norm="instance")
    method = create("delta", {"alpha": 0.5, "beta": 0.25})
    plain = create("finetune", {})
    method.prepare(run)
    head = run.network.get_submodule(run.parts.head)
    new = (
        0.0
        if same_task
        else 0.125 * sum(float(w.detach().double().square().sum()) for w in head.parameters())
    )
    batch = run.patches.batch(0)
    assert method.loss(run, batch).item() == pytest.approx(
        plain.loss(run, batch).item() + new, rel=1e-5
    )
    assert all(
        float(w.sum()) == pytest.approx(1) and len(w) in (4, 8) for w in method.attention.values()
    )
    assert len(method.attention) == 3
    with torch.no_grad():
        for name, p in run.network.named_parameters():
            if not run.parts.in_head(name):
                p.mul_(1.1)
    assert method.loss(run, batch).item() > plain.loss(run, batch).item() + new + 1e-4


@SHAPES
@pytest.mark.parametrize("k", [1, 3])
def test_bss_shrinks_the_smallest_singular_values(shape: tuple[int, ...], k: int) -> None:
    features = random(*shape).requires_grad_()
    matrix = bss.feature_matrix(features)
    rows = [features[(b, slice(None), *x)] for b in range(shape[0]) for x in positions(features)]
    assert torch.equal(matrix, torch.stack(rows))
    u, s, v = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    value = bss.shrinkage(matrix, k)
    assert float(value) == pytest.approx(float(s[-k:].square().sum()), rel=1e-5)
    value.backward()
    gradient = bss.feature_matrix(features.grad).double()
    assert torch.allclose(gradient, 2 * (u[:, -k:] * s[-k:]) @ v[-k:], atol=1e-5)
    few_rows = random(3, 7)
    assert float(bss.shrinkage(few_rows, 2)) == pytest.approx(
        float(torch.linalg.svdvals(few_rows.double())[-2:].square().sum()), rel=1e-5
    )


@DIMENSIONS
def test_bss_uses_the_bottleneck_and_has_enough_rows(dims: int) -> None:
    run = context(dims)
    method = create("bss", {"eta": 0.5})
    method.prepare(run)
    batch = run.patches.batch(0)
    with watch(method.blocks) as maps:
        plain = create("finetune", {}).loss(run, batch)
    matrix = bss.feature_matrix(bss.deepest(maps))
    assert matrix.shape == (2 * 2**dims, 8) and matrix.shape[0] >= matrix.shape[1]
    smallest = float(torch.linalg.svdvals(matrix.double())[-1]) ** 2
    assert float(method.loss(run, batch)) == pytest.approx(float(plain) + 0.5 * smallest, rel=1e-5)
    with pytest.raises(UserError, match="too small for k=8"):
        trained("bss", {"k": 8}, dims=dims)


@SHAPES
def test_stochnorm_mixes_moving_and_batch_statistics(shape: tuple[int, ...]) -> None:
    """x^ = (1 - s) x^_0 + s x^_1; the moving statistics are updated as usual."""
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm3d
    network = nn.Sequential(kind(shape[1]))
    norm: Any = network[0]
    with torch.no_grad():
        for i, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
            tensor.copy_(random(shape[1], seed=i).abs() + 0.5)
    before, usual = state(network), kind(shape[1])
    usual.load_state_dict(norm.state_dict())
    [layer] = stochnorm.replace(network)
    assert network[0] is layer and same(state(network), before) and layer.weight is norm.weight
    x = random(*shape, seed=5)
    layer.choice = torch.tensor([True, False, True, False, True])
    y = layer(x)
    for c in range(shape[1]):
        values = x[:, c].double()
        mean, var = values.mean(), values.var(correction=0)
        if not layer.choice[c]:
            mean, var = before["0.running_mean"][c], before["0.running_var"][c]
        expected = (values - mean) / (var + 1e-5).sqrt() * before["0.weight"][c] + before["0.bias"][
            c
        ]
        assert torch.allclose(y[:, c].double(), expected, atol=1e-5)
    usual(x)
    assert same(layer.state_dict(), usual.state_dict())
    assert torch.equal(layer.eval()(x), usual.eval()(x))


@SHAPES
def test_stochnorm_gradient(shape: tuple[int, ...]) -> None:
    """The moving branch's gradient is gamma / sqrt(var + eps), before the statistics' update."""
    layer = stochnorm.StochasticNorm(shape[1])
    layer.running_var = torch.full((shape[1],), 4.0)
    layer.choice = torch.zeros(shape[1], dtype=torch.bool)
    x = random(*shape).requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad, torch.full(shape, 1 / math.sqrt(4 + 1e-5)))


def test_stochnorm_draws_for_each_step_and_refuses_other_norms() -> None:
    run = context()
    method = create("stochnorm", {})
    method.prepare(run)
    choices = []
    for run.step in (0, 1, 0):
        method.loss(run, run.patches.batch(0))
        choices.append(torch.cat([layer.choice for layer in method.layers]))
    assert torch.equal(choices[0], choices[2]) and not torch.equal(choices[0], choices[1])
    with pytest.raises(UserError, match="needs a network with batch normalisation"):
        trained("stochnorm", norm="instance")


@DIMENSIONS
def test_co_tuning_relation_and_loss(dims: int) -> None:
    """p(ys | yt) is the mean source softmax over the voxels with that label.

    CE against it, averaged over voxels.
    """
    run = context(dims)
    method = create("co_tuning", {"strength": 0.5})
    method.prepare(run)
    sums, counts = torch.zeros(2, 3, dtype=torch.float64), [0, 0]
    for i in range(len(run.training_set)):
        image, label, _ = run.training_set.volume(i)
        theta = run.predict(run.source, image).double()
        for k in range(2):
            sums[k] += theta.movedim(1, -1)[label == k].sum(0)
            counts[k] += int((label == k).sum())
    expected = sums / torch.tensor(counts, dtype=torch.float64)[:, None]
    assert torch.allclose(method.relation.double(), expected, atol=1e-6)
    batch = run.patches.batch(0)
    with head_input(run) as features:
        plain = create("finetune", {}).loss(run, batch)
    log_p = method.source_head(features[0]).double().log_softmax(1)
    added = [
        -float((expected[int(batch.label[(b, *x)])] * log_p[(b, slice(None), *x)]).sum())
        for b in range(2)
        for x in positions(batch.image)
    ]
    assert float(method.loss(run, batch)) == pytest.approx(
        float(plain) + 0.5 * sum(added) / len(added), rel=1e-5
    )


def test_co_tuning_keeps_a_source_head_of_its_own() -> None:
    never = co_tuning.relation(torch.tensor([[0.2, 0.8], [0.0, 0.0]], dtype=torch.float64))
    assert never.tolist() == [[0.2, 0.8], [0.2, 0.8]]
    run = context(same_task=True)
    method = create("co_tuning", {})
    train(run, method, Curves())
    head, start = (
        state(run.network.get_submodule(run.parts.head)),
        run.source.get_submodule(run.parts.head),
    )
    assert not same(state(method.source_head), head) and not same(
        state(method.source_head), state(start)
    )
    hot = create("co_tuning", {"temperature": 1e6})
    hot.prepare(context())
    assert torch.allclose(hot.relation, torch.full((2, 3), 1 / 3), atol=1e-4)


def test_auto_rgn_is_adamw_with_a_learning_rate_for_each_layer() -> None:
    """eta_l = eta RGN_l / max RGN: the same as one AdamW per layer with that rate."""
    found = trained("auto_rgn", {"every": 1}, steps=3, clip=None)
    run = context(steps=3, clip=None)
    layers: list[list[Tensor]] = []
    for p in run.network.parameters():
        if p.ndim > 1:
            layers.append([])
        layers[-1].append(p)
    plain = create("finetune", {})
    optimizers = [torch.optim.AdamW(layer, lr=1.0, weight_decay=1e-5) for layer in layers]
    run.network.train()
    for step in range(3):
        run.network.zero_grad()
        plain.loss(run, run.patches.batch(step)).backward()
        rgn = [float(layer[0].grad.norm() / layer[0].norm()) for layer in layers]
        for optimizer, r in zip(optimizers, rgn, strict=True):
            optimizer.param_groups[0]["lr"] = (
                1e-3 * learning_rate_factor("poly", step, 3) * r / max(rgn)
            )
            optimizer.step()
    for name, p in run.network.named_parameters():
        if not name.endswith("conv.bias"):  # before a normalisation: its gradient is rounding alone
            assert torch.allclose(found.after[name], p, atol=1e-7), name
    scales = found.run.diagnostics["learning_rate_scales"]
    assert len(scales) == len(layers) and max(scales) == pytest.approx(1) and min(scales) < 0.9
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    w.grad = torch.tensor([[0.0, 1.0]])
    small = nn.Parameter(torch.tensor([[3e-3, 4e-3]]))
    small.grad = torch.tensor([[0.0, 1e-3]])
    norms = auto_rgn.relative_gradient_norms([w, nn.Parameter(torch.ones(1)), small])
    assert norms.tolist() == pytest.approx([0.2, 0.0, 0.2])


class Scored:
    """A validation that scores the merged value of a one-tensor network by a function."""

    def __init__(self, values: list[float], score: Callable[[float], float]) -> None:
        self.run = context()
        self.run.network = nn.Linear(1, 1, bias=False)
        self.run.validate = lambda network: score(float(network.weight))
        self.method: Any = create("forkmerge", {"weights": [0.0] * len(values)})
        self.method.source_head = nn.Identity()
        self.branches = [{"weight": torch.tensor([[v]])} for v in values]

    def merge(self) -> tuple[dict[str, Any], float]:
        record = self.method.merge(self.run, self.branches)
        return record, float(self.run.network.weight)


@pytest.mark.parametrize("name", ["forkmerge", "style_contrast"])
@pytest.mark.parametrize("same_task", [True, False])
def test_a_second_head_is_trained_where_the_label_maps_differ_alone(
    name: str, same_task: bool
) -> None:
    run, method = context(same_task=same_task), create(name, {})
    method.prepare(run)
    assert isinstance(method, SourceHeadMethod)
    second = {id(parameter) for parameter in method.source_head.parameters()}
    trained = {id(parameter) for parameter in method.parameters(run)}
    assert second and (second.isdisjoint(trained) if same_task else second <= trained)
    own = run.network.get_submodule(run.parts.head)
    assert method.head_of_source(run) is (own if same_task else method.source_head)


def test_forkmerge_searches_merge_weights_by_validation() -> None:
    record, merged = Scored(
        [0.0, 1.0], lambda w: -abs(w - 0.375)
    ).merge()  # best: alpha 0.6, weights 1 : 0.6
    assert merged == pytest.approx(0.375) and record["weights"] == pytest.approx(
        [1 / 1.6, 0.6 / 1.6]
    )
    record, merged = Scored([0.0, 1.0], lambda w: abs(w - 0.1)).merge()  # every mixture is worse
    assert (
        merged == 1.0
        and record["weights"] == [0.0, 1.0]
        and record["merged"] == max(record["parents"])
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_merge_is_never_worse_than_its_best_parent(seed: int) -> None:
    values = random(4, seed=seed).tolist()
    score = lambda w: math.sin(7 * w + seed)  # noqa: E731
    record, merged = Scored(values, score).merge()
    assert (
        record["merged"]
        >= max(record["parents"])
        == pytest.approx(max(score(v) for v in values), abs=1e-5)
    )
    assert score(merged) == pytest.approx(record["merged"])
    assert sum(record["weights"]) == pytest.approx(1) and min(record["weights"]) >= 0
    assert merged == pytest.approx(
        sum(w * v for w, v in zip(record["weights"], values, strict=True)), abs=1e-6
    )


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, 3.0])
def test_forkmerge_takes_source_batches_as_often_as_the_branch_weighs_them(weight: float) -> None:
    """A step of branch b sees a source batch with probability lambda_b / (1 + lambda_b)."""
    run = context()
    method: Any = create("forkmerge", {"weights": [0.0, weight]})
    method.prepare(run)
    method.branch, steps = 1, 400
    asked = 0

    class Counted:
        def batch(self, step: int) -> Any:
            nonlocal asked
            asked += 1
            return run.patches.batch(0)

    method.source_patches = Counted()
    method.segmentation_loss = lambda run, logits, batch: torch.zeros(())
    batch = run.patches.batch(0)
    run.network.forward = lambda image: image
    for run.step in range(steps):
        method.loss(run, batch)
    share = weight / (1 + weight)
    spread = 4 * math.sqrt(share * (1 - share) / steps)  # four standard deviations
    assert asked / steps == pytest.approx(share, abs=spread)


@pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
def test_forkmerge_trains_every_branch_for_all_steps(same_task: bool) -> None:
    run = context(same_task=same_task, steps=8)
    method: Any = create("forkmerge", {"rounds": 2})
    seen: list[tuple[int, int]] = []
    starts: list[dict[str, Tensor]] = []
    source_steps = 0
    plain = method.loss

    def loss(run: Context, batch: Any) -> Tensor:
        seen.append((method.branch, run.step))
        if run.step in (0, 4):
            starts.append(state(run.network))
        return plain(run, batch)

    method.loss = loss
    made = run.source_patches()

    def count(step: int) -> Any:
        nonlocal source_steps
        source_steps += 1
        return PatchSampler.batch(made, step)

    made.batch = count  # type: ignore[method-assign]
    run.source_patches = lambda: made
    train(run, method, Curves())
    assert seen == [
        (b, step) for first in (0, 4) for b in (0, 1) for step in range(first, first + 4)
    ]
    assert 0 < source_steps < 8
    assert same(starts[0], starts[1]) and same(starts[2], starts[3]), "branches start alike"
    assert not same(starts[1], starts[2])
    assert [m["step"] for m in run.diagnostics["merges"]] == [4, 8]
    assert all(m["merged"] >= max(m["parents"]) for m in run.diagnostics["merges"])
    assert run.validate(run.network) == run.diagnostics["merges"][-1]["merged"]
    mixed = forkmerge.mix(
        {"a": torch.tensor([1.0]), "n": torch.tensor(3)},
        {"a": torch.tensor([2.0]), "n": None},
        0.25,
    )
    assert mixed["a"].item() == 1.25 and mixed["n"].item() == 3


@SHAPES
def test_agreement_of_two_environments(shape: tuple[int, ...]) -> None:
    """a_v = sum_k (A p_s)_k p_t,k, whose mean is tr M with M = 1/V sum_v (A p_s) p_t'."""
    source, target = random(*shape), random(shape[0], 2, *shape[2:], seed=1)
    to_target = random(2, shape[1], seed=2).softmax(0)
    found = disagreement.agreement(source, target, to_target)
    where = [(b, x) for b in range(shape[0]) for x in positions(source)]
    matrix = torch.zeros(2, 2, dtype=torch.float64)
    for b, x in where:
        seen = to_target.double() @ source[(b, slice(None), *x)].double().softmax(0)
        p_t = target[(b, slice(None), *x)].double().softmax(0)
        assert float(found[(b, *x)]) == pytest.approx(float(seen @ p_t), abs=1e-6)
        matrix += torch.outer(seen, p_t) / len(where)
    assert float(matrix.sum()) == pytest.approx(1) and float(found.mean()) == pytest.approx(
        float(matrix.trace())
    )


@DIMENSIONS
@pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
def test_disagreement_loss(dims: int, same_task: bool) -> None:
    run = context(dims, same_task)
    method: Any = create("disagreement", {"strength": 0.5, "gamma": 2.0, "reduce": 0.3})
    method.prepare(run)
    run.network.train()
    batch, source = run.patches.batch(0), run.source_patches().batch(0)
    plain = float(create("finetune", {}).loss(run, batch))
    with head_input(run) as features:
        p_t = run.network(source.image).double().softmax(1)
    log_s = method.source_head(features[0]).double().log_softmax(1)
    a = torch.einsum("kc,bc...,bk...->b...", method.to_target.double(), log_s.exp(), p_t)
    ce = functional.nll_loss(log_s, source.label, reduction="none")
    expected = plain + 0.5 * float((a**2 * ce).mean() + 0.3 * (1 - a.mean()))
    loss = method.loss(run, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    head = list(run.network.get_submodule(run.parts.head).parameters())
    alone = create("finetune", {}).loss(run, batch)
    pairs = zip(torch.autograd.grad(loss, head), torch.autograd.grad(alone, head), strict=True)
    assert all(torch.equal(g, h) for g, h in pairs), "the target head learns from source data"
    assert method.to_target.shape == (2, 2 if same_task else 3)
    assert torch.allclose(method.to_target.sum(0), torch.ones(len(method.to_target[0])))


def test_source_patches_leave_the_moving_statistics_alone() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    norm: Any = network[1]
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    with target_statistics(network):
        network(random(2, 1, 4, 4))
    assert (
        torch.equal(norm.running_mean, mean)
        and torch.equal(norm.running_var, var)
        and norm.momentum == 0.1
    )
    network(random(2, 1, 4, 4))
    assert not torch.equal(norm.running_mean, mean)
