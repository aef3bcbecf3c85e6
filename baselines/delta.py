"""DELTA: feature maps are pulled to the source's, channel by channel as the target needs them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from trm_bench.data.patches import Batch
from trm_bench.methods import Context, Parameters, hyper
from trm_bench.transfer_risk import SMALLEST_PROBABILITY, LeepStatistics

from .encoder import EncoderMethod, encoder_blocks, watch

TEMPERATURE = 5.0  # of the attention's softmax, from the authors' code


class DeltaParameters(Parameters):
    """Hyper-parameters of DELTA; the weights default to those of the authors' code."""

    alpha: float = hyper(
        0.01, "weight of the feature distance", search=(1e-4, 1.0), log=True, ge=0, le=1e6
    )
    beta: float = hyper(
        0.01, "pull of a new head's weights to 0", search=(1e-4, 0.1), log=True, ge=0, le=1e6
    )
    batches: int = hyper(
        8, "target training batches that the attention is computed on", ge=1, le=10_000
    )


class Delta(EncoderMethod):
    """Fine-tuning with the feature distance alpha sum_j sum_c W_jc ||FM_jc(w, x) - FM_jc(w^0,
    x)||^2, W attention.

    Li et al., ICLR 2019, arXiv:1901.09229. FM_j is the output of level j of the encoder (of all
    levels), w^0 the frozen source network, and a new head gets beta/2 ||w||^2. As in the authors'
    code each level's term is C_j / (2 V_j) sum_b sum_c W_jc ||.||^2 with C_j channels and V_j
    positions, pixels there, voxels here.

    W_j (C_j,) = softmax_c(zscore_c(D_jc) / 5), D_jc being the rise of the target loss when channel
    c is set to 0. It is computed once, before training, on `batches` batches of target training
    patches. What differs from the paper:
    - D is the first-order estimate -sum_{b,v} FM_jc dL/dFM_jc (Molchanov et al. 2017,
    arXiv:1611.06440), one backward
      pass for all channels; the paper runs the network once per channel and batch, hundreds of
      passes a batch.
    - The target loss is the source network's own, -log sum_c P(y | c) theta_c with LEEP's P(y | c)
    from the same
      batches (the identity where the classes are the same); the paper first trains a new classifier
      on source features.

    alpha = beta = 0 is fine-tuning.

    Raises:
        UserError: Which part of the network is the encoder is not known.
    """

    name = "delta"
    paper = "Li et al., ICLR 2019, arXiv:1901.09229"
    Parameters = DeltaParameters

    def needs_head(self) -> bool:
        return bool(self.p.alpha)  # the attention comes from the source's own loss

    def prepare(self, run: Context) -> None:
        super().prepare(run)
        assert run.source is not None
        self.blocks = encoder_blocks(run.network, run.parts)
        self.source_blocks = encoder_blocks(run.source, run.parts)
        self.attention = self._attention(run) if self.p.alpha else {}

    def _attention(self, run: Context) -> dict[str, Tensor]:
        assert run.source is not None
        batches = [run.patches.batch(step) for step in range(self.p.batches)]
        with torch.no_grad():
            softmax = [run.source(batch.image).softmax(1) for batch in batches]
        statistics = LeepStatistics(run.classes, softmax[0].shape[1])
        for probabilities, batch in zip(softmax, batches, strict=True):
            statistics.update(probabilities, batch.label)
        conditional = torch.eye(run.classes) if run.same_task else statistics.conditional().float()
        rise: dict[str, Tensor] = {}
        for batch in batches:
            # the image asks for a gradient, as no weight of the source does
            with watch(self.source_blocks) as maps:
                theta = run.source(batch.image.clone().requires_grad_()).softmax(1)
            p = conditional.to(theta.device) @ theta.flatten(2)  # (B, Kt, V)
            loss = functional.nll_loss(
                p.clamp(min=SMALLEST_PROBABILITY).log(), batch.label.flatten(1)
            )
            for name, effect in zip(maps, channel_effects(loss, maps), strict=True):
                rise[name] = rise.get(name, 0.0) + effect
        return {name: channel_attention(total) for name, total in rise.items()}

    def loss(self, run: Context, batch: Batch) -> Tensor:
        if not self.p.alpha:
            return super().loss(run, batch)
        assert run.source is not None
        with watch(self.blocks) as maps:
            loss = super().loss(run, batch)
        with torch.no_grad(), watch(self.source_blocks) as start:
            run.source(batch.image)
        return loss + self.p.alpha * feature_distance(maps, start, self.attention)

    def penalty(self, run: Context) -> Tensor | float:
        if run.same_task or not self.p.beta:
            return 0.0
        head = run.network.get_submodule(run.parts.head)
        squares = torch.stack([w.float().square().sum() for w in head.parameters()])
        return self.p.beta / 2 * squares.sum()


def feature_distance(
    maps: Mapping[str, Tensor], start: Mapping[str, Tensor], attention: Mapping[str, Tensor]
) -> Tensor:
    """sum_j C_j / (2 V_j) sum_b sum_c W_jc ||FM_jc - FM0_jc||^2, a float32 scalar.

    Args:
        maps: Feature maps by level, shape (B, C, *spatial), of any number of axes.
        start: The source's.
        attention: W by level, shape (C,).
    """
    total = torch.zeros((), device=next(iter(maps.values())).device)
    for name, weight in attention.items():
        squares = (maps[name].float() - start[name].float()).flatten(2).square()
        total = total + weight.numel() / 2 * (squares.mean(2) * weight).sum()
    return total


def channel_effects(loss: Tensor, maps: Mapping[str, Tensor]) -> list[Tensor]:
    """First-order rise of the loss when a channel of a map is set to 0, one (C,) per map (B, C,
    *spatial).
    """
    gradients = torch.autograd.grad(loss, list(maps.values()))
    pairs = zip(gradients, maps.values(), strict=True)
    return [-(gradient * values.detach()).flatten(2).sum((0, 2)) for gradient, values in pairs]


def channel_attention(rise: Tensor) -> Tensor:
    """softmax(zscore(rise) / 5), shape (C,), summing to 1."""
    deviation = rise.std(correction=0).clamp(min=torch.finfo(rise.dtype).tiny)
    return ((rise - rise.mean()) / deviation / TEMPERATURE).softmax(0)
