"""LoRA: what is added to the weights has a low rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trm_bench.methods import Parameters, hyper

from .efficient import AddingMethod


class LoraParameters(Parameters):
    """Hyper-parameters of LoRA; the defaults are the paper's for GPT-2."""

    rank: int = hyper(
        4,
        "of what is added to each layer's weights; 0 trains the head alone",
        search=[1, 2, 4, 8, 16],
        ge=0,
        le=1024,
    )
    alpha: float = hyper(
        32.0, "what is added is scaled by alpha / rank", search=(1.0, 128.0), log=True, gt=0, le=1e6
    )


class Lora(AddingMethod):
    """Training of the head and of low-rank additions, W = W_0 + (alpha / rank) B A, on all layers.

    Hu et al., ICLR 2022, arXiv:2106.09685, equation 3, where W is a linear map of the attention.
    Here convolutions count as well, which are most of a segmentation network, and so do the linear
    maps of attention and MLP. A weight (out, in / groups, *kernel) is a matrix of `out` rows and
    in / groups * k^d columns; a transposed convolution's (in, out / groups, *kernel) has `in` rows.
    B (rows, rank) starts at 0 and A (rank, columns) is normal with variance 1 / columns, so that
    training starts at the source network. Where a matrix has fewer rows or columns than `rank`,
    that many are its rank. Biases and normalisation are frozen, moving statistics are the source's;
    the head, new or not, is trained whole. The protocol's weight decay acts on A, B and the head.

    For few-shot segmentation of volumes: Silva-Rodriguez et al., Medical Image Analysis 2025,
    arXiv:2303.17051 (FSEFT); Baklouti et al., MICCAI 2025, arXiv:2507.15793 (ARENA), which lets the
    rank be found by a penalty on it; arXiv:2603.05822 (SEA-PEFT), which chooses the layers while
    training. Here rank and layers are fixed, and a sweep tunes the rank. rank = 0 trains the head
    alone, and nothing else: lp_ft with share = 1.
    """

    name = "lora"
    paper = "Hu et al., ICLR 2022, arXiv:2106.09685"
    Parameters = LoraParameters

    def addition(self, weight: Tensor, draws: torch.Generator) -> nn.Module | None:
        if not self.p.rank:
            return None
        return LowRank(weight, self.p.rank, self.p.alpha / self.p.rank, draws)


class LowRank(nn.Module):
    """W_0 + scale B A, shaped like W_0.

    Args:
        weight: W_0, whose first axis counts the rows.
        rank: At most so many columns of B.
        scale: Of the product.
        draws: Of A.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, draws: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.scale = scale
        self.a = nn.Parameter(torch.randn(rank, columns, generator=draws) / math.sqrt(columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """W."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.scale * (self.b @ self.a)).view_as(weight)
