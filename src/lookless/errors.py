"""What can go wrong, as one tree.

LooklessError
├── GeometryError         the architecture is unknown, or a configuration lacks a number we need
├── PlanError             the plan itself is wrong: no such layer, a cell set twice, a file of a newer schema
│   └── PlanMismatchError the plan is valid, but made for another architecture than this model's
├── ScoresError           a scores file that cannot be read, or scores that do not fit their use
├── DataError             samples that cannot be read: no file, a truncated image, an unknown key, nothing at all
├── ModelError            a model that cannot be loaded, or that the runtime does not support
└── ServingError          an engine set up so that a plan would run wrong, or not at all

Every message is one sentence or two: what, where, the two values that disagree, and what to do. The error of another
library that caused it is its ``__cause__``.

The command line prints the message and exits with code 2, as it does for an OSError (a full disk, a folder that may not
be written) and for memory that runs out; Ctrl-C ends it with code 130, a closed pipe with 141. Any other exception is a
bug, and shows its traceback. With ``LOOKLESS_DEBUG=1`` in the environment the traceback of every error is shown, with
its causes.
"""

from __future__ import annotations

from typing import TypeVar


class LooklessError(Exception):
    """Base of everything this library raises on purpose."""


class GeometryError(LooklessError):
    """The architecture is unknown, or a configuration lacks a number that is needed."""


class PlanError(LooklessError):
    """A plan that is wrong in itself."""


class PlanMismatchError(PlanError):
    """A plan made for another architecture."""


class ScoresError(LooklessError):
    """Scores that cannot be read or do not fit."""


class DataError(LooklessError):
    """Samples that cannot be read."""


class ModelError(LooklessError):
    """A model that cannot be loaded or is not supported."""


class ServingError(LooklessError, ValueError):
    """The engine is set up so that a plan would run wrong, or not at all.

    A ValueError too, as vLLM's own refusals are.
    """


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether ``problem`` reports that no memory is left: torch has no class of its own for that on a CPU."""
    said = str(problem)
    return isinstance(problem, MemoryError) or (
        isinstance(problem, RuntimeError) and any(words in said for words in ("out of memory", "allocate memory"))
    )


def first_line(problem: BaseException) -> str:
    """What ``problem``, another library's error, says, for one of our sentences: its first line, without a full stop at
    the end; the error's class where it says nothing."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines[0] if lines else type(problem).__name__).rstrip(".")


_Error = TypeVar("_Error", bound=LooklessError)


def caused_by(problem: BaseException, error: _Error) -> _Error:
    """``error`` with ``problem`` as its cause, as by ``raise ... from``: for one that is handed on and not raised."""
    error.__cause__ = problem
    return error
