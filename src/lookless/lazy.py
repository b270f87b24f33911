"""Public names that are imported when they are first used."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Any


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose public names are the imports of its stub.

    The stub, ``__init__.pyi``, is what type checkers read, so the list is written once. As ``attach_stub`` of
    lazy_loader does (Scientific Python's SPEC 1).
    """
    stub = pkgutil.get_data(package, "__init__.pyi") or b""
    homes = {
        alias.name: f"{package}.{node.module}" if node.module else None
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        return import_module(f"{package}.{name}") if home is None else getattr(import_module(home), name)

    return get, lambda: sorted(homes), sorted(homes)
