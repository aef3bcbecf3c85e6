"""BitFit: biases alone are trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from trm_bench.errors import UserError
from trm_bench.methods import Context
from trm_bench.networks import Parts

from .efficient import EfficientMethod


class BitFit(EfficientMethod):
    """Training of the head and of all biases, those of normalisation included.

    Ben Zaken, Ravfogel & Goldberg, ACL 2022, arXiv:2106.10199, there of a transformer. A bias is a
    parameter whose name ends in `bias`: one number for each channel that a layer adds at every
    voxel. (The table of relative positions in Swin's attention is none.) A batch normalisation has
    a bias, and so uses and updates the batch's statistics.

    What dense prediction changes: right before a normalisation without a bias of its own, as in a
    MONAI UNet under `norm: instance`, a bias is taken out again with the mean, and training it does
    nothing; there BitFit is the head's training. `norm: [instance, {affine: true}]` gives it a bias
    that counts.

    Raises:
        UserError: The network has no biases outside the head.
    """

    name = "bitfit"
    paper = "Ben Zaken et al., ACL 2022, arXiv:2106.10199"

    def check(self, network: nn.Module, parts: Parts) -> None:
        if not biases(network, parts):
            what = "bitfit needs biases outside the head, and the network has none"
            fix = "set network.bias: true where the network has it, or leave bitfit out"
            raise UserError(what, "network", fix)

    def few(self, run: Context) -> Iterable[nn.Parameter]:
        return biases(run.network, run.parts).values()


def biases(network: nn.Module, parts: Parts) -> dict[str, nn.Parameter]:
    """The biases outside the head, by name."""
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if name.endswith("bias") and not parts.in_head(name)
    }
