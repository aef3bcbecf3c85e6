"""LP-FT: the head first, then everything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trm_bench.methods import Context, Fit, Method, Parameters, hyper


class LpFtParameters(Parameters):
    """Hyper-parameters of LP-FT."""

    share: float = hyper(
        0.2, "share of the steps that train the head alone", search=(0.05, 0.5), ge=0, le=1
    )


class LpFt(Method):
    """Linear probing, then fine-tuning: the head alone for the first `share` of the steps, then all
    weights.

    Kumar et al., ICLR 2022, arXiv:2202.10054, section 3.4: fine-tuning from a random head distorts
    the features before the head fits them. While probing, the features are the source's: all but
    the head is frozen and in eval mode, so that moving statistics stay as well. The steps in total,
    and the learning rate's schedule over them, are those of fine-tuning, to keep the budget alike
    (the paper gives each phase its own); the optimiser starts again in the second. The head is the
    network's last module, which in a MONAI UNet is an upsampling convolution, not a linear map.
    share = 0 is fine-tuning.
    """

    name = "lp_ft"
    paper = "Kumar et al., ICLR 2022, arXiv:2202.10054"
    Parameters = LpFtParameters

    probing = False

    def train(self, run: Context, fit: Fit) -> None:
        steps = run.config.steps
        first = round(self.p.share * steps)
        features = [
            p
            for n, p in run.network.named_parameters()
            if not run.parts.in_head(n) and p.requires_grad
        ]
        if first > 0:
            self.probing = True
            for parameter in features:
                parameter.requires_grad_(False)
            fit(0, first)
            for parameter in features:
                parameter.requires_grad_(True)
            self.probing = False
        if first < steps:
            fit(first, steps)

    def parameters(self, run: Context) -> Iterable[Any]:
        return (
            run.network.get_submodule(run.parts.head).parameters()
            if self.probing
            else super().parameters(run)
        )

    def training_mode(self, run: Context) -> None:
        super().training_mode(run)
        if self.probing:
            run.network.eval().get_submodule(run.parts.head).train()
