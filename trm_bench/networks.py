"""Networks of MONAI, and nnU-Net's own, by name.

Built from a seed, their head and encoder named, source weights loaded under audit.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trm_bench import nnunet_networks
from trm_bench.errors import UserError, nearest
from trm_bench.limits import Exceeded, limits
from trm_bench.protocol.schema import NetworkConfig, TrainingConfig

# Parameters of the encoder, by regular expression on their names. In MONAI's UNet `.2.` is the way
# up at each level; DynUNet lists its modules a second time as nested skip_layers. `*+` keeps the
# repetition from giving levels back.
ENCODERS = {
    "UNet": r"model(\.1\.submodule)*+\.(?!2\.)",
    "AttentionUnet": r"model\.0\.|model(\.1\.submodule)*+\.(?!\d+\.(attention|upconv|merge))",
    "BasicUNet": r"conv_0|down_",
    "PlainConvUNet": r"encoder|decoder\.encoder",  # listed a second time in the decoder
    "ResidualEncoderUNet": r"encoder|decoder\.encoder",
    "FlexibleUNet": r"encoder",
    "DynUNet": r"input_block|downsamples|bottleneck|skip_layers(\.next_layer)*+\.(?!upsample)",
    "SegResNet": r"convInit|down_layers",
    "SwinUNETR": r"swinViT|encoder",
    "UNETR": r"vit|encoder",
}

MOST_NUMBERS = 2**29  # of a network's weights and all else that its constructor makes; 2 GiB
MOST_SECONDS = 20.0  # for building it
LARGEST = 1_000_000  # of the numbers in its arguments


def build(
    config: NetworkConfig, in_channels: int, classes: int, spatial_dims: int, seed: int
) -> nn.Module:
    """Builds the network with weights drawn from `seed`.

    Raises:
        UserError: There is no such network, the arguments do not fit it, or it would have more
            than `MOST_NUMBERS` weights or take more than `MOST_SECONDS` to build.
    """
    kind, arguments = constructor(config, in_channels, classes, spatial_dims)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with limits(MOST_NUMBERS, MOST_SECONDS):
                return kind(**arguments)
        except Exceeded as error:
            what = f"{config.name} is too large with these arguments: {error}"
            raise UserError(what, "network", "make it smaller") from error
        except Exception as error:  # whatever its code comes to with arguments it does not check
            what = f"{config.name} refuses its arguments: {_said(error)}"
            raise UserError(what, "network", "fix them") from error


def constructor(
    config: NetworkConfig, in_channels: int, classes: int, spatial_dims: int
) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """The class of the network and all arguments that it is built with; see `network_class`."""
    kind = network_class(config)
    arguments = {"in_channels": in_channels, "out_channels": classes, **config.arguments}
    if "spatial_dims" in inspect.signature(kind).parameters:
        arguments["spatial_dims"] = spatial_dims
    return kind, arguments


def network_class(config: NetworkConfig) -> Callable[..., nn.Module]:
    """The class, after checking its name and the names of the arguments."""
    from trm_bench.lean_monai import nets

    known: dict[str, Callable[..., nn.Module]] = {
        n: c for n, c in vars(nets).items() if inspect.isclass(c) and issubclass(c, nn.Module)
    }
    if config.name in nnunet_networks.CONSTRUCTORS:
        nnunet_networks.require_package()
    known |= nnunet_networks.CONSTRUCTORS
    if config.name not in known:
        raise UserError(
            f"MONAI has no network '{config.name}'",
            "network.name",
            nearest(config.name, list(known)),
        )
    accepted = [p for p in inspect.signature(known[config.name]).parameters if p != "self"]
    reserved = ("in_channels", "out_channels", "spatial_dims")
    for key in config.arguments:
        if key in reserved:
            raise UserError("is set by the data and the patch", f"network.{key}", "remove it")
        if key not in accepted:
            hint = nearest(key, [a for a in accepted if a not in reserved])
            raise UserError(f"{config.name} has no argument '{key}'", f"network.{key}", hint)
    for key, value in config.arguments.items():
        if (largest := max(_sizes(value), default=0)) > LARGEST:
            raise UserError(f"{largest:g} is above {LARGEST}", f"network.{key}", "lower it")
    if config.arguments.get("pretrained"):
        hint = "remove it: the source network is trained by the protocol itself"
        raise UserError("weights from elsewhere are not supported", "network.pretrained", hint)
    if config.arguments.get("deep_supervision"):
        hint = "voxel weights are defined at full resolution only; set it to false"
        raise UserError("deep supervision is not supported", "network.deep_supervision", hint)
    return known[config.name]


@dataclass(frozen=True)
class Parts:
    """Names of the parts of a network.

    Attributes:
        head: The module that turns features into class logits; its input is the penultimate
            features.
        encoder: Parameter names of the encoder; empty where it is not known for this network.
        decoder: Parameter names of the rest.
    """

    head: str
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]

    def in_head(self, name: str) -> bool:
        """Whether a parameter or buffer belongs to the head."""
        return name == self.head or name.startswith(self.head + ".")

    def added(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are in none of the parts: of modules of a method's own."""
        known = {*self.encoder, *self.decoder}
        return [name for name in names if name not in known and not self.in_head(name)]


