"""Hashes that name things by their content: of JSON values, and of the code that computes."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import site
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

# Modules that cannot change a number: what they give a run is either resolved and hashed with its
# configuration (defaults of the protocol), or a path, a message, a note. A module that is missing
# here by mistake renames runs too often, never too rarely.
OUTSIDE = tuple(
    f"trm_bench.{name}"
    for name in (
        "environment",
        "errors",
        "files",
        "fingerprint",
        "inputs",
        "limits",
        "methods.registry",
        "plugins",
        "protocol",
        "runs.arrays",
        "runs.config",
        "runs.folders",
        "runs.records",
        "runs.store",
        "seals",
    )
)


def digest_of(*content: Any) -> str:
    """sha256 of the canonical JSON of the content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_fingerprint(*modules: str) -> str:
    """sha256 of what the modules do, and of all of their own code that they import.

    Imports are followed into the modules' own packages and distributions, and into files that no
    package manager installed (a script's neighbours), but not into the standard library and
    installed libraries, whose versions a record lists. Comments and docstrings do not count, nor
    do imports for type checkers alone. So results that were made by other code have other names.
    """
    return digest_of([[name, code] for name, code in sorted(closure(*modules).items())])


@cache
def package_digest() -> str:
    """sha256 of all files of this package: of what reports are written with, too."""
    root = Path(__file__).parent
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    return digest_of({p.relative_to(root).as_posix(): p.read_bytes().hex() for p in files})


def closure(*modules: str) -> dict[str, str]:
    """The modules whose code counts, and that code without comments and docstrings."""
    own = _own_packages(modules)
    waiting, known = list(modules), dict[str, str]()
    while waiting:
        module = waiting.pop()
        if module in known or _is_outside(module):
            continue
        origin = _origin(module) if _is_own(module.partition(".")[0], own) else None
        if origin is None:
            # a method from a prompt has no file, so that nothing tells its versions apart
            known |= {module: ""} if module in modules else {}
            continue
        known[module], imported = _read(module, origin)
        waiting += imported
    return known


@cache
def _read(module: str, origin: Path) -> tuple[str, tuple[str, ...]]:
    """The code of a module, stripped, and what it imports; methods share most of theirs."""
    tree = _Stripped().visit(ast.parse(origin.read_text(encoding="utf-8")))
    imported = _imported(tree, module, is_package=origin.name == "__init__.py")
    return ast.unparse(tree), tuple(imported)


def _is_outside(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in OUTSIDE)


def _is_own(package: str, own: set[str]) -> bool:
    return package in own or _is_uninstalled(package)


def _own_packages(modules: tuple[str, ...]) -> set[str]:
    """Top-level packages of the modules, and the others of the distributions they came in."""
    own = {module.partition(".")[0] for module in modules}
    by_package = _distributions()
    distributions = {d for package in own for d in by_package.get(package, ())}
    return own | {package for package, of in by_package.items() if distributions & set(of)}


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()  # reads the files of every distribution there is


@cache
def _installed_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    folders = [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"]]
    return tuple(Path(p).resolve() for p in (*folders, *site.getsitepackages()))


@cache
def _is_uninstalled(package: str) -> bool:
    origin = _origin(package)  # of a top-level name, so that nothing is imported to find it
    folders = _installed_folders()
    return origin is not None and not any(origin.resolve().is_relative_to(f) for f in folders)


def _origin(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


class _Stripped(ast.NodeTransformer):
    """Removes what does nothing when a program runs: docstrings, typing imports, the version."""

    def visit(self, node: ast.AST) -> Any:
        self.generic_visit(node)
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return node.orelse or None
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return None
        return node


def _imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """The modules that a module may import; names that are no modules have no file, so no code."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
