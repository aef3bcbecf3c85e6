"""What a method may change about a training run: the interface.

A method is one class in one file: a name, its parameters, and those hooks that it needs; every
hook does nothing by default, so that `class Finetune(Method)` is empty. It also declares what it
uses that fine-tuning does not: validation labels, source data. The loop calls, in this order:

    check, check_source    before anything is trained: can it train this network at all, and does
                 the source have what it needs?
    architecture    when the network is built, and whenever a kept one is built again
    prepare      once, before the optimiser exists: compute maps, freeze, wrap layers
    train        once: by default `fit(0, steps)`; override it to train in rounds or branches;
                 `fit(first, last)` calls, and leaves the network with the weights that the protocol
                 keeps: the last, the best or, where it averages them, their average
      parameters     once: the optimiser's parameter groups
      training_mode  once: puts the network into the mode it trains in
      loss           every step: the whole training loss of a batch
      before_update, after_update    every step, around the optimiser
      state, restore between steps: what it holds, for a training that is cut off and goes on
    finish       once, after training: average, interpolate, clean up
    maps         after scoring, on a few test subjects, for pictures alone
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional

from trm_bench import losses
from trm_bench.data.patches import Batch, PatchSampler, SubjectStore
from trm_bench.errors import UserError
from trm_bench.networks import Parts
from trm_bench.protocol.strict import Strict
from trm_bench.transfer_risk import DICE, VOXELS

if TYPE_CHECKING:
    from trm_bench.protocol.schema import TrainingConfig

Tree = Any
"""A number, text, None or Tensor, or a dict, list or tuple of such."""
Fit = Callable[[int, int], None]
"""Trains the run's network with the method's hooks from one step to another: `fit(first, last)`."""


@dataclass
class Context:
    """What a method can see and touch. Test subjects are not in it.

    Attributes:
        network: Being trained; at `prepare` it holds its initial weights (for `transfers` methods
            the source's).
        parts: Names of its head, encoder and decoder.
        source: The frozen source network in eval mode, with its own head; None for methods that
            do not transfer.
        same_task: Whether source and target share the label map, so that the head was transferred
            too.
        training_set: Target training subjects. `training_set.attach` stores per-voxel maps that
            batches then carry.
        patches: The target patches, `patches.batch(step)`.
        source_patches: Makes the source training patches, from the split that pre-trained the
            source.
        validate: Mean Dice of a network on the target validation subjects.
        predict: Softmax (1, K, X, Y, Z) of a network on a whole volume (1, C, X, Y, Z).
        outputs: The same before the softmax, of any network whose output is as large as its input.
        fresh: Makes another network like `network`, with its initial weights and no source's, and
            without modules of the method's own.
        config: The target training.
        seed_axes: Axes of this run's draws; a method adds its own name to them.
        device: Where everything lives.
        source_has_head: Whether the source's head gives class scores; without, it is a network
            pre-trained on no labels, say, and its logits mean nothing.
        source_has_data: Whether `source_patches` can be called.
        step: Of the loop, from 0.
        terms: Of the last segmentation loss, each with its weight; see `Method.terms`.
        diagnostics: What the method wants in the record (JSON values).
    """

    network: nn.Module
    parts: Parts
    source: nn.Module | None
    same_task: bool
    training_set: SubjectStore
    patches: PatchSampler
    source_patches: Callable[[], PatchSampler]
    validate: Callable[[nn.Module], float]
    predict: Callable[[nn.Module, Tensor], Tensor]
    outputs: Callable[[nn.Module, Tensor], Tensor]
    fresh: Callable[[], nn.Module]
    config: TrainingConfig
    seed_axes: tuple[object, ...]
    device: torch.device
    source_has_head: bool = True
    source_has_data: bool = True
    step: int = 0
    terms: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Number of target classes, background included."""
        return self.training_set.classes

    def weights(self) -> dict[str, Tensor]:
        """A copy of the network's state."""
        return {name: t.detach().clone() for name, t in self.network.state_dict().items()}


def hyper(
    default: Any,
    help: str,
    *,
    search: tuple[float, float] | list[Any] | None = None,
    log: bool = False,
    when: Mapping[str, Any] | None = None,
    **limits: Any,
) -> Any:
    """Declares a method's hyper-parameter.

    Args:
        default: Its default.
        help: One line.
        search: The range, or the list of choices, that a sweep draws from; None where it is not
            tuned.
        log: Whether a sweep draws on a logarithmic scale.
        when: Other parameters, declared before, with the value under which this one matters; a
            sweep draws it only then. None where it always matters.
        **limits: Limits of valid values, as of `pydantic.Field` (ge, gt, le, lt).
    """
    space: Any = (
        None
        if search is None
        else {
            "search": list(search),
            "log": log,
            "range": isinstance(search, tuple),
            "when": dict(when or {}),
        }
    )
    return Field(default, description=help, json_schema_extra=space, **limits)


class Parameters(Strict):
    """Hyper-parameters of a method; unknown keys and wrong values are errors.

    NaN, infinity and `true` are no numbers here either.
    """


class Method:
    """A way to train a network on the target. One instance serves one run.

    Attributes:
        name: In protocols.
        paper: Where it comes from, with its identifier.
        transfers: Whether it starts from the source network.
        Parameters: Its hyper-parameters.
        presets: Named sets of values of them, chosen by `preset: NAME` in a protocol; what a
            protocol says itself wins.
        ignores: Those of them that change nothing, since it shares them with a method where they
            do; a sweep leaves them out.
        uses_validation: Whether validation labels shape its weights, beyond the protocol's
            `select`: it calls `run.validate`, or trains on them.
        uses_source_data: Whether it trains on the source's subjects: it calls `run.source_patches`.
        validation_in_training_set: Whether the validation subjects join its training set. Not in a
            sweep's trials, which they score.
        without_head: What to do where it needs the source's head and there is none.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    transfers: ClassVar[bool] = True
    Parameters: ClassVar[type[Parameters]] = Parameters
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    ignores: ClassVar[tuple[str, ...]] = ()
    uses_validation: ClassVar[bool] = False
    uses_source_data: ClassVar[bool] = False
    validation_in_training_set: ClassVar[bool] = False
    without_head: ClassVar[str] = (
        "leave it out; trm does without a head under evidence: clusters or evidence: probe"
    )

    def __init__(self, parameters: BaseModel) -> None:
        self.p: Any = parameters

    def adjusted(self, training: TrainingConfig) -> TrainingConfig:
        """The target training of a run, from the protocol's: by default the same.

        Only controls that spend what another method spends change it; what makes methods comparable
        (batch, patches, augmentation, ...) stays.
        """
        return training

    def check(self, network: nn.Module, parts: Parts) -> None:
        """Raises `UserError` where the method cannot train this network."""

    def architecture(self, network: nn.Module, parts: Parts, image: Tensor) -> nn.Module:
        """The network with the method's own modules in it: by default as it is.

        It is kept with its weights and built again from the parameters alone, so that nothing here
        may depend on the source or on the data. What was in it keeps its names; what is added gets
        names of its own, and the source's weights come later, over all that the source can have.

        Args:
            network: With its initial weights; whatever is added may draw from PyTorch's generator.
            parts: Of the network.
            image: Shape (1, C, *spatial) of a patch, empty, on PyTorch's meta device.
        """
        return network

    def passes(self) -> float:
        """Forward and backward passes of a step, about, where fine-tuning has one.

        Long runs start first by it; no number depends on it.
        """
        return 1.0

    def needs_head(self) -> bool:
        """Whether it uses the source's class scores: the softmax of `run.source`, or its head."""
        return False

    def check_source(self, has_head: bool, has_data: bool) -> None:
        """Whether it can transfer from a source.

        Args:
            has_head: Whether the source's head gives class scores.
            has_data: Whether the source's own training subjects are there.

        Raises:
            UserError: It needs what is not there.
        """
        where = f"methods.{self.name}"
        if self.needs_head() and not has_head:
            what = f"{self.name} needs the source's class scores, and the source has no head"
            raise UserError(what, where, self.without_head)
        if self.uses_source_data and not has_data:
            what = f"{self.name} trains on the source's subjects, which are not there"
            fix = "leave it out, or take a source that is trained here"
            raise UserError(what, where, fix)

    def prepare(self, run: Context) -> None:
        """Called once, before the optimiser is made."""

    def train(self, run: Context, fit: Fit) -> None:
        """Trains `run.network`: by default all steps in one go."""
        fit(0, run.config.steps)

    def parameters(self, run: Context) -> Iterable[Any]:
        """Parameters, or parameter groups, of the optimiser."""
        return [p for p in run.network.parameters() if p.requires_grad]

    def training_mode(self, run: Context) -> None:
        """Puts the network into the mode that it trains in; validation puts that mode back."""
        run.network.train()

    def loss(self, run: Context, batch: Batch) -> Tensor:
        """The whole loss of a batch: by default the protocol's loss plus `penalty`."""
        logits = run.network(batch.image)
        return self.segmentation_loss(run, logits, batch) + self.penalty(run)

    def segmentation_loss(self, run: Context, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of the predictions: the sum of `terms`."""
        run.terms = self.terms(run, logits, batch)
        return torch.stack([*run.terms.values()]).sum()

    def terms(self, run: Context, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss of the predictions, scalars: `voxels` and `dice`.

        By default `voxel_loss` and the protocol's overlap term, weighted as the protocol says;
        without those of weight 0.
        """
        config, terms = run.config.loss, {}
        if config.cross_entropy:
            terms[VOXELS] = config.cross_entropy * self.voxel_loss(run, logits.float(), batch)
        if config.dice:
            overlap = losses.overlap(config)(logits.float(), batch.label.unsqueeze(1))
            terms[DICE] = config.dice * overlap
        return terms

    def voxel_loss(self, run: Context, logits: Tensor, batch: Batch) -> Tensor:
        """The voxel-wise term of the loss: by default the mean of the protocol's form of it."""
        config = run.config.loss
        if config.voxels == "cross_entropy":  # the mean at once, without an image of the values
            return functional.cross_entropy(logits, batch.label)
        return losses.voxel_values(config, logits, batch.label, batch.class_weight).mean()

    def penalty(self, run: Context) -> Tensor | float:
        """An added term that does not depend on the predictions, such as a weight penalty."""
        return 0.0

    def before_update(self, run: Context) -> None:
        """Called after the backward pass and before gradient clipping."""

    def after_update(self, run: Context) -> None:
        """Called after the optimiser's step."""

    def state(self, run: Context) -> Tree:
        """What the hooks of a step have changed since `fit` was called, but for `run.network`.

        A method that counts, averages or trains something of its own gives it here. Where it does
        not, its trainings begin anew after they were cut off, and say so.
        """
        return {}

    def restore(self, run: Context, state: Tree) -> None:
        """Takes back what `state` gave, with its tensors on the run's device.

        Called on a method that was prepared anew, when a `fit` begins.
        """

    def finish(self, run: Context) -> None:
        """Called once after training; may change `run.network`'s weights."""

    def maps(self, run: Context, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Per-voxel maps of a volume (image (1, C, X, Y, Z), label (1, X, Y, Z)) to look at.

        Shape of the label.
        """
        return {}
