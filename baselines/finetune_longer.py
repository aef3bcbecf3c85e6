"""Fine-tuning for more steps: the control of methods whose step costs more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trm_bench.methods import Method, Parameters, hyper

if TYPE_CHECKING:
    from trm_bench.protocol.schema import TrainingConfig


class FinetuneLongerParameters(Parameters):
    """Hyper-parameters of longer fine-tuning; not searched, since they are its cost."""

    times: int = hyper(2, "times the steps of the protocol", ge=1, le=100)


class FinetuneLonger(Method):
    """Plain fine-tuning with `times` x the steps: what a method could have spent its cost on.

    ForkMerge with two branches, or Disagreement with its source batches, pass twice as many batches
    through the network as fine-tuning in as many steps. A gain over fine-tuning that this control
    has too is a gain of compute. The learning rate's schedule and warm-up are stretched over all
    steps, and so are the validations of `select: best`, so that their number stays. The first
    patches are those of fine-tuning.
    """

    name = "finetune_longer"
    paper = "-"
    Parameters = FinetuneLongerParameters

    def adjusted(self, training: TrainingConfig) -> TrainingConfig:
        stretched = ("steps", "validate_every")
        changes = {key: self.p.times * getattr(training, key) for key in stretched}
        return training.model_copy(update=changes)
