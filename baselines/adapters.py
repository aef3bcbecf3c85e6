"""Adapters: a small convolution beside every large one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trm_bench.errors import UserError
from trm_bench.networks import Parts

from .efficient import AddingMethod, adaptable


class Adapters(AddingMethod):
    """Training of the head and of a 1x1x1 convolution beside every larger one, y = W_0 * x + A * x.

    Parallel residual adapters, Rebuffi, Bilen & Vedaldi, CVPR 2018, arXiv:1803.10082. A has the
    stride and the groups of its convolution, transposed or not, and starts at 0, so that training
    starts at the source network. It reads what lies under the middle of the kernel; so it is added
    to the kernel's middle, exactly, and no second convolution is computed, in training either. An
    even kernel has no middle: such layers are frozen, like linear maps, biases and normalisation,
    which there is a data set's own. Moving statistics are the source's. Only the head is new where
    classes are.

    Parallel rather than serial ones (a 1x1x1 convolution after each layer), as the paper finds
    better, and for two reasons that weigh more here: the output of a serial adapter is one more
    full-resolution volume to keep for the backward pass, and the instance normalisation that
    usually follows takes out again what it does to the scale of a channel.

    Raises:
        UserError: No convolution outside the head has an odd kernel larger than 1.
    """

    name = "adapters"
    paper = "Rebuffi et al., CVPR 2018, arXiv:1803.10082"

    def check(self, network: nn.Module, parts: Parts) -> None:
        if not any(has_middle(layer.weight) for layer in adaptable(network, parts)):
            what = "adapters needs convolutions with an odd kernel larger than 1"
            raise UserError(what, "network", "choose another network, or leave adapters out")

    def addition(self, weight: Tensor, draws: torch.Generator) -> nn.Module | None:
        return Middle(weight) if has_middle(weight) else None


class Middle(nn.Module):
    """W_0 with a map (out, in / groups) added to the middle of the kernel."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.zeros(weight.shape[:2]))
        self.around = [n // 2 for n in reversed(weight.shape[2:]) for _ in range(2)]

    def forward(self, weight: Tensor) -> Tensor:
        """W."""
        kernel = self.map.reshape(*self.map.shape, *[1] * (weight.ndim - 2))
        return weight + functional.pad(kernel, self.around)


def has_middle(weight: Tensor) -> bool:
    """Whether it is that of a convolution with an odd kernel larger than 1."""
    kernel = weight.shape[2:]
    return any(n > 1 for n in kernel) and all(n % 2 for n in kernel)
