"""A bundle is read by MONAI alone and says what the network says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from given import checkpoint, config, voxels, weights, write
from helpers import CPU
from monai.bundle import ConfigParser, load
from monai.bundle.utils import DEFAULT_METADATA

from trm_bench import bundle, prediction
from trm_bench.datasets.base import LabelMap
from trm_bench.errors import UserError
from trm_bench.protocol.schema import TrainingConfig, VolumeConfig
from trm_bench.runs import compute
from trm_bench.runs.config import RunDomain, RunMethod

FLAT = {
    "training": TrainingConfig(steps=1, patch=(16, 16), precision="fp32"),
    "volume": VolumeConfig(crop="none"),
}
KINDS: dict[str, dict[str, Any]] = {
    "zscore_brain": {"volume": VolumeConfig()},
    "zscore": {"volume": VolumeConfig(intensity="zscore", crop="none")},
    "percentile": {"volume": VolumeConfig(intensity="percentile")},
    "slices": FLAT,
    "two channels": {
        "domain": RunDomain.of(("t1", "t2"), "ball", LabelMap(("background", "ball"), {1: 1})),
        "volume": VolumeConfig(),
    },
}


def snippet(folder: Path) -> str:
    found = re.search("```python\n(.*?)```", (folder / "docs" / "README.md").read_text(), re.S)
    assert found
    return found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_gives_what_predict_gives(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the scan's own spacing; logits, and classes on the grid of the file."""
    changes = KINDS[kind]
    made = checkpoint(tmp_path / "a.safetensors", weights(**changes), **changes)
    folder = tmp_path / "bundle"
    bundle.write(made, folder)
    image = voxels()[0]
    images = [write(folder / "image_0.nii.gz", image)]
    if kind == "two channels":
        images.append(write(folder / "image_1.nii.gz", np.sqrt(image) * (image > 90)))
    monkeypatch.chdir(folder)
    inside: dict[str, Any] = {}
    exec(snippet(folder), inside)
    prediction.write(made, images, tmp_path / "out.nii", "classes", CPU)
    wanted = np.asarray(nib.load(tmp_path / "out.nii").dataobj)
    np.testing.assert_array_equal(inside["case"]["pred"][0].numpy(), wanted)
    assert 0 < wanted.mean() < 1
    given = torch.rand(1, len(images), *config(**changes).training.patch)
    own = compute.frozen(config(**changes), weights(**changes), CPU)
    with torch.no_grad():
        torch.testing.assert_close(inside["network"](given), own(given), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:parsing config_file")  # that it could run code
def test_monai_loads_it_and_finds_every_key(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "a.safetensors", weights())
    bundle.write(made, tmp_path / "made")
    network = load("made", bundle_dir=tmp_path, workflow_type="inference", device="cpu")
    for name, tensor in weights().items():
        assert torch.equal(network.state_dict()[name], tensor)
    parser = ConfigParser()
    parser.read_meta(str(tmp_path / "made" / "configs" / "metadata.json"))
    metadata = parser["_meta_"]
    assert set(DEFAULT_METADATA) <= set(metadata)
    formats = metadata["network_data_format"]
    # of a tensor, in the specification
    keys = ["type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range"]
    for tensor, names in (("inputs", ["mri"]), ("outputs", ["background", "ball"])):
        (one,) = formats[tensor].values()
        assert {*keys, "is_patch_data", "channel_def"} == set(one)
        assert list(one["channel_def"].values()) == names and one["num_channels"] == len(names)
    assert "phantom" in (tmp_path / "made" / "docs" / "README.md").read_text()


def test_the_terms_of_the_data_go_along(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "a.safetensors", weights(), dataset="lgg")
    bundle.write(made, tmp_path / "made")
    assert "CC BY-NC-SA 4.0" in (tmp_path / "made" / "docs" / "license.txt").read_text()


@pytest.mark.parametrize("name", ["$print(1)", "@network", "%x"])
def test_a_name_that_monai_would_evaluate_is_refused(name: str, tmp_path: Path) -> None:
    domain = RunDomain.of((name,), "ball", LabelMap(("background", "ball"), {1: 1}))
    made = checkpoint(tmp_path / "a.safetensors", weights(), domain=domain)
    with pytest.raises(UserError, match="would evaluate"):
        bundle.write(made, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_network_with_modules_of_a_methods_own_is_refused(tmp_path: Path) -> None:
    changes = {"method": RunMethod(name="refine")}
    made = checkpoint(tmp_path / "a.safetensors", weights(**changes), **changes)
    with pytest.raises(UserError, match="refine puts modules into its network"):
        bundle.write(made, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = checkpoint(tmp_path / "a.safetensors", weights())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    for out in (tmp_path / "taken", made):
        with pytest.raises(UserError, match="is there already"):
            bundle.write(made, out)
    with pytest.raises(UserError, match="cannot be written"):
        bundle.write(made, made / "inside")

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        bundle.write(made, tmp_path / "made")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "taken"]
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["file"]
