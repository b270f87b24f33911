"""Parquet files, and what Hugging Face's ``datasets`` saves, row by row; images stay in the file until they are opened.

Needs pyarrow, which is imported when a table is read: ``pip install 'lookless[data]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, first_line
from ..files import check_file
from .images import ImageCell, ImageFile, Stored

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".arrow")


@dataclass(frozen=True)
class Embedded:
    """An image inside a cell of a table.

    Attributes:
        value: of the cell, or of one element of its list: the bytes, or a struct of bytes and path.
        folder: which a path in it is relative to.
    """

    value: Callable[[], Any]
    folder: Path

    def at(self, context: str) -> Stored:
        """The image; ``context`` begins an error message about it."""
        value = self.value()
        if isinstance(value, Mapping) and value.get("bytes") is None and value.get("path"):
            return ImageFile(self.folder / value["path"], context)
        return ImageCell(lambda: _content(self.value(), context), context)


def _content(value: Any, context: str) -> bytes:
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(content, bytes):
        raise DataError(f"{context}the image is {type(content).__name__}, and not the content of an image file.")
    return content


def rows(files: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with its place, such as ``val.parquet, row 3``; an image is an :class:`Embedded`.

    Raises:
        DataError: pyarrow is missing, or a file cannot be read.
    """
    for path in files:
        number = 0
        for piece in _pieces(path):
            images = [name for name, kind in piece.kinds.items() if _holds_bytes(kind)]
            words = piece.read(tuple(name for name in piece.kinds if name not in images))
            for index in range(piece.rows):
                number += 1
                values = {name: words[name][index].as_py() for name in words.column_names}
                values |= {name: _embedded(piece, name, index, path.parent) for name in images}
                yield f"{path}, row {number}", {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class Piece:
    """Some rows of a file that are read together.

    Attributes:
        kinds: the type of each column.
        rows: how many.
        read: the columns of these names.
    """

    kinds: Mapping[str, pyarrow.DataType]
    rows: int
    read: Callable[[tuple[str, ...]], pyarrow.Table]


def _pieces(path: Path) -> Iterator[Piece]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as problem:
        raise DataError(f"{path} needs pyarrow, which is not installed: pip install 'lookless[data]'.") from problem
    try:
        check_file(path)
        if path.suffix == ".parquet":
            file = pyarrow.parquet.ParquetFile(path)
            kinds = {field.name: field.type for field in file.schema_arrow}
            for group in range(file.num_row_groups):
                yield Piece(kinds, file.metadata.row_group(group).num_rows, _group_reader(path, group))
        else:
            table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()  # nothing is copied
            yield Piece({field.name: field.type for field in table.schema}, table.num_rows, table.select)
    except (OSError, pyarrow.ArrowException) as problem:
        raise DataError(f"{path} cannot be read as data ({first_line(problem)}).") from problem


def _group_reader(path: Path, group: int) -> Callable[[tuple[str, ...]], pyarrow.Table]:
    return lambda names: _read_group(path, group, names)


@lru_cache(maxsize=2)
def _read_group(path: Path, group: int, names: tuple[str, ...]) -> pyarrow.Table:
    """The last ones stay, as the images of neighbours are asked for one after another."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=list(names))


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    """Whether a column of this type has images in it: bytes, a struct with bytes, or a list of either."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _embedded(piece: Piece, name: str, index: int, folder: Path) -> Any:
    """The image, or the images of a list; None for an empty cell. Nothing is decoded."""
    from pyarrow import types

    def cell() -> Any:
        return piece.read((name,))[name][index]

    if not cell().is_valid:
        return None
    if not (types.is_list(piece.kinds[name]) or types.is_large_list(piece.kinds[name])):
        return Embedded(lambda: cell().as_py(), folder)
    return [Embedded(lambda at=at: cell()[at].as_py(), folder) for at in range(len(cell()))]  # type: ignore[misc]
