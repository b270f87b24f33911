"""All methods: those of this package, each found in its own file, and those that other packages add.

A file of this package adds a method as ``METHOD``, a :class:`Method`. A package adds one with an entry point of the
group ``lookless.methods`` that names a :class:`Method`::

    [project.entry-points."lookless.methods"]
    squint = "mine.squint:METHOD"
"""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Container, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from ..errors import PlanError, first_line
from .definition import Method

GROUP = "lookless.methods"


def _shipped() -> Iterator[Method]:
    """The ``METHOD`` of every file of this package that has one, in the order of their names."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        method = getattr(import_module(module.name), "METHOD", None)
        if isinstance(method, Method):
            yield method


#: name -> method; those of this package
METHODS: dict[str, Method] = {method.name: method for method in _shipped()}


class PluginWarning(UserWarning):
    """A method of another package that cannot be used."""


def all_methods() -> dict[str, Method]:
    """:data:`METHODS` and those of installed packages, which are imported now and not before.

    Warns:
        PluginWarning: an entry point does not load, is no :class:`Method`, or has a name that is taken; it is left out.
    """
    found, broken = _installed()
    for problem in broken.values():
        warnings.warn(problem, PluginWarning, stacklevel=2)
    return found


def find(name: str) -> Method:
    """Other packages are imported only for a name that is not of this one.

    Raises:
        PlanError: no method is called so, and the message lists them; or it is another package's, and cannot be used.
    """
    if name in METHODS:
        return METHODS[name]
    found, broken = _installed()
    if name in broken:
        raise PlanError(broken[name])
    if name not in found:
        raise PlanError(f"no method {name!r}; choose one of {', '.join(found)}.")
    return found[name]


def _installed() -> tuple[dict[str, Method], dict[str, str]]:
    """All methods by name; and by its entry point's name, what is wrong with each that cannot be used."""
    found, broken = dict(METHODS), {}
    for point in entry_points(group=GROUP):
        try:
            method = _loaded(point, found)
        except PlanError as problem:
            broken[point.name] = str(problem)
        else:
            found[method.name] = method
    return found, broken


def _loaded(point: EntryPoint, others: Container[str]) -> Method:
    """Raises: PlanError: it cannot be used."""
    where = f"the entry point {point.name!r} of {GROUP} ({point.value})"
    try:
        method = point.load()
        if isinstance(method, Method):
            method.is_prefix_cache_safe  # noqa: B018  # which makes a plan: a method that cannot is none
    except (Exception, SystemExit) as problem:  # whatever a stranger's module raises
        said = f"{type(problem).__name__}: {first_line(problem)}"
        raise PlanError(f"{where} cannot be used ({said}): mend or uninstall it.") from problem
    if not isinstance(method, Method):
        raise PlanError(f"{where} is a {type(method).__name__} and should be a lookless.methods.Method.")
    if method.name in others:
        raise PlanError(f"{where} adds a method {method.name!r}, and there is one of that name: rename it.")
    return method
