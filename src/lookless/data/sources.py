"""Kinds of data files, each read as rows of keys and values; no image is opened."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, caused_by
from ..files import parse, read_bytes
from . import harness, tables

#: Where a row is, and what it holds, or why it cannot be read.
Raw = tuple[str, "Mapping[str, Any] | DataError"]
GIVE = "give reference, reference:TASK, or a file of JSON lines, CSV, TSV, parquet, or a data set's folder"


@dataclass(frozen=True)
class Source:
    """A data file.

    Attributes:
        path: as given.
        folder: which paths in it are relative to.
        rows: reads it.
        is_table: it has columns, of which more are allowed than are read.
    """

    path: Path
    folder: Path
    rows: Callable[[], Iterator[Raw]]
    is_table: bool = True


def source_at(where: str) -> Source:
    """The data file, the folder of one, or the files of the pattern ``where``.

    Raises:
        DataError: there is none, or more than one kind.
    """
    path = Path(where)
    if harness.is_task(where):
        return Source(path, Path(), lambda: harness.rows(where))
    if not path.exists() and "*" in path.name:
        found = sorted(path.parent.glob(path.name))
        if not found or any(one.suffix not in tables.SUFFIXES for one in found):
            raise DataError(f"{where} names {len(found)} files, which are not all parquet or arrow: {GIVE}.")
        return _table(path, found)
    if path.is_dir():
        return _in_folder(path)
    if path.suffix in (".csv", ".tsv"):
        return Source(path, path.parent, lambda: _csv(path, "\t" if path.suffix == ".tsv" else ","))
    if path.suffix in tables.SUFFIXES:
        return _table(path, [path])
    return Source(path, path.parent, lambda: _json_lines(path), is_table=False)


def _table(path: Path, files: list[Path]) -> Source:
    return Source(path, files[0].parent, lambda: tables.rows(files))


def _in_folder(folder: Path) -> Source:
    """The data in ``folder``: one file of rows beside its images, a saved data set of Hugging Face's, or parquet files.

    Raises:
        DataError: there is not one of them alone.
    """
    lists = [path for kind in ("*.jsonl", "*.csv", "*.tsv") for path in sorted(folder.glob(kind))]
    if len(lists) == 1:
        return source_at(str(lists[0]))
    inside = [path for kind in tables.SUFFIXES for path in sorted(folder.glob(f"*{kind}"))]
    inside = inside or sorted((folder / "data").glob("*.parquet"))
    splits = sorted({path.name.partition("-")[0] for path in inside if path.suffix == ".parquet"})
    if not lists and inside and len(splits) < 2:
        return _table(folder, inside)
    below = sorted(path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.arrow")))
    found = [path.name for path in lists] or below or [f"{inside[0].parent / one}-*.parquet" for one in splits]
    if found:
        raise DataError(f"{folder} holds {', '.join(found)}: give one of them.")
    raise DataError(f"{folder} is a folder without data: {GIVE}.")


def _opened(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as problem:
        raise DataError(f"{path} cannot be read as data ({problem.strerror}): {GIVE}.") from problem


def _json_lines(path: Path) -> Iterator[Raw]:
    for number, content in enumerate(_opened(path).split(b"\n"), start=1):  # a question may hold any other separator
        where = f"{path}, line {number}"
        if not content.strip() or content.strip() == b"\xef\xbb\xbf":
            continue
        try:
            yield where, parse(content)
        except ValueError as problem:
            yield where, caused_by(problem, DataError(f"{where} cannot be read: {problem}."))


def _csv(path: Path, separator: str) -> Iterator[Raw]:
    """With a row of names at the top. An empty cell is no value."""
    try:
        text = _opened(path).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} cannot be read as data (it is not UTF-8 at byte {problem.start}).") from problem
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    while True:
        number = lines.line_num + 1
        where = f"{path}, line {number}"
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as problem:
            if not names:
                raise DataError(f"{where} cannot be read: {problem}.") from problem
            yield where, caused_by(problem, DataError(f"{where} cannot be read: {problem}."))
            continue
        if not names:
            names = cells
            if len(set(names)) < len(names):
                raise DataError(f"{where} names the column {max(names, key=names.count)!r} twice.")
        elif len(cells) not in (0, len(names)):
            yield where, DataError(f"{where} has {len(cells)} cells, and the first line names {len(names)} columns.")
        elif cells:
            yield where, {name: cell for name, cell in zip(names, cells, strict=True) if cell}
