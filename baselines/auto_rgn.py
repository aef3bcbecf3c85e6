"""Auto-RGN: each layer learns as fast as its gradient is large for its weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trm_bench.methods import Context, Method, Parameters, Tree, hyper


class AutoRgnParameters(Parameters):
    """Hyper-parameters of Auto-RGN."""

    every: int = hyper(
        10, "steps after which the layers' learning rates are set again", ge=1, le=10_000_000
    )


class AutoRgn(Method):
    """Fine-tuning with a learning rate for each layer, eta_l = eta RGN_l / max_l' RGN_l', RGN =
    ||g_l|| / ||w_l||.

    Surgical fine-tuning, Lee et al., ICLR 2023, arXiv:2210.11466, Auto-RGN (section 4). The
    relative gradient norm is averaged over the last `every` steps (after the first step, over that
    one); the paper averages it over five batches once an epoch. The learning rate is scaled, not
    the gradient, on which AdamW's steps do not depend; the protocol's decoupled weight decay, being
    a share of the learning rate, is scaled along. The largest scale is 1.

    A layer is a tensor of two or more axes, that is a convolution's or linear map's weights, and
    what follows it up to the next: its bias, normalisation and activation. These have no norm of
    their own to compare (a bias starts at 0, PReLU has one weight) and go with their layer; the
    authors' code leaves the parameters of normalisation untrained.
    """

    name = "auto_rgn"
    paper = "Lee et al., ICLR 2023, arXiv:2210.11466"
    Parameters = AutoRgnParameters

    def parameters(self, run: Context) -> Iterable[Any]:
        self.groups: list[dict[str, Any]] = []  # the optimiser keeps these very dictionaries
        for parameter in super().parameters(run):
            if parameter.ndim > 1 or not self.groups:
                self.groups.append({"params": []})
            self.groups[-1]["params"].append(parameter)
        self.scales = [1.0] * len(self.groups)
        self.seen: list[Tensor] = []
        return self.groups

    def before_update(self, run: Context) -> None:
        self.seen.append(relative_gradient_norms([group["params"][0] for group in self.groups]))
        if run.step % self.p.every == 0:
            mean = torch.stack(self.seen).mean(0)
            self.scales = (mean / mean.max().clamp(min=torch.finfo(mean.dtype).tiny)).tolist()
            self.seen.clear()
        for group, scale in zip(self.groups, self.scales, strict=True):
            group["lr"] *= scale  # the schedule writes the unscaled rate again after every step

    def state(self, run: Context) -> Tree:
        return {"scales": self.scales, "seen": self.seen}

    def restore(self, run: Context, state: Tree) -> None:
        self.scales, self.seen = state["scales"], state["seen"]

    def finish(self, run: Context) -> None:
        run.diagnostics["learning_rate_scales"] = self.scales


def relative_gradient_norms(weights: list[Tensor]) -> Tensor:
    """||g|| / ||w|| of each weight, shape (number of weights,); 0 where there is no gradient."""
    zero = weights[0].new_zeros(())
    gradients = torch.stack([zero if w.grad is None else w.grad.norm() for w in weights])
    return gradients / torch.stack([w.detach().norm() for w in weights]).clamp(min=1e-12)
