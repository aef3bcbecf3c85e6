"""Checkpoints from elsewhere: their tensors, and what they say of their network.

The format is told by the content. No code of a file is ever run: see `pickles`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from trm_bench import inputs, nnunet_networks
from trm_bench.checkpoints import archives, bundles
from trm_bench.checkpoints.pickles import Made, Refused
from trm_bench.errors import UserError
from trm_bench.protocol.schema import NetworkConfig
from trm_bench.seals import digest_of_file

WRAPPERS = ("state_dict", "model_state_dict", "network_weights", "model", "net")
"""Keys under which programs keep the weights beside other things."""

LONGEST_NAME = 300
FIX = "give a .safetensors file, or save the weights alone: torch.save(network.state_dict(), FILE)"


@dataclass(frozen=True)
class Foreign:
    """A checkpoint as it is.

    Attributes:
        tensors: By the names of the file, without what parallel or compiled training puts before
            them (`module.`, `_orig_mod.`).
        format: `safetensors`, `torch`, `torch before 1.6`, `torchscript`, `MONAI bundle`,
            `nnU-Net`, `nnssl`.
        sha256: Of the file with the weights.
        network: What the file says of its network; None where it says nothing.
        spatial_dims: Of that network; None where it says nothing.
        channels: Of its input; None where it says nothing.
        classes: Of its head, background first; None where it says nothing, or other things.
        about: What else it says, for a person.
    """

    tensors: dict[str, Tensor]
    format: str
    sha256: str
    network: NetworkConfig | None = None
    spatial_dims: int | None = None
    channels: int | None = None
    classes: tuple[str, ...] | None = None
    about: dict[str, str] = field(default_factory=dict)


def read(path: Path, sha256: str | None = None) -> Foreign:
    """Reads a checkpoint, or the folder of a MONAI bundle.

    Args:
        path: The file or folder.
        sha256: That the file (of a bundle, `models/model.pt`) must have.

    Raises:
        UserError: There is none, it is another one, damaged, of no known format, or it holds code.
    """
    if inputs.is_folder(path):
        bundle = bundles.read(path)
        return replace(
            read(bundle.weights, sha256),
            format="MONAI bundle",
            network=bundle.network,
            spatial_dims=bundle.spatial_dims,
            channels=bundle.channels,
            classes=bundle.classes,
        )
    fix = "check the path"
    if not inputs.is_file(path):
        what = "is not a plain file" if inputs.exists(path) else "there is no such file"
        raise UserError(what, path, fix)
    try:
        actual = digest_of_file(path)
        if sha256 is not None and actual != sha256.lower():
            what = f"is another file: its sha256 is {actual}"
            raise UserError(what, path, "get the file again, or correct `sha256`")
        with path.open("rb") as file:
            start = file.read(9)
        foreign = _read(path, start, actual)
        _require_tensors(foreign.tensors)
        return foreign
    except Refused as error:
        raise UserError(f"cannot be used as a checkpoint: it {error}", path, FIX) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", path, fix) from error


def _read(path: Path, start: bytes, sha256: str) -> Foreign:
    if archives.is_archive(start):
        with archives.opened(path) as archive:
            return _of_torch(archive, sha256)
    if start[8:] == b"{":
        return Foreign(_safetensors(path), "safetensors", sha256)
    raise Refused("is neither a safetensors file nor one of PyTorch's")


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise Refused(f"is a damaged safetensors file: {error}") from error


def _of_torch(archive: archives.Archive, sha256: str) -> Foreign:
    content = archive.content
    if archive.format == "torchscript":
        return Foreign(_named(archive.tensors(content)), archive.format, sha256)
    weights, depth = content, 0
    while isinstance(weights, dict) and depth < 3:
        inner = next((weights[k] for k in WRAPPERS if _holds_tensors(weights.get(k))), None)
        if inner is None:
            break
        weights, depth = inner, depth + 1
    if not isinstance(weights, dict):
        raise Refused("holds no mapping of names to tensors")
    plain = {k: v for k, v in weights.items() if isinstance(k, str) and isinstance(v, Made)}
    foreign = Foreign(_named(archive.tensors(plain)), archive.format, sha256)
    if isinstance(content, dict) and "network_weights" in content:
        return _of_nnunet(foreign, content)
    return foreign


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and next(archives.described(value), None) is not None


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that the bare network has."""
    names = {name: name.replace("_orig_mod.", "") for name in tensors}
    while names and all(new.startswith("module.") for new in names.values()):
        names = {name: new.removeprefix("module.") for name, new in names.items()}
    if len(set(names.values())) < len(names):
        raise Refused("has two tensors of one name, but for `module.` and `_orig_mod.`")
    return {names[name]: tensor for name, tensor in tensors.items()}


def _require_tensors(tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise Refused("holds no tensors")
    for name in tensors:
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise Refused(f"holds a tensor with a strange name: {ascii(name)[:60]}")


# ----------------------------------------------------------------------------------------- nnU-Net


def _of_nnunet(foreign: Foreign, content: Mapping[str, Any]) -> Foreign:
    """A checkpoint of nnU-Net v2 or of nnssl, with what its `init_args` say."""
    about = {"trainer": str(content.get("trainer_name", ""))[:100]}
    adaptation = content.get("nnssl_adaptation_plan")
    given = content.get("init_args")
    given = given if isinstance(given, dict) else {}
    configuration = str(given.get("configuration", ""))[:100]
    try:
        if adaptation is not None:
            network, dims = nnunet_networks.network_of_adaptation(adaptation)
        else:
            about["configuration"] = configuration
            network, dims = nnunet_networks.network_of_plans(given.get("plans"), configuration)
    except UserError as error:  # its tensors are of use all the same
        return replace(foreign, format="nnU-Net", about={**about, "network": error.what})
    described = given.get("dataset_json") if adaptation is None else None
    return replace(
        foreign,
        format="nnU-Net" if adaptation is None else "nnssl",
        about=about,
        network=network,
        spatial_dims=dims,
        channels=_first_channels(foreign.tensors),
        classes=_classes(described.get("labels") if isinstance(described, dict) else None),
    )


def _first_channels(tensors: Mapping[str, Tensor]) -> int | None:
    """Input channels of the first convolution."""
    return next((t.shape[1] for t in tensors.values() if t.ndim > 3), None)


def _classes(labels: Any) -> tuple[str, ...] | None:
    """Names by label value; None for regions, which overlap."""
    if not isinstance(labels, dict):
        return None
    values = {v: k for k, v in labels.items() if type(v) is int and k != "ignore"}
    names = [values.get(n) for n in range(len(values))]
    whole = all(isinstance(n, str) and re.fullmatch(r"[ -~]{1,100}", n) for n in names)
    regions = any(isinstance(v, list | tuple) for v in labels.values())
    return tuple(map(str, names)) if whole and not regions and len(names) > 1 else None
