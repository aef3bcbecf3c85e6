"""What methods that look into the encoder share.

Its blocks, and their outputs in a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from trm_bench.errors import UserError
from trm_bench.methods import Method
from trm_bench.networks import Parts

# nnU-Net's encoders give a list, and call the modules in `stages` one by one
LISTING = ("PlainConvEncoder", "ResidualEncoder")


class EncoderMethod(Method):
    """A method that must know which part of the network is its encoder.

    A class, not a function, so that a run's identity covers this file: the files of a method's base
    classes count.
    """

    def check(self, network: nn.Module, parts: Parts) -> None:
        if not parts.encoder:
            kind = type(network).__name__
            what = (
                f"{self.name} needs the encoder, and it is not known which part of {kind} that is"
            )
            raise UserError(what, "network", f"choose another network, or leave {self.name} out")


def encoder_blocks(network: nn.Module, parts: Parts) -> dict[str, nn.Module]:
    """The encoder's levels by name: the largest modules that hold encoder parameters and no others.

    Parameters are compared by identity, since a network may list one module under several names.
    """
    from monai.networks.layers.simplelayers import SkipConnection  # a report takes what is above

    containers = (
        nn.ModuleList,
        nn.ModuleDict,
        SkipConnection,
    )  # no output, or one that joins others'
    names = set(parts.encoder)
    inside = {id(p) for name, p in network.named_parameters() if name in names}
    blocks: dict[str, nn.Module] = {}

    def descend(name: str, module: nn.Module) -> None:
        own = [id(p) in inside for p in module.parameters()]
        if not any(own) or any(module is known for known in blocks.values()):
            return
        lists = type(module).__name__ in LISTING or name.endswith(".stages")
        if all(own) and not lists and not isinstance(module, containers):
            blocks[name] = module
            return
        for child, inner in module.named_children():
            descend(f"{name}.{child}" if name else child, inner)

    descend("", network)
    return blocks


@contextmanager
def watch(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collects the blocks' outputs while it is open, in the order of computation; outputs that are
    no tensors are not.

    Args:
        blocks: Modules by name.

    Yields:
        Name to feature map, shape (B, C, *spatial); filled by the forward passes inside.
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            maps[name] = output

    handles = [
        block.register_forward_hook(lambda module, inputs, output, name=name: keep(name, output))
        for name, block in blocks.items()
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