def parts(config: NetworkConfig, in_channels: int, spatial_dims: int) -> Parts:
    """Finds the head, as what changes shape with the number of classes, and the encoder by the
    network's own names.
    """
    return _parts(config.name, _arguments(config), in_channels, spatial_dims)


def _arguments(config: NetworkConfig) -> str:
    return json.dumps(config.arguments, sort_keys=True)


@lru_cache(maxsize=32)
def _shapes(
    name: str, arguments: str, in_channels: int, classes: int, spatial_dims: int
) -> dict[str, torch.Size]:
    """The shapes of a network's tensors, by name."""
    config = NetworkConfig(name=name, **json.loads(arguments))
    network = build(config, in_channels, classes, spatial_dims, seed=0)
    return {key: tensor.shape for key, tensor in network.state_dict().items()}


@lru_cache(maxsize=16)
def _parts(name: str, arguments: str, in_channels: int, spatial_dims: int) -> Parts:
    two, three = (_shapes(name, arguments, in_channels, n, spatial_dims) for n in (2, 3))
    changing = [k.split(".") for k, v in two.items() if k not in three or three[k] != v]
    if not changing:
        raise UserError(
            f"{name} has no layer that depends on the number of classes",
            "network.name",
            "choose another",
        )
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == changing[0][shared] for path in changing):
        shared += 1
    head = ".".join(changing[0][:shared])
    if not head:
        raise UserError(
            f"{name} has several heads", "network.name", "choose a network with one output"
        )
    kind = network_class(NetworkConfig(name=name))
    pattern = ENCODERS.get(kind.__name__)  # MONAI has aliases, such as Unet
    inside = [k for k in two if pattern and re.match(pattern, k) and not k.startswith(head + ".")]
    return Parts(
        head,
        tuple(inside),
        tuple(k for k in two if k not in set(inside) and not k.startswith(head + ".")),
    )


def input_layers(
    config: NetworkConfig, source_channels: int, target_channels: int, spatial_dims: int
) -> tuple[str, ...]:
    """Names of the weights that the number of input channels gives their shape.

    Raises:
        UserError: One of them has no axis of its own for the channels.
    """
    if source_channels == target_channels:
        return ()
    before, after = (
        _shapes(config.name, _arguments(config), channels, 2, spatial_dims)
        for channels in (source_channels, target_channels)
    )
    changing = [k for k in before if before[k] != after.get(k)] + [k for k in after.keys() - before]
    for name in changing:
        one, other = before.get(name, ()), after.get(name, ())
        if one[1:2] != (source_channels,) or other != (*one[:1], target_channels, *one[2:]):
            raise UserError(
                f"{config.name} cannot go from {source_channels} input channels to "
                f"{target_channels}: the channels are no axis of '{name}'",
                "network.name",
                "use as many images on both sides, or another network",
            )
    return tuple(changing)


