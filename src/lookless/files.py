"""Reading and writing the library's JSON: a file a user had is never lost or half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import LooklessError, first_line

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

Record = TypeVar("Record", bound=BaseModel)

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
#: A name of :func:`_beside`.
_PARTIAL = re.compile(r"\..{1,40}\.[0-9a-f]{16}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def write_text(path: Path, text: str) -> None:
    """As :func:`write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path`` and move it there, so that ``path`` holds the old or the new, whole.

    A link stays a link to what it names, and a device or a pipe is written to, not replaced.
    """
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        path.write_bytes(content)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    handle = os.open(partial, _NEW, 0o666)  # less the process's umask, as any new file
    try:
        with _being_written(handle):
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                os.chmod(partial, stat.S_IMODE(mode))
            os.replace(partial, path)
    except BaseException as problem:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        # of a full disk it says nothing but that
        if isinstance(problem, OSError) and problem.errno and problem.filename is None:
            raise OSError(problem.errno, problem.strerror, str(path)) from problem
        raise


def check_out(path: Path, *, folder: bool = False) -> Path:
    """``path``, if a result can be written there: called before the work, so that no result is lost after it.

    Makes missing folders, and no other file remains.

    Args:
        path: where the result is to be.
        folder: the result is files in the folder ``path``, not the file ``path``.

    Raises:
        LooklessError: ``path`` is a folder and should be a file, or a file and should be a folder, or it cannot be
            written, with the reason.
    """
    try:
        mode = _mode(path)
        is_folder = mode is not None and stat.S_ISDIR(mode)
        if folder and mode is not None and not is_folder:
            raise LooklessError(f"{path} is a file and the result is a folder: choose another name.")
        if not folder and is_folder:
            raise LooklessError(f"{path} is a folder and the result is a file: choose another name.")
        if not folder and mode is not None and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if folder or mode is None or stat.S_ISREG(mode):
            _try_writing(path / "any" if folder else path)
    except (OSError, ValueError, RuntimeError) as problem:  # RuntimeError: links that go round
        reason = getattr(problem, "strerror", None) or problem
        raise LooklessError(f"{path} cannot be written ({reason}): choose another place for the result.") from problem
    return path


def _try_writing(path: Path) -> None:
    """Make the folders of ``path``, and a file beside it that is gone again."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.lstat()  # is the name too long?
    partial = _beside(path)
    os.close(os.open(partial, _NEW, 0o666))
    os.unlink(partial)


def read_bytes(path: Path) -> bytes:
    """The content of the file ``path``.

    Raises:
        OSError: there is none, it may not be read, or it is something else than a file.
    """
    check_file(path)
    return path.read_bytes()


def check_file(path: Path) -> None:
    """Raises: OSError: ``path`` is not there, or it is a folder, a pipe or a device: reading a pipe waits for a writer,
    and some devices never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is a {_kind(mode)}, and not a file")


def _kind(mode: int) -> str:
    kinds = {"folder": stat.S_ISDIR, "pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    return next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "device")


def check_inside(root: Path, names: Iterable[str]) -> None:
    """Raises: LooklessError: one of ``names`` in the folder ``root``, or something below it, is a link that leaves the
    folder: a file that is written there would take the place of another."""
    home = root.resolve()
    for name in names:
        for path in (root / name, *(root / name).rglob("*")):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise LooklessError(
                    f"{path} is a link to {os.readlink(path)}, outside of {root}, whose files are written to: put a "
                    f"copy in its place."
                )


def _mode(path: Path) -> int | None:
    """What kind of file ``path`` is and who may do what with it; None where there is none."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _beside(path: Path) -> Path:
    """A name that no other thread or process takes, in the folder of ``path``: on its disk, so that it can be moved."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")


@contextlib.contextmanager
def alone_in(folder: Path, what: Path, *, passing: bool = False) -> Iterator[None]:
    """Nobody else is in ``folder``, which is made, as long as this lasts.

    The kernel keeps the lock and drops it when the process ends, however it ends. Where a disk has no locks, and on
    Windows, there is none.

    Args:
        folder: is locked.
        what: is written meanwhile, for the error.
        passing: at the end the folder is removed if it is empty.

    Raises:
        LooklessError: another process, or another call in this one, is in it.
    """
    handle = _locked(folder)
    if handle is None:
        raise LooklessError(
            f"{what} is being written by another run: wait for its end, or choose another name for this result."
        )
    try:
        yield
    finally:
        if passing:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
        os.close(handle)


def _locked(folder: Path) -> int | None:
    """A handle that locks ``folder``; None if somebody else has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY) if fcntl else os.open(os.devnull, os.O_RDONLY)
        try:
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:  # this disk has no locks
            return handle
        with contextlib.suppress(FileNotFoundError):
            if not fcntl or os.path.samestat(os.fstat(handle), folder.stat()):
                return handle
        os.close(handle)  # the one who had it has removed it, between our opening and locking


def remove_partial(folder: Path, name: str | None = None) -> None:
    """Remove what a process that was killed has left half-written of the file ``name`` in ``folder``, or of all files
    in it and in two levels of folders below."""
    for pattern in ("*",) if name else ("*", "*/*", "*/*/*"):
        for path in folder.glob(pattern):
            is_of = name is None or path.name.startswith(f".{name[:40]}.")
            if is_of and _PARTIAL.fullmatch(path.name) and _is_abandoned(path):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _being_written(handle: int) -> Iterator[None]:
    """Tells :func:`_is_abandoned` that the file is not, even after ``handle`` is closed."""
    if not fcntl:
        yield
        return
    lock = os.dup(handle)
    try:
        with contextlib.suppress(OSError):  # this disk has no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _is_abandoned(path: Path) -> bool:
    """Whether the process that wrote the file is gone. Where a disk has no locks, nobody knows."""
    if not fcntl or path.is_symlink() or not path.is_file():
        return False
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def dump(record: BaseModel) -> str:
    """Sorted, indented JSON: the same record is the same bytes, and two records diff line by line."""
    return json.dumps(record.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"


def parse(content: bytes) -> Any:
    """The JSON in ``content``: UTF-8, with or without a byte order mark.

    Stricter than :mod:`json`, whose leniency would read a file as something else than its writer meant.

    Raises:
        ValueError: it is not JSON, has a key twice, NaN or infinity, a number beyond 64 bits, half a surrogate pair,
            or is nested too deep; one line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"it is not UTF-8 ({problem.reason} at byte {problem.start})") from problem
    try:
        data = json.loads(
            text, object_pairs_hook=_once, parse_constant=_no_number, parse_int=_integer, parse_float=_finite
        )
    except json.JSONDecodeError as problem:
        raise ValueError(f"it is not JSON ({problem})") from problem
    except RecursionError as problem:
        raise ValueError("it is nested too deep") from problem
    if _SURROGATE.search(text):
        try:
            json.dumps(data, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as problem:
            raise ValueError(f"it holds half a surrogate pair ({problem.object[problem.start]!a})") from problem
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return data


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"it holds {word}, which is no JSON number")


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"it holds the number {_shortened(digits)}, which is beyond 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    if math.isinf(float(digits)):
        raise ValueError(f"it holds the number {_shortened(digits)}, which is beyond 64 bits")
    return float(digits)


def _shortened(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:20]}..."


def load(path: Path, kind: type[Record], error: type[LooklessError], schema: int) -> Record:
    """The ``kind`` in the JSON file ``path``.

    Raises:
        LooklessError: the subclass ``error``, when the file is missing, is not JSON, was written by a newer
            library, or has a key or a value that ``kind`` does not.
    """
    what = kind.__name__.lower()
    try:
        data = parse(read_bytes(path))
    except FileNotFoundError as problem:
        raise error(f"no {what} at {path}: the file does not exist.") from problem
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path} cannot be read as a {what}: {reason}.") from problem
    if not isinstance(data, dict):
        raise error(f"{path} cannot be read as a {what}: it holds a JSON {type(data).__name__}, not an object.")
    found = data.get("schema_version", schema)
    if type(found) is not int or found < 1:
        raise error(f"{path} is not a valid {what}: its schema version is {found!r}, not a number from 1 to {schema}.")
    if found > schema:
        raise error(f"{path} has schema version {found} and this lookless reads up to {schema}: upgrade lookless.")
    try:
        return kind.model_validate(data)
    except ValidationError as problem:
        raise error(f"{path} is not a valid {what}: {sentence(problem)}.") from problem
    except LooklessError as problem:  # what the record's own validators refuse
        raise error(f"{path} is not a valid {what}: {problem}") from problem


def download(repo_id: str, name: str, revision: str | None, error: type[LooklessError]) -> Path:
    """The file ``name`` of a repository of the hub, here.

    Raises:
        LooklessError: the subclass ``error``, when the hub does not give it.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, name, revision=revision))
    except Exception as problem:  # the hub's own errors, and those of every transport below it
        raise error(
            f"no plan at {repo_id!r}: there is no such folder here, and the hub did not give {name} "
            f"({first_line(problem)})."
        ) from problem


def upload(content: dict[str, bytes], repo_id: str, message: str, *, private: bool | None, token: str | None) -> str:
    """Put files, by name and in their order, into a repository of the hub; the address of the last commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    for name, data in content.items():
        commit = api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id=repo_id, commit_message=message)
    return str(commit.commit_url)


def sentence(problem: ValidationError) -> str:
    """The first of pydantic's complaints in one line: where, what, and what was found there."""
    first = problem.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r} (value {repr(first['input'])[:60]})"
    more = f" (and {problem.error_count() - 1} more)" if problem.error_count() > 1 else ""
    found = "" if first["type"] == "missing" else f", found {str(first['input'])[:60]!r}"
    return f"{where}: {first['msg'].lower()}{found}{more}"
