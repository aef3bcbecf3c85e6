"""What methods share that hold the weights near the source's after the optimiser's step."""

from __future__ import annotations

from torch import nn

from trm_bench.methods import Context


def anchored(run: Context) -> dict[str, nn.Parameter]:
    """The trained parameters that have a source value, by name: all but those of a new head."""
    return {
        name: parameter
        for name, parameter in run.network.named_parameters()
        if parameter.requires_grad and (run.same_task or not run.parts.in_head(name))
    }
