"""L2-SP: weights are pulled to the source's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from trm_bench.methods import Context, Method, Parameters, hyper


class L2SpParameters(Parameters):
    """Hyper-parameters of L2-SP."""

    alpha: float = hyper(
        0.012,
        "pull of the shared weights to the source",
        search=(1e-4, 1.0),
        log=True,
        ge=0,
        le=1e6,
    )
    beta: float = hyper(
        0.013, "pull of a new head's weights to 0", search=(1e-4, 0.1), log=True, ge=0, le=1e6
    )


class L2Sp(Method):
    """Fine-tuning with the penalty Omega(w) = alpha/2 ||w_S - w_S^0||^2 + beta/2 ||w_S'||^2.

    Li, Grandvalet & Davoine, ICML 2018, arXiv:1802.01483, section 3 (L2-SP). w_S are the weights
    shared with the source network, w_S^0 their source values, w_S' the new ones: the head, where
    source and target differ in classes; where they do not, the head is shared. All parameters
    count, those of normalisation included, moving statistics do not. The protocol's own decoupled
    weight decay stays, as in every other arm. alpha = beta = 0 is fine-tuning.

    AdamW divides the gradient of loss and penalty by its size, so that the paper's strengths, made
    for SGD and classification, mean something else: `preset: paper` has them, the defaults are
    medians over the tuned values of four data sets (docs/decisions.md).
    """

    name = "l2_sp"
    paper = "Li et al., ICML 2018, arXiv:1802.01483"
    Parameters = L2SpParameters
    presets: ClassVar = {"paper": {"alpha": 0.1, "beta": 0.01}}

    def prepare(self, run: Context) -> None:
        new = {
            n
            for n, _ in run.network.named_parameters()
            if run.parts.in_head(n) and not run.same_task
        }
        self.shared = [p for n, p in run.network.named_parameters() if n not in new]
        self.new = [p for n, p in run.network.named_parameters() if n in new]
        self.start = flat(self.shared).detach().clone()

    def penalty(self, run: Context) -> Tensor | float:
        loss: Tensor | float = 0.0
        if self.p.alpha:
            loss = self.p.alpha / 2 * (flat(self.shared) - self.start).square().sum()
        if self.p.beta and self.new:
            loss = loss + self.p.beta / 2 * flat(self.new).square().sum()
        return loss


def flat(parameters: Sequence[Tensor]) -> Tensor:
    """All values end to end, float32.

    A few kernels for the whole penalty, instead of a few for every tensor.
    """
    return torch.cat([p.flatten() for p in parameters]).float()
