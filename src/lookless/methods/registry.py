"""The table of methods: one line each, and whatever other packages add.

A package adds a method with an entry point of the group ``lookless.methods`` that names a :class:`Method`::

    [project.entry-points."lookless.methods"]
    squint = "mine.squint:METHOD"
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..errors import PlanError, first_line
from ..geometry import PRESETS, Geometry
from ..plan import Plan
from ..scores import Scores
from .alvts import alvts
from .dash import dash
from .divprune import divprune
from .dop import dop
from .fastv import fastv
from .ffn_skip import ffn_skip
from .gsop import gsop
from .halfv import halfv
from .halfv_llava import halfv_llava
from .knobs import Knob, check_measures, knobs_of, name_of, told
from .logit_cosine import logit_cosine
from .operator_skipping import operator_skipping
from .published import PUBLISHED, Setting
from .pyramiddrop import pyramiddrop
from .random_layers import random_layers
from .random_tokens import random_tokens
from .redundancylens import redundancylens
from .shortv import shortv
from .sparsevlm import sparsevlm
from .st3 import st3
from .state_cosine import state_cosine
from .v2drop import v2drop
from .v_skip import v_skip
from .v_skip_universal import v_skip_universal
from .vica import vica
from .visionzip import visionzip
from .visipruner import visipruner
from .vispruner import vispruner
from .vtw import vtw
from .vtw_search import vtw_search

GROUP = "lookless.methods"
SEARCH = "search"


@dataclass(frozen=True, eq=False)
class Method:
    """A published method.

    Attributes:
        make: the pure function, from scores if it needs some, else from a geometry, to a plan. Its keyword-only
            arguments are the knobs (:mod:`lookless.methods.knobs`).
        paper: arXiv id.
        title: of the paper, or the part of it that tells.
        needs: the measures whose scores ``make`` takes, in order; ``search`` if a knob is found by search.
        of: layers of the model that the paper's knobs are for.
        at: the paper's knobs, where they are not the defaults of ``make``.
        such_as: values of knobs that only a search finds, to show what a plan looks like. No paper's.
        ours: knobs whose defaults are not the paper's either: no paper has them, or it does not print what it took.
        published: settings for single models, the first of a model before others of it; any other model has the knobs
            at the same relative depth.
    """

    make: Callable[..., Plan]
    paper: str
    title: str
    needs: tuple[str, ...] = ()
    of: int = 32
    at: Mapping[str, Any] = field(default_factory=dict)
    such_as: Mapping[str, Any] = field(default_factory=dict)
    ours: tuple[str, ...] = ()
    published: tuple[Setting, ...] = ()

    @property
    def name(self) -> str:
        return name_of(self.make)

    @property
    def idea(self) -> str:
        """The first line of the function's docstring."""
        return (self.make.__doc__ or "").strip().split("\n")[0]

    @property
    def measures(self) -> tuple[str, ...]:
        """What has to be measured; a search is not a measure."""
        return tuple(need for need in self.needs if need != SEARCH)

    @cached_property
    def knobs(self) -> dict[str, Knob]:
        return knobs_of(self.make)

    @property
    def takes_many(self) -> bool:
        """Whether it takes any number of scores."""
        parameters = inspect.signature(self.make).parameters.values()
        return any(p.kind is p.VAR_POSITIONAL for p in parameters)

    def at_paper(self, geometry: Geometry, scores: Mapping[str, Scores] | Sequence[Scores] = (), **knobs: Any) -> Plan:
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
        """The knobs that have a value, for :attr:`of` layers."""
        return {k.name: k.default for k in self.knobs.values() if not k.is_required} | dict(self.at)

    @property
    def _printed(self) -> list[str]:
        """The knobs whose defaults are the paper's."""
        return [name for name in self._defaults if name not in self.ours]

    def _published(self, geometry: Geometry) -> Setting | None:
        return next((one for one in self.published if PRESETS[one.model] == geometry), None)

    def _paper_knobs(self, geometry: Geometry) -> dict[str, Any]:
        here = self._published(geometry)
        scaled = {n: self.knobs[n].scaled(value, geometry.layers, self.of) for n, value in self._defaults.items()}
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
            elif self.knobs[name].scaling is not None and geometry.layers != self.of:
                why = f"scaled to {geometry.layers} layers from {told(was)} of {self.of}"
            else:
                why = "as in the paper" if name in self._printed else "by default"
            if value is not None:
                reasons.setdefault(why, []).append(f"{name.replace('_', '-')} {told(value)}")
        return "; ".join(f"{', '.join(knobs)}: {why}" for why, knobs in reasons.items()) + "."

    def sample(self, geometry: Geometry, **knobs: Any) -> Plan:
        """A plan to look at, from scores that are all alike."""
        found = {name: self.knobs[name].scaled(v, geometry.layers, self.of) for name, v in self.such_as.items()}
        return self.at_paper(geometry, self.alike(geometry), **{**found, **knobs})

    def alike(self, geometry: Geometry) -> dict[str, Scores]:
        """Scores that tell no layer from another: where only counts matter, they give a plan of the right price."""
        blank = ((0.0,) * geometry.layers,)
        return {need: Scores(name=need, per_sample=blank, geometry=geometry) for need in self.measures}

    @property
    def is_prefix_cache_safe(self) -> bool:
        """Of its plans at the paper's setting, as :attr:`Plan.is_prefix_cache_safe` tells it."""
        return self.sample(_ANY).is_prefix_cache_safe

    @property
    def is_priced_by_counts(self) -> bool:
        """Whether its price is known without scores: it needs none, or only asks in how many layers."""
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
            raise PlanError(f"{self.name}: {problem}") from None
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
_VIG, _FFN, _LC = ("visual_information_gain",), ("ffn_effect",), ("layer_contribution",)
_RISKS = ("visual_information_gain", "ffn_effect", "freeze_effect")
_19 = {"layers": 19}

