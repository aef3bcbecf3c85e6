"""The registry of classes by name: what is built in, what packages add, and how they fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trm_bench import datasets
from trm_bench.datasets.lgg import Lgg
from trm_bench.errors import UserError
from trm_bench.plugins import Registry

SOURCE = """
from trm_bench.datasets import Dataset, LabelMap, Scan, Subject

class Toy(Dataset):
    name = "toy"
    modalities = ("x",)
    label_maps = {"all": LabelMap(("background", "thing"), {0: 0, 1: 1})}
    def subjects(self): return []
    def read(self, subject, modalities): raise NotImplementedError
"""

Install = Callable[..., None]


@pytest.fixture
def registry() -> Registry:
    """The datasets' registry, as a new process has it: it has not looked at the packages yet."""
    own = datasets.REGISTRY
    return Registry(own.kind, own.noun, own.group, own.builtin, own.where)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package, as far as importlib.metadata can see, with one dataset.

    The arguments are the package's name, the entry point with {module} for its module, and the
    module's source.
    """

    def add(package: str, entry: str, source: str = SOURCE) -> None:
        # modules stay imported: no two tests may share the name of one
        module = f"{package}_{tmp_path.name}".replace("-", "_")
        site = tmp_path / package
        info = site / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        points = f"[trm_bench.datasets]\n{entry.format(module=module)}\n"
        (info / "entry_points.txt").write_text(points)
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(site)

    return add


def test_built_in_names_come_first_and_each_has_its_class(registry: Registry) -> None:
    assert registry.names()[: len(registry.builtin)] == list(registry.builtin)
    assert {name: registry.get(name).name for name in registry.builtin} == {
        name: name for name in registry.builtin
    }
    assert registry.get("lgg") is Lgg


def test_a_typing_error_is_answered_with_the_nearest_name(registry: Registry) -> None:
    with pytest.raises(UserError, match="no dataset 'fets2012'") as caught:
        registry.get("fets2012")
    assert caught.value.where == "data.dataset"
    assert caught.value.fix == "did you mean 'fets2021'?"


def test_a_package_adds_a_class(registry: Registry, install: Install, tmp_path: Path) -> None:
    install("toy-data", "toy = {module}:Toy")
    assert registry.names() == [*registry.builtin, "toy"]
    assert registry.get("toy")(tmp_path).modalities == ("x",)
    assert registry.package("toy") == {"toy-data": "1.0"} and registry.package("lgg") == {}
    with pytest.raises(UserError, match="did you mean 'toy'"):
        registry.get("toyy")


@pytest.mark.parametrize(
    "ask", [Registry.names, lambda r: r.get("lgg"), lambda r: r.get("iseg2019")]
)
def test_a_package_must_not_claim_a_built_in_name(
    registry: Registry, install: Install, ask: Callable[[Registry], object]
) -> None:
    install("toy-clash", "lgg = {module}:Toy")
    with pytest.raises(UserError, match="toy-clash brings a dataset 'lgg', which is built in"):
        ask(registry)


def test_two_packages_must_not_share_a_name(registry: Registry, install: Install) -> None:
    install("toy-one", "toy = {module}:Toy")
    install("toy-two", "toy = {module}:Toy")
    says = r"toy-(one|two) brings a dataset 'toy', which comes from toy-(one|two) too"
    with pytest.raises(UserError, match=says) as caught:
        registry.get("toy")
    assert "toy-one" in caught.value.what and "toy-two" in caught.value.what


@pytest.mark.parametrize(
    ("entry", "source", "says"),
    [
        (
            "toy = {module}:Toy",
            "raise RuntimeError('half')",
            "cannot be imported (RuntimeError: half)",
        ),
        ("toy = {module}:Missing", SOURCE, "cannot be imported (AttributeError"),
        ("toy = {module}:Toy", "Toy = 3", "is no Dataset named 'toy'"),
        ("toy = {module}:Toy", "class Toy:\n    name = 'toy'", "is no Dataset named 'toy'"),
        ("other = {module}:Toy", SOURCE, "is no Dataset named 'other'"),
    ],
    ids=["broken import", "no such class", "not a class", "another class", "another name"],
)
def test_a_broken_package_is_named_and_harms_only_itself(
    registry: Registry, install: Install, entry: str, source: str, says: str
) -> None:
    install("toy-broken", entry, source)
    assert registry.get("lgg") is Lgg
    with pytest.raises(UserError, match="toy-broken") as caught:
        registry.get(entry.split(" ")[0])
    assert says in caught.value.what
    assert caught.value.fix == "update or uninstall the package toy-broken"
