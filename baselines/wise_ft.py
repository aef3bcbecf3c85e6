"""WiSE-FT: the weights end between the source's and the fine-tuned ones."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from trm_bench.methods import Context, Method, Parameters, hyper

Share = Annotated[float, Field(ge=0, le=1)]


class WiseFtParameters(Parameters):
    """Hyper-parameters of WiSE-FT; the grid is the paper's."""

    alphas: tuple[Share, ...] = hyper(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        "shares of the fine-tuned weights tried",
        min_length=1,
        max_length=100,
    )


class WiseFt(Method):
    """Fine-tuning, then theta = (1 - alpha) theta_0 + alpha theta_1, alpha by the validation Dice.

    Wortsman et al., CVPR 2022, arXiv:2109.01903, equation 1. theta_0 are the source's weights,
    theta_1 the fine-tuned ones; every alpha of the grid is validated, and the largest of the best
    is kept. The ends are exact: 0 is the source network, 1 is fine-tuning. Moving statistics are
    interpolated as well, counters are the fine-tuned. A new head has no source weights to go back
    to and stays fine-tuned, so that alpha = 0 is then that head on source features, not zero-shot.
    Costs one validation per alpha.
    """

    name = "wise_ft"
    paper = "Wortsman et al., CVPR 2022, arXiv:2109.01903"
    Parameters = WiseFtParameters
    uses_validation = True

    def prepare(self, run: Context) -> None:
        self.start = {
            k: v
            for k, v in run.weights().items()
            if v.is_floating_point() and (run.same_task or not run.parts.in_head(k))
        }

    def finish(self, run: Context) -> None:
        tuned = run.weights()
        scores: dict[float, float] = {}
        for alpha in sorted(self.p.alphas):
            run.network.load_state_dict(self.interpolate(tuned, alpha))
            scores[alpha] = run.validate(run.network)
        best = max(scores, key=lambda alpha: (scores[alpha], alpha))
        run.network.load_state_dict(self.interpolate(tuned, best))
        run.diagnostics |= {
            "alpha": best,
            "validation_dice_by_alpha": {str(a): s for a, s in scores.items()},
        }

    def interpolate(self, tuned: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """The state at alpha; `lerp` is exact at both ends."""
        return {
            k: torch.lerp(self.start[k], v, alpha) if k in self.start else v
            for k, v in tuned.items()
        }
