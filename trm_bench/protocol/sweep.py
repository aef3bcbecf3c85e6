"""The protocol's `sweep` block: the budget that every method gets to be tuned with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from trm_bench.protocol.strict import Names, Seed, Seeds, Strict

Range = tuple[float, float]

# Of the shared space: lowest and highest value that a range may hold.
LIMITS = {
    "lr": (1e-8, 1e3),
    "weight_decay": (1e-12, 1e3),
    "warmup": (0.0, 0.99),
    "dice_share": (0.0, 1.0),
}


class SharedSpace(Strict):
    """What may be tuned of a method's training; each a range [low, high].

    Attributes:
        lr: Learning rate of the optimiser, drawn on a logarithmic scale.
        weight_decay: Of the optimiser, drawn on a logarithmic scale.
        warmup: Share of the steps over which the learning rate rises.
        dice_share: Weight of the Dice term as a share of the sum of the loss weights, which stays
            the protocol's.
    """

    lr: Range = (1e-4, 1e-2)
    weight_decay: Range = (1e-6, 1e-1)
    warmup: Range = (0.0, 0.3)
    dice_share: Range = (0.1, 0.9)

    @field_validator("*")
    @classmethod
    def _ordered(cls, bounds: Range, info: ValidationInfo) -> Range:
        low, high = LIMITS[info.field_name or ""]
        if not low <= bounds[0] < bounds[1] <= high:
            raise ValueError(f"must be [low, high] within {low:g} to {high:g}")
        return bounds


class SweepConfig(Strict):
    """A sweep: every method is tuned with the same budget, on validation subjects alone.

    Attributes:
        trials: Of each method; the first has the values of the protocol, or the defaults.
        steps: Optimiser steps of a trial; null for those of `training.target`.
        seeds: Of the trainings of a trial.
        transfers: Names of the transfers that a trial trains; null for all.
        folds: Of an inner cross-validation over the target's training and validation patients, by
            which a trial is scored, with one training a fold; null scores it on the validation
            subjects, which are few.
        per: `protocol`: one set of values for all transfers, by their mean; `transfer`: one each.
        sampler: `tpe`, or `random`.
        batch: Trials of a method that are proposed from the same history. It decides what a
            proposal knows, and --jobs does not, so that the sweep is the same with any --jobs.
        seed: Of the proposals.
        tune_training: Who searches the shared space: `otherwise`, the methods without ranges of
            their own; `always`, every method, its own ranges beside it.
        shared_space: Of the training.
    """

    trials: int = Field(24, ge=1, le=10_000)
    steps: int | None = Field(None, ge=1, le=10_000_000)
    seeds: Seeds = (0,)
    transfers: Names | None = None
    folds: int | None = Field(None, ge=2, le=1000)
    per: Literal["protocol", "transfer"] = "protocol"
    sampler: Literal["tpe", "random"] = "tpe"
    batch: int = Field(4, ge=1, le=1000)
    seed: Seed = 0
    tune_training: Literal["otherwise", "always"] = "otherwise"
    shared_space: SharedSpace = SharedSpace()
