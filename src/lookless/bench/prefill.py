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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
import transformers
from torch import nn
from transformers import DynamicCache

from .. import flops
from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from ..progress import shown
from ..runtime.families import Located, locate
from ..runtime.patching import applied
from ..runtime.prompts import Prompts, prompts_of
from ..version import __version__
from .lower_bound import floor_of
from .prefill_results import STOCK, Report, Spread, Timed
from .timing import Clock, peak_mib, synchronise


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
