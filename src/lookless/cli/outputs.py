"""What a command writes. All commands keep one rule, and say by one of these functions which kind of result theirs is.

========================  ==========================================================================================
:func:`new_file`          a result, such as scores: one that is there is replaced with ``--overwrite`` alone, unless it
:func:`new_files`         is unfinished: a run that was killed goes on
:func:`run_folder`        of a run that goes on where it was: it holds what tells whether it is the same run
:func:`edited_file`       a document of which one block is made anew, and the text around it stays
========================  ==========================================================================================

Each finds out before the work that the result can be written, and that no other process is writing it, and keeps others
away until the command ends.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from ..errors import LooklessError
from ..sets import PLAN_FILE_NAME, SET_FILE_NAME
from .common import until_the_end

#: Either tells that there is a plan, or a plan set, in a folder.
PLAN_FILES = (PLAN_FILE_NAME, SET_FILE_NAME)
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there.")]


def new_file(path: Path, overwrite: bool) -> Path:
    """``path``, where a result is to be.

    Raises:
        LooklessError: it cannot be written, another process is writing it, or a result is there.
    """
    from ..unfinished import Unfinished

    kept = _claimed_file(path)
    is_there = path.is_file() and not (kept and Unfinished(kept).has_begun)
    if is_there and path.stat().st_size and not overwrite:
        raise _there(path)
    return path


def new_files(folder: Path, names: Iterable[str], overwrite: bool) -> Path:
    """The folder of a result of several files, of which ``names`` tell whether there is one.

    Raises:
        LooklessError: as :func:`new_file`.
    """
    from ..unfinished import Unfinished

    run_folder(folder)
    there = [name for name in names if (folder / name).exists()]
    if there and not Unfinished.inside(folder).has_begun and not overwrite:
        raise _there(folder / there[0])
    return folder


def run_folder(folder: Path) -> Path:
    """The folder of a run that says itself what it is of.

    Raises:
        LooklessError: it cannot be written, or another process is writing it.
    """
    from .. import files

    files.check_out(folder, folder=True)
    until_the_end(files.alone_in(folder.resolve(), folder))
    files.remove_partial(folder)
    return folder


def edited_file(path: Path) -> Path:
    """A document in which a block is made anew.

    Raises:
        LooklessError: it cannot be written, or another process is writing it.
    """
    _claimed_file(path)
    return path


def _claimed_file(path: Path) -> Path | None:
    """The folder that is locked for the file ``path``: that of its unfinished items. None of a device or a pipe, which
    several may write to."""
    from .. import files
    from ..unfinished import Unfinished

    files.check_out(path)
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        return None
    kept = Unfinished.beside(path)
    if kept is None:
        return None
    until_the_end(files.alone_in(kept.folder, path, passing=True))
    where = path.resolve()
    files.remove_partial(where.parent, where.name)
    files.remove_partial(kept.folder)
    return kept.folder


def _there(path: Path) -> LooklessError:
    return LooklessError(f"{path} is there already: give --overwrite to replace it, or choose another name.")
