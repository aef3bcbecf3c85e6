"""What all blocks of the protocol have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A block of the protocol in which unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
