"""What a job has finished so far, on disk: one that is killed goes on from there.

A file for each item, written whole, in a folder beside where the result is to be. Each names by a hash what it was made
from, and is only used for the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from . import files

OURS = re.compile(r"\w+\.\d+\.json")


@dataclass(frozen=True)
class Unfinished:
    """The finished items of a job.

    Attributes:
        folder: of their files; there is none before the first, nor after :meth:`remove`.
        part: of the job: the beginning of the files' names.
        key: of all that an item's result depends on.
    """

    folder: Path
    part: str = "item"
    key: str = ""

    @classmethod
    def beside(cls, out: Path) -> Unfinished | None:
        """Of a job whose result is to be the file ``out``; None where that is a device or a pipe."""
        out = out.resolve()
        if out.exists() and not out.is_file():
            return None
        return cls(out.with_name(f"{out.name}.unfinished"))

    @classmethod
    def inside(cls, out: Path) -> Unfinished:
        """Of a job whose results are to be in the folder ``out``."""
        return cls(out.resolve() / "unfinished")

    def below(self, name: str) -> Unfinished:
        """Of another job of the same result: in a folder of its own."""
        return replace(self, folder=self.folder / name)

    def of(self, part: str, *made_from: object) -> Unfinished:
        """Of one part of the job, whose results depend on ``made_from``."""
        key = hashlib.sha256(repr((self.key, part, *made_from)).encode()).hexdigest()[:16]
        return replace(self, part=part, key=key)

    def add(self, index: int, value: Any, seconds: float) -> None:
        """Keep ``value``, plain JSON, of the item ``index``, which took so many seconds."""
        files.write_text(self._path(index), json.dumps({"key": self.key, "seconds": seconds, "value": value}))

    def known(self, count: int) -> tuple[dict[int, Any], float]:
        """The values so far of ``count`` items, and what they took. A file that cannot be read counts as none."""
        found, seconds = {}, 0.0
        for index in range(count) if self.folder.is_dir() else ():
            try:
                record = files.parse(files.read_bytes(self._path(index)))
                if record["key"] == self.key:
                    found[index], seconds = record["value"], seconds + record["seconds"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found, seconds

    @property
    def has_begun(self) -> bool:
        """Whether an item is finished."""
        return any(self._items())

    def remove(self) -> None:
        """At the end, when the result is written. What is not ours in the folder stays."""
        for path in self._items():
            path.unlink(missing_ok=True)
        for folder in (*self.folder.glob("*/"), self.folder):
            with suppress(OSError):
                folder.rmdir()

    def _items(self) -> list[Path]:
        found = (*self.folder.glob("*.json"), *self.folder.glob("*/*.json"))
        return [path for path in found if OURS.fullmatch(path.name)]

    def _path(self, index: int) -> Path:
        return self.folder / f"{self.part}.{index}.json"


@dataclass
class Results:
    """The results of a part of a job, each made once.

    Attributes:
        kept: where they are kept as they come; None for nowhere.
        known: those so far, plain JSON, by place.
        seconds: what those took that were found there.
    """

    kept: Unfinished | None
    known: dict[int, Any]
    seconds: float

    @classmethod
    def of(cls, kept: Unfinished | None, count: int) -> Results:
        """Those of ``count`` items that are in ``kept``."""
        return cls(kept, *(({}, 0.0) if kept is None else kept.known(count)))

    def once(self, place: int, make: Callable[[], Any]) -> Any:
        """What ``make`` makes of the item ``place``, now or in the run that was killed."""
        if place not in self.known:
            started = perf_counter()
            self.known[place] = make()
            if self.kept is not None:
                self.kept.add(place, self.known[place], perf_counter() - started)
        return self.known[place]
