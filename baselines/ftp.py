"""FTP: every layer stays within a distance from the source that is learned along with it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trm_bench.methods import Context, Method, Parameters, Tree, hyper

from .anchor import anchored

SMALLEST = 1e-8  # radius, and what is added to distances
BETAS = (0.9, 0.999)  # of the radii's Adam


class FtpParameters(Parameters):
    """Hyper-parameters of FTP; all but the rate default to those of the authors' code."""

    radius: float | None = hyper(
        SMALLEST,
        "that every layer starts with; null for no constraint at all, which is fine-tuning",
        ge=SMALLEST,
        le=1e12,
    )
    rate: float = hyper(
        1.0, "learning rate of the radii, mu", search=(1e-3, 10.0), log=True, ge=0, le=1e6
    )
    kappa: float = hyper(
        1.0, "what a gradient that shrinks a radius counts", search=(0.0, 1.0), ge=0, le=1
    )


class Ftp(Method):
    """Fine-tuning in which each layer is projected to within a learned radius around the source.

    Fast trainable projection, Tian et al., NeurIPS 2023, arXiv:2310.19182, which makes the
    trainable projections of TPGM (Tian et al., CVPR 2023, arXiv:2303.10720) as fast as fine-tuning,
    and is tried on PASCAL's segmentation there. After the optimiser's step to w~ each row i of a
    layer becomes w_i = w_0,i + min(1, gamma / n_i) (w~_i - w_0,i), n_i = ||w~_i - w_0,i||_1: a
    projection in the maximum-absolute-row-sum norm. A layer is a tensor, a row an index of its
    first axis, that is an output channel of a convolution (an input channel of a transposed one),
    and a vector (biases, scales) is one row, as in the authors' code.

    gamma, one for each layer, starts at `radius` and takes a step of Adam with rate mu in each
    training step but the first, on the gradient of the next batch's loss, sum_i <g_i, u_i> with
    u_i = (w~_i - w_0,i) / n_i of the last step: no batch and no pass is spent on it. Where that
    gradient would shrink gamma, it counts kappa times. gamma stays between 1e-8 and the largest
    n_i. The gradient is the one before clipping, the protocol's weight decay is part of the step.

    What dense prediction changes: mu is 0.01 in the authors' code, whatever the layer. A radius is
    a sum over a row, and one of a 3x3x3 convolution has 27 entries for each input channel, some
    thousand, each of which a step of AdamW moves by about its learning rate, 1e-3. So a radius that
    grows by 0.01 lags far behind, and in a short training holds every layer back; mu defaults to
    the product, 1. `preset: paper` has 0.01. A new head has no source and moves freely, moving
    statistics are no parameters. `radius: null` is fine-tuning.
    """

    name = "ftp"
    paper = "Tian et al., NeurIPS 2023, arXiv:2310.19182"
    Parameters = FtpParameters
    presets: ClassVar = {"paper": {"rate": 0.01}}

    def prepare(self, run: Context) -> None:
        layers = anchored(run) if self.p.radius is not None else {}
        self.names, self.layers = list(layers), list(layers.values())
        self.source = [layer.detach().clone() for layer in self.layers]
        self.ways = [torch.zeros_like(layer) for layer in self.source]  # u
        self.radii = torch.full((len(layers),), self.p.radius or 0.0, device=run.device)
        self.moments = torch.zeros(2, len(layers), device=run.device)

    @torch.no_grad()
    def before_update(self, run: Context) -> None:
        if not self.layers or not run.step:  # there is no way yet
            return
        none = self.radii.new_zeros(())
        products = [
            none if layer.grad is None else (layer.grad * way).sum()
            for layer, way in zip(self.layers, self.ways, strict=True)
        ]
        gradient = torch.stack(products)
        gradient = torch.where(gradient > 0, self.p.kappa * gradient, gradient)
        self.radii = self.radii - self.p.rate * adam(self.moments, gradient, run.step + 1)

    @torch.no_grad()
    def after_update(self, run: Context) -> None:
        radii = []
        for i, (layer, source) in enumerate(zip(self.layers, self.source, strict=True)):
            sums = row_sums(layer - source)
            radius = self.radii[i].clamp(min=SMALLEST).minimum(sums.max())
            self.ways[i] = (layer - source) / sums
            layer.copy_(projected(layer, source, radius))
            radii.append(radius)
        if radii:
            self.radii = torch.stack(radii)

    def state(self, run: Context) -> Tree:
        return {"ways": self.ways, "radii": self.radii, "moments": self.moments}

    def restore(self, run: Context, state: Tree) -> None:
        self.ways = [
            torch.empty_like(layer).copy_(way)
            for layer, way in zip(self.source, state["ways"], strict=True)
        ]
        self.radii, self.moments = state["radii"], state["moments"]

    def finish(self, run: Context) -> None:
        if self.layers:
            radii = zip(self.names, self.radii.tolist(), strict=True)
            run.diagnostics["radii"] = dict(radii)


def row_sums(difference: Tensor) -> Tensor:
    """||.||_1 of each row plus 1e-8, in a shape that broadcasts; a vector is one row."""
    axes = tuple(range(1, difference.ndim)) or (0,)
    return difference.abs().sum(axes, keepdim=True) + SMALLEST


def projected(weight: Tensor, source: Tensor, radius: Tensor) -> Tensor:
    """The weights with each row no farther from the source's than the radius; others untouched."""
    difference = weight - source
    ratio = radius / row_sums(difference)
    return torch.where(ratio < 1, source + ratio * difference, weight)


def adam(moments: Tensor, gradient: Tensor, step: int) -> Tensor:
    """Adam's direction; updates the moments.

    Args:
        moments: First and second, shape (2, ...).
        gradient: Shape (...).
        step: Of the training, from 1: the first, which has no gradient, counts in the correction
            of the moments' bias, as in the authors' code.
    """
    for moment, beta, value in zip(moments, BETAS, (gradient, gradient.square()), strict=True):
        moment.lerp_(value, 1 - beta)
    first, second = (m / (1 - beta**step) for m, beta in zip(moments, BETAS, strict=True))
    return first / (second.sqrt() + SMALLEST)
