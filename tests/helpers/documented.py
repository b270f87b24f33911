"""What a function takes and raises, read from its code, and what its docstring says of it."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any


def functions(one: Any, name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """A public function, or the public methods that a public class defines."""
    if inspect.isfunction(one):
        yield name, inspect.unwrap(one)
    elif inspect.isclass(one):
        for method, member in vars(one).items():
            plain = inspect.unwrap(getattr(member, "__func__", member))
            if method[0] != "_" and inspect.isfunction(plain):
                yield f"{name}.{method}", plain


def missing(function: Callable[..., Any]) -> list[str]:
    """Arguments that its docstring does not name, and errors that it does not say."""
    told = inspect.getdoc(function) or ""  # that of a base where it overrides
    arguments = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    unnamed = [f"argument {name}" for name in arguments if not re.search(rf"\b{name}\b", told)]
    errors = told.partition("Raises:")[2]
    return unnamed + [f"error {name}" for name in sorted(raised(function)) if not re.search(rf"\b{name}\b", errors)]


def raised(function: Callable[..., Any], seen: frozenset[str] = frozenset()) -> set[str]:
    """Names of the errors that it, and the functions of its module that it calls, raise by name and do not catch."""
    home = vars(sys.modules[function.__module__])

    def within(node: ast.AST) -> set[str]:
        found: set[str] = set()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(ast.unparse(node.exc.func))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in seen:
            called = home.get(node.func.id)
            if inspect.isfunction(called) and called.__module__ == function.__module__:
                found |= raised(called, seen | {node.func.id})
        if not isinstance(node, ast.Try):
            return found.union(*map(within, ast.iter_child_nodes(node)))
        caught = set(re.findall(r"\w+", " ".join(ast.unparse(one.type) for one in node.handlers if one.type)))
        tried = set().union(*map(within, node.body)) if "Exception" not in caught else set()
        tried -= caught
        return tried.union(*map(within, [*node.handlers, *node.orelse, *node.finalbody]))

    return within(ast.parse(textwrap.dedent(inspect.getsource(function))))
