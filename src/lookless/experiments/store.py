"""Measured cells: each is saved whole as it is finished, and found by all that it depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import nn

from .. import files
from ..errors import LooklessError

SCHEMA_VERSION = 9  #: the largest of any kind of cell
Cell = TypeVar("Cell", bound=BaseModel)


class Words(BaseModel):
    """A cell of text: answers, in the order of the questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: tuple[str, ...]


class Numbers(BaseModel):
    """A cell of named numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: dict[str, tuple[float, ...]]


class Store:
    """A folder of cells of one model. What a cell depends on is in the name of its file, so that no cell is mistaken
    for one of other samples or another plan.

    Args:
        folder: is made when the first cell is written.
        told: is called with the name of each cell before it is measured.
    """

    def __init__(self, folder: Path, told: Callable[[str], None] = lambda _: None) -> None:
        self.folder, self._told = folder, told

    def cell(self, name: str, parts: tuple[Any, ...], kind: type[Cell], measure: Callable[[], Cell]) -> Cell:
        """The cell ``name`` of what ``parts`` say it depends on; measured if there is none.

        Raises:
            LooklessError: the file of the cell is damaged, or of a newer lookless.
        """
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        path = self.folder / f"{plain(name)}.{digest}.json"
        if path.exists():
            return files.load(path, kind, LooklessError, SCHEMA_VERSION)
        self._told(name)
        found = measure()
        files.write_text(path, files.dump(found))
        return found


def plain(name: str) -> str:
    """``name`` as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[-80:]


def fingerprint(model: nn.Module) -> str:
    """Of the names, shapes and first numbers of all parameters, 12 hex digits: another model has another."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        first = parameter.detach().flatten()[:16].float().cpu().numpy()
        digest.update(repr((name, tuple(parameter.shape), str(parameter.dtype))).encode() + first.tobytes())
    return digest.hexdigest()[:12]
