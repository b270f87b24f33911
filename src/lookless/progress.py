"""Progress, for anything that takes over a second: on standard error, and only where somebody looks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def shown(items: Iterable[Item], what: str, progress: bool) -> Iterable[Item]:
    """``items``, with a progress bar on standard error that is gone when it is done."""
    console = Console(stderr=True)
    return track(items, what, console=console, transient=True, disable=not progress or not console.is_terminal)
