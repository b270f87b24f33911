"""The numbers of fitted cells, which are known by their hash.

A plan stays small frozen data: its JSON holds the sha256 of the numbers of each fitted cell, and the numbers lie beside
it in a safetensors file. So equal cells have equal numbers, and numbers that are not those that were saved are refused.
A folder with many plans in its files has one archive of numbers for all of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import core_schema

from . import files
from .errors import PlanError, first_line

if TYPE_CHECKING:
    from numpy import ndarray

#: The parts of an affine map of rows ``x [rows, width]``: ``constant + x @ down.T @ up.T``. Without the matrices it is
#: the constant alone.
PARTS = ("constant", "down", "up")
#: The numbers that the files of a folder name.
ARCHIVE = "lookless_fitted.safetensors"


class Weights:
    """The numbers of one affine map, float32; compared, hashed and written as JSON by their ``name`` alone.

    Read back from JSON there is only the name: :meth:`lookless.Plan.from_pretrained` brings the numbers.

    Attributes:
        name: sha256 of the numbers and their shapes, 64 hex digits.
    """

    def __init__(self, name: str, parts: dict[str, ndarray] | None = None) -> None:
        self.name, self._parts = name, parts
        self._made: dict[Any, Any] = {}

    @classmethod
    def of(cls, constant: Any, down: Any = None, up: Any = None) -> Weights:
        """The map ``constant [width]``, with ``down [rank, width]`` and ``up [width, rank]`` if it is more than that;
        anything that numpy takes.

        Raises:
            PlanError: the shapes do not fit together, or a number is not finite.
        """
        import numpy as np

        given = zip(PARTS, (constant, down, up), strict=True)
        parts = {n: np.ascontiguousarray(np.asarray(p, dtype="<f4")) for n, p in given if p is not None}
        width = parts["constant"].shape
        shapes = [p.shape for p in parts.values()]
        rank = parts["down"].shape[:1] if "down" in parts else ()
        if len(width) != 1 or shapes not in ([width], [width, rank + width, width + rank]):
            raise PlanError(f"an affine map has a constant [n] and matrices [rank, n] and [n, rank], not {shapes}.")
        for part, numbers in parts.items():
            if not np.isfinite(numbers).all():
                raise PlanError(f"the {part} of an affine map holds NaN or infinity: check what it was fitted on.")
        return cls(_name(parts), parts)

    @property
    def is_bound(self) -> bool:
        """Whether the numbers are here, and not only their name."""
        return self._parts is not None

    @property
    def parts(self) -> dict[str, ndarray]:
        """Those of :data:`PARTS` that the map has.

        Raises:
            PlanError: only the name is here.
        """
        if self._parts is None:
            raise PlanError(
                f"of a fitted cell only the name of its numbers is here ({self.name[:8]}...): read the plan with "
                f"Plan.from_pretrained, from a folder that holds its safetensors file."
            )
        return self._parts

    @property
    def width(self) -> int:
        """Length of what the map takes and gives."""
        return len(self.parts["constant"])

    @property
    def rank(self) -> int:
        """Width between the two matrices; 0 of a constant."""
        return len(self.parts["down"]) if "down" in self.parts else 0

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` makes of the numbers, made once: the same on some device. It lives as long as they do."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Weights({self.name[:8]}...)"

    def __reduce__(self) -> Any:
        return Weights, (self.name, self._parts)  # without what was made of them

    def __deepcopy__(self, _: Any) -> Weights:
        return self  # frozen

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: Any) -> core_schema.CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(lambda weights: weights.name)
        return core_schema.no_info_plain_validator_function(_validated, serialization=written)


def _validated(given: Any) -> Weights:
    if isinstance(given, Weights):
        return given
    if isinstance(given, str) and re.fullmatch("[0-9a-f]{64}", given):
        return Weights(given)
    raise ValueError("weights are the sha256 of their numbers, 64 hex digits")


def _name(parts: dict[str, ndarray]) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        if part in parts:
            digest.update(f"{part} {list(parts[part].shape)} ".encode())
            digest.update(parts[part].tobytes())
    return digest.hexdigest()


def pack(weights: Iterable[Weights]) -> bytes:
    """The content of a safetensors file with the numbers of ``weights``, of one plan or of many.

    Raises:
        PlanError: of some only the name is here.
    """
    from safetensors.numpy import save

    return save({f"{each.name}.{part}": numbers for each in weights for part, numbers in each.parts.items()})


def read(path: Path) -> dict[str, Weights]:
    """What :func:`pack` made and ``path`` holds, by name.

    Raises:
        PlanError: there is no such file, it is none of ours, or its numbers are not those that were saved.
    """
    try:
        content = files.read_bytes(path)
    except OSError as problem:
        raise _unreadable(str(path), problem.strerror) from problem
    return unpack(content, str(path))


def unpack(content: bytes, source: str) -> dict[str, Weights]:
    """What :func:`pack` made, by name; ``source`` is where it came from, to be named in errors.

    Raises:
        PlanError: it is none of ours, or its numbers are not those that were saved.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        held = load(content)
    except SafetensorError as problem:
        raise _unreadable(source, first_line(problem)) from problem
    found: dict[str, dict[str, ndarray]] = {}
    for key, numbers in held.items():
        name, _, part = key.partition(".")
        if part not in PARTS:
            raise PlanError(f"{source} holds {key!r}, which is no part of a fitted cell.")
        found.setdefault(name, {})[part] = numbers
    return {name: _checked(source, name, parts) for name, parts in found.items()}


def _unreadable(source: str, reason: str | None) -> PlanError:
    return PlanError(f"{source}, with the numbers of a plan's fitted cells, cannot be read: {reason}.")


def _checked(source: str, name: str, parts: dict[str, ndarray]) -> Weights:
    try:
        weights = Weights.of(*(parts.get(part) for part in PARTS))
    except (PlanError, KeyError) as problem:
        raise PlanError(f"{source} holds numbers of a fitted cell that are none: {problem}") from problem
    if weights.name != name:
        raise PlanError(
            f"the numbers in {source} are not those that were saved: their sha256 is {weights.name[:12]}... and not "
            f"{name[:12]}...; copy the file again."
        )
    return weights


def store(folder: Path, weights: Iterable[Weights]) -> None:
    """Add ``weights`` to the archive of ``folder``, which is written whole or not at all.

    Raises:
        PlanError: of some only the name is here, or the archive that is there cannot be read.
    """
    wanted = {each.name: each for each in weights}
    known = stored(folder) if wanted else {}
    if wanted.keys() - known.keys():
        files.write_bytes(folder / ARCHIVE, pack({**known, **wanted}.values()))


def stored(folder: Path) -> dict[str, Weights]:
    """What :func:`store` left in ``folder``, by name. Raises: PlanError: as :func:`read`."""
    path = folder / ARCHIVE
    return read(path) if path.exists() else {}


def found(path: Path, wanted: Iterable[Weights]) -> dict[str, Weights]:
    """By name those of the archive beside the file at ``path``, which names the ``wanted`` ones.

    Raises:
        PlanError: some are not there.
    """
    names = {each.name for each in wanted}
    held = stored(path.parent) if names else {}
    for name in sorted(names - held.keys()):
        raise PlanError(f"the numbers {name[:12]}... of a fitted cell in {path} are not in {ARCHIVE} beside it.")
    return held
