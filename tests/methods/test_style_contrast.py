"""Style contrast: its losses beside plain sums, what the decoder is told, and which voxels."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from harness import CPU, context, random, trained
from torch import Tensor, nn
from trm_bench.baselines import style_contrast
from trm_bench.baselines.encoder import encoder_blocks, watch
from trm_bench.baselines.source_head import head_input

from trm_bench import networks
from trm_bench.errors import UserError
from trm_bench.methods import Context
from trm_bench.methods.registry import create
from trm_bench.protocol.schema import NetworkConfig
from trm_bench.seeds import deterministic, generator

DIMENSIONS = pytest.mark.parametrize("dims", [2, 3])
NETWORKS = [
    {"name": "UNet", "channels": (4, 8, 16), "strides": (2, 2), "num_res_units": 1},
    {"name": "AttentionUnet", "channels": (4, 8, 16), "strides": (2, 2)},
    {
        "name": "DynUNet",
        "kernel_size": (3, 3, 3),
        "strides": (1, 2, 2),
        "upsample_kernel_size": (2, 2),
        "filters": (4, 8, 16),
    },
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def started(dims: int = 3, **options: Any) -> tuple[Context, Any]:
    names = ("source", "style", "content", "temperature", "condition", "size", "voxels")
    given = {name: options.pop(name) for name in names if name in options}
    method: Any = create("style_contrast", given)
    run = context(dims, method=method, **options)
    method.prepare(run)
    method.training_mode(run)
    return run, method


def plain_contrast(vectors: np.ndarray, labels: list[int], t: float) -> float:
    """Khosla et al. 2020, equation 2, voxel by voxel."""
    z = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    there = [i for i, label in enumerate(labels) if label >= 0]
    each = []
    for i in there:
        others = [a for a in there if a != i]
        positive = [p for p in others if labels[p] == labels[i]]
        if positive:
            total = sum(math.exp(z[i] @ z[a] / t) for a in others)
            shares = [math.log(math.exp(z[i] @ z[p] / t) / total) for p in positive]
            each.append(-sum(shares) / len(shares))
    return sum(each) / len(each) if each else 0.0


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 1, 1], [0, 1, 0, 2, 2, 0], [0, -1, 0, -1, 1], [0, 1], [0, -1], [3], [-1, -1]],
    ids=str,
)
@pytest.mark.parametrize("t", [0.1, 1.0])
def test_contrast(labels: list[int], t: float) -> None:
    vectors = (3 * random(len(labels), 5)).requires_grad_()
    found = style_contrast.contrast(vectors, torch.tensor(labels), t)
    expected = plain_contrast(vectors.detach().double().numpy(), labels, t)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    found.backward()
    assert vectors.grad is not None and bool(vectors.grad.isfinite().all())
    alone = torch.tensor([label < 0 for label in labels])
    assert not vectors.grad[alone].any()


def test_contrast_falls_as_vectors_of_one_label_come_together() -> None:
    labels, apart = torch.tensor([0, 0, 1, 1]), torch.eye(4)
    together = torch.eye(4)[[0, 0, 1, 1]]
    mixed = torch.eye(4)[[0, 1, 0, 1]]
    losses = [float(style_contrast.contrast(z, labels, 0.5)) for z in (together, apart, mixed)]
    assert losses == sorted(losses) and losses[0] < losses[2]


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 2), (2, 3, 1, 1)])
def test_statistics(shape: tuple[int, ...]) -> None:
    maps = random(*shape).requires_grad_()
    found = style_contrast.statistics(maps)
    values = maps.detach().double().numpy().reshape(*shape[:2], -1)
    deviation = np.sqrt(values.var(2) + 1e-5)
    expected = np.concatenate([values.mean(2), deviation], axis=1)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-6)
    found.sum().backward()
    assert maps.grad is not None and bool(maps.grad.isfinite().all())


@DIMENSIONS
def test_drawn_voxels(dims: int) -> None:
    """Up to 5 of each class, none twice, the features where the label is, -1 where there is none.

    The features have half the label's resolution, so that value i lies at voxel 2 i.
    """
    coarse = (3, 4, 2)[:dims]
    label = torch.randint(0, 2, (2, *[2 * n for n in coarse]), generator=generator("labels"))
    label[(0, *[0] * dims)] = 2  # the only one
    every = (slice(None), *[slice(None, None, 2)] * dims)
    numbers = torch.arange(2 * math.prod(coarse)).reshape(2, 1, *coarse).float()
    features = torch.cat([numbers, label[every].unsqueeze(1).float()], dim=1)
    rows, labels = style_contrast.drawn(features, label, 4, 5, generator("draws"))
    assert rows.shape == (20, 2) and labels[:10].tolist() == [0] * 5 + [1] * 5
    assert sorted(labels[10:15].tolist()) == [-1] * 4 + [2] and (labels[15:] == -1).all()
    there = labels >= 0
    assert torch.equal(rows[there, 1].long(), labels[there])
    assert len(set(rows[there, 0].tolist())) == int(there.sum())
    again, other = (
        style_contrast.drawn(features, label, 4, 5, generator(name))[0]
        for name in ("draws", "others")
    )
    assert torch.equal(rows, again) and not torch.equal(rows, other)
    few, _ = style_contrast.drawn(features[:1, :, :1, :1], label[:1, :1, :1], 2, 5, generator("a"))
    assert len(few) <= 2 * 5


@DIMENSIONS
@pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
def test_loss(dims: int, same_task: bool) -> None:
    weights = {"source": 0.7, "style": 0.3, "content": 0.2, "temperature": 0.5}
    run, method = started(dims, same_task=same_task, voxels=3, size=5, **weights)
    batches = run.patches.batch(0), run.source_patches().batch(0)
    heads = [run.network.get_submodule(run.parts.head), method.source_head]
    codes, maps, expected = [], [], 0.0
    for batch, weight, head in zip(
        batches, (1.0, 0.7), (heads[0], heads[0] if same_task else heads[1]), strict=True
    ):
        code = {"code": run.network.get_submodule("style.code")}
        with head_input(run) as features, watch(code) as seen:
            run.network(batch.image)
        terms = method.terms(run, head(features[0]), batch)
        expected += weight * sum(term.item() for term in terms.values())
        codes.append(seen["code"].detach().numpy())
        maps.append(features[0])
    expected += 0.3 * plain_contrast(np.concatenate(codes), [0, 0, 1, 1], 0.5)
    chosen = []
    for i, (features, batch) in enumerate(zip(maps, batches, strict=True)):
        draws = generator(*run.seed_axes, "style_contrast", i, 0)
        classes = 2 if same_task or i == 0 else 3
        rows, labels = style_contrast.drawn(features, batch.label, classes, 3, draws)
        chosen.append((rows.detach().double().numpy(), labels.tolist()))
    if same_task:
        both = np.concatenate([rows for rows, _ in chosen])
        content = plain_contrast(both, chosen[0][1] + chosen[1][1], 0.5)
    else:
        content = sum(plain_contrast(*part, 0.5) for part in chosen) / 2
    expected += 0.2 * content
    assert content > 0
    assert method.loss(run, batches[0]).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda c: c["name"])
def test_the_decoder_is_told_the_style_and_nothing_at_first(config: dict[str, Any]) -> None:
    network_config = NetworkConfig.model_validate(config)
    bare = networks.build(network_config, 1, 2, 2, seed=0).eval()
    parts = networks.parts(network_config, 1, 2)
    paper = torch.empty(1, 1, 16, 16, device="meta")
    method = create("style_contrast", {"size": 5})
    styled = method.architecture(copy.deepcopy(bare), parts, paper).eval()
    image = random(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(styled(image), bare(image))
        for i, parameter in enumerate(styled.get_submodule("style").parameters()):
            parameter.copy_(0.1 * random(*parameter.shape, seed=i))
        with watch(encoder_blocks(bare, parts)) as before:
            bare(image)
        with watch(encoder_blocks(styled, parts)) as after:
            styled(image)
        *higher, deepest = before
        assert all(torch.equal(before[name], after[name]) for name in higher)
        own: Any = styled.get_submodule("style")
        style = torch.cat([style_contrast.statistics(m) for m in before.values()], dim=1)
        code = style @ own.code.weight.T + own.code.bias
        told = code @ own.told.weight.T + own.told.bias
    x, y = before[deepest].double().numpy(), after[deepest].double().numpy()
    for b, c in np.ndindex(x.shape[:2]):
        scale, shift = float(told[b, c]), float(told[b, c + x.shape[1]])
        np.testing.assert_allclose(y[b, c], x[b, c] * (1 + scale) + shift, atol=1e-4)
    assert not own.seen, "nothing is left of a pass"


def test_a_copied_network_has_its_own_modules() -> None:
    run, _ = started()
    image = run.patches.batch(0).image
    run.network.eval()
    before = run.network(image)
    other: Any = copy.deepcopy(run.network)
    nn.init.ones_(other.style.told.bias)
    assert not torch.equal(other(image), before) and torch.equal(run.network(image), before)


def test_one_patch_of_each_domain_is_no_pair() -> None:
    ends = [trained("style_contrast", {"style": style}, batch=1) for style in (0.1, 0.5)]
    assert ends[0].curves.loss == ends[1].curves.loss
    assert all(math.isfinite(loss) for _, loss in ends[0].curves.loss)


def test_the_decoder_alone_is_told_without_source_batches() -> None:
    run, method = started(source=0, style=0, content=0)
    run.source_patches = lambda: pytest.fail("source batches are not needed")
    method.prepare(run)
    assert method.passes() == 1.0 and not method.needs_head()
    result = trained("style_contrast", {"source": 0, "style": 0, "content": 0})
    assert result.moved("style.told.weight") and result.curves.passes == result.run.config.steps


@pytest.mark.parametrize("term", ["source", "style", "content"])
def test_each_term_is_of_use_alone(term: str) -> None:
    others: dict[str, Any] = {"source": 0, "style": 0, "content": 0, "condition": False}
    plain = trained("style_contrast", others, steps=2).after
    result = trained("style_contrast", {**others, term: 0.5}, steps=2)
    assert any(not torch.equal(result.after[name], plain[name]) for name in plain)
    assert ("style.code.weight" in result.after) == (term == "style")


def test_an_encoder_without_maps_is_a_clear_error() -> None:
    class Listing(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [self.conv(image)]

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.Sequential(Listing()), nn.Conv2d(2, 2, 1)

        def forward(self, image: Tensor) -> Tensor:
            return self.head(self.encoder(image)[0])

    parts = networks.Parts("head", ("encoder.0.conv.weight", "encoder.0.conv.bias"), ())
    with pytest.raises(UserError, match="gives no feature maps"):
        create("style_contrast", {}).architecture(
            Outer(), parts, torch.empty(1, 1, 4, 4, device="meta")
        )
