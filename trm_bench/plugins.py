"""One registry for all that a package can add: classes by name, built in or from entry points."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from trm_bench.errors import UserError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes by name; a class is imported when it is first asked for.

    Args:
        kind: The base class of all of them; each has its name as attribute `name`.
        noun: What a person calls one, e.g. "method".
        group: The entry-point group through which installed packages add theirs:
            ``name = "module:Class"``.
        builtin: Name to "module:Class" of the built-in ones.
        where: The protocol's key that names one, for messages.
    """

    def __init__(
        self, kind: type[T], noun: str, group: str, builtin: Mapping[str, str], where: str
    ) -> None:
        self.kind, self.noun, self.group, self.where = kind, noun, group, where
        self.builtin = dict(builtin)

    def names(self) -> list[str]:
        """All names, the built-in ones first, in their own order.

        Raises:
            UserError: Two packages claim one name, or a package claims a built-in one.
        """
        return [*self.builtin, *self._plugins]

    def get(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            UserError: There is none (with the nearest name), its package is broken, or a package
                claims a name that is taken.
        """
        plugins = self._plugins  # first: a package that claims a built-in name is an error
        if name in self.builtin:
            origin, package = self.builtin[name], "trm-bench"
            module, _, attribute = origin.partition(":")
            loaded = getattr(import_module(module), attribute)
        elif name in plugins:
            origin, package = plugins[name].value, _package(plugins[name])
            try:
                loaded = plugins[name].load()
            except Exception as error:  # whatever a package's import raises
                what = f"the {self.noun} '{name}' of the package {package} cannot be imported"
                reason = f"{type(error).__name__}: {error}"
                fix = f"update or uninstall the package {package}"
                raise UserError(f"{what} ({reason})", self.where, fix) from error
        else:
            raise UserError(f"no {self.noun} '{name}'", self.where, nearest(name, self.names()))
        fits = inspect.isclass(loaded) and issubclass(loaded, self.kind)
        if not fits or getattr(loaded, "name", None) != name:
            what = f"{origin} of the package {package} is no {self.kind.__name__} named '{name}'"
            raise UserError(what, self.where, f"update or uninstall the package {package}")
        return loaded

    def package(self, name: str) -> dict[str, str]:
        """Name and version of the installed package that adds a class; nothing of built-in ones."""
        entry = self._plugins.get(name)
        return {entry.dist.name: entry.dist.version} if entry and entry.dist else {}

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        plugins: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group):
            if entry.name in self.builtin or entry.name in plugins:
                other = "is built in"
                if entry.name in plugins:
                    other = f"comes from {_package(plugins[entry.name])} too"
                what = f"the package {_package(entry)} brings a {self.noun} '{entry.name}'"
                fix = "uninstall the package, or ask its authors for another name"
                raise UserError(f"{what}, which {other}", self.where, fix)
            plugins[entry.name] = entry
        return plugins


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "(unknown)"
