"""In which precision a network computes, and how it lies in memory meanwhile."""

from __future__ import annotations

from typing import Literal

import torch

from trm_bench.environment import has_bf16, processor
from trm_bench.networks import network_class
from trm_bench.protocol.schema import NetworkConfig, TrainingConfig

# 3D networks of which a CPU makes a step faster with their channels last in memory, and at which
# precision; measured (docs/speed.md). Others gain nothing, or lose what normalisation then costs.
CHANNELS_LAST = {
    "UNet": ("fp32", "bf16"),
    "AttentionUnet": ("fp32", "bf16"),
    "SegResNet": ("fp32",),
    "SwinUNETR": ("fp32", "bf16"),
    "UNETR": ("fp32", "bf16"),
}


def memory_format(
    config: NetworkConfig, training: TrainingConfig, device: torch.device
) -> torch.memory_format:
    """How a network's weights, and so its features, lie in memory while it trains.

    A rule and no measurement, since the order of sums, and so the last bits, follow from it.

    Args:
        config: The network.
        training: Its patch, its precision, and whether it is compiled.
        device: Where it trains.
    """
    flat = len(training.patch) == 2
    precision = resolved_precision(device, training.precision)
    if device.type == "cpu":
        faster = CHANNELS_LAST.get(network_class(config).__name__, ())
        if flat or precision not in faster or (training.compile and precision == "bf16"):
            return torch.contiguous_format
    return torch.channels_last if flat else torch.channels_last_3d


def resolved_precision(
    device: torch.device,
    precision: Literal["auto", "fp32", "bf16"],
    bf16: bool | None = None,
) -> Literal["fp32", "bf16"]:
    """What a precision setting means on a device: `auto` is bf16 on GPUs that have it, else fp32.

    Args:
        device: Here, or on another machine.
        precision: The setting.
        bf16: Whether that device has it; asked here where not given.
    """
    if precision != "auto":
        return precision
    return "bf16" if (has_bf16(device) if bf16 is None else bf16) else "fp32"


def autocast(
    device: torch.device, precision: Literal["auto", "fp32", "bf16"], cache: bool = True
) -> torch.autocast:
    """The autocast context of a precision setting; losses are in float32 all the same.

    Args:
        device: Where it computes.
        precision: The setting.
        cache: Whether weights are converted once for several passes. Gradients of those passes are
            then added in bf16; and one cache serves all threads of a process, each of which
            empties it when its own context ends.
    """
    bf16 = resolved_precision(device, precision) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=cache)


def has_sound_bf16(device: torch.device) -> bool:
    """Whether a weight's gradient is right in bf16 where features are two voxels deep.

    PyTorch 2.13's kernel for processors with avx512_bf16 and no AMX reads memory there that nobody
    has written: of a 3D convolution over more than one voxel, unless it strides.
    """
    flags = processor()[1]
    return device.type != "cpu" or "avx512_bf16" not in flags or "amx_bf16" in flags
