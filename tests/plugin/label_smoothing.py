"""A method in a package of its own; its entry point makes it known to trm-bench."""

from torch import Tensor
from torch.nn import functional

from trm_bench.data.patches import Batch
from trm_bench.methods import Context, Method, Parameters, hyper


class LabelSmoothingParameters(Parameters):
    share: float = hyper(
        0.1, "probability spread over all classes", search=(0.01, 0.5), log=True, ge=0, lt=1
    )


class LabelSmoothing(Method):
    """Fine-tuning on the cross-entropy with smoothed labels (Szegedy et al., CVPR 2016,
    arXiv:1512.00567).
    """

    name = "label_smoothing"
    paper = "Szegedy et al., CVPR 2016, arXiv:1512.00567"
    Parameters = LabelSmoothingParameters

    def voxel_loss(self, run: Context, logits: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(logits, batch.label, label_smoothing=self.p.share)
