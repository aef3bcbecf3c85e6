"""What the documentation shows works.

Recipes and the tutorial run, links lead somewhere, the site builds and names what there is.
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
    outcome = pipeline.run(loaded, tmp_path, jobs=1, pages=False)
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
        (["run", of_toy, "--methods", "weight_norm", "--out", tmp_path / "out"], "1 run finished"),
        (["data", "check", own], "2 subjects can be used, 0 cannot"),
    ):
        command = [sys.executable, "-m", "trm_bench", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
        )
        assert done.returncode == 0 and expected in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_readme_shows_commands_that_there_are() -> None:
    text = (ROOT / "README.md").read_text()
    runner = CliRunner()
    for command in re.findall(r"^trm-bench ([a-z-]+)", text, re.M):
        assert runner.invoke(cli.app, [command, "--help"]).exit_code == 0, command
    options = set(re.findall(r"`(--[a-z-]+)", text)) - {"--backend-store-uri", "--host"}
    help_text = "".join(
        runner.invoke(cli.app, [*command.split(), "--help"], env={"COLUMNS": "200"}).output
        for command in ("run", "sweep", "")
    )
    assert all(option in help_text for option in options), options


def test_every_method_has_its_place() -> None:
    text = (ROOT / "docs/methods.md").read_text()
    assert [name for name in REGISTRY.builtin if f"`{name}`" not in text] == []


def test_the_page_on_tuning_shows_the_defaults() -> None:
    block = re.search(r"```yaml\n(sweep:\n.*?)```", (ROOT / "docs/tuning.md").read_text(), re.S)
    assert block
    shown = yaml.safe_load(block[1])["sweep"]
    assert SweepConfig.model_validate(shown) == SweepConfig()
    assert shown.keys() == SweepConfig.model_fields.keys()
    assert shown["shared_space"].keys() == SharedSpace.model_fields.keys()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation site, built as `make docs` does, where every warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_holds_what_is_made_of_the_code(site: Path) -> None:
    expected = {
        "protocols": [*bundled()],
        "methods": [f'id="{name}"' for name in REGISTRY.builtin],
        "datasets": [f"<code>{name}</code>" for name in datasets.REGISTRY.builtin],
        "commands": ["trm-bench run PROTOCOL [OPTIONS]", "trm-bench protocols copy PROTOCOL"],
        "protocol": [f"<code>{key}</code>" for key in SweepConfig.model_fields],
        "contributing": ["WeightNormParameters"],
    }
    for page, texts in expected.items():
        content = (site / f"{page}.html").read_text()
        assert [text for text in texts if text not in content] == [], page
        assert "<!-- made" not in content and "<!-- file" not in content


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loading = re.compile(r'<(?:script|img|iframe|link rel="?(?:stylesheet|icon)"?)[^>]*?//[^>]*>')
    pages = [*site.glob("*.html")]
    assert len(pages) > 20
    assert [found for page in pages for found in loading.findall(page.read_text())] == []


@pytest.mark.slow
def test_the_tutorial_gives_what_it_shows() -> None:
    """Its commands, typed as they stand; `python docs/tutorial.py --write` renews the page."""
    command = [sys.executable, str(ROOT / "docs/tutorial.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lines_are_compared_without_what_machines_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    tutorial = importlib.import_module("tutorial")
    shown = "| **trm** | 1.5 |\n3 runs in 2 min\n577af97b\n"
    found = "| trm   | 12.25 |\n12 runs in 40 s\n62916ffa\n"
    assert tutorial.masked(shown) == tutorial.masked(found)
    assert tutorial.masked(shown) != tutorial.masked(found.replace("runs", "trainings"))
    assert tutorial.abridged("a\nb\nc\nd\n", "x\n...\ny\n") == "a\n...\nd\n"
    assert tutorial.abridged("a\nb\n", "x\n") == "a\nb\n"


def test_changelog_has_the_version() -> None:
    from trm_bench import __version__

    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
