"""What is measured of a prefill: the records that ``bench.json`` holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ..geometry import Geometry

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
