"""What a wheel holds: every package of the tree, and no top-level name but trm_bench."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement

from trm_bench import baselines, protocols
from trm_bench.protocol import bundled

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_installed_under_one_name() -> None:
    folders = {p.parent for p in (ROOT / "trm_bench").rglob("__init__.py")}
    names = {".".join(f.relative_to(ROOT).parts) for f in folders}
    assert set(SETTINGS["packages"]) == names | {"trm_bench.baselines", "trm_bench.protocols"}
    assert SETTINGS["package-dir"]["trm_bench.baselines"] == "baselines"
    assert SETTINGS["package-dir"]["trm_bench.protocols"] == "protocols"


def test_the_installed_names_lead_to_the_folders() -> None:
    for package, folder in ((baselines, "baselines"), (protocols, "protocols")):
        assert Path(str(package.__file__)).parent.name == folder
    assert "trm-bench" in packages_distributions()["trm_bench"]
    assert len(bundled()) >= 6


def test_what_is_imported_is_declared() -> None:
    """Each installed library that the package imports is one of its requirements."""
    declared = {
        Requirement(text).name.lower().replace("_", "-") for text in requires("trm-bench") or ()
    }
    imported = set()
    for file in [*(ROOT / "trm_bench").rglob("*.py"), *(ROOT / "baselines").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            imported |= {name.partition(".")[0] for name in names}
    by_package = packages_distributions()
    ours = {"trm_bench", *sys.stdlib_module_names}
    for package in sorted(imported - ours):
        distributions = {d.lower().replace("_", "-") for d in by_package.get(package, [package])}
        assert distributions & declared, f"{package} is imported, but not declared"
