"""What parameter-efficient methods share.

The head and a few parameters are trained; those that are added to weights end as part of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from trm_bench.methods import Context, Method
from trm_bench.networks import Parts
from trm_bench.seeds import generator


class EfficientMethod(Method):
    """A method that trains the head and a few parameters besides.

    All else is as the source left it, without a gradient and out of the optimiser, so that weight
    decay does not reach it. A normalisation outside the head that keeps moving statistics uses and
    updates the batch's only where parameters of its own are trained; else it uses the source's, in
    training too. Dropout draws as in every method.
    """

    @abstractmethod
    def few(self, run: Context) -> Iterable[nn.Parameter]:
        """What is trained beside the head; may add it to the network."""

    def prepare(self, run: Context) -> None:
        run.network.requires_grad_(False)
        head = run.network.get_submodule(run.parts.head)
        for parameter in [*self.few(run), *head.parameters()]:
            parameter.requires_grad_(True)
        self.still = [
            module
            for name, module in run.network.named_modules()
            if isinstance(module, _NormBase)
            and module.track_running_stats
            and not run.parts.in_head(name)
            and not any(p.requires_grad for p in module.parameters())
        ]

    def training_mode(self, run: Context) -> None:
        super().training_mode(run)
        for norm in self.still:
            norm.eval()


class AddingMethod(EfficientMethod):
    """A parameter-efficient method that trains what is added to frozen weights, W = W_0 + dW.

    PyTorch's parametrisation computes W, in float32 under bf16 too, whenever a layer asks for its
    weights; so the layers themselves, whatever their stride, padding and groups, are those of the
    network. At the end W takes the place of W_0, and the network is one like any other: nothing is
    slower to predict with, and kept networks load. What is saved is the optimiser's memory and what
    a site would store, not the time of a step: gradients go back through all layers.
    """

    @abstractmethod
    def addition(self, weight: Tensor, draws: torch.Generator) -> nn.Module | None:
        """A module that maps W_0 to W, 0 being added at the start; None for a layer left alone."""

    def few(self, run: Context) -> Iterator[nn.Parameter]:
        draws = generator(*run.seed_axes, self.name)
        self.layers = []
        for layer in adaptable(run.network, run.parts):
            added = self.addition(layer.weight, draws)
            if added is not None:
                parametrize.register_parametrization(layer, "weight", added.to(run.device))
                self.layers.append(layer)
                yield from added.parameters()

    def finish(self, run: Context) -> None:
        for layer in self.layers:
            merged = layer.weight.detach().clone()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            with torch.no_grad():
                layer.weight.copy_(merged)  # which keeps its order in memory


def adaptable(network: nn.Module, parts: Parts) -> list[_ConvNd | nn.Linear]:
    """The convolutions, transposed ones too, and linear maps outside the head."""
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, _ConvNd | nn.Linear) and not parts.in_head(name)
    ]
