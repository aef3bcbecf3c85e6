"""Top-k loss: the hardest voxels alone, without a source."""

from torch import Tensor

from trm_bench.data.patches import Batch
from trm_bench.losses import cross_entropy, hardest
from trm_bench.methods import Context, Method, Parameters, hyper


class TopKParameters(Parameters):
    """Hyper-parameters of the top-k loss."""

    share: float = hyper(
        0.1, "share of the batch's voxels that count", search=(0.02, 0.5), log=True, gt=0, le=1
    )


class TopK(Method):
    """Fine-tuning with the voxel term: mean cross-entropy of the hardest `share` of the batch's
    voxels.

    Bootstrapped cross-entropy (Wu et al. 2016, arXiv:1605.06457); 10 % as in nnU-Net (Isensee et
    al., Nature Methods 2021), where it is combined with Dice as here. It takes the place of the
    protocol's form of the voxel-wise term; the overlap term stays. share = 1 is cross-entropy.
    """

    name = "topk"
    paper = "Wu et al. 2016, arXiv:1605.06457; nnU-Net, Isensee et al. 2021"
    Parameters = TopKParameters

    def voxel_loss(self, run: Context, logits: Tensor, batch: Batch) -> Tensor:
        ce = cross_entropy(logits, batch.label)
        return hardest(ce, self.p.share).values.mean()
