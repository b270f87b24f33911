"""A hook that counts rows and changes nothing: not what is computed, and not how.

A module with any other hook is called as it is, where it would be taken apart; that gives the same numbers but for the
last bits. So counters are told apart, and where a module is taken apart they are told of its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class RowCounter:
    """A forward pre-hook: ``count`` gets the number of rows of each call."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self.count = count

    def __call__(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        self.count(x.shape[:-1].numel())


def is_hooked(module: Any) -> bool:
    """Whether anything but counters is hooked to the module."""
    if module._forward_hooks:
        return True
    hooks = module._forward_pre_hooks
    return bool(hooks) and any(type(hook) is not RowCounter for hook in hooks.values())


def report(module: Any, x: Tensor) -> None:
    """Tell the counters of ``module``, which is not called, that it ran on the rows of ``x [..., width]``."""
    if not module._forward_pre_hooks:
        return
    for hook in module._forward_pre_hooks.values():
        if type(hook) is RowCounter:
            hook.count(x.shape[:-1].numel())
