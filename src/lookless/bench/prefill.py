"""Do the FLOPs that fall become milliseconds that fall? Stock model and plans, timed in turn in one process.

Absolute times on a shared machine mean little; ratios of things measured in turn do. Two are told that say what a
runtime is worth:

* **realised / promised**: share of the prefill's time saved, by the share of its FLOPs saved;
* **time / floor**: the prefill's time, by that of its unavoidable matrix products and attention calls alone, timed in
  the same rounds (:mod:`lookless.bench.lower_bound`).
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

import torch
import transformers
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import DynamicCache

from .. import flops
from ..configs import shape_named
from ..data import load_data
from ..errors import DataError, ModelError, PlanError
from ..geometry import Geometry
from ..loading import DTYPES, check_device, load_model
from ..plan import Plan
from ..progress import shown
from ..runtime.families import Located, locate
from ..runtime.patching import applied, prompts_of
from ..runtime.prompts import Prompts
from ..version import __version__
from .dummy_model import shaped
from .lower_bound import floor_of
from .timing import Clock, peak_mib, synchronise

STOCK = "stock"
Axis = Literal["visual", "batch"]


class Spread(BaseModel):
    """Milliseconds: the median of the rounds, and the quarter of them below and above."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, each: Sequence[float]) -> Spread:
        ordered = sorted(each)
        return cls(median=median(ordered), low=ordered[len(ordered) // 4], high=ordered[-1 - len(ordered) // 4])


class Timed(BaseModel):
    """One plan, or the stock model.

    Attributes:
        first_token_ms: of the whole model's first call: tower, embeddings, decoder and head.
        tower_ms: of the vision tower in it; None where no tower runs.
        prefill_ms: of the decoder's layers in it; the tower and the head are the same under any plan.
        decode_ms: of the decoder's layers, one token.
        floor_ms: of the unavoidable products and attention calls of the prefill; None where a plan has no fixed shapes.
        cache_mib: keys and values of all layers behind the prefill.
        peak_mib: most memory held at once in the first call, above weights and inputs (:func:`measure.peak_mib`).
        prefill_tflops: of the decoder, the whole batch, from the formula; None where a plan filters by what it sees.
        flops_kept, time_kept: of the decoder's prefill, by the stock model's.
        realised: share of time saved by share of FLOPs saved; None where no FLOPs are saved.
        over_floor: ``prefill_ms / floor_ms``.
        whole_flops_kept: as ``flops_kept``, in the whole model of which a part was timed; None where not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    first_token_ms: Spread
    tower_ms: Spread | None
    prefill_ms: Spread
    decode_ms: Spread
    floor_ms: Spread | None
    cache_mib: float
    peak_mib: float
    prefill_tflops: float | None
    flops_kept: float | None
    time_kept: float
    realised: float | None
    over_floor: float | None
    whole_flops_kept: float | None = None


class Report(BaseModel):
    """What was timed, on what, and how.

    Attributes:
        visual, text: tokens of a prompt, the mean of a batch whose prompts differ.
        data: whose prompts they are; None for a geometry's.
        whole_layers: of the model whose first layers were timed; None where all were.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    geometry: Geometry
    visual: int
    text: int
    batch: int
    dtype: str
    device: str
    machine: str
    threads: int
    attention: str
    repeats: int
    versions: dict[str, str]
    timed: tuple[Timed, ...]
    data: str | None = None
    whole_layers: int | None = None

    def of(self, name: str) -> Timed:
        return next(timed for timed in self.timed if timed.name == name)


class BreakEven(BaseModel):
    """From where on a plan is faster than stock.

    Attributes:
        along: what was varied, ``visual`` tokens or ``batch``; ``at`` is the other, which stood still.
        pays_from: the least value timed from which on the plan is faster at every value timed; None if it is not even
            at the largest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    along: Axis
    at: int
    pays_from: int | None


class Sweep(BaseModel):
    """Reports of one model at one or several lengths and batches, and what they say together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reports: tuple[Report, ...]
    break_even: tuple[BreakEven, ...]

    @classmethod
    def of(cls, reports: Sequence[Report]) -> Sweep:
        return cls(reports=tuple(reports), break_even=tuple(_break_even(reports)))


def _break_even(reports: Sequence[Report]) -> Iterator[BreakEven]:
    """Of every plan along every line of two reports or more."""
    along: Axis
    for along, other in (("visual", "batch"), ("batch", "visual")):  # type: ignore[assignment]
        for at in sorted({getattr(report, other) for report in reports}):
            line = {getattr(report, along): report for report in reports if getattr(report, other) == at}
            for timed in reports[0].timed[1:] if len(line) > 1 else ():
                yield BreakEven(name=timed.name, along=along, at=at, pays_from=_pays_from(timed.name, line))


def _pays_from(name: str, line: Mapping[int, Report]) -> int | None:
    found = None
    for value in sorted(line, reverse=True):
        if line[value].of(name).time_kept >= 1:
            break
        found = value
    return found


@dataclass(frozen=True)
class Whole:
    """The model whose first layers alone are timed, and the plans that are known for all of it, by name."""

    geometry: Geometry
    plans: Mapping[str, Plan]


@torch.no_grad()
def bench(
    model: nn.Module,
    inputs: Mapping[str, Any],
    plans: Mapping[str, Plan],
    *,
    name: str,
    data: str | None = None,
    whole: Whole | None = None,
    repeats: int = 9,
    warm_up: int = 2,
    decode: int = 4,
    progress: bool = True,
) -> Report:
    """Stock and every plan on ``inputs``, one after the other in every round.

    Raises:
        PlanError: nothing in the inputs is visual.
        PlanMismatchError: a plan is for another architecture.
    """
    located = locate(model)
    for plan in plans.values():
        plan.check(located.geometry)
    prompts = prompts_of(located, dict(inputs))
    if prompts is None:
        raise PlanError("the prompt to be timed holds no visual token.")
    runs = {STOCK: _Run(model, None, inputs), **{key: _Run(model, plan, inputs) for key, plan in plans.items()}}
    texts = [len(text) for text in prompts.text]
    are_alike = len({*zip(prompts.counts, texts, strict=True)}) == 1  # a floor is timed at the shapes of one prompt
    for run in runs.values():
        fresh = prompts_of(located, dict(inputs))
        assert fresh is not None
        has_floor = are_alike and (run.plan is None or run.plan.is_static)
        run.floor = floor_of(located, fresh, run.plan) if has_floor else None
    for index in shown(range(warm_up + repeats), f"rounds on {name}", progress):
        for run in runs.values():
            run.round(located, decode, keep=index >= warm_up)
    for run in runs.values():
        run.weigh()
    visual, text = round(fmean(prompts.counts)), round(fmean(texts))
    kept = {} if whole is None else dict(_whole_kept(whole, visual, text))
    parameter = next(model.parameters())
    return Report(
        model=name,
        geometry=located.geometry,
        visual=visual,
        text=text,
        batch=len(prompts.text),
        dtype=str(parameter.dtype).removeprefix("torch."),
        device="cpu" if parameter.device.type == "cpu" else torch.cuda.get_device_name(parameter.device),
        machine=processor(),
        threads=torch.get_num_threads(),
        attention=str(model.config.get_text_config()._attn_implementation),
        repeats=repeats,
        versions={"lookless": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        timed=tuple(
            _timed(key, run, runs[STOCK], located.geometry, prompts, kept.get(key)) for key, run in runs.items()
        ),
        data=data,
        whole_layers=None if whole is None else whole.geometry.layers,
    )


def _whole_kept(whole: Whole, visual: int, text: int) -> Iterator[tuple[str, float]]:
    """Of the stock model and each plan whose price is known, the share of the whole model's prefill FLOPs."""
    dense = flops.prefill(whole.geometry, visual=visual, text=text).total
    yield STOCK, 1.0
    for name, plan in whole.plans.items():
        if plan.is_static:
            yield name, flops.prefill(whole.geometry, visual=visual, text=text, plan=plan.as_run).total / dense


@dataclass(frozen=True)
class Subject:
    """What is timed: a model, and what is put to it.

    Attributes:
        prompts: prompts of each of the lengths to be timed, by how many are in a batch.
        data: whose prompts they are; None for random ones.
    """

    name: str
    model: nn.Module
    geometry: Geometry
    prompts: Callable[[int], Iterable[dict[str, Any]]]
    data: str | None = None


def of_geometry(
    name: str, *, layers: int | None, dtype: str, device: str, visual: Sequence[int] = (576,), text: int = 66
) -> Subject:
    """Real layer shapes with random weights; prompts of each of ``visual`` tokens, and of ``text``.

    Raises:
        GeometryError, ModelError: no such geometry, dtype, device or number of layers, or too little memory.
    """
    shape, chosen = shape_named(name).cut(layers), _dtype(dtype)
    check_device(device)
    made = shaped(shape, dtype=chosen, device=device)

    def prompts(batch: int) -> Iterator[dict[str, Any]]:
        for count in visual:
            yield made.inputs(visual=count, before=text // 2, after=text - text // 2, batch=batch)

    return Subject(cut_name(name, layers), made.model, made.geometry, prompts)


def cut_name(name: str, layers: int | None) -> str:
    """Of a geometry, of which only the first ``layers`` layers may run."""
    return f"{name}, {layers} layers" if layers else name


CHARTS = "reference:chart"
MOST = 64  #: samples of a data file that are looked at


def of_model(name: str, *, dtype: str, device: str, data: str | None = None) -> Subject:
    """A model that is loaded, on images and questions of ``data``, or of a shipped task; lengths are the processor's.

    Of ``data`` the first :data:`MOST` samples that have an image are put in order of their visual tokens, and the
    shortest, the middle and the longest are timed.

    Raises:
        ModelError: it cannot be loaded.
        DataError: there is no such data, or no image in it.
    """
    _dtype(dtype)
    given = load_data(data or CHARTS, split="test", limit=MOST)
    samples = [sample for sample in given if sample.images]
    if not samples:
        raise DataError(f"no sample of {data} has an image, and without one no plan does anything.")
    loaded = load_model(name, dtype=dtype, device=device)
    located = locate(loaded.model)
    counts = [0] * len(samples)
    if data is not None:
        counts = [int(located.visual(loaded.inputs([sample])["input_ids"]).sum()) for sample in samples]
    order = sorted(range(len(samples)), key=counts.__getitem__)

    def prompts(batch: int) -> Iterator[dict[str, Any]]:
        last = max(0, len(order) - batch)
        groups = [[order[(start + i) % len(order)] for i in range(batch)] for start in (0, last // 2, last)]
        lengths = {sum(counts[i] for i in group): group for group in reversed(groups)}  # one of each length
        for length in sorted(lengths):
            yield loaded.inputs([samples[i] for i in lengths[length]])

    return Subject(name, loaded.model, located.geometry, prompts, given.name)


def _dtype(name: str) -> torch.dtype:
    if name == "auto" or name not in DTYPES:
        raise ModelError(f"dtype {name!r} is not one of {', '.join(n for n in DTYPES if n != 'auto')}.")
    found: torch.dtype = DTYPES[name]  # type: ignore[assignment]
    return found


@dataclass(frozen=True)
class _Round:
    """Milliseconds; None of what did not run."""

    first_token: float
    tower: float | None
    prefill: float
    decode: float
    floor: float | None


class _Run:
    """One of the things timed, and its rounds so far."""

    def __init__(self, model: nn.Module, plan: Plan | None, inputs: Mapping[str, Any]) -> None:
        self.model, self.plan, self.inputs = model, plan, inputs
        self.floor: Callable[[], None] | None = None
        self.rounds: list[_Round] = []
        self.cache_mib = self.peak_mib = 0.0

    def round(self, located: Located, decode: int, *, keep: bool) -> None:
        cache = self._cache()
        clocks = whole, tower, layers = Clock(self.model), Clock(located.tower), Clock.of_layers(located.layers)
        try:
            with applied(self.model, self.plan):
                self._first_token(cache)
                first_token, seen = whole.ms, sum(tower.each_ms) if tower.each_ms else None
                for _ in range(decode):
                    self.model(input_ids=self.inputs["input_ids"][:, -1:], past_key_values=cache, logits_to_keep=1)
        finally:
            for clock in clocks:
                clock.remove()
        prefill, *steps = layers.each_ms
        floor = None if self.floor is None else _ms(self.floor)
        if keep:
            self.rounds.append(_Round(first_token, seen, prefill, median(steps) if steps else 0.0, floor))

    def weigh(self) -> None:
        """Measure memory, apart from any time: to count is to slow down."""
        cache = self._cache()
        with applied(self.model, self.plan):
            self.peak_mib = peak_mib(lambda: self._first_token(cache), next(self.model.parameters()).device)
        self.cache_mib = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / 2**20

    def each(self, what: str) -> list[float]:
        """Of every round; empty if it did not run."""
        return [ms for one in self.rounds if (ms := getattr(one, what)) is not None]

    def spread(self, what: str) -> Spread | None:
        each = self.each(what)
        return Spread.of(each) if each else None

    def ratio(self, others: Sequence[float]) -> float:
        """Of the prefill by ``others``, round by round: what slows one round slows all that is in it."""
        return median(mine / other for mine, other in zip(self.each("prefill"), others, strict=True))

    def _first_token(self, cache: Any) -> None:
        self.model(**self.inputs, past_key_values=cache, logits_to_keep=1)

    def _cache(self) -> Any:
        return DynamicCache(config=self.model.config.get_text_config())


def _ms(call: Callable[[], None]) -> float:
    synchronise()
    started = time.perf_counter()
    call()
    synchronise()
    return (time.perf_counter() - started) * 1e3


def _timed(name: str, run: _Run, stock: _Run, geometry: Geometry, prompts: Prompts, whole_kept: float | None) -> Timed:
    plan = Plan.full(geometry) if run.plan is None else run.plan
    planned = _flops(geometry, prompts, plan.as_run) if plan.is_static else None
    kept = None if planned is None else planned / _flops(geometry, prompts)
    time_kept, floors = run.ratio(stock.each("prefill")), run.each("floor")
    return Timed(
        name=name,
        first_token_ms=Spread.of(run.each("first_token")),
        tower_ms=run.spread("tower"),
        prefill_ms=Spread.of(run.each("prefill")),
        decode_ms=Spread.of(run.each("decode")),
        floor_ms=run.spread("floor"),
        cache_mib=run.cache_mib,
        peak_mib=run.peak_mib,
        prefill_tflops=None if planned is None else planned / 1e12,
        flops_kept=kept,
        time_kept=time_kept,
        realised=(1 - time_kept) / (1 - kept) if kept is not None and kept < 1 else None,
        over_floor=run.ratio(floors) if floors else None,
        whole_flops_kept=whole_kept,
    )


def _flops(geometry: Geometry, prompts: Prompts, plan: Plan | None = None) -> float:
    """Of all prompts together, from the formula."""
    each = zip(prompts.counts, prompts.text, strict=True)
    return sum(flops.prefill(geometry, visual=visual, text=len(text), plan=plan).total for visual, text in each)


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as told:
            names = [line.split(":", 1)[1].strip() for line in told if line.startswith("model name")]
            return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
