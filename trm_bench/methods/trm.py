"""The paper's method, `trm`, and its three controls, which weigh the same loss without the map's
information.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from trm_bench import losses
from trm_bench.data.patches import Batch
from trm_bench.errors import UserError
from trm_bench.methods import Context, Method, Parameters, hyper
from trm_bench.methods.evidence import Evidence, source_variable
from trm_bench.protocol.training import LEAST_LOSS, TrainingConfig
from trm_bench.seeds import generator
from trm_bench.transfer_risk import (
    Denominator,
    LeepStatistics,
    Normalise,
    Over,
    Risk,
    RiskMap,
    RiskSummary,
    RiskWeightedLoss,
    Scope,
    Weight,
    in_scope,
)

PAPER = "Duan et al., ICASSP 2025, arXiv:2502.02340"
FIELD = "risk weight"
READINGS = ("trm", "trm_paper_literal", "trm_minmax_power")  # methods whose weights are the map's


class TrmParameters(Parameters):
    """The readings of the paper, which does not state them.

    See `trm_bench.transfer_risk` for each option, `trm_bench.methods.evidence` for the first two.
    """

    evidence: Evidence = hyper(
        "classes",
        "LEEP's source variable: the source's classes, or clusters or a probe of features",
    )
    components: int = hyper(
        5, "of the mixture of evidence=clusters, for each target class", ge=1, le=100
    )
    scope: Scope = hyper(
        "all", "voxels in the joint", search=["all", "brain", "labelled", "class_balanced"]
    )
    risk: Risk = hyper("one_minus", "how p becomes a risk", search=["neg_log", "one_minus"])
    normalise: Normalise = hyper(
        "none", "of the risks", search=["none", "max", "minmax_per_image", "mean_one"]
    )
    weight: Weight = hyper(
        "power", "how the risk becomes a weight", search=["risk", "affine", "power"]
    )
    strength: float = hyper(
        1.0,
        "lambda of weight=affine",
        search=(0.1, 100.0),
        log=True,
        when={"weight": "affine"},
        ge=0,
        le=1e6,
    )
    base: float = hyper(
        3.0,
        "b of weight=power",
        search=(1.5, 100.0),
        log=True,
        when={"weight": "power"},
        ge=1e-3,
        le=1e6,
    )
    denominator: Denominator = hyper(
        "label_foreground",
        "what the sum is divided by",
        search=["label_foreground", "image_foreground", "weights", "voxels"],
    )
    over: Over = hyper("all", "voxels in the sum", search=["all", "foreground"])
    with_dice: float | None = hyper(
        None,
        "weight of the overlap term, Dice or another; null is the protocol's",
        search=[None, 0.0, 0.2, 5.0],
        ge=0,
        le=1e6,
    )


class TransferRiskMap(Method):
    """Fine-tuning with the cross-entropy weighted by the transfer risk map, over the foreground
    size.

    loss = cross_entropy * sum_v w(R_v) CE_v / |foreground| + with_dice * soft Dice, where
    cross_entropy is the protocol's weight of the voxel-wise term; where the protocol names other
    forms of the loss, these stand for CE_v and soft Dice. Statistics and maps come from
    passes of the frozen source network over the target training set before training; the weights
    are stored beside the label, so that a step costs what a plain step costs. Under another
    `evidence` than `classes` the source needs no head, and one pass more.
    """

    name = "trm"
    paper = PAPER
    Parameters = TrmParameters
    without_head = "set its parameter evidence to clusters or to probe"

    @property
    def evidence(self) -> Evidence | None:
        """Where the source variable comes from; None without one."""
        chosen: Evidence = self.p.evidence
        return chosen

    def needs_head(self) -> bool:
        return self.evidence == "classes"

    def adjusted(self, training: TrainingConfig) -> TrainingConfig:
        """The same training, which must leave one of the two terms a weight."""
        own = self.p.with_dice
        if own is not None and training.loss.cross_entropy + own < LEAST_LOSS:
            what = f"with_dice {own:g} and no weight of the cross-entropy: nothing would be learned"
            fix = "raise with_dice, or the cross-entropy's weight (a dice_share of 1 makes it 0)"
            raise UserError(what, f"methods.{self.name}", fix)
        return training

    def prepare(self, run: Context) -> None:
        weights = run.config.loss
        self.criterion = RiskWeightedLoss(
            self.p.denominator,
            self.p.over,
            with_dice=weights.dice if self.p.with_dice is None else self.p.with_dice,
            cross_entropy=weights.cross_entropy,
            overlap=losses.overlap(weights),
        )
        run.training_set.attach(FIELD, self.weights(run))

    def weights(self, run: Context) -> list[Tensor]:
        """The weight map of every target training subject, shape (1, X, Y, Z)."""
        risks = self.risks(run)
        return self.risk_map.weights(risks)

    def risks(self, run: Context) -> list[Tensor]:
        """The risk map of every target training subject, float32, shape (1, X, Y, Z)."""
        chosen = self.evidence
        self.networks = (
            source_variable(run, chosen, self.p.scope, self.p.components) if chosen else []
        )
        self.statistics = self._statistics(run)
        conditional = self.statistics.conditional()
        if chosen == "probe":  # which speaks of the target classes themselves
            conditional = self.statistics.without_risk(torch.eye(run.classes).double())
        self.risk_map = RiskMap(
            conditional,
            self.p.risk,
            self.p.normalise,
            self.p.weight,
            self.p.strength,
            self.p.base,
        )
        summary = RiskSummary(run.classes)
        risks = []
        for probabilities, label, brain in self._evidence(run):
            risk = self.risk_map(probabilities, label)
            inside = in_scope(self.p.scope, label, brain)
            summary.update(risk, self.risk_map.transferability(probabilities, label), label, inside)
            risks.append(risk.float())
        run.diagnostics |= {
            **summary.result(),
            "conditional": self.statistics.conditional().tolist(),
            "prior": self.statistics.prior().tolist(),
        }
        return risks

    def _evidence(self, run: Context) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The distribution over LEEP's source variable, with label and brain mask, one training
        subject at a time.
        """
        for i in range(len(run.training_set)):
            image, label, brain = run.training_set.volume(i)
            yield run.predict(self.networks[i % len(self.networks)], image), label, brain

    def _statistics(self, run: Context) -> LeepStatistics:
        statistics: LeepStatistics | None = None
        for probabilities, label, brain in self._evidence(run):
            statistics = statistics or LeepStatistics(
                run.classes, probabilities.shape[1], self.p.scope
            )
            statistics.update(probabilities, label, brain)
        assert statistics is not None
        return statistics

    def terms(self, run: Context, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        logits = logits.float()
        values = losses.voxel_values(run.config.loss, logits, batch.label, batch.class_weight)
        return self.criterion.terms(logits, batch.label, batch.fields[FIELD], batch.brain, values)

    def maps(self, run: Context, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        probabilities = run.predict(self.networks[0], image)
        return {"risk": self.risk_map(probabilities, label), "source": probabilities.argmax(1)}


class PaperLiteralParameters(TrmParameters):
    """One reading of the paper, which is not searched."""

    evidence: Literal["classes"] = hyper("classes", "LEEP's source variable")
    components: Literal[5] = hyper(5, "of evidence=clusters: without effect")
    scope: Literal["all"] = hyper("all", "voxels in the joint")
    risk: Literal["neg_log"] = hyper("neg_log", "how p becomes a risk")
    normalise: Literal["none"] = hyper("none", "of the risks")
    weight: Literal["risk"] = hyper("risk", "how the risk becomes a weight")
    strength: Literal[1] = hyper(1, "of weight=affine: without effect")
    base: Literal[3] = hyper(3, "of weight=power: without effect")
    denominator: Literal["label_foreground"] = hyper("label_foreground", "of the sum")
    over: Literal["all"] = hyper("all", "voxels in the sum")
    with_dice: None = hyper(None, "the Dice term has the protocol's weight")


class PaperLiteral(TransferRiskMap):
    """`trm` as the paper's sentences read when nothing is added: R = -log p, w = R, over the
    labelled foreground.

    A fixed reading, so that a sweep tunes its training. Whether it is the authors' is not known.
    """

    name = "trm_paper_literal"
    Parameters = PaperLiteralParameters
    without_head = Method.without_head


class MinmaxPowerParameters(TrmParameters):
    """Another reading of the paper, which is not searched."""

    evidence: Literal["classes"] = hyper("classes", "LEEP's source variable")
    components: Literal[5] = hyper(5, "of evidence=clusters: without effect")
    scope: Literal["all"] = hyper("all", "voxels in the joint")
    risk: Literal["neg_log"] = hyper("neg_log", "how p becomes a risk")
    normalise: Literal["minmax_per_image"] = hyper("minmax_per_image", "of the risks")
    weight: Literal["power"] = hyper("power", "how the risk becomes a weight")
    strength: Literal[1] = hyper(1, "of weight=affine: without effect")
    base: Literal[10] = hyper(10, "b of weight=power")
    denominator: Literal["label_foreground"] = hyper("label_foreground", "of the sum")
    over: Literal["foreground"] = hyper("foreground", "voxels in the sum")
    with_dice: None = hyper(None, "the Dice term has the protocol's weight")


class MinmaxPower(TransferRiskMap):
    """`trm` as one third party reads it: R = -log p, each image to [0, 1], w = 10^R, mean over the
    labelled foreground, plus Dice.

    A fixed reading, so that a sweep tunes its training. Not the authors'.
    """

    name = "trm_minmax_power"
    Parameters = MinmaxPowerParameters
    without_head = Method.without_head


class PriorRisk(TransferRiskMap):
    """`trm` with an uninformative source: R = -log P(y), or 1 - P(y).

    Class weighting by the prior and nothing else.
    """

    name = "trm_prior"
    ignores = ("evidence", "components")
    evidence = None

    def _evidence(self, run: Context) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for i in range(len(run.training_set)):
            image, label, brain = run.training_set.volume(i)
            # one source class, so that P(y | c) = P(y)
            yield torch.ones_like(image[:, :1]), label, brain

    def maps(self, run: Context, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return {}


class UniformRisk(TransferRiskMap):
    """`trm` without a map: w = 1 in every voxel, under the same denominator, which it isolates.

    So what makes the map and its weights changes nothing, and a sweep of it tunes the denominator
    and the voxels in the sum.
    """

    name = "trm_uniform"
    evidence = None
    ignores = ("evidence", "components", "scope", "risk", "normalise", "weight", "strength", "base")

    def weights(self, run: Context) -> list[Tensor]:
        labels = (run.training_set.volume(i)[1] for i in range(len(run.training_set)))
        return [torch.ones_like(label) for label in labels]

    def maps(self, run: Context, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return {}


class ShuffledRisk(TransferRiskMap):
    """`trm` with its weights permuted among the voxels of the same class in the same image.

    No spatial information.
    """

    name = "trm_shuffled"

    def weights(self, run: Context) -> list[Tensor]:
        shuffled = []
        for i, weight in enumerate(super().weights(run)):
            label, mixed = run.training_set.volume(i)[1], weight.clone()
            for k in label.unique():
                values = weight[label == k]
                draws = generator(*run.seed_axes, "shuffle", i, int(k))
                order = torch.randperm(len(values), generator=draws).to(values.device)
                mixed[label == k] = values[order]
            shuffled.append(mixed)
        return shuffled

    def maps(self, run: Context, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return {}
