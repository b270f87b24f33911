"""What an experiment is: its function, its paper, and what it shows. Each file of an experiment ends with one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .lab import Lab
from .report import Found


@dataclass(frozen=True)
class Experiment:
    """One experiment of a paper, on any model and any data.

    Attributes:
        run: measures, and returns what was found.
        paper: arXiv id.
        title: what it shows.
        repeats: the tables, figures and sections of the paper that it repeats.
    """

    run: Callable[[Lab], Found]
    paper: str
    title: str
    repeats: str

    @property
    def name(self) -> str:
        """Of its file, with hyphens."""
        return self.run.__module__.rpartition(".")[2].replace("_", "-")
