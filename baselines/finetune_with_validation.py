"""Fine-tuning on the validation subjects too: the control of methods that read their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trm_bench.methods import Method

if TYPE_CHECKING:
    from trm_bench.protocol.schema import TrainingConfig


class WithValidation(Method):
    """Plain fine-tuning whose training set has the validation subjects too.

    WiSE-FT and ForkMerge choose weights by validation labels. Whoever has these labels could also
    train on them; a gain over fine-tuning that this control has too is a gain of labels. No
    subjects are left to select weights by, so that `select: best` becomes `last`, and the run's
    validation Dice is one of training subjects. The patches are not those of fine-tuning, since
    they come from other subjects.

    In a sweep's trials the validation subjects (with folds, a fold's) do not join, since a trial is
    scored by them: its values are tuned as those of fine-tuning, and then used with all subjects.
    """

    name = "finetune_with_validation"
    paper = "-"
    uses_validation = True
    validation_in_training_set = True

    def adjusted(self, training: TrainingConfig) -> TrainingConfig:
        return training.model_copy(update={"select": "last"})
