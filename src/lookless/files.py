"""Reading and writing the library's JSON: a file a user had is never lost or half-written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from .errors import LooklessError

Record = TypeVar("Record", bound=BaseModel)


def write_text(path: Path, text: str) -> None:
    """As :func:`write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path`` and move it there, so that ``path`` holds the old or the new, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes the file private; give it the permissions any other new file would have
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(partial, 0o666 & ~mask)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise


def dump(record: BaseModel) -> str:
    """Sorted, indented JSON: the same record is the same bytes, and two records diff line by line."""
    return json.dumps(record.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"


def load(path: Path, kind: type[Record], error: type[LooklessError], schema: int) -> Record:
    """The ``kind`` in the JSON file ``path``.

    Raises:
        LooklessError: the subclass ``error``, when the file is missing, is not JSON, was written by a newer
            library, or has a key or a value that ``kind`` does not.
    """
    what = kind.__name__.lower()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"no {what} at {path}: the file does not exist.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise error(f"{path} cannot be read as a {what}: {problem}.") from None
    if not isinstance(data, dict):
        raise error(f"{path} cannot be read as a {what}: it holds a JSON {type(data).__name__}, not an object.")
    found = data.get("schema_version")
    if isinstance(found, int) and found > schema:
        raise error(f"{path} has schema version {found} and this lookless reads up to {schema}: upgrade lookless.")
    try:
        return kind.model_validate(data)
    except ValidationError as problem:
        raise error(f"{path} is not a valid {what}: {sentence(problem)}.") from None


def sentence(problem: ValidationError) -> str:
    """The first of pydantic's complaints in one line: where, what, and what was found there."""
    first = problem.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r} (value {first['input']!r})"
    more = f" (and {problem.error_count() - 1} more)" if problem.error_count() > 1 else ""
    found = "" if first["type"] == "missing" else f", found {str(first['input'])[:60]!r}"
    return f"{where}: {first['msg'].lower()}{found}{more}"
