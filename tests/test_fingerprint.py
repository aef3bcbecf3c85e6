"""The fingerprint of code: what can change a number is in it, however it is imported.

Nothing else.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trm_bench import fingerprint
from trm_bench.fingerprint import closure, code_fingerprint, digest_of
from trm_bench.methods.registry import REGISTRY
from trm_bench.runs.plan import NUMERIC


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plug-in package `outside`, not installed: a method, a helper, and the helper's helper."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Not ours."""\n')
    (folder / "method.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import numpy\n"
        "from outside import first\n"
        "if TYPE_CHECKING:\n    from outside import typing_only\n"
        "def loss():\n    from .lazy import weight\n    return first.half() * weight\n"
    )
    (folder / "first.py").write_text(
        '"""Text."""\nfrom .second import two\ndef half():\n    return two\n'
    )
    (folder / "second.py").write_text("two = 2\n")
    (folder / "lazy.py").write_text("weight = 1\n")
    (folder / "typing_only.py").write_text("x = 1\n")
    (folder / "apart.py").write_text("x = 1\n")
    (tmp_path / "neighbour.py").write_text("import beside\n")
    (tmp_path / "beside.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    _forget()
    yield folder
    for name in [
        m for m in sys.modules if m.partition(".")[0] in ("outside", "neighbour", "beside")
    ]:
        del sys.modules[name]
    _forget()


def _forget() -> None:
    for kept in (code_fingerprint, fingerprint._is_uninstalled, fingerprint._read):
        kept.cache_clear()


def change(file: Path, text: str) -> bool:
    """Whether another text in a file changes the fingerprint of `outside.method`."""
    before = code_fingerprint("outside.method")
    file.write_text(text)
    _forget()
    return code_fingerprint("outside.method") != before


class TestPlugins:
    def test_helpers_of_helpers_count(self, package: Path) -> None:
        assert change(package / "second.py", "two = 3\n")
        assert change(package / "lazy.py", "weight = 2\n"), "an import inside a function"

    def test_comments_docstrings_types_and_strangers_do_not(self, package: Path) -> None:
        same = (
            '"""Other text."""\n# why\nfrom .second import two\n'
            'def half():\n    """Said."""\n    return two\n'
        )
        assert not change(package / "first.py", same)
        assert not change(package / "typing_only.py", "x = 2\n")
        assert not change(package / "apart.py", "x = 2\n")

    def test_installed_libraries_are_not_followed(self, package: Path) -> None:
        names = set(closure("outside.method"))
        assert names == {f"outside.{n}" for n in ("method", "first", "second", "lazy")} | {
            "outside"
        }

    def test_a_script_and_its_neighbours_count(self, package: Path) -> None:
        assert set(closure("neighbour")) == {"neighbour", "beside"}

    def test_a_module_without_a_file_is_named(self) -> None:
        assert closure("__main__x") == {"__main__x": ""}


class TestOurs:
    def test_what_computes_is_in_and_what_shows_is_not(self) -> None:
        names = set(closure(*NUMERIC))
        computing = {
            "trm_bench.data.patches",
            "trm_bench.data.volumes",
            "trm_bench.datasets.base",
            "trm_bench.datasets.grid",
            "trm_bench.datasets.itk",
            "trm_bench.datasets.nifti",
            "trm_bench.datasets.subjects",
            "trm_bench.datasets.volume",
            "trm_bench.formats",
            "trm_bench.lean_monai",
            "trm_bench.losses",
            "trm_bench.methods",
            "trm_bench.networks",
            "trm_bench.nnunet_networks",
            "trm_bench.runs.compute",
            "trm_bench.seeds",
            "trm_bench.training.compiling",
            "trm_bench.training.evaluation",
            "trm_bench.training.leaves",
            "trm_bench.training.loop",
            "trm_bench.training.resuming",
            "trm_bench.training.upcoming",
            "trm_bench.transfer_risk",
        }
        assert (
            names - {"trm_bench", "trm_bench.data", "trm_bench.runs", "trm_bench.training"}
            == computing
        )

    @pytest.mark.parametrize("name", REGISTRY.names())
    def test_a_method_brings_its_own_files(self, name: str) -> None:
        module = REGISTRY.get(name).__module__
        more = set(closure(module)) - set(closure(*NUMERIC))
        assert module in more
        assert not any(
            n.startswith(("trm_bench.report", "trm_bench.runs.", "trm_bench.cli")) for n in more
        )
        helpers = {"forkmerge": "source_head", "frozen_encoder": "encoder", "delta": "encoder"}
        if name in helpers:
            assert f"trm_bench.baselines.{helpers[name]}" in more

    def test_the_version_is_no_code(self) -> None:
        assert all("__version__" not in code for code in closure("trm_bench", *NUMERIC).values())


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2}) and digest_of([1, 2]) != digest_of([2, 1])
    with pytest.raises(ValueError, match="JSON"):
        digest_of(float("nan"))