def adapt_channels(
    state: Mapping[str, Tensor],
    source_channels: int,
    target_channels: int,
    config: NetworkConfig,
    spatial_dims: int,
    way: Literal["repeat", "mean"],
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fits the first layers of a network's state to another number of input channels.

    With Cs channels before and Ct after, channel j gets Cs / Ct times the weights of channel
    j mod Cs (`repeat`), or times the mean over all Cs (`mean`). So where every channel shows one
    and the same image, outputs stay as they are: with `mean` always, with `repeat` where Cs
    divides Ct.

    Args:
        state: Of a network with `source_channels`.
        source_channels: Cs.
        target_channels: Ct.
        config: The network.
        spatial_dims: 2 or 3.
        way: `repeat` or `mean`.

    Returns:
        The state, and the names of the tensors that are not as they were.

    Raises:
        UserError: See `input_layers`.
    """
    layers = input_layers(config, source_channels, target_channels, spatial_dims)
    names = tuple(name for name in layers if name in state)
    adapted = dict(state)
    for name in names:
        weights = state[name]
        if way == "mean":
            chosen = weights.mean(1, keepdim=True).repeat_interleave(target_channels, 1)
        else:
            chosen = weights[:, [j % source_channels for j in range(target_channels)]]
        adapted[name] = chosen * (source_channels / target_channels)
    return adapted, names


def load_source(
    network: nn.Module,
    source: Mapping[str, Tensor],
    parts: Parts,
    with_head: bool,
    partial: bool = False,
    adapted: Sequence[str] = (),
) -> dict[str, Any]:
    """Copies source weights into the network; everything must match but a replaced head, and
    modules of a method's own, which no source has.

    Args:
        network: The target network, already initialised.
        source: The source network's state.
        parts: Of the network.
        with_head: Whether the head comes along, which takes the same classes on both sides.
        partial: Whether the source may lack tensors, which then keep their initial values.
        adapted: Names of what `adapt_channels` changed in it.

    Returns:
        The audit: number of tensors loaded, those of them that were adapted, and the names of those
        left at their initial values.

    Raises:
        ValueError: A tensor that is not the head's is missing, unexpected or of another shape.
    """
    own = network.state_dict()
    skipped = parts.added(own) + [k for k in own if parts.in_head(k) and not with_head]
    if partial:
        skipped += [k for k in own if k not in source and k not in skipped]
    wanted = {k: v for k, v in own.items() if k not in set(skipped)}
    given = {k: v for k, v in source.items() if with_head or not parts.in_head(k)}
    wrong = sorted(set(wanted) ^ set(given)) + [
        k for k in wanted if k in given and wanted[k].shape != given[k].shape
    ]
    if wrong:
        raise ValueError(
            "source checkpoint and network do not fit: "
            f"{', '.join(wrong[:5])} ({len(wrong)} in all)"
        )
    network.load_state_dict({**own, **given})
    return {"loaded": len(given), "adapted": list(adapted), "skipped": skipped}


def training_bytes(
    config: NetworkConfig,
    training: TrainingConfig,
    in_channels: int,
    classes: int,
    bytes_per_number: int = 4,
) -> int:
    """An estimate of a training step's memory, from a forward pass without computing (on PyTorch's
    meta device).

    Weights, gradients and the optimiser's state, all layers' outputs, and as much again for
    gradients on the way back.

    Args:
        config: The network.
        training: Its patch, batch and optimiser.
        in_channels: Modalities that it sees.
        classes: Background included.
        bytes_per_number: Of activations: 4, or 2 under bf16.

    Raises:
        UserError: The network refuses its arguments, or does not map this patch to logits of the
            same size.
    """
    numbers = 0

    def count(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal numbers
        if not list(module.children()):
            numbers += sum(tensor.numel() for tensor in _tensors(output))

    network = _on_paper(config, training, in_channels, classes, count)
    states = 4 if training.optimizer.name == "adamw" else 3
    weights = sum(p.numel() for p in network.parameters()) * 4 * states
    return weights + 2 * numbers * bytes_per_number


def two_deep(
    config: NetworkConfig, training: TrainingConfig, in_channels: int, classes: int
) -> list[str]:
    """The 3D convolutions whose gradient in bf16 is wrong on some processors, by name; see
    `formats.has_sound_bf16`.

    Args:
        config: The network.
        training: Its patch and batch.
        in_channels: Modalities that it sees.
        classes: Background included.

    Raises:
        UserError: As `training_bytes`.
    """
    found = []

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1 == module.stride[0]:
            found.extend([name] if inputs[0].shape[2] == 2 else [])

    _on_paper(config, training, in_channels, classes, look)
    return found


def _on_paper(
    config: NetworkConfig,
    training: TrainingConfig,
    in_channels: int,
    classes: int,
    look: Callable[[str, nn.Module, Any, Any], None],
) -> nn.Module:
    """A network after a batch of patches went through it on PyTorch's meta device.

    Args:
        look: Sees name, module, inputs and output of every module that computes.
    """
    network = build(config, in_channels, classes, len(training.patch), seed=0)
    for name, module in network.named_modules():
        module.register_forward_hook(partial(look, name))
    problem = ""
    try:
        with torch.no_grad(), limits(MOST_NUMBERS, MOST_SECONDS):
            image = torch.empty(training.batch, in_channels, *training.patch, device="meta")
            logits = network.to("meta")(image)
        if not isinstance(logits, Tensor):
            problem = f"it returns a {type(logits).__name__}, not one tensor of logits"
        elif logits.shape != (training.batch, classes, *training.patch):
            problem = f"its output has shape {tuple(logits.shape)}"
    except Exception as error:  # as in `build`
        problem = _said(error)
    if problem:
        what = f"{config.name} does not take a patch of {list(training.patch)}: {problem}"
        raise UserError(
            what,
            "training.*.patch",
            "patch sizes must be divisible by all that the network's strides make",
        )
    return network


def _said(error: BaseException) -> str:
    """What an exception of another package says, in one line of bounded length."""
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__


def _sizes(value: Any) -> Iterator[float]:
    """The absolute values of all numbers in a plain value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _sizes(item)
    elif isinstance(value, int | float):
        yield abs(value)


def _tensors(output: Any) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts the network into eval mode, and every module back into the mode it had.

    So a layer that a method keeps frozen stays frozen. Nothing is compiled meanwhile.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    # whole volumes come in other shapes and numbers than batches: each would be compiled anew
    compiles = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if compiles else nullcontext()
    try:
        with eager:
            yield
    finally:
        for module, mode in modes:
            module.training = mode
