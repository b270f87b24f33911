"""What is measured of two servers: the records that ``traffic.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ..geometry import Geometry
from .prefill_results import STOCK

PLAN = "plan"


class Load(BaseModel):
    """What the client measured of one server, in one run or as the median of rounds.

    Attributes:
        first_token_ms: median over requests, from sending to the first token; 95 of 100 stay below ``_p95_ms``.
        token_ms: median over requests of the time of each further token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_s: float
    tokens_per_s: float
    first_token_ms: float
    first_token_p95_ms: float
    token_ms: float

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Load:
        """From what the client saved."""
        return cls(
            requests_per_s=result["request_throughput"],
            tokens_per_s=result["output_throughput"],
            first_token_ms=result["median_ttft_ms"],
            first_token_p95_ms=result["p95_ttft_ms"],
            token_ms=result["median_tpot_ms"],
        )

    @classmethod
    def middle(cls, loads: Sequence[Load]) -> Load:
        return cls(**{name: median(getattr(load, name) for load in loads) for name in cls.model_fields})


class Ratios(BaseModel):
    """The plan's by stock's, each the median of the rounds' own ratios."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: float
    tokens: float
    first_token: float
    first_token_p95: float
    token: float

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Ratios:
        def ratio(name: str) -> float:
            each: list[float] = [getattr(r.plan, name) / getattr(r.stock, name) for r in rounds]
            return median(each)

        return cls(
            requests=ratio("requests_per_s"),
            tokens=ratio("tokens_per_s"),
            first_token=ratio("first_token_ms"),
            first_token_p95=ratio("first_token_p95_ms"),
            token=ratio("token_ms"),
        )


class Round(BaseModel):
    """The same requests, sent to both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: Literal["stock", "plan"]
    stock: Load
    plan: Load


class Level(BaseModel):
    """So many requests at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int
    stock: Load
    plan: Load
    ratios: Ratios
    rounds: tuple[Round, ...]

    @classmethod
    def of(cls, concurrency: int, rounds: Sequence[Round]) -> Level:
        stock, plan = (Load.middle([getattr(r, name) for r in rounds]) for name in (STOCK, PLAN))
        return cls(concurrency=concurrency, stock=stock, plan=plan, ratios=Ratios.of(rounds), rounds=tuple(rounds))


class TrafficReport(BaseModel):
    """What was asked of which servers, and what it took them.

    Attributes:
        visual, text: tokens of a prompt, as the servers counted them.
        answer: tokens of each answer.
        requests: of each run of the client.
        options: of vLLM, given to both.
        flops_kept: of the decoder's prefill, by the stock model's, from the formula.
        rows_skipped: of all visual rows of all layers, by operator, as the plan's server counted while it was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    plan: str
    geometry: Geometry
    visual: int
    text: int
    answer: int
    requests: int
    dtype: str
    device: str
    cores: int
    options: tuple[str, ...]
    versions: dict[str, str]
    flops_kept: float
    rows_skipped: dict[str, float]
    levels: tuple[Level, ...]
