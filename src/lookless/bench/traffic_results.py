"""What is measured of two servers: the records that ``traffic.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ..geometry import Geometry
from .prefill_results import STOCK

PLAN = "plan"
SCHEMA_VERSION = 2


class ClientMetrics(BaseModel):
    """What the client measured of one server, in one run or as the median of rounds.

    Attributes:
        ttft_ms, ttft_p95_ms: time to first token, from sending a request; the median and the 95th percentile over
            requests.
        tpot_ms: time per output token after the first, median over requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_s: float
    tokens_per_s: float
    ttft_ms: float
    ttft_p95_ms: float
    tpot_ms: float

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> ClientMetrics:
        """From what the client saved."""
        return cls(
            requests_per_s=result["request_throughput"],
            tokens_per_s=result["output_throughput"],
            ttft_ms=result["median_ttft_ms"],
            ttft_p95_ms=result["p95_ttft_ms"],
            tpot_ms=result["median_tpot_ms"],
        )

    @classmethod
    def middle(cls, runs: Sequence[ClientMetrics]) -> ClientMetrics:
        return cls(**{name: median(getattr(run, name) for run in runs) for name in cls.model_fields})


class Ratios(BaseModel):
    """The plan's metrics over stock's, each the median of the rounds' ratios."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: float
    tokens: float
    ttft: float
    ttft_p95: float
    tpot: float

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Ratios:
        def ratio(name: str) -> float:
            each: list[float] = [getattr(r.plan, name) / getattr(r.stock, name) for r in rounds]
            return median(each)

        return cls(
            requests=ratio("requests_per_s"),
            tokens=ratio("tokens_per_s"),
            ttft=ratio("ttft_ms"),
            ttft_p95=ratio("ttft_p95_ms"),
            tpot=ratio("tpot_ms"),
        )


class Round(BaseModel):
    """The same requests, sent to both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: Literal["stock", "plan"]
    stock: ClientMetrics
    plan: ClientMetrics


class Level(BaseModel):
    """The result at one concurrency, the number of requests in flight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int
    stock: ClientMetrics
    plan: ClientMetrics
    ratios: Ratios
    rounds: tuple[Round, ...]

    @classmethod
    def of(cls, concurrency: int, rounds: Sequence[Round]) -> Level:
        stock, plan = (ClientMetrics.middle([getattr(r, name) for r in rounds]) for name in (STOCK, PLAN))
        return cls(concurrency=concurrency, stock=stock, plan=plan, ratios=Ratios.of(rounds), rounds=tuple(rounds))


class TrafficReport(BaseModel):
    """What was sent to both servers, and what the client measured.

    Attributes:
        visual, text: tokens of a prompt, as the servers counted them.
        answer: tokens of each answer.
        requests: of each run of the client.
        options: of vLLM, given to both.
        flops_kept: of the decoder's prefill, as a share of the stock model's, from the formula.
        rows_skipped: of all visual rows of all layers, by operator, as the plan's server counted meanwhile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
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
