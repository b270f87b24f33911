"""Do saved FLOPs become saved milliseconds? The stock model and plans, timed in turn in one process.

Absolute times on a shared machine mean little; ratios of things timed in turn do. Two ratios say what a runtime is
worth:

* **efficiency**: the share of the prefill's time saved, over the share of its FLOPs saved;
* **x lower bound**: the prefill's time over that of its unavoidable matrix products and attention calls, timed in the
  same rounds (:mod:`lookless.bench.lower_bound`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import torch
import transformers
from torch import nn
from transformers import DynamicCache

from .. import flops
from ..errors import PlanError
from ..geometry import Geometry
from ..machine import processor
from ..plan import Plan
from ..progress import track
from ..runtime.cache import bytes_of
from ..runtime.families import Located, locate
from ..runtime.patching import reapplied
from ..runtime.prompts import Prompts, prompts_of
from ..version import __version__
from .lower_bound import lower_bound_of
from .prefill_results import STOCK, PlanTiming, PrefillReport, Spread
from .timing import Clock, peak_mib, synchronise

KEPT = 1  #: rows whose logits the timed prefill returns, as that of ``generate``


@dataclass(frozen=True)
class Whole:
    """The model of which only the first layers are timed, and the plans known for all of it, by name."""

    geometry: Geometry
    plans: Mapping[str, Plan]


@torch.no_grad()
def bench_prefill(
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
) -> PrefillReport:
    """Time stock and every plan on ``inputs``, one after the other in every round.

    Args:
        model: without a plan on it.
        inputs: the arguments of one call; its prompts hold visual tokens.
        plans: by name.
        name, data: of the model and of its prompts, for the report.
        whole: where ``model`` is the first layers of a larger one.
        repeats: rounds that are recorded.
        warm_up: rounds before them that are not.
        decode: decode steps per round.
        progress: show a bar on standard error.

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
    runs = {key: _run(located, model, plan, inputs, prompts) for key, plan in {STOCK: None, **plans}.items()}
    for index in track(range(warm_up + repeats), f"rounds on {name}", progress):
        for run in runs.values():
            run.run_round(located, decode, record=index >= warm_up)
    for run in runs.values():
        run.measure_memory()
    visual, text = round(fmean(prompts.counts)), round(fmean(map(len, prompts.text)))
    kept = {} if whole is None else dict(_whole_kept(whole, visual, text))
    timed = (_timing(key, run, runs[STOCK], located.geometry, prompts, kept.get(key)) for key, run in runs.items())
    return PrefillReport(
        model=name,
        geometry=located.geometry,
        visual=visual,
        text=text,
        batch=len(prompts.text),
        repeats=repeats,
        timed=tuple(timed),
        data=data,
        whole_layers=None if whole is None else whole.geometry.layers,
        **_conditions(model),
    )


