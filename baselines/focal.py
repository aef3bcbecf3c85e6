"""Focal loss: hard voxels weigh more, without a source."""

from torch import Tensor

from trm_bench.data.patches import Batch
from trm_bench.losses import cross_entropy, focal
from trm_bench.methods import Context, Method, Parameters, hyper


class FocalParameters(Parameters):
    """Hyper-parameters of the focal loss."""

    gamma: float = hyper(
        2.0, "focusing exponent; 0 is cross-entropy", search=(0.5, 5.0), ge=0, le=20
    )


class Focal(Method):
    """Fine-tuning with the voxel term FL = mean of (1 - p_t)^gamma CE, p_t the probability of the
    true class.

    Lin et al., ICCV 2017, arXiv:1708.02002, equation 4, without its class weight alpha. It takes
    the place of the protocol's form of the voxel-wise term; the overlap term stays. gamma = 0 is
    cross-entropy.
    """

    name = "focal"
    paper = "Lin et al., ICCV 2017, arXiv:1708.02002"
    Parameters = FocalParameters

    def voxel_loss(self, run: Context, logits: Tensor, batch: Batch) -> Tensor:
        ce = cross_entropy(logits, batch.label)
        return focal(ce, self.p.gamma).mean()
