"""Norm tuning: the parameters of normalisation alone are trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from trm_bench.errors import UserError
from trm_bench.methods import Context
from trm_bench.networks import Parts

from .efficient import EfficientMethod

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # _NormBase: batch and instance


class NormTuning(EfficientMethod):
    """Training of the head and of normalisation's scales and shifts, y = gamma x^ + beta.

    Frankle, Schwab & Morcos, ICLR 2021, arXiv:2003.00152, where the features around them are
    random; here they are the source's. Batch, instance, group, layer and RMS normalisation count.
    Batch normalisation uses and updates the batch's statistics, as in the paper. Nothing changes
    from 2D to 3D: gamma and beta are per channel.

    MONAI's instance normalisation has no such parameters unless it is told to.

    Raises:
        UserError: No normalisation outside the head has parameters.
    """

    name = "norm_tuning"
    paper = "Frankle et al., ICLR 2021, arXiv:2003.00152"

    def check(self, network: nn.Module, parts: Parts) -> None:
        if not affine(network, parts):
            what = "norm_tuning needs normalisation with parameters, and the network has none"
            fix = (
                "set network.norm: [instance, {affine: true}] in the protocol, for all methods, "
                "or leave norm_tuning out"
            )
            raise UserError(what, "network.norm", fix)

    def few(self, run: Context) -> Iterable[nn.Parameter]:
        return affine(run.network, run.parts).values()


def affine(network: nn.Module, parts: Parts) -> dict[str, nn.Parameter]:
    """The parameters of normalisation outside the head, by name."""
    return {
        f"{name}.{key}": parameter
        for name, module in network.named_modules()
        if isinstance(module, NORMS) and not parts.in_head(name)
        for key, parameter in module.named_parameters(recurse=False)
    }
