"""Knobs: the arguments of a method that are numbers, read off its signature.

What a knob *is* decides how a paper's setting moves to a model of another depth: a layer of 32 is at the same share of
12, a ratio is a ratio. So a method says it once, by annotation, and the table, the command line and the provenance of a
plan all read it there::

    def fastv(model: Geometry | int, *, layer: Layer = 2, keep: float = 0.5) -> Plan
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Annotated, Any, Literal, ParamSpec, get_args, get_origin

from pydantic import ValidationError

from ..errors import PlanError, PlanMismatchError
from ..files import sentence
from ..plan import Plan
from ..scores import Scores

Arguments = ParamSpec("Arguments")
Scaling = Literal["depth", "count", "set", "stages", "tokens"]

Layer = Annotated[int, "depth"]  #: one layer, 0-based
Count = Annotated[int, "count"]  #: how many layers
Layers = Annotated[tuple[int, ...], "set"]  #: some layers; two that fall on one are one
Stages = Annotated[tuple[int, ...], "stages"]  #: rising layers that other knobs are given for, one by one
Tokens = Annotated[float | None, "tokens"]  #: of a prompt; left out, of those that the scores were measured on
Operations = tuple[tuple[str, int], ...]  #: (column, layer) pairs, the first changed first


@dataclass(frozen=True)
class Knob:
    """One of them: its name, its type, how it scales with depth, and its default if it has one."""

    name: str
    type: Any
    scaling: Scaling | None
    default: Any = inspect.Parameter.empty

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def form(self) -> str:
        """What is to be typed for it, in a word."""
        if self.type == Operations:
            return "COLUMN:LAYER,..."
        word = {int: "int", float: "float"}.get(self._of, "text").upper()
        return f"{word},{word},..." if self._is_listed else word

    @property
    def _is_listed(self) -> bool:
        return get_origin(self.type) is tuple

    @property
    def _of(self) -> type:
        """Of one value: of each in a list, and of what may be left out."""
        kinds = [kind for kind in get_args(self.type) if kind is not type(None)]
        found: type = kinds[0] if kinds else self.type
        return found

    def scaled(self, value: Any, layers: int, of: int) -> Any:
        """A setting for ``of`` layers at the same relative depth of ``layers``; what is not depth stays."""
        if self.scaling in (None, "tokens") or layers == of:
            return value
        if self.scaling == "count":
            return min(max(round(value * layers / of), 1), layers) if value else 0
        if self.scaling == "depth":
            return at_depth(value, layers, of)
        moved = [at_depth(layer, layers, of) for layer in value]
        if self.scaling == "set":
            return tuple(sorted(set(moved)))
        for i in range(1, len(moved)):
            moved[i] = max(moved[i], moved[i - 1] + 1)
        return tuple(moved)

    def parsed(self, text: str) -> Any:
        """Raises: PlanError: ``text`` is not of this knob's form."""
        words = [word.strip() for word in text.split(",")] if text.strip() else []
        try:
            if self.type == Operations:
                return tuple((column, int(layer)) for column, layer in (word.split(":") for word in words))
            found = tuple(self._of(word) for word in (words if self._is_listed else [text]))
            if any(isinstance(value, float) and not math.isfinite(value) for value in found):
                raise ValueError("neither a price nor a share")
            return found if self._is_listed else found[0]
        except ValueError as problem:
            raise PlanError(f"{self.name} is {text!r} and should be {self.form}.") from problem

    def typed(self, value: Any) -> str:
        """What :meth:`parsed` reads ``value`` from."""
        if self.type == Operations:
            return ",".join(f"{column}:{layer}" for column, layer in value)
        return ",".join(map(str, value)) if self._is_listed else str(value)


def at_depth(layer: int, layers: int, of: int) -> int:
    """Where ``layer`` of ``of`` layers falls among ``layers``; what is not the first does not become it."""
    return min(max(round(layer * layers / of), 1), layers - 1) if layer else 0


def knobs_of(make: Callable[..., Plan]) -> dict[str, Knob]:
    """The keyword-only arguments of ``make``. Raises: TypeError: one is not annotated."""
    found = {}
    for name, parameter in _parameters(make).items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            hint = parameter.annotation
            if hint is parameter.empty:
                raise TypeError(f"{name} of {make.__name__} has no annotation, which says how it is read")
            scaled = get_origin(hint) is Annotated
            kind, scaling = get_args(hint)[:2] if scaled else (hint, None)
            found[name] = Knob(name, kind, scaling, parameter.default)
    return found


