"""Progress of anything that takes over a second: a bar on standard error, and only on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import rich.progress
from rich.console import Console

Item = TypeVar("Item")


def track(items: Iterable[Item], what: str, progress: bool) -> Iterable[Item]:
    """``items``, with a progress bar that disappears at the end; without one if ``progress`` is false."""
    console = Console(stderr=True)
    hidden = not progress or not console.is_terminal
    return rich.progress.track(items, what, console=console, transient=True, disable=hidden)
