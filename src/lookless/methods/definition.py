"""What a method is: its function, its paper, and how both are used. Each file of a method ends with one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import PlanError
from ..geometry import PRESETS, Geometry
from ..plan import Plan
from ..scores import Scores
from .knobs import Knob, check_measures, formatted, knobs_of, measures_of, name_of
from .published import Setting
from .strength import Strength

SEARCH = "search"


@dataclass(frozen=True, eq=False)
class Method:
    """A published method.

    Attributes:
        make: the pure function, from scores if it needs some, else from a geometry, to a plan. Its keyword-only
            arguments are the knobs, the annotations of its scores the measures (:mod:`lookless.methods.knobs`).
        paper: arXiv id.
        title: of the paper, or of the part of it that this is.
        paper_layers: layers of the model that the paper's knobs are for.
        paper_arguments: the paper's knobs, where they are not the defaults of ``make``.
        example_arguments: values of knobs that only a search finds, to show what a plan looks like. No paper's.
        ours: knobs whose defaults are not the paper's either: no paper has them, or it does not print what it took.
        published: settings for single models, the first of a model before others of it; any other model has the knobs
            at the same relative depth.
        strength: for a comparison at one budget, the knobs that set how much the method does: from a number of layers
            and a strength from 0 (nothing) to 1 (all it can). None: its knobs are not one amount.
        prompt_arguments: for a comparison, knobs that are numbers of tokens, from a prompt's visual and text tokens.
        paper_kept: of a method whose knobs are found by search, the share of FLOPs that its paper keeps.
    """

    make: Callable[..., Plan]
    paper: str
    title: str
    paper_layers: int = 32
    paper_arguments: Mapping[str, Any] = field(default_factory=dict)
    example_arguments: Mapping[str, Any] = field(default_factory=dict)
    ours: tuple[str, ...] = ()
    published: tuple[Setting, ...] = ()
    strength: Strength | None = None
    prompt_arguments: Callable[[int, int], dict[str, Any]] | None = None
    paper_kept: float | None = None

    @property
    def name(self) -> str:
        return name_of(self.make)

    @property
    def idea(self) -> str:
        """The first line of the function's docstring."""
        return (self.make.__doc__ or "").strip().split("\n")[0]

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures whose scores :attr:`make` takes, in order."""
        return tuple(measures_of(self.make).values())

    @property
    def is_searched(self) -> bool:
        """Whether a knob has no value, not even the paper's, and has to be found by search."""
        return any(knob.is_required and knob.name not in self.paper_arguments for knob in self.knobs.values())

    @property
    def needs(self) -> tuple[str, ...]:
        """:attr:`measures`, and ``search`` if a knob is found by search."""
        return (*self.measures, SEARCH) if self.is_searched else self.measures

    @cached_property
    def knobs(self) -> dict[str, Knob]:
        return knobs_of(self.make)

    @property
    def takes_many(self) -> bool:
        """Whether it takes any number of scores."""
        parameters = inspect.signature(self.make).parameters.values()
        return any(p.kind is p.VAR_POSITIONAL for p in parameters)

    def build(self, geometry: Geometry, scores: Mapping[str, Scores] | Sequence[Scores] = (), **knobs: Any) -> Plan:
        """The plan at the paper's setting: the one for this model where there is one, else at the same relative depth
        of ``geometry``. ``knobs`` that are given go before; :meth:`setting` says which was taken.

        ``scores`` are by measure, or in any order.

        Raises:
            PlanError: scores are missing or of another measure, a knob is unknown, or one that only a search finds is
                not given.
        """
        unknown = [knob for knob in knobs if knob not in self.knobs]
        if unknown:
            raise PlanError(f"{self.name} has no knob {unknown[0]!r}; its knobs are {self.forms}.")
        chosen = self._paper_knobs(geometry) | knobs
        missing = [knob for knob in self.knobs if knob not in chosen]
        if missing:
            raise PlanError(f"{self.name} needs {missing[0]}, which is found by search; its knobs are {self.forms}.")
        return self.make(*self._given(geometry, scores), **chosen)

    def taken_as_its_own(self, scores: Sequence[Scores]) -> list[Scores]:
        """``scores`` of whatever measures, one by one in place of those it needs; of more than those, of the last."""
        measures = [*self.measures, *self.measures[-1:] * len(scores)]
        return [one.use_as(measure) for one, measure in zip(scores, measures, strict=False)]

    @property
    def _defaults(self) -> dict[str, Any]:
        """The knobs that have a value, for :attr:`paper_layers` layers."""
        return {k.name: k.default for k in self.knobs.values() if not k.is_required} | dict(self.paper_arguments)

    @property
    def _printed(self) -> list[str]:
        """The knobs whose defaults are the paper's."""
        return [name for name in self._defaults if name not in self.ours]

    def _published(self, geometry: Geometry) -> Setting | None:
        return next((one for one in self.published if PRESETS[one.model] == geometry), None)

    def _paper_knobs(self, geometry: Geometry) -> dict[str, Any]:
        here = self._published(geometry)
        scaled = {
            n: self.knobs[n].scaled(value, geometry.layers, self.paper_layers) for n, value in self._defaults.items()
        }
        return scaled | dict((here and here.knobs) or {})

    def setting(self, geometry: Geometry, **given: Any) -> str:
        """One sentence: which value each knob has on ``geometry``, and why, beside those that are ``given``."""
        here = self._published(geometry)
        reasons: dict[str, list[str]] = {}
        for name, value in {**self._paper_knobs(geometry), **given}.items():
            was = self._defaults.get(name)
            if name in given:
                why = "as given"
            elif here is not None and name in (self._printed if here.knobs is None else here.knobs):
                why = here.name
            elif self.knobs[name].scaling is not None and geometry.layers != self.paper_layers:
                why = f"scaled to {geometry.layers} layers from {formatted(was)} of {self.paper_layers}"
            else:
                why = "as in the paper" if name in self._printed else "by default"
            if value is not None:
                reasons.setdefault(why, []).append(f"{name.replace('_', '-')} {formatted(value)}")
        return "; ".join(f"{', '.join(knobs)}: {why}" for why, knobs in reasons.items()) + "."

    def sample(self, geometry: Geometry, **knobs: Any) -> Plan:
        """An example of its plans, from :meth:`uniform_scores`."""
        found = {
            name: self.knobs[name].scaled(v, geometry.layers, self.paper_layers)
            for name, v in self.example_arguments.items()
        }
        return self.build(geometry, self.uniform_scores(geometry), **{**found, **knobs})

    def uniform_scores(self, geometry: Geometry) -> dict[str, Scores]:
        """Scores that are the same for every layer: where only counts matter, they give a plan of the right price."""
        blank = ((0.0,) * geometry.layers,)
        return {need: Scores(name=need, per_sample=blank, geometry=geometry) for need in self.measures}

    @property
    def is_prefix_cache_safe(self) -> bool:
        """Of its plans at the paper's setting, see :attr:`Plan.is_prefix_cache_safe`."""
        return self.sample(_ANY).is_prefix_cache_safe

    @property
    def is_priced_by_counts(self) -> bool:
        """Whether its price is known without scores: it needs none, or a knob says in how many layers."""
        return not self.measures or any(knob.scaling == "count" for knob in self.knobs.values())

    def _given(
        self, geometry: Geometry, scores: Mapping[str, Scores] | Sequence[Scores]
    ) -> tuple[Geometry | Scores, ...]:
        if not self.measures:
            return (geometry,)
        if isinstance(scores, Mapping):
            found, names = [scores[need] for need in self.measures if need in scores], list(scores)
        else:
            found, names = self._in_order(scores), [s.source for s in scores]
        if len(found) < len(self.measures) or (len(found) > len(self.measures) and not self.takes_many):
            there = ", ".join(names) or "none"
            raise PlanError(
                f"{self.name} needs scores of {', '.join(self.measures)} and was given {there}: "
                f"`lookless calibrate --measure` measures one."
            )
        for one in found:
            Plan.full(one.geometry).check(geometry)
        try:
            check_measures(found, [*self.measures, *self.measures[-1:] * (len(found) - len(self.measures))])
        except PlanError as problem:
            raise PlanError(f"{self.name}: {problem}") from problem
        return tuple(found)

    def _in_order(self, scores: Sequence[Scores]) -> list[Scores]:
        """As the method takes them; those of no measure that it needs fill what places are left."""
        if len(self.measures) == 1:
            return list(scores)
        known = {one.measure: one for one in scores if one.measure in self.measures}
        rest = [one for one in scores if known.get(one.measure) is not one]
        return [known.get(need) or rest.pop(0) for need in self.measures if need in known or rest] + rest

    @property
    def forms(self) -> str:
        """Its knobs as options of the command line."""
        return ", ".join(f"--{k.name.replace('_', '-')} {k.form}" for k in self.knobs.values()) or "none"


_ANY = Geometry.preset("LLaVA-1.5-7B")
