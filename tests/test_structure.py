"""The shape of the code: layers, no circles, small files and functions, names of its own."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"trm_bench": ROOT / "trm_bench", "trm_bench.baselines": ROOT / "baselines"}
OTHER_CODE = ("protocols", "examples", "docs")
FILE_LINES, FUNCTION_LINES = 450, 60

# Rooms are the modules and packages right below trm_bench; one imports rooms of its own layer and
# of those above it in this list, which are the lower ones.
LAYERS = (
    ("__init__", "errors", "files", "fingerprint", "inputs", "limits", "plurals", "seals", "seeds"),
    ("lean_monai", "serving", "signals", "transfer_risk", "urls"),
    ("environment", "phantom", "plugins"),
    ("datasets",),
    ("protocol",),
    ("nnunet_networks",),
    ("losses",),
    ("data", "networks"),
    ("formats",),
    ("checkpoints",),
    ("baselines", "methods"),
    ("training",),
    ("runs",),
    ("cluster",),
    ("display",),
    ("analysis",),
    ("report",),
    (
        "bench",
        "bundle",
        "checks",
        "contents",
        "doctor",
        "download",
        "estimates",
        "importing",
        "pipeline",
        "prediction",
        "preparing",
        "prospects",
        "risk_map",
        "verification",
    ),
    ("sweep",),
    ("__main__", "cli"),
)

Graph = Mapping[str, set[str]]
"""Module (or room) to those that it imports."""


# The code as it is


def modules() -> dict[str, Path]:
    """Dotted name to file, of all modules of the package."""
    named = {}
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            named[".".join((package, *parts)).removesuffix(".__init__")] = file
    return named


def python_files() -> list[Path]:
    """All code but the tests'."""
    folders = [*PACKAGES.values(), *(ROOT / name for name in OTHER_CODE)]
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def shown(file: Path) -> str:
    return str(file.relative_to(ROOT))


# The graph of imports


def arrows(sources: Mapping[str, str], packages: Sequence[str] = ()) -> dict[str, set[str]]:
    """The graph of all imports, wherever they stand: in functions and for type checkers too.

    That Python runs the packages above an imported module is no import of them.

    Args:
        sources: Module to its source.
        packages: Those of the modules that are an `__init__.py`, for relative imports.
    """
    graph = {}
    for module, source in sources.items():
        names = set(_imported(module, source, module in packages))
        graph[module] = {_module_of(name, sources) for name in names} - {"", module}
    return graph