def _parameters(make: Callable[..., Plan]) -> Mapping[str, inspect.Parameter]:
    """With their annotations evaluated: ``get_type_hints`` does so, too, but until Python 3.10 it puts those of a
    default None within ``Optional``."""
    return inspect.signature(make, eval_str=True).parameters


@cache
def measures_of(make: Callable[..., Plan]) -> dict[str, str]:
    """Which measure each argument of ``make`` reads, of those that say: ``scores: Annotated[Scores, "ffn_effect"]``."""
    positional = {p.name: p.annotation for p in _parameters(make).values() if p.kind is not p.KEYWORD_ONLY}
    return {
        name: get_args(hint)[1]
        for name, hint in positional.items()
        if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], str)
    }


def check_measures(scores: Sequence[Scores], measures: Sequence[str]) -> None:
    """Raises: PlanError: one of ``scores`` is of another measure than its place is for, and does not say so."""
    for one, measure in zip(scores, measures, strict=True):
        if one.measure != measure:
            raise PlanError(
                f"scores of {measure} are needed and {one.source} was given: `lookless calibrate --measure {measure}` "
                f"measures them; for a variant of your own say --any-measure, in Python scores.use_as({measure!r})."
            )


def name_of(make: Callable[..., Plan]) -> str:
    return make.__name__.replace("_", "-")


def method(make: Callable[Arguments, Plan]) -> Callable[Arguments, Plan]:
    """A method signs its plans, with its name, its knobs and the scores it read, and its refusals, with its name."""
    name, signature = name_of(make), inspect.signature(make)

    @wraps(make)
    def signed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Plan:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        measures = measures_of(make)
        given = [
            (value, measures.get(argument))
            for argument, each in bound.arguments.items()
            for value in (each if isinstance(each, tuple) else (each,))
            if isinstance(value, Scores)
        ]
        scores = [value for value, _ in given]
        try:
            check_measures(scores, [measure or value.name for value, measure in given])
            _of_one_model(scores)
            plan = make(*args, **kwargs)
        except PlanError as problem:
            raise type(problem)(f"{name}: {problem}") from problem
        except ValidationError as problem:
            raise PlanError(f"{name}: {sentence(problem)}.") from problem
        knobs = {knob: formatted(value) for knob, value in bound.kwargs.items()}
        found = plan.provenance.knobs  # what was left out, and is known now
        return plan.made_by(method=name, knobs=knobs | found | _source_names(scores), **_sources(scores))

    return signed


def formatted(value: Any) -> int | float | str:
    """A knob's value as a plan's file holds it."""
    if value is None:
        return "all"
    if not isinstance(value, tuple | list):
        return value if isinstance(value, int | float) else str(value)
    return " ".join(":".join(map(str, v)) if isinstance(v, tuple) else f"{v:g}" for v in value)


def _of_one_model(scores: list[Scores]) -> None:
    for other in scores[1:]:
        if other.geometry != scores[0].geometry:
            raise PlanMismatchError(
                f"{scores[0].name} is of {scores[0].geometry} and {other.name} of {other.geometry}: "
                f"calibrate both on one model."
            )


def _source_names(scores: list[Scores]) -> dict[str, str]:
    return {"scores": ", ".join(dict.fromkeys(s.source for s in scores))} if scores else {}


def _sources(scores: list[Scores]) -> Mapping[str, Any]:
    """The fields of a plan's provenance that tell what was measured on."""
    sets = {(s.data, s.data_hash): s.samples for s in scores}
    if not scores:
        return {}
    return {
        "model": scores[0].model,
        "revision": scores[0].revision,
        "data": " + ".join(data for data, _ in sets if data) or None,
        "data_hash": scores[0].data_hash if len(sets) == 1 else None,
        "sample_hashes": _all_seen(scores),
        "seed": scores[0].seed if len({s.seed for s in scores}) == 1 else None,
        "samples": sum(sets.values()),
    }


def _all_seen(scores: list[Scores]) -> tuple[str, ...] | None:
    """The prompts that any of ``scores`` was measured on; None where none of them says."""
    known = [s.sample_hashes for s in scores if s.sample_hashes is not None]
    return tuple(dict.fromkeys(h for hashes in known for h in hashes)) if known else None
