"""`trm-bench sources inspect`: what it shows, and a domain that fits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import files
import pytest
import torch
import yaml
from helpers import Run

from trm_bench import checkpoints, networks
from trm_bench.checkpoints.guessing import guess
from trm_bench.errors import UserError
from trm_bench.protocol.schema import NetworkConfig

SEGRESNET = {"name": "SegResNet", "init_filters": 8, "blocks_down": [1, 2, 2, 4]}
UNET = {
    "name": "UNet",
    "channels": [4, 8, 16, 32, 64],
    "strides": [2, 2, 2, 2],
    "num_res_units": 2,
    "norm": "batch",
}


def saved(file: Path, config: dict[str, Any], channels: int = 2, prefix: str = "") -> Path:
    state = networks.build(NetworkConfig(**config), channels, 3, 2, seed=1).state_dict()
    torch.save({prefix + name: tensor for name, tensor in state.items()}, file)
    return file


def domain(text: str) -> dict[str, Any]:
    """The domain that a command printed."""
    return yaml.safe_load(text[text.index("domains:") :])["domains"]["pretrained"]


def refit(file: Path, said: dict[str, Any]) -> checkpoints.Account:
    """What becomes of the tensors where the domain is believed."""
    foreign = checkpoints.read(file, said["sha256"])
    config, channels = NetworkConfig(**said["network"]), len(said["channels"])
    dims = max(t.ndim for t in foreign.tensors.values()) - 2
    network = networks.build(config, channels, 3, dims, 0)
    parts = networks.parts(config, channels, dims)
    rename = [(old, new) for old, new in said.get("rename", [])]
    return checkpoints.fit(foreign.tensors, network, parts, rename, said.get("partial", False))[1]


@pytest.mark.parametrize("prefix", ["", "backbone.net."])
@pytest.mark.parametrize("config", [UNET, SEGRESNET])
def test_a_usual_network_is_recognised(
    config: dict[str, Any], prefix: str, tmp_path: Path, trm_bench: Run
) -> None:
    file = saved(tmp_path / "weights.pth", config, prefix=prefix)
    code, text = trm_bench("sources", "inspect", file)
    said = domain(text)
    assert code == 0 and said["network"] == config and said["classes"] is None
    assert said["checkpoint"] == str(file) and len(said["channels"]) == 2
    assert "partial" not in said and ("rename" in said) == bool(prefix)
    assert not any("fits" in r for r in refit(file, said).left_out.values())


def test_names_are_found_by_order_and_shape(tmp_path: Path, trm_bench: Run) -> None:
    """A network given by hand, whose tensors have other names and lack normalisation."""
    own = NetworkConfig(name="BasicUNet", features=[4, 4, 8, 8, 16, 4])
    state = networks.build(own, 1, 3, 2, seed=1).state_dict()
    strange = {
        f"block{n}.{name.rpartition('.')[2]}": t for n, (name, t) in enumerate(state.items())
    }
    file, network = tmp_path / "weights.pth", tmp_path / "network.yaml"
    torch.save(strange, file)
    network.write_text(yaml.safe_dump(own.model_dump()))
    code, text = trm_bench("sources", "inspect", file, "--network", network)
    assert code == 0 and f"takes {len(state)} of {len(state)} tensors" in text
    account = refit(file, domain(text))
    assert {new: f"block{n}" for n, new in enumerate(state)}.items() >= {
        new: old.partition(".")[0] for old, new in account.loaded.items()
    }.items()
    assert len(account.loaded) == len(state) - 2  # the head, without `classes`


def test_what_a_file_says_is_shown(tmp_path: Path, trm_bench: Run) -> None:
    file = tmp_path / "checkpoint_final.pth"
    files.nnunet(file)
    code, text = trm_bench("sources", "inspect", file)
    said = domain(text)
    assert code == 0 and said["classes"] == ["background", "oedema", "tumour"]
    assert said["network"]["name"] == "PlainConvUNet" and "partial" not in said
    assert "nnUNetTrainer" in text and "3d_fullres" in text
    assert re.search(r"encoder\.stages[.\w]*\.\*", text), "tensors are grouped"
    assert refit(file, said).loaded
    files.nnssl(file)
    said = domain(trm_bench("sources", "inspect", file)[1])
    assert "partial" not in said and len(refit(file, said).initial) == 2


def test_no_network_is_made_up(tmp_path: Path, trm_bench: Run) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"a.weight": torch.zeros(7, 1, 3, 3, 3), "b[red].weight": torch.zeros(3)}, file)
    code, text = trm_bench("sources", "inspect", file)
    assert code == 0 and "none of the usual ones" in text and "b[red].weight" in text
    assert guess(checkpoints.read(file)) is None
    torch.save({"w": torch.zeros(3)}, file)
    assert trm_bench("sources", "inspect", file)[0] == 0


@pytest.mark.parametrize("content", ["name: Unett", "- 1", "name: [1]", "{"])
def test_a_network_that_is_none_is_said(content: str, tmp_path: Path, trm_bench: Run) -> None:
    file, network = saved(tmp_path / "weights.pt", UNET), tmp_path / "network.yaml"
    network.write_text(content)
    code, text = trm_bench("sources", "inspect", file, "--network", network)
    assert code == 2 and "error: " in text


def test_too_many_tensors_are_refused() -> None:
    tensors = {str(n): torch.zeros(1, 1, 1, 1) for n in range(20_001)}
    with pytest.raises(UserError, match="too many for a guess"):
        guess(checkpoints.Foreign(tensors, "torch", ""))
