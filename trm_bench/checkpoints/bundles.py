"""The folder of a MONAI bundle: its network by name and plain arguments, and nothing of it is run.

Bundles are configured in a language that calls any function and evaluates text after `$`. Only what
describes a network is read of it: `_target_` with a network of MONAI's, plain values, and
references (`@key`, `@key#part`) to plain values.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm_bench import inputs
from trm_bench.errors import UserError
from trm_bench.protocol.markup import parse_yaml
from trm_bench.protocol.schema import NetworkConfig

CONFIGS = tuple(
    f"configs/{name}.{ending}" for name in ("inference", "train") for ending in ("json", "yaml")
)
WEIGHTS = "models/model.pt"
NETWORK = "network_def"
LARGEST = 2**20  # bytes of a configuration
MOST_STEPS, DEEPEST = 10_000, 32  # of following references


@dataclass(frozen=True)
class Bundle:
    """What a bundle says of its network.

    Attributes:
        weights: The file with them.
        network: By MONAI's name, without what the number of channels, classes and dimensions say.
        spatial_dims: 2 or 3.
        channels: Of its input.
        classes: As `metadata.json` names them; None where it does not, or not the background first.
    """

    weights: Path
    network: NetworkConfig
    spatial_dims: int | None
    channels: int | None
    classes: tuple[str, ...] | None


def read(folder: Path) -> Bundle:
    """What a bundle says of its network.

    Raises:
        UserError: It is no bundle, or its network is not described by plain values.
    """
    files = [folder / name for name in CONFIGS if inputs.exists(folder / name)]
    if not files:
        raise UserError(
            "is a folder, but no MONAI bundle: it has no configs/inference.json",
            folder,
            "give the checkpoint file itself, or the folder of a bundle",
        )
    for file in files:
        config = _content(file)
        if isinstance(config, dict) and NETWORK in config:
            break
    else:
        fix = "give the checkpoint file itself, and its network in `network`"
        raise UserError(f"has no '{NETWORK}'", files[0], fix)
    said = _Reader(config, file).network()
    name = str(said.pop("_target_")).rpartition(".")[2]
    channels, classes = said.pop("in_channels", None), said.pop("out_channels", None)
    dims = said.pop("spatial_dims", None)
    if said.get("deep_supervision"):  # of use to training alone
        said["deep_supervision"] = False
    try:
        network = NetworkConfig(name=name, **said)
    except (TypeError, ValueError) as error:
        raise UserError(f"has strange arguments: {str(error)[:200]}", file, FIX) from error
    return Bundle(
        weights=folder / WEIGHTS,
        network=network,
        spatial_dims=dims if type(dims) is int and dims in (2, 3) else None,
        channels=channels if type(channels) is int else None,
        classes=_classes(folder / "configs" / "metadata.json", classes),
    )


def _content(file: Path) -> Any:
    text = inputs.read_text(file, LARGEST)
    if file.suffix == ".yaml":
        return parse_yaml(text, file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON: {str(error)[:200]}", file, "get the bundle again") from error


FIX = "give the checkpoint file itself (models/model.pt), and its network in `network`"


class _Reader:
    """Reads the network's description, following plain references."""

    def __init__(self, config: dict[str, Any], file: Path) -> None:
        self.config, self.file, self.steps = config, file, 0

    def network(self) -> dict[str, Any]:
        """`_target_` and arguments."""
        said = self.plain(self.config[NETWORK], NETWORK)
        if not isinstance(said, dict) or not isinstance(said.get("_target_"), str):
            raise self.refused(NETWORK, "is not described by `_target_`")
        module, _, name = said["_target_"].rpartition(".")
        if not name or (module and not f"{module}.".startswith("monai.networks.nets.")):
            what = f"is not a network of MONAI's: '{said['_target_'][:100]}'"
            raise self.refused(NETWORK, what)
        odd = [key for key in said if key.startswith("_") and key not in ("_target_", "_desc_")]
        if odd:
            raise self.refused(NETWORK, f"has '{odd[0][:60]}', which is not followed here")
        return {key: value for key, value in said.items() if key != "_desc_"}

    def plain(self, value: Any, where: str, depth: int = 0) -> Any:
        """A value with its references followed."""
        self.steps += 1
        if self.steps > MOST_STEPS or depth > DEEPEST:
            raise self.refused(where, "leads through too many references")
        if isinstance(value, str) and value.startswith(("$", "%")):
            raise self.refused(where, f"is code, which is not run: '{value[:60]}'")
        if isinstance(value, str) and value.startswith("@"):
            return self.plain(self.referred(value[1:], where), where, depth + 1)
        if isinstance(value, dict):
            if where != NETWORK and "_target_" in value:
                raise self.refused(where, "is an object, not a plain value")
            return {k: self.plain(v, f"{where}#{k}", depth + 1) for k, v in value.items()}
        if isinstance(value, list):
            return [self.plain(v, f"{where}#{n}", depth + 1) for n, v in enumerate(value)]
        return value

    def referred(self, path: str, where: str) -> Any:
        """What `key#part` or `key::part` names."""
        found: Any = self.config
        for part in path.replace("::", "#").split("#"):
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = found[part]
            else:
                raise self.refused(where, f"refers to '@{path[:60]}', which is not there")
        return found

    def refused(self, where: str, what: str) -> UserError:
        """The error."""
        return UserError(f"'{where[:100]}' {what}", self.file, FIX)


def _classes(metadata: Path, number: Any) -> tuple[str, ...] | None:
    """The names of the output's channels, where there are as many and the first is background."""
    if not inputs.is_file(metadata):
        return None
    value: Any = _content(metadata)
    for key in ("network_data_format", "outputs", "pred", "channel_def"):
        value = value.get(key) if isinstance(value, dict) else None
    given = [value.get(str(n)) for n in range(len(value))] if isinstance(value, dict) else []
    names = tuple(n for n in given if isinstance(n, str) and n.isprintable())
    fine = len(names) > 1 and len(names) == len(given) == number
    return names if fine and names[0].lower() == "background" else None
