"""What the documentation shows works.

Recipes run, links lead somewhere, tables name what there is.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import toy
import yaml
from typer.testing import CliRunner

from trm_bench import cli, datasets, pipeline
from trm_bench.methods.registry import REGISTRY
from trm_bench.protocol import bundled, parse
from trm_bench.protocol.sweep import SharedSpace, SweepConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/reference/**/*.md")]


def recipe_text(name: str) -> str:
    """The code block of CONTRIBUTING.md that follows a marker."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(rf"<!-- recipe: {name} -->\n```python\n(.*?)```", text, re.S)
    assert block, name
    return block[1]


def recipe(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A recipe as a module on the path."""
    (folder / f"recipe_{name}.py").write_text(recipe_text(name))
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(f"recipe_{name}")


def write_twins(folder: Path) -> Path:
    """What the recipe of a dataset reads."""
    folder.mkdir(exist_ok=True)
    draws = np.random.default_rng(0)
    for name in ("castor", "pollux"):
        mask = (draws.random((4, 4, 4)) > 0.5).astype(np.uint8)
        image = draws.normal(size=mask.shape).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{name}_t1.nii.gz")
        nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / f"{name}_mask.nii.gz")
    return folder


def test_the_recipe_of_a_method(
    tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = recipe("method", tmp_path, monkeypatch)
    monkeypatch.setitem(REGISTRY.builtin, "weight_norm", f"{module.__name__}:WeightNorm")
    loaded = parse(toy.protocol(toy_data, methods=["finetune", "weight_norm"]), "test")
    outcome = pipeline.run(loaded, tmp_path, device=torch.device("cpu"), jobs=1, pages=False)
    assert outcome.states == {"finished": 2}


def test_the_recipe_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = recipe("dataset", tmp_path, monkeypatch)
    monkeypatch.setitem(datasets.REGISTRY.builtin, "twins", f"{module.__name__}:Twins")
    twins = datasets.open_dataset("twins", write_twins(tmp_path))
    assert [s.id for s in twins.subjects()] == ["castor", "pollux"]
    assert twins.read(twins.subjects()[0], ("t1",)).image.shape == (1, 4, 4, 4)
    # its one task can be written down in a protocol as well
    assert twins.label_map({"lesion": [1]}) == twins.label_map("lesion")


@pytest.mark.slow
def test_the_recipes_work_from_another_package(tmp_path: Path, toy_data: Path) -> None:
    """Both recipes as modules of an installed package, known by its entry points alone."""
    package = tmp_path / "site"
    info = package / "guest-1.0.dist-info"  # what an installer would write
    info.mkdir(parents=True)
    for name in ("method", "dataset"):
        (package / f"guest_{name}.py").write_text(recipe_text(name))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[trm_bench.methods]\nweight_norm = guest_method:WeightNorm\n"
        "[trm_bench.datasets]\ntwins = guest_dataset:Twins\n"
    )
    twins = write_twins(tmp_path / "twins")
    changes: Any = {
        "name": "twins",
        "data": {"dataset": "twins", "root": str(twins), "labels": "lesion"},
        "transfers": {"kind": "cross_modality"},
    }
    own = toy.write_protocol(tmp_path / "twins.yaml", twins, **changes)
    of_toy = toy.write_protocol(tmp_path / "toy.yaml", toy_data)
    paths = os.pathsep.join([str(package), *sys.path])
    for arguments, expected in (
        (["run", of_toy, "--methods", "weight_norm", "--out", tmp_path / "out"], "1 runs finished"),
        (["data", "check", own], "2 subjects can be used, 0 cannot"),
    ):
        command = [sys.executable, "-m", "trm_bench", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
        )
        assert done.returncode == 0 and expected in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_readme_names_what_there_is() -> None:
    text = (ROOT / "README.md").read_text()
    for name in [*bundled(), *REGISTRY.names()]:
        assert f"`{name}`" in text, name
    runner = CliRunner()
    for command in re.findall(r"^trm-bench ([a-z-]+)", text, re.M):
        assert runner.invoke(cli.app, [command, "--help"]).exit_code == 0, command
    options = set(re.findall(r"`(--[a-z-]+)", text)) - {"--backend-store-uri", "--host"}
    help_text = "".join(
        runner.invoke(cli.app, [*command.split(), "--help"], env={"COLUMNS": "200"}).output
        for command in ("run", "sweep", "")
    )
    assert options and all(option in help_text for option in options), options


def test_readme_shows_the_defaults_of_a_sweep() -> None:
    block = re.search(r"```yaml\n(sweep:\n.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block
    shown = yaml.safe_load(block[1])["sweep"]
    assert SweepConfig.model_validate(shown) == SweepConfig()
    assert shown.keys() == SweepConfig.model_fields.keys()
    assert shown["shared_space"].keys() == SharedSpace.model_fields.keys()


def test_changelog_has_the_version() -> None:
    from trm_bench import __version__

    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
