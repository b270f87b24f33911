"""Do the FLOPs that fall become milliseconds that fall? Stock model and plans, timed in turn in one process.

Absolute times on a shared machine mean little; ratios of things measured in turn do. Two are told that say what a
runtime is worth:

* **realised / promised**: share of the prefill's time saved, by the share of its FLOPs saved;
* **time / floor**: the prefill's time, by that of its unavoidable matrix products and attention calls alone, timed in
  the same rounds (:mod:`lookless.floor`).
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import transformers
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import DynamicCache

from . import flops
from .data import load_data
from .errors import ModelError, PlanError
from .floor import floor_of
from .geometry import Geometry
from .loading import DTYPES, load_model
from .measure import Clock, synchronise
from .models import locate
from .plan import Plan
from .progress import shown
from .runtime import applied, prompts_of
from .shapes import shaped
from .version import __version__

STOCK = "stock"


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
        prefill_ms: of the decoder; the vision tower and the head are the same under any plan.
        decode_ms: of the decoder, one token.
        floor_ms: of the unavoidable products and attention calls of the prefill; None where a plan has no fixed shapes.
        cache_mib: keys and values of all layers behind the prefill.
        flops_kept, time_kept: by the stock model's; FLOPs None where a plan filters by what it sees.
        peak_mib: most memory held at once, on a GPU.
        realised: share of time saved by share of FLOPs saved; None where no FLOPs are saved.
        over_floor: ``prefill_ms / floor_ms``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    prefill_ms: Spread
    decode_ms: Spread
    floor_ms: Spread | None
    cache_mib: float
    peak_mib: float | None
    flops_kept: float | None
    time_kept: float
    realised: float | None
    over_floor: float | None


class Report(BaseModel):
    """What was timed, on what, and how."""

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


class Sweep(BaseModel):
    """Reports of one model at several lengths, shortest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reports: tuple[Report, ...]

    @property
    def break_even(self) -> dict[str, int | None]:
        """Of each plan, the visual tokens from which on it is faster than stock at every length timed; None if
        never."""
        found: dict[str, int | None] = {}
        for timed in self.reports[0].timed[1:]:
            paying = None
            for report in reversed(self.reports):
                if next(t for t in report.timed if t.name == timed.name).time_kept >= 1:
                    break
                paying = report.visual
            found[timed.name] = paying
        return found


@torch.no_grad()
def bench(
    model: nn.Module,
    inputs: Mapping[str, Any],
    plans: Mapping[str, Plan],
    *,
    name: str,
    repeats: int = 9,
    warm_up: int = 2,
    decode: int = 4,
    progress: bool = True,
) -> Report:
    """Stock and every plan on ``inputs``, one after the other in every round.

    Raises:
        PlanError: nothing in the inputs is visual.
    """
    located = locate(model)
    prompts = prompts_of(located, dict(inputs))
    if prompts is None:
        raise PlanError("the prompt to be timed holds no visual token.")
    runs = {STOCK: _Run(model, None, inputs), **{key: _Run(model, plan, inputs) for key, plan in plans.items()}}
    for key, run in runs.items():
        fresh = prompts_of(located, dict(inputs))
        assert fresh is not None
        plan = plans.get(key)
        run.floor = floor_of(located, fresh, plan) if plan is None or plan.is_static else None
    for index in shown(range(warm_up + repeats), f"rounds on {name}", progress):
        for run in runs.values():
            run.round(located.layers, decode, keep=index >= warm_up)
    visual, text = prompts.counts[0], len(prompts.text[0])
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
        timed=tuple(_timed(key, run, runs[STOCK], located.geometry, visual, text) for key, run in runs.items()),
    )


@dataclass(frozen=True)
class Subject:
    """What is timed: a model, and how prompts for it are made."""

    name: str
    model: nn.Module
    geometry: Geometry
    inputs: Callable[..., dict[str, Any]]


