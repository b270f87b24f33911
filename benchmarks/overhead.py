"""What does a planned layer cost besides its work? Small layers, where Python and small kernels show most.

A layer takes longer than its matrix products and attention calls alone: norms, rotary embedding, residuals, gathers,
Python. A plan's overhead is what its layers take beyond their products, more than stock layers take beyond theirs, as a
share of the stock layers' time. ``python benchmarks/overhead.py`` prints a Markdown table: half an hour on two cores
that do nothing else; ``--widths 192 --rows 150`` takes a minute.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from statistics import median
from typing import Any

LAYERS, BEFORE, AFTER = 6, 16, 32
#: name -> environment of a process, so that no library uses newer instructions than a smaller CPU has
CPUS = {
    "this CPU": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
PLANS = {"attention": ("attention",), "FFN": ("ffn",), "both": ("attention", "ffn")}
KEPT = 1  # rows whose logits are returned
IN_A_ROW = 3  # passes of one kind, of which the first warms up


def shares(width: int, rows: int, batch: int, dtype: str, rounds: int) -> tuple[float, dict[str, tuple[float, float]]]:
    """Milliseconds of a stock layer; and of each plan its time by stock's, and its overhead by stock's time."""
    import torch

    from lookless import Geometry, Plan, Skip
    from lookless.bench.dummy_model import make_dummy_model
    from lookless.bench.lower_bound import lower_bound_of
    from lookless.configs import Shape
    from lookless.runtime.families import locate
    from lookless.runtime.patching import KEPT as KEYWORD
    from lookless.runtime.patching import reapplied
    from lookless.runtime.prompts import prompts_of

    sizes = {"hidden": width, "intermediate": 4 * width, "heads": width // 64, "kv_heads": max(1, width // 128)}
    geometry = Geometry(model_type="llama", layers=LAYERS, head_dim=64, **sizes)
    made = make_dummy_model(Shape(geometry, "llama"), dtype=getattr(torch, dtype))
    inputs = made.inputs(visual=rows - BEFORE - AFTER, before=BEFORE, after=AFTER, batch=batch)
    inner, located = made.model.model, locate(made.model)
    full, skipped = Plan.full(made.geometry), range(LAYERS - 1)
    plans: dict[str, Plan | None] = {"stock": None}
    plans |= {name: full.at(skipped, **dict.fromkeys(columns, Skip())) for name, columns in PLANS.items()}

    def products(plan: Plan | None) -> Callable[[], None]:
        prompts = prompts_of(located, inputs)
        assert prompts is not None
        if plan is not None:
            prompts.read_only(KEPT)
        return lower_bound_of(located, prompts, plan)

    works = {name: products(plan) for name, plan in plans.items()}
    puts = {name: reapplied(made.model, plan) for name, plan in plans.items()}
    whole: dict[str, list[float]] = {name: [] for name in plans}
    alone: dict[str, list[float]] = {name: [] for name in plans}
    with torch.no_grad():
        for _ in range(rounds):
            for name, plan in plans.items():
                given = inputs if plan is None else {**inputs, KEYWORD: KEPT}
                alone[name].append(_ms(works[name]))
                with puts[name]():
                    whole[name].append(_ms(lambda given=given: inner(**given, use_cache=True)))
    stock = median(whole["stock"])
    found = {}
    for name in PLANS:
        times = zip(whole[name], alone[name], whole["stock"], alone["stock"], strict=True)
        beyond = ((a - b) - (c - d) for a, b, c, d in times)
        planned = stock * len(skipped) / LAYERS
        shared = median(mine / other for mine, other in zip(whole[name], whole["stock"], strict=True))
        found[name] = (shared, median(beyond) / planned)
    return stock / LAYERS, found


def _ms(call: Callable[[], Any]) -> float:
    """The fastest of a few passes after a first one."""
    times = []
    for _ in range(IN_A_ROW):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", default="192,384,1024")
    parser.add_argument("--rows", default="150,600")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--cpus", default=",".join(CPUS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--here", action="store_true", help="in this process, whose CPU and threads are as they are")
    chosen = parser.parse_args()
    if not chosen.here:
        print("| CPU | threads | width | rows | batch | dtype | stock layer, ms |", *(f"{n} |" for n in PLANS))
        print("|---|---:|---:|---:|---:|---|---:|" + "---:|" * len(PLANS), flush=True)
        for cpu, threads in product(chosen.cpus.split(","), chosen.threads.split(",")):
            environment = {**os.environ, **CPUS[cpu], "OMP_NUM_THREADS": threads}
            subprocess.run([sys.executable, *sys.argv, "--here", "--cpus", cpu], env=environment, check=True)
        return
    sizes = (map(int, getattr(chosen, name).split(",")) for name in ("widths", "rows", "batches"))
    for width, rows, batch, dtype in product(*sizes, chosen.dtypes.split(",")):
        ms, found = shares(width, rows, batch, dtype, chosen.rounds)
        about = f"| {chosen.cpus} | {os.environ['OMP_NUM_THREADS']} | {width} | {rows} | {batch} | {dtype} | {ms:.2f} |"
        print(about, *(f"{share:.2f} ({100 * over:+.1f} %) |" for share, over in found.values()), flush=True)


if __name__ == "__main__":
    main()