#: name -> method; those of this package
METHODS: dict[str, Method] = {
    m.name: replace(m, published=PUBLISHED.get(m.name, ()))
    for m in (
        Method(v_skip, "2606.08511", "Look Less, Reason More (V-Skip)", _VIG, at=_19),
        Method(v_skip_universal, "2606.08511", "V-Skip*, one mask for all tasks", _VIG, at=_19, ours=("by",)),
        Method(ffn_skip, "2606.08511", "FFN-Skip, V-Skip's ablation", _FFN, at=_19),
        Method(logit_cosine, "2606.08511", "CosSim, a selection baseline of V-Skip", ("logit_cosine",), at=_19),
        Method(random_layers, "2606.08511", "Random, a selection baseline of V-Skip", at=_19, ours=("seed",)),
        Method(shortv, "2504.00502", "ShortV: freezing visual tokens in ineffective layers", _LC, at=_19),
        Method(state_cosine, "2504.00502", "Cosine, a selection baseline of ShortV", ("state_cosine",), at=_19),
        Method(
            operator_skipping,
            "2606.31903",
            "Attend, Transform, or Silence",
            _RISKS,
            of=36,
            at={"save": 0.337},
            ours=("visual", "text"),
        ),
        Method(
            redundancylens,
            "2501.19036",
            "RedundancyLens",
            ("window_effect", "neuron_effect"),
            ours=("attention_layers", "ffn_layers", "probe"),
        ),
        Method(vtw, "2405.05803", "Visual Tokens Withdrawal"),
        Method(vtw_search, "2405.05803", "Visual Tokens Withdrawal, its search", ("withdrawal",)),
        Method(fastv, "2403.06764", "An Image is Worth 1/2 Tokens After Layer 2"),
        Method(random_tokens, "2512.07580", "Random tokens, FastV's control"),
        Method(pyramiddrop, "2410.17247", "PyramidDrop"),
        Method(sparsevlm, "2410.04417", "SparseVLM"),
        Method(st3, "2412.20105", "ST3: spatial-temporal visual token trimming", ours=("start", "stride", "keep")),
        Method(v2drop, "2509.01552", "Variation-aware Vision Token Dropping", of=28),
        Method(visionzip, "2412.04467", "VisionZip"),
        Method(divprune, "2503.02175", "DivPrune"),
        Method(vispruner, "2412.01818", "Beyond Text-Visual Attention (VisPruner)", ours=("keep",)),
        Method(visipruner, "2510.17205", "VisiPruner"),
        Method(halfv, "2604.16462", "HalfV, on Qwen2.5-VL", of=28),
        Method(halfv_llava, "2604.16462", "HalfV, on LLaVA"),
        Method(alvts, "2606.14277", "ALVTS, like it"),
        Method(dash, "2604.18103", "DASH", ours=("ratio",)),
        Method(vica, "2602.07574", "ViCA, untrained"),
        Method(
            dop,
            "2507.02909",
            "DOP (v2)",
            (SEARCH,),
            such_as={"attention": 16, "ffn": 24, "keep": 0.5},
            ours=("keep", "rank"),
        ),
        Method(
            gsop,
            "2507.02909",
            "GSOP (v1)",
            (SEARCH,),
            such_as={"order": (("ffn", 1), ("attention", 1))},
            ours=("steps",),
        ),
    )
}


class PluginWarning(UserWarning):
    """A method of another package that cannot be used."""


def all_methods() -> dict[str, Method]:
    """:data:`METHODS` and those of installed packages, which are imported now and not before.

    Warns:
        PluginWarning: an entry point does not load, is no :class:`Method`, or has a name that is taken; it is left out.
    """
    found, broken = _installed()
    for problem in broken.values():
        warnings.warn(problem, PluginWarning, stacklevel=2)
    return found


def find(name: str) -> Method:
    """Other packages are imported only for a name that is not of this one.

    Raises:
        PlanError: no method is called so, and the message lists them; or it is another package's, and cannot be used.
    """
    if name in METHODS:
        return METHODS[name]
    found, broken = _installed()
    if name in broken:
        raise PlanError(broken[name])
    if name not in found:
        raise PlanError(f"no method {name!r}; choose one of {', '.join(found)}.")
    return found[name]


def _installed() -> tuple[dict[str, Method], dict[str, str]]:
    """All methods by name; and by its entry point's name, what is wrong with each that cannot be used."""
    found, broken = dict(METHODS), {}
    for point in entry_points(group=GROUP):
        try:
            method = _loaded(point, found)
        except PlanError as problem:
            broken[point.name] = str(problem)
        else:
            found[method.name] = method
    return found, broken


def _loaded(point: EntryPoint, others: Container[str]) -> Method:
    """Raises: PlanError: it cannot be used."""
    where = f"the entry point {point.name!r} of {GROUP} ({point.value})"
    try:
        method = point.load()
        if isinstance(method, Method):
            method.is_prefix_cache_safe  # noqa: B018  # which makes a plan: a method that cannot is none
    except (Exception, SystemExit) as problem:  # whatever a stranger's module raises
        told = f"{type(problem).__name__}: {first_line(problem)}"
        raise PlanError(f"{where} cannot be used ({told}): mend or uninstall it.") from None
    if not isinstance(method, Method):
        raise PlanError(f"{where} is a {type(method).__name__} and should be a lookless.methods.Method.")
    if method.name in others:
        raise PlanError(f"{where} adds a method {method.name!r}, and there is one of that name: rename it.")
    return method