def of_geometry(name: str, *, layers: int | None, dtype: str, device: str) -> Subject:
    """Real layer shapes with random weights.

    Raises:
        GeometryError, ModelError: no such geometry, dtype or number of layers.
    """
    made = shaped(Geometry.preset(name), layers=layers, dtype=_dtype(dtype), device=device)

    def inputs(*, visual: int, text: int, batch: int) -> dict[str, Any]:
        return made.inputs(visual=visual, before=text // 2, after=text - text // 2, batch=batch)

    return Subject(f"{name}{f', {layers} layers' if layers else ''}", made.model, made.geometry, inputs)


def of_model(name: str, *, dtype: str, device: str) -> Subject:
    """A model that is loaded, on images and questions of the shipped tasks; lengths are the processor's.

    Raises:
        ModelError: it cannot be loaded.
    """
    _dtype(dtype)
    loaded = load_model(name, dtype=dtype, device=device)
    samples = load_data("reference:chart", split="test", limit=64).items

    def inputs(*, visual: int, text: int, batch: int) -> dict[str, Any]:
        return loaded.inputs([samples[i % len(samples)] for i in range(batch)])

    return Subject(name, loaded.model, locate(loaded.model).geometry, inputs)


def _dtype(name: str) -> torch.dtype:
    if name == "auto" or name not in DTYPES:
        raise ModelError(f"dtype {name!r} is not one of {', '.join(n for n in DTYPES if n != 'auto')}.")
    found: torch.dtype = DTYPES[name]  # type: ignore[assignment]
    return found


class _Run:
    """One of the things timed, and its times so far."""

    def __init__(self, model: nn.Module, plan: Plan | None, inputs: Mapping[str, Any]) -> None:
        self.model, self.plan, self.inputs = model, plan, inputs
        self.floor: Callable[[], None] | None = None
        self.prefill: list[float] = []
        self.decode: list[float] = []
        self.floors: list[float] = []
        self.cache_mib, self.peak_mib = 0.0, None

    def round(self, layers: nn.ModuleList, decode: int, *, keep: bool) -> None:
        cache = DynamicCache(config=self.model.config.get_text_config())
        clock = Clock(layers)
        peak = torch.cuda.is_available() and next(self.model.parameters()).is_cuda
        if peak:
            torch.cuda.reset_peak_memory_stats()
        try:
            with applied(self.model, self.plan):
                self.model(**self.inputs, past_key_values=cache, logits_to_keep=1)
                prefill, steps = clock.ms, []
                self.cache_mib = sum((x.keys.nbytes + x.values.nbytes) for x in cache.layers) / 2**20
                ids = self.inputs["input_ids"]
                for _ in range(decode):
                    self.model(input_ids=ids[:, -1:], past_key_values=cache, logits_to_keep=1)
                    steps.append(clock.ms)
        finally:
            clock.remove()
        self.peak_mib = torch.cuda.max_memory_allocated() / 2**20 if peak else None
        floor = 0.0
        if self.floor is not None:
            synchronise()
            started = time.perf_counter()
            self.floor()
            synchronise()
            floor = (time.perf_counter() - started) * 1e3
        if keep:
            self.prefill.append(prefill)
            self.decode.append(median(steps) if steps else 0.0)
            self.floors.append(floor)


def _timed(name: str, run: _Run, stock: _Run, geometry: Geometry, visual: int, text: int) -> Timed:
    dense = flops.prefill(geometry, visual=visual, text=text).total
    plan = run.plan if run.plan is None or run.plan.is_full or not run.plan.is_static else run.plan.live()
    kept = None
    if plan is None or plan.is_static:
        kept = flops.prefill(geometry, visual=visual, text=text, plan=plan).total / dense
    # Round by round: what slows one round slows all that is in it.
    shares = [mine / theirs for mine, theirs in zip(run.prefill, stock.prefill, strict=True)]
    over = [mine / floor for mine, floor in zip(run.prefill, run.floors, strict=True) if floor]
    time_kept = median(shares)
    return Timed(
        name=name,
        prefill_ms=Spread.of(run.prefill),
        decode_ms=Spread.of(run.decode),
        floor_ms=Spread.of(run.floors) if over else None,
        cache_mib=run.cache_mib,
        peak_mib=run.peak_mib,
        flops_kept=kept,
        time_kept=time_kept,
        realised=(1 - time_kept) / (1 - kept) if kept is not None and kept < 1 else None,
        over_floor=median(over) if over else None,
    )


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as told:
            names = [line.split(":", 1)[1].strip() for line in told if line.startswith("model name")]
            return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
