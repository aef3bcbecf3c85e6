"""Source data stay in training, with less weight where source and target environments disagree."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trm_bench.data.patches import Batch
from trm_bench.methods import Context, Parameters, Tree, hyper
from trm_bench.transfer_risk import LeepStatistics

from .source_head import SourceHeadMethod, head_input, head_replaced, target_statistics


class DisagreementParameters(Parameters):
    """Hyper-parameters of disagreement-aware source weighting; none is the paper's."""

    strength: float = hyper(
        0.5, "weight of all that is done on source data", search=(0.01, 2.0), log=True, ge=0, le=1e6
    )
    gamma: float = hyper(
        1.0,
        "exponent of the agreement in the source weights; 0 is uniform",
        search=(0.0, 4.0),
        ge=0,
        le=100,
    )
    reduce: float = hyper(
        0.1, "weight of the disagreement itself, within strength", search=(0.0, 1.0), ge=0, le=1e6
    )


class Disagreement(SourceHeadMethod):
    """Fine-tuning on L_target + strength (sum_v a_v^gamma CE_v / V + reduce (1 - tr M)), v the
    source voxels.

    After Sun, Xie, He & Li, "Mitigating Negative Transfer via Reducing Environmental Disagreement",
    2025, arXiv:2510.24044 (RED). Two classifiers on the network's penultimate features stand for
    the two environments: the target's head h_t, trained on target labels, and a copy of the
    source's head h_s, trained on source labels. With their softmax p_t and p_s on source voxels,
    and A (Kt, Ks) that takes source to target classes,

        M   = 1/V sum_v (A p_s,v) p_t,v'      (Kt, Kt), entries summing to 1
        a_v = sum_k (A p_s,v)_k p_t,vk        in [0, 1], the voxel's agreement; tr M is its mean

    and CE_v is the cross-entropy of h_s with the source label. A is the identity where the classes
    are the same, else LEEP's P(k | c), from one pass of the frozen source network over the target
    training set. p_t and the weights a_v^gamma get no gradient: h_t learns from the target alone.

    The paper's objective has the term (1 - lambda)(1 - tr M); this file follows its idea, not its
    code, and the reading of M above is ours. Kept: domain-specific classifiers; a transition matrix
    M between them, estimated while training; 1 - tr M as the environmental disagreement, which is
    minimised; source data that stay in training. Changed: RED is for unlabelled targets; here the
    target is labelled, so that h_t learns from labels. RED splits an image's feature vector into a
    causal and an environmental part by adversarial extractors and mixes both by a learned
    coefficient lambda; a segmentation network has a feature vector for each voxel and skip
    connections around every bottleneck, so that nothing is split here: both heads see the same
    features, and the constant `reduce` stands in the place of 1 - lambda. M is estimated over
    voxels, not images. The weight of each source voxel by its agreement, the counterpart of
    trusting the source less where M is far from diagonal, is ours, and so is A.

    Source batches come from the source's training split, are normalised by their own statistics and
    leave the moving ones alone. Cost: two passes a step. strength = 0 is fine-tuning.
    """

    name = "disagreement"
    paper = "after Sun et al. 2025, arXiv:2510.24044"
    Parameters = DisagreementParameters
    uses_source_data = True

    def passes(self) -> float:
        return 2.0 if self.p.strength else 1.0

    def prepare(self, run: Context) -> None:
        super().prepare(run)
        if not self.p.strength:
            return
        assert run.source is not None
        self.source_patches = run.source_patches()
        self.to_target = torch.eye(run.classes, device=run.device)
        if not run.same_task:
            joint = LeepStatistics(run.classes, self.source_patches.store.classes)
            for i in range(len(run.training_set)):
                image, label, _ = run.training_set.volume(i)
                joint.update(run.predict(run.source, image), label)
            self.to_target = joint.conditional().float().to(run.device)

    def loss(self, run: Context, batch: Batch) -> Tensor:
        loss = super().loss(run, batch)
        if not self.p.strength:
            return loss
        source = self.source_patches.batch(run.step)
        target_head = run.network.get_submodule(run.parts.head)
        with target_statistics(run.network):
            with head_replaced(run, self.source_head), head_input(run) as features:
                source_logits = run.network(source.image).float()
            with torch.no_grad():
                target_logits = target_head(features[0])
        agree = agreement(source_logits, target_logits, self.to_target)
        self.trace = agree.detach().mean()
        ce = functional.cross_entropy(source_logits, source.label, reduction="none")
        weighted = (agree.detach() ** self.p.gamma * ce).mean()
        return loss + self.p.strength * (weighted + self.p.reduce * (1 - agree.mean()))

    def state(self, run: Context) -> Tree:
        return {**super().state(run), "trace": getattr(self, "trace", None)}

    def restore(self, run: Context, state: Tree) -> None:
        super().restore(run, state)
        if state["trace"] is not None:
            self.trace = state["trace"]

    def finish(self, run: Context) -> None:
        if self.p.strength:
            run.diagnostics["agreement"] = float(self.trace)


def agreement(source_logits: Tensor, target_logits: Tensor, to_target: Tensor) -> Tensor:
    """a_v = sum_k (A p_s,v)_k p_t,vk, float32, shape (B, *spatial).

    Args:
        source_logits: Of h_s, shape (B, Ks, *spatial).
        target_logits: Of h_t, shape (B, Kt, *spatial).
        to_target: A, shape (Kt, Ks), columns summing to 1.
    """
    # without autocast, under which the product would be rounded to bf16
    with torch.autocast(source_logits.device.type, enabled=False):
        seen = to_target @ source_logits.float().softmax(1).flatten(2)  # (B, Kt, V)
        agree = (seen * target_logits.float().softmax(1).flatten(2)).sum(1)
        return agree.unflatten(1, source_logits.shape[2:])
