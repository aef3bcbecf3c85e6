"""The protocol's `domains`: what networks are trained on, or were trained on elsewhere, by name."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from trm_bench.protocol.data import Labels, Unit, VolumeConfig
from trm_bench.protocol.strict import Name, Names, PathText, Strict, Text
from trm_bench.protocol.training import NetworkConfig

LONGEST_RULE = 300  # characters of a regular expression


def _short(rule: tuple[str, str]) -> tuple[str, str]:
    if max(map(len, rule)) > LONGEST_RULE:
        raise ValueError(f"is longer than {LONGEST_RULE} characters")
    return rule


Rule = Annotated[tuple[Text, Text], AfterValidator(_short)]
"""A regular expression, and what takes the place of what it finds."""


class DomainConfig(Strict):
    """Subjects, what is seen of them and what is learned; what is not said is the `data` block's.

    Attributes:
        dataset: A registered dataset.
        root: Its folder, as `data.root`.
        images: The modalities, in the order of the channels; all in play where null.
        labels: A label map's name, or classes with their label values.
        institutions: Only subjects of these; of all where null.
        volume: How its volumes are prepared.
        distance_unit: As `data.distance_unit`.
    """

    dataset: Name | None = None
    root: PathText | None = None
    images: Names | None = None
    labels: Labels | None = None
    institutions: Names | None = None
    volume: VolumeConfig | None = None
    distance_unit: Unit | None = None


class CheckpointConfig(Strict):
    """A network that was trained elsewhere, as the source of transfers.

    Attributes:
        checkpoint: The file, or the folder of a MONAI bundle; `${VARIABLE}` as in `data.root`.
        sha256: Of the file: another one is refused. Null takes whatever lies there.
        network: What it is; the protocol's network where null. Both must be the same.
        channels: Names of the channels that it sees; their number matters.
        classes: Names of the classes of its head, background first; null where it has no head that
            could be used.
        rename: Rules that turn the file's names of tensors into the network's, in this order.
        partial: Whether tensors of the network, beside its head, may keep their initial values,
            and tensors of the file be left out.
    """

    checkpoint: PathText
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    network: NetworkConfig | None = None
    channels: Names = ("image",)
    classes: Annotated[Names, Field(min_length=2, max_length=256)] | None = None
    rename: Annotated[tuple[Rule, ...], Field(max_length=100)] = ()
    partial: bool = False

    @model_validator(mode="after")
    def _sensible(self) -> CheckpointConfig:
        for pattern, _ in self.rename:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                what = f"rename: '{pattern}' is no regular expression ({error})"
                raise ValueError(what) from error
        return self
