"""What is measured of a prefill: the records that ``bench.json`` holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ..geometry import Geometry

STOCK = "stock"
Axis = Literal["visual", "batch"]
SCHEMA_VERSION = 2


class Spread(BaseModel):
    """Milliseconds: the median of the rounds, and their lower and upper quartile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        ordered = sorted(values)
        return cls(median=median(ordered), low=ordered[len(ordered) // 4], high=ordered[-1 - len(ordered) // 4])


class PlanTiming(BaseModel):
    """One plan, or the stock model.

    Attributes:
        ttft_ms: time to first token: the whole first call, with tower, embeddings, decoder and head.
        tower_ms: of the vision tower in it; None where no tower runs.
        prefill_ms: of the decoder's layers in it; the tower and the head are the same under any plan.
        tpot_ms: time per output token: of the decoder's layers, one decode step.
        lower_bound_ms: of the unavoidable matrix products and attention calls of the prefill; None where a plan has no
            fixed shapes.
        cache_mib: keys and values of all layers after the prefill.
        peak_mib: most memory held at once in the first call, above weights and inputs
            (:func:`lookless.bench.timing.peak_mib`).
        prefill_tflops: of the decoder, the whole batch, from the formula; None where a plan filters by its inputs.
        flops_kept, time_kept: of the decoder's prefill, as a share of the stock model's.
        efficiency: share of time saved over share of FLOPs saved; None where no FLOPs are saved.
        times_lower_bound: ``prefill_ms / lower_bound_ms``, the median of the rounds' ratios.
        whole_flops_kept: as ``flops_kept``, in the whole model of which a part was timed; None where not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    ttft_ms: Spread
    tower_ms: Spread | None
    prefill_ms: Spread
    tpot_ms: Spread
    lower_bound_ms: Spread | None
    cache_mib: float
    peak_mib: float
    prefill_tflops: float | None
    flops_kept: float | None
    time_kept: float
    efficiency: float | None
    times_lower_bound: float | None
    whole_flops_kept: float | None = None


class PrefillReport(BaseModel):
    """Stock and plans at one length and batch: what was timed, on what, and how.

    Attributes:
        visual, text: tokens of a prompt, the mean of a batch whose prompts differ.
        data: whose prompts they are; None for a geometry's.
        whole_layers: of the model whose first layers were timed; None where all were.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
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
    timed: tuple[PlanTiming, ...]
    data: str | None = None
    whole_layers: int | None = None

    def of(self, name: str) -> PlanTiming:
        return next(timed for timed in self.timed if timed.name == name)


class BreakEven(BaseModel):
    """From where on a plan is faster than stock.

    Attributes:
        along: what was varied, ``visual`` tokens or ``batch``; ``at`` is the other, which was fixed.
        pays_from: the smallest value timed from which on the plan is faster at every value timed; None if it is not
            faster at the largest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    along: Axis
    at: int
    pays_from: int | None


class PrefillSeries(BaseModel):
    """Reports of one model at one or more lengths and batches, and the break-even points between them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reports: tuple[PrefillReport, ...]
    break_even: tuple[BreakEven, ...]

    @classmethod
    def of(cls, reports: Sequence[PrefillReport]) -> PrefillSeries:
        return cls(reports=tuple(reports), break_even=tuple(_break_even(reports)))


def _break_even(reports: Sequence[PrefillReport]) -> Iterator[BreakEven]:
    """Of every plan along every line of two reports or more."""
    along: Axis
    for along, other in (("visual", "batch"), ("batch", "visual")):  # type: ignore[assignment]
        for at in sorted({getattr(report, other) for report in reports}):
            line = {getattr(report, along): report for report in reports if getattr(report, other) == at}
            for timed in reports[0].timed[1:] if len(line) > 1 else ():
                yield BreakEven(name=timed.name, along=along, at=at, pays_from=_pays_from(timed.name, line))


def _pays_from(name: str, line: Mapping[int, PrefillReport]) -> int | None:
    found = None
    for value in sorted(line, reverse=True):
        if line[value].of(name).time_kept >= 1:
            break
        found = value
    return found