def _conditions(model: nn.Module) -> dict[str, Any]:
    """On what a report was made."""
    parameter = next(model.parameters())
    return {
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": "cpu" if parameter.device.type == "cpu" else torch.cuda.get_device_name(parameter.device),
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "attention": str(model.config.get_text_config()._attn_implementation),  # type: ignore[operator, union-attr]
        "versions": {"lookless": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _whole_kept(whole: Whole, visual: int, text: int) -> Iterator[tuple[str, float]]:
    """Of stock and each plan whose FLOPs are known, the share of the whole model's prefill FLOPs."""
    full = flops.prefill(whole.geometry, visual=visual, text=text).total
    yield STOCK, 1.0
    for name, plan in whole.plans.items():
        if plan.is_static:
            yield name, flops.prefill(whole.geometry, visual=visual, text=text, plan=plan, kept=KEPT).total / full


@dataclass(frozen=True)
class _Round:
    """Milliseconds; None for what did not run."""

    ttft: float
    tower: float | None
    prefill: float
    tpot: float
    lower_bound: float | None


@dataclass
class _Run:
    """Stock (``plan`` None) or a plan, and its rounds so far.

    Attributes:
        put: puts the plan in force.
        lower_bound: runs the unavoidable work of one prefill; None where its shapes are not known.
    """

    model: Any
    plan: Plan | None
    put: Callable[[], AbstractContextManager[Any]]
    inputs: Mapping[str, Any]
    lower_bound: Callable[[], None] | None
    rounds: list[_Round] = field(default_factory=list)
    cache_mib: float = 0.0
    peak_mib: float = 0.0

    def run_round(self, located: Located, decode: int, *, record: bool) -> None:
        """A prefill, ``decode`` decode steps and the lower bound, all timed."""
        cache = self._cache()
        clocks = call, tower, layers = Clock(self.model), Clock(located.tower), Clock.of_layers(located.layers)
        try:
            with self.put():
                self._first_token(cache)
                ttft, tower_ms = call.ms, sum(tower.values_ms) if tower.values_ms else None
                for _ in range(decode):
                    self.model(input_ids=self.inputs["input_ids"][:, -1:], past_key_values=cache, logits_to_keep=1)
        finally:
            for clock in clocks:
                clock.remove()
        prefill, *steps = layers.values_ms
        lower_bound = None if self.lower_bound is None else ms_of(self.lower_bound)
        if record:
            self.rounds.append(_Round(ttft, tower_ms, prefill, median(steps) if steps else 0.0, lower_bound))

    def measure_memory(self) -> None:
        """In a call of its own, as counting slows it down."""
        cache = self._cache()
        with self.put():
            self.peak_mib = peak_mib(lambda: self._first_token(cache), next(self.model.parameters()).device)
        self.cache_mib = bytes_of(cache) / 2**20

    def values(self, what: str) -> list[float]:
        """A field of every round; empty if it did not run."""
        return [ms for one in self.rounds if (ms := getattr(one, what)) is not None]

    def spread(self, what: str) -> Spread | None:
        values = self.values(what)
        return Spread.of(values) if values else None

    def ratio(self, others: Sequence[float]) -> float:
        """Prefill over ``others``, the median of the rounds' ratios: what slows a round slows all that is in it."""
        return median(mine / other for mine, other in zip(self.values("prefill"), others, strict=True))

    def _first_token(self, cache: Any) -> None:
        self.model(**self.inputs, past_key_values=cache, logits_to_keep=KEPT)

    def _cache(self) -> Any:
        return DynamicCache(config=self.model.config.get_text_config())


def _run(located: Located, model: nn.Module, plan: Plan | None, inputs: Mapping[str, Any], prompts: Prompts) -> _Run:
    """A run with its lower bound, which has the shapes of one prompt: none where prompts differ, or a plan filters."""
    put = reapplied(model, plan)
    are_alike = len({*zip(prompts.counts, map(len, prompts.text), strict=True)}) == 1
    if not are_alike or (plan is not None and not plan.is_static):
        return _Run(model, plan, put, inputs, None)
    fresh = prompts_of(located, dict(inputs))
    assert fresh is not None
    fresh.read_only(KEPT)
    return _Run(model, plan, put, inputs, lower_bound_of(located, fresh, plan))


def ms_of(call: Callable[[], object]) -> float:
    """Milliseconds that ``call`` takes, its work on a device included."""
    synchronise()
    started = time.perf_counter()
    call()
    synchronise()
    return (time.perf_counter() - started) * 1e3


def _timing(
    name: str, run: _Run, stock: _Run, geometry: Geometry, prompts: Prompts, whole_kept: float | None
) -> PlanTiming:
    plan = Plan.full(geometry) if run.plan is None else run.plan
    planned = _flops(geometry, prompts, plan) if plan.is_static else None
    kept = None if planned is None else planned / _flops(geometry, prompts, Plan.full(geometry))
    time_kept, lower_bounds = run.ratio(stock.values("prefill")), run.values("lower_bound")
    return PlanTiming(
        name=name,
        ttft_ms=Spread.of(run.values("ttft")),
        tower_ms=run.spread("tower"),
        prefill_ms=Spread.of(run.values("prefill")),
        tpot_ms=Spread.of(run.values("tpot")),
        lower_bound_ms=run.spread("lower_bound"),
        cache_mib=run.cache_mib,
        peak_mib=run.peak_mib,
        prefill_tflops=None if planned is None else planned / 1e12,
        flops_kept=kept,
        time_kept=time_kept,
        efficiency=(1 - time_kept) / (1 - kept) if kept is not None and kept < 1 else None,
        times_lower_bound=run.ratio(lower_bounds) if lower_bounds else None,
        whole_flops_kept=whole_kept,
    )


def _flops(geometry: Geometry, prompts: Prompts, plan: Plan) -> float:
    """Of all prompts together, from the formula."""
    each = zip(prompts.counts, map(len, prompts.text), strict=True)
    return sum(flops.prefill(geometry, visual=v, text=t, plan=plan, kept=KEPT).total for v, t in each)
