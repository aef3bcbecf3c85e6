"""SPD: layers that the gradient wants nearer to the source give back what a step took them away."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trm_bench.methods import Context, Method, Parameters, Tree, hyper

from .anchor import anchored


class SpdParameters(Parameters):
    """Hyper-parameters of SPD."""

    strength: float = hyper(
        1.0,
        "lambda; 1 keeps a selected layer at its distance, 0 is fine-tuning",
        search=(0.1, 10.0),
        log=True,
        ge=0,
        le=1e6,
    )


class Spd(Method):
    """Fine-tuning with selective projection decay, w = w~ - min(1, lambda r) (w~ - w_0) if c < 0.

    Tian, Huang & Kira, NeurIPS 2024, arXiv:2411.01713. Of each layer, w_0 are the source's weights,
    w those before a step, g their gradient, w~ those after the optimiser's step. The condition
    c = -<g, w - w_0> is below 0 where going on from the source, the way that the layer went so far,
    would raise the loss. The deviation ratio r = max(0, ||w~ - w_0|| - ||w - w_0||) / ||w~ - w_0||
    is what the step added to the distance: lambda = 1 projects w~ to the distance that w had.
    Other layers move freely.

    As in the authors' code a layer is a tensor: a weight, a bias, a scale. There SPD takes the
    place of weight decay; here the protocol's decoupled one stays, as in every arm, and is part of
    the step. What is taken back is at most all, so that no lambda goes beyond the source. A new
    head has no source and moves freely, moving statistics are no parameters. Nothing changes for
    dense prediction: a layer is judged by its weights, not by what it sees. The record says which
    share of layers and steps was held. lambda = 0 is fine-tuning.
    """

    name = "spd"
    paper = "Tian et al., NeurIPS 2024, arXiv:2411.01713"
    Parameters = SpdParameters

    def prepare(self, run: Context) -> None:
        self.layers = list(anchored(run).values())
        self.source = [layer.detach().clone() for layer in self.layers]
        self.before: tuple[Tensor, Tensor] | None = None
        self.held = torch.zeros(len(self.layers), device=run.device)

    @torch.no_grad()
    def before_update(self, run: Context) -> None:
        if self.p.strength:
            away = self._away()
            self.before = inconsistent(self.layers, away), norms(away)

    @torch.no_grad()
    def after_update(self, run: Context) -> None:
        if self.before is None:
            return
        chosen, distance = self.before
        self.before = None
        back = chosen * deviation_ratio(distance, norms(self._away()))
        back = (self.p.strength * back).clamp(max=1)
        for layer, source, share in zip(self.layers, self.source, back, strict=True):
            layer.lerp_(source, share)
        self.held += back > 0

    def _away(self) -> list[Tensor]:
        """w - w_0 of each layer."""
        return [layer - source for layer, source in zip(self.layers, self.source, strict=True)]

    def state(self, run: Context) -> Tree:
        return self.held

    def restore(self, run: Context, state: Tree) -> None:
        self.held = state

    def finish(self, run: Context) -> None:
        run.diagnostics["held_share"] = float(self.held.mean()) / run.config.steps


def inconsistent(layers: Sequence[Tensor], away: Sequence[Tensor]) -> Tensor:
    """Whether -<g, w - w_0> < 0, bool (layers,); not where there is no gradient."""
    none = away[0].new_zeros(())
    products = [
        none if layer.grad is None else (layer.grad * way).sum()
        for layer, way in zip(layers, away, strict=True)
    ]
    return torch.stack(products) > 0


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each, shape (tensors,)."""
    return torch.stack([tensor.norm() for tensor in tensors])


def deviation_ratio(before: Tensor, after: Tensor) -> Tensor:
    """max(0, after - before) / after, in [0, 1]; 0 where after is."""
    tiny = torch.finfo(after.dtype).tiny
    return (after - before).clamp(min=0) / after.clamp(min=tiny)
