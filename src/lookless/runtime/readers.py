"""Who reads more of the last layer than the rows whose logits a call keeps.

A model in training mode and a module's hook may: then the last layer computes all text rows. Hooks that are known to
look at no row are :func:`blind`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .families import Located

#: Hooks of transformers by which it hands out hidden states; a call that asks for these is seen by its arguments.
CAPTURING = "transformers.utils.output_capturing"
_Hook = TypeVar("_Hook", bound=Callable[..., Any])


def blind(hook: _Hook) -> _Hook:
    """Mark ``hook``, of a module, as one that looks at no row."""
    hook.lookless_is_blind = True  # type: ignore[attr-defined]
    return hook


def reader_of(located: Located) -> str | None:
    """Who may read the states of all text rows after the last layer, in words; None if nobody does."""
    last, norm = located.layers[-1], located.norm
    if last.training:
        return "the model is in training mode, in which dropout is drawn for every row"
    hooks = {
        "the last layer": last._forward_hooks,
        "the final norm": {**norm._forward_pre_hooks, **norm._forward_hooks},
        "the decoder": located.decoder._forward_hooks,
        "the model without its head": located.inner._forward_hooks,
    }
    for name, found in hooks.items():
        if not all(map(_is_blind, found.values())):
            return f"{name} has a hook"
    return None


def _is_blind(hook: Any) -> bool:
    return getattr(hook, "lookless_is_blind", False) or getattr(hook, "__module__", None) == CAPTURING
