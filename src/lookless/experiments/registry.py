"""All experiments, each found in its own file."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from ..errors import LooklessError
from .definition import Experiment

ALL = "all"


def _found() -> Iterator[Experiment]:
    """The ``EXPERIMENT`` of every file of this package that has one, in the order of their names."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        if module.name != __name__:
            experiment = getattr(import_module(module.name), "EXPERIMENT", None)
            if isinstance(experiment, Experiment):
                yield experiment


def experiments() -> dict[str, Experiment]:
    """By name."""
    return {experiment.name: experiment for experiment in _found()}


def chosen(name: str) -> dict[str, Experiment]:
    """The experiment of that name, or every one for ``all``. Raises: LooklessError: there is none."""
    known = experiments()
    if name == ALL:
        return known
    if name not in known:
        raise LooklessError(f"no experiment is called {name!r}; choose one of {', '.join(known)}, or {ALL}.")
    return {name: known[name]}
