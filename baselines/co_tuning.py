"""Co-Tuning: the source head learns along, on source labels guessed from target labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trm_bench.data.patches import Batch
from trm_bench.methods import Context, Parameters, hyper
from trm_bench.transfer_risk import LeepStatistics

from .source_head import SourceHeadMethod, head_input


class CoTuningParameters(Parameters):
    """Hyper-parameters of Co-Tuning.

    Lambda is called `strength`, and defaults to that of the authors' code.
    """

    strength: float = hyper(
        2.3,
        "lambda, the weight of the source head's loss",
        search=(0.01, 10.0),
        log=True,
        ge=0,
        le=1e6,
    )
    temperature: float = hyper(
        1.0, "divides the source logits behind p(ys | yt); 1 is uncalibrated", ge=1e-3, le=1e6
    )


class CoTuning(SourceHeadMethod):
    """Fine-tuning with the added loss lambda CE(source head(features), p(ys | yt)), averaged over
    voxels.

    You et al., NeurIPS 2020, "Co-Tuning for Transfer Learning". The source head G_s is kept, beside
    the target's, on the features that are fine-tuned, and is trained as well; each voxel's source
    label is unknown and replaced by the distribution over source classes that goes with its target
    label.

    p(ys | yt) is the paper's direct estimate: the mean source softmax over the voxels with that
    label in the target training set. Over voxels it is the row-normalised joint of LEEP, sum_v [y_v
    = yt] theta_v / sum_v [y_v = yt], which is streamed in one pass of the frozen source network,
    float64, shape (Kt, Ks); a label that never occurs gets the source classes' overall shares. The
    paper calibrates the source softmax on source validation data and prefers a logistic regression
    for large Kt; here `temperature` stands for the calibration. The voxel mean counts every class
    by its size, as the cross-entropy of the protocol does. strength = 0 is fine-tuning.
    """

    name = "co_tuning"
    paper = "You et al., NeurIPS 2020"
    Parameters = CoTuningParameters

    def prepare(self, run: Context) -> None:
        super().prepare(run)
        assert run.source is not None
        joint: LeepStatistics | None = None
        for i in range(len(run.training_set)):
            image, label, _ = run.training_set.volume(i)
            theta = run.predict(run.source, image)
            if self.p.temperature != 1:
                logits = theta.clamp(min=torch.finfo(theta.dtype).tiny).log()
                theta = (logits / self.p.temperature).softmax(1)
            joint = joint or LeepStatistics(run.classes, theta.shape[1])
            joint.update(theta, label)
        assert joint is not None
        self.relation = relation(joint.joint()).float().to(run.device)
        run.diagnostics["p(ys | yt)"] = self.relation.tolist()

    def loss(self, run: Context, batch: Batch) -> Tensor:
        if not self.p.strength:
            return super().loss(run, batch)
        with head_input(run) as features:
            loss = super().loss(run, batch)
        logits = self.source_head(features[0]).float()
        return loss + self.p.strength * functional.cross_entropy(
            logits, self.relation[batch.label].movedim(-1, 1)
        )


def relation(joint: Tensor) -> Tensor:
    """p(ys | yt), shape (Kt, Ks), rows summing to 1, from P(yt, ys) of that shape."""
    per_label = joint.sum(1, keepdim=True)
    return torch.where(
        per_label > 0, joint / per_label.clamp(min=torch.finfo(joint.dtype).tiny), joint.sum(0)
    )
