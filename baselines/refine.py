"""REFINE: a target network learns what a linear map of frozen source features leaves over."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trm_bench.errors import UserError
from trm_bench.methods import Context, Method, Parameters, hyper
from trm_bench.methods.evidence import resampled
from trm_bench.networks import Parts

OWN = "refine"  # the name of the method's own modules in the network


class RefineParameters(Parameters):
    """Hyper-parameters of REFINE."""

    start: Literal["scratch", "source"] = hyper(
        "scratch",
        "the target network's weights: initial ones, as in the paper, or the source's",
        search=["scratch", "source"],
    )
    rate: float = hyper(
        1.0,
        "learning rate of v, as a factor of the training's; 1 in the paper",
        search=(0.1, 10.0),
        log=True,
        ge=0,
        le=1e4,
    )


class Refine(Method):
    """Training of g(x) = u(h(x)) + v f(x): f the frozen source's features, h the target network's.

    Xu, Nakada, Zhang & Li, "Residual Feature Integration is Sufficient to Prevent Negative
    Transfer", ICLR 2026, arXiv:2505.11771. The source network without its last layer, f, is frozen;
    beside it an encoder h is trained from its initial weights, and a shallow head on both, joined.
    With a linear head that is the paper's model v' f(x) + u h(x): where f is of no use, v can be 0
    and training is that from scratch, and h has only to learn what v' f(x) leaves over.

    Dense: f and h are the maps that go into the network's head, f (B, C, *coarse) of the source,
    h of another network of the protocol's kind. u is that network's own head, and v (K, C) a
    1x1x1 convolution without a bias, begun at 0, whose logits are resampled to the patch
    (`evidence.resampled`) where features are coarser. What the step from images to voxels changes:
    - A linear head on [f, h] is the sum of one on f and one on h. So it is written here, since the
      head of a segmentation network may be more than a linear layer (in MONAI's UNet it undoes a
      stride): h keeps the head that scratch has, and v = 0 is scratch exactly.
    - The features of a voxel have passed skip connections and a decoder on both sides. The paper's
      are one vector an image.
    - The paper's h can be much smaller than f; here it is as large, so that scratch is the same
      network.

    f computes as in evaluation (moving statistics, no dropout), gets no gradient and no weight
    decay, and is kept with the network. With `start: source` h begins as fine-tuning does. Cost:
    a forward pass without a gradient more a step and in prediction, and memory for its weights.
    Where f is 0 everywhere, and with rate = 0, it is scratch, or fine-tuning with `start: source`,
    bit for bit.

    Raises:
        UserError: The network's head takes no feature map.
    """

    name = "refine"
    paper = "Xu et al., ICLR 2026, arXiv:2505.11771"
    Parameters = RefineParameters

    def architecture(self, network: nn.Module, parts: Parts, image: Tensor) -> nn.Module:
        source = copy.deepcopy(network)
        source.set_submodule(parts.head, nn.Identity())
        with torch.no_grad():
            features, logits = (
                copy.deepcopy(one).to("meta").eval()(image) for one in (source, network)
            )
        if features.ndim != image.ndim:
            what = f"the head of {type(network).__name__}, {parts.head}, takes no feature map"
            raise UserError(what, "network", f"choose another network, or leave {self.name} out")
        network.add_module(OWN, SourceResidual(source, features.shape[1], logits.shape[1]))
        network.register_forward_hook(_added)
        return network

    def passes(self) -> float:
        return 4 / 3  # going forward is about a third of a pass

    def prepare(self, run: Context) -> None:
        assert run.source is not None
        if self.p.start == "scratch":
            run.network.load_state_dict(run.fresh().state_dict(), strict=False)
        state = run.source.state_dict()
        trunk = {name: value for name, value in state.items() if not run.parts.in_head(name)}
        run.network.get_submodule(f"{OWN}.source").load_state_dict(trunk)

    def parameters(self, run: Context) -> Iterable[Any]:
        v = run.network.get_parameter(f"{OWN}.v")
        others = {"params": [p for p in super().parameters(run) if p is not v]}
        own = {"params": [v], "lr": self.p.rate * run.config.optimizer.lr}
        return [others, own] if self.p.rate else [others]

    def training_mode(self, run: Context) -> None:
        run.network.train()
        run.network.get_submodule(f"{OWN}.source").eval()


class SourceResidual(nn.Module):
    """v f(x), on the grid of the image.

    Args:
        source: Gives its features in place of logits.
        channels: Of the features.
        classes: Of the target.
    """

    def __init__(self, source: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.source = source.eval().requires_grad_(False)
        self.v = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, Cin, *spatial) to (B, K, *spatial)."""
        with torch.no_grad():
            features = self.source(image)
        logits = torch.einsum("kc,bc...->bk...", self.v, features)
        return resampled(logits, image.shape[2:])


def _added(network: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    """A forward hook of the network; a function, so that a copied network has its own modules."""
    return logits + network.get_submodule(OWN)(inputs[0])
