"""StochNorm: batch normalisation that at random trusts the source's moving statistics."""

from __future__ import annotations

from typing import ClassVar, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from trm_bench.data.patches import Batch
from trm_bench.errors import UserError
from trm_bench.methods import Context, Method, Parameters, Tree, hyper
from trm_bench.networks import Parts
from trm_bench.seeds import generator


class StochNormParameters(Parameters):
    """Hyper-parameters of StochNorm."""

    p: float = hyper(
        0.7,
        "probability of the batch's statistics; 1 is fine-tuning",
        search=(0.1, 0.9),
        ge=0,
        le=1,
    )


class StochNorm(Method):
    """Fine-tuning with every batch normalisation replaced by x^ = (1 - s) x^_0 + s x^_1, s ~
    Bernoulli(p) per channel.

    Kou et al., NeurIPS 2020, "Stochastic Normalization": x^_0 is normalised with the moving mean
    and variance, which start as the source's and are updated as usual, x^_1 with those of the
    batch, then y = gamma x^ + beta. s is drawn for each step and layer and is shared by the
    batch. Evaluation uses the moving statistics. Nothing changes from 2D to 3D: statistics are per
    channel. p = 1 is fine-tuning.

    `preset: paper` has the paper's p of 1/2; the default is the median over the tuned values of
    three data sets (docs/decisions.md).

    An instance-normalised network has no moving statistics, so there is nothing to choose from.

    Raises:
        UserError: The network has no batch normalisation.
    """

    name = "stochnorm"
    paper = "Kou et al., NeurIPS 2020"
    Parameters = StochNormParameters
    presets: ClassVar = {"paper": {"p": 0.5}}

    def check(self, network: nn.Module, parts: Parts) -> None:
        if not any(replaceable(module) for module in network.modules()):
            hint = (
                "set network.norm: batch in the protocol, for all methods, or leave stochnorm out"
            )
            raise UserError(
                "stochnorm needs a network with batch normalisation", "network.norm", hint
            )

    def prepare(self, run: Context) -> None:
        self.layers = replace(run.network)

    def loss(self, run: Context, batch: Batch) -> Tensor:
        sizes = [layer.num_features for layer in self.layers]
        draws = (
            torch.rand(sum(sizes), generator=generator(*run.seed_axes, self.name, run.step))
            < self.p.p
        )
        for layer, choice in zip(self.layers, draws.to(run.device).split(sizes), strict=True):
            layer.choice = choice
        return super().loss(run, batch)

    def state(self, run: Context) -> Tree:
        return [layer.choice for layer in self.layers]

    def restore(self, run: Context, state: Tree) -> None:
        for layer, choice in zip(self.layers, state, strict=True):
            layer.choice = choice


class StochasticNorm(_BatchNorm):
    """Batch normalisation of (B, C, *spatial); a drop-in for `BatchNorm2d` and `BatchNorm3d` with
    the same state.

    Attributes:
        choice: Bool (C,): which channels use the batch's statistics in training; None for all of
            them.
    """

    choice: Tensor | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        """Takes any number of axes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.choice is None:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        # a copy, since the other branch updates the statistics before the backward pass reads them
        mean, var = self.running_mean.clone(), self.running_var.clone()
        moving = functional.batch_norm(
            input, mean, var, self.weight, self.bias, training=False, eps=self.eps
        )
        choice = self.choice.reshape(1, -1, *[1] * (input.ndim - 2))
        return torch.where(choice, super().forward(input), moving)


def replaceable(module: nn.Module) -> TypeGuard[nn.BatchNorm2d | nn.BatchNorm3d]:
    """Whether a module is a batch normalisation with moving statistics."""
    return isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) and module.track_running_stats


def replace(network: nn.Module) -> list[StochasticNorm]:
    """Puts `StochasticNorm` in the place of every batch normalisation with moving statistics, with
    its very tensors.
    """
    made = []
    for module in list(network.modules()):
        for name, child in module.named_children():
            if replaceable(child):
                norm = StochasticNorm(child.num_features, child.eps, child.momentum, child.affine)
                norm.weight, norm.bias = child.weight, child.bias
                norm.running_mean, norm.running_var = child.running_mean, child.running_var
                norm.num_batches_tracked = child.num_batches_tracked
                norm.training = child.training
                setattr(module, name, norm)
                made.append(norm)
    return made