def _imported(module: str, source: str, package: bool) -> Iterator[str]:
    """Absolute dotted names; `from a import b` is a.b, whether b is a module or not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + package]
                start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def _module_of(name: str, modules: Mapping[str, str]) -> str:
    """The module that a dotted name lies in, "" for those of other packages."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def circle(graph: Graph) -> list[str]:
    """One circle, each node importing the next one and the last being the first; [] for none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def room(module: str) -> str:
    return (*module.split("."), "__init__")[1]


def rooms(graph: Graph) -> dict[str, set[str]]:
    """The graph of rooms; what happens inside one is its own affair."""
    between: dict[str, set[str]] = {}
    for module, imported in graph.items():
        others = between.setdefault(room(module), set())
        others |= {room(other) for other in imported} - {room(module)}
    return between


def upward(graph: Graph, layers: Sequence[Sequence[str]]) -> list[str]:
    """A sentence on each import of a higher layer, and on each room that no layer has."""
    height = {name: level for level, names in enumerate(layers) for name in names}
    problems = [
        f"trm_bench/{name} is in no layer: add it to LAYERS, below all that import it"
        for name in sorted(rooms(graph).keys() - height.keys())
    ]
    for module, imported in sorted(graph.items()):
        for other in sorted(imported):
            here, there = height.get(room(module), 0), height.get(room(other), 0)
            if here < there and room(module) in height:
                problems.append(
                    f"{module} imports {other} of a higher layer: move what it needs down, "
                    "or have its caller pass it"
                )
    return problems


# The size of the code


def long_parts(name: str, source: str) -> list[str]:
    """A sentence on a file and on each function that has too many lines."""
    problems = []
    if (lines := len(source.splitlines())) > FILE_LINES:
        problems.append(f"{name} has {lines} lines, {FILE_LINES} at most: split it by duty")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                where = f"{name}:{node.lineno}: {node.name}"
                problems.append(f"{where} has {lines} lines, {FUNCTION_LINES} at most: split it")
    return problems


@pytest.fixture(scope="module")
def graph() -> Graph:
    files = modules()
    packages = [name for name, file in files.items() if file.name == "__init__.py"]
    return arrows(
        {name: file.read_text(encoding="utf-8") for name, file in files.items()}, packages
    )


def test_no_module_imports_itself_by_a_detour(graph: Graph) -> None:
    way = circle(graph)
    assert not way, f"{' imports '.join(way)}: move what they share into a module below them"


def test_no_room_imports_itself_by_a_detour(graph: Graph) -> None:
    way = circle(rooms(graph))
    assert not way, f"trm_bench: {' imports '.join(way)}: move what they share into a lower room"


def test_imports_go_down_the_layers(graph: Graph) -> None:
    problems = upward(graph, LAYERS)
    assert not problems, "\n".join(problems)


def test_every_layer_is_there(graph: Graph) -> None:
    gone = {name for layer in LAYERS for name in layer} - rooms(graph).keys()
    assert not gone, f"no such module: remove {', '.join(sorted(gone))} from LAYERS"


def test_files_and_functions_are_short() -> None:
    files = python_files()
    problems = [p for f in files for p in long_parts(shown(f), f.read_text(encoding="utf-8"))]
    assert len(files) > 50 and not problems, "\n".join(problems)


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    own = [path for folder in PACKAGES.values() for path in folder.rglob("*")]
    taken = [
        f"{shown(path)} is named like the standard library's {path.stem}: rename it"
        for path in sorted(own)
        if (path.suffix == ".py" or path.is_dir()) and path.stem in sys.stdlib_module_names
    ]
    assert not taken, "\n".join(taken)


# The checks report what they should


def test_imports_are_seen_wherever_they_stand() -> None:
    sources = {
        "trm_bench": "",
        "trm_bench.low": "import numpy\nfrom pathlib import Path",
        "trm_bench.room": "from trm_bench.room.inner import thing\nfrom .other import Other",
        "trm_bench.room.inner": "def f():\n    import trm_bench.low as low",
        "trm_bench.room.other": "if TYPE_CHECKING:\n    from ..high import T\nfrom . import inner",
        "trm_bench.high": "from trm_bench import __version__, low, room",
    }
    assert arrows(sources, ["trm_bench", "trm_bench.room"]) == {
        "trm_bench": set(),
        "trm_bench.low": set(),
        "trm_bench.room": {"trm_bench.room.inner", "trm_bench.room.other"},
        "trm_bench.room.inner": {"trm_bench.low"},
        "trm_bench.room.other": {"trm_bench.high", "trm_bench.room.inner"},
        "trm_bench.high": {"trm_bench", "trm_bench.low", "trm_bench.room"},
    }


def test_a_circle_is_reported_in_the_order_of_its_imports() -> None:
    chain = {"a": {"b"}, "b": {"c", "d"}, "c": {"d"}, "d": set()}
    assert circle(chain) == []
    bent = chain | {"d": {"b"}}
    way = circle(bent)
    assert way and way[0] == way[-1] and "a" not in way
    assert all(after in bent[one] for one, after in pairwise(way))


def test_a_circle_of_rooms_needs_no_circle_of_modules() -> None:
    graph = {
        "trm_bench.left.a": {"trm_bench.right.a"},
        "trm_bench.right.a": set(),
        "trm_bench.right.b": {"trm_bench.left.b"},
        "trm_bench.left.b": {"trm_bench.left.a"},
    }
    assert circle(graph) == []
    assert set(circle(rooms(graph))) == {"left", "right"}


def test_an_arrow_up_and_a_room_without_a_layer_are_reported() -> None:
    layers = (("low", "beside"), ("high",))
    graph = {
        "trm_bench.low.a": {"trm_bench.beside", "trm_bench.low.b"},
        "trm_bench.low.b": set(),
        "trm_bench.beside": set(),
        "trm_bench.high": {"trm_bench.low.a"},
    }
    assert upward(graph, layers) == []
    (problem,) = upward(graph | {"trm_bench.low.b": {"trm_bench.high"}}, layers)
    assert problem.startswith("trm_bench.low.b imports trm_bench.high of a higher layer: move")
    (problem,) = upward(graph | {"trm_bench.new": {"trm_bench.high"}}, layers)
    assert problem.startswith("trm_bench/new is in no layer: add it to LAYERS")


def test_long_files_and_functions_are_reported() -> None:
    function = "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1)
    assert long_parts("a.py", function) == []
    assert long_parts("a.py", "\n" + function + "    x = 2\n") == [
        f"a.py:2: f has {FUNCTION_LINES + 1} lines, {FUNCTION_LINES} at most: split it"
    ]
    (problem,) = long_parts("a.py", "x = 1\n" * (FILE_LINES + 1))
    assert problem.startswith(f"a.py has {FILE_LINES + 1} lines")
