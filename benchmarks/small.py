"""Does every plan pay where layers are small? Ratios of a plan's prefill time to stock's; below 1 it is faster.

On the shipped model, with batches of 1 and 8, one and two threads, this CPU and one with AVX2 only.
``python benchmarks/small.py`` prints a Markdown table: ten minutes on two cores that do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

PLANS = ("v-skip", "shortv", "ffn-skip", "operator-skipping", "fastv", "vtw")
#: name -> environment of a process, so that no library uses newer instructions than a smaller CPU has
CPUS = {
    "this CPU": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
#: (prompts, whether they differ in length), as the shipped tasks' do
BATCHES = ((1, False), (8, False), (8, True))
WARM_UP = 3


def ratios(model: str, batch: int, padded: bool, rounds: int) -> dict[str, float]:
    """Each plan's time by stock's, the median of the rounds; and stock's ms.

    The decoder is timed, with all that ``apply`` does for a prompt; without the vision tower, which is the same under
    any plan.
    """
    import torch

    import lookless
    from lookless import Plan
    from lookless.bench.timed_plans import timed_plans
    from lookless.runtime.patching import applied

    loaded = lookless.load_model(model)
    geometry = lookless.Geometry.from_config(loaded.model.config)
    samples = lookless.load_data("reference:chart", split="test", limit=batch).items
    inputs = loaded.inputs(samples if padded else [samples[0]] * batch)
    plans: dict[str, Plan | None] = {"stock": None, **timed_plans(geometry, PLANS)}
    inner, each = loaded.model.model, {name: [] for name in plans}
    with torch.no_grad():
        of_images = {key: inputs[key] for key in ("pixel_values", "image_grid_thw") if key in inputs}
        features = inner.get_image_features(**of_images)
        inner.get_image_features = lambda *_, **__: features
        for index in range(WARM_UP + rounds):
            for name, plan in plans.items():
                with applied(loaded.model, plan):
                    started = time.perf_counter()
                    inner(**inputs, use_cache=True)
                    ms = (time.perf_counter() - started) * 1e3
                if index >= WARM_UP:
                    each[name].append(ms)
    shares = {
        name: median(mine / stock for mine, stock in zip(times, each["stock"], strict=True))
        for name, times in each.items()
    }
    return shares | {"stock": median(each["stock"])}


def elsewhere(cpu: str, threads: int, options: dict[str, object]) -> dict[str, float]:
    """:func:`ratios` in a process of its own, as threads and instructions are chosen when one starts."""
    environment = {**os.environ, **CPUS[cpu], "OMP_NUM_THREADS": str(threads)}
    words = [sys.executable, __file__, "--here", json.dumps(options)]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--rounds", type=int, default=60, help="of single prompts; batches have a third")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--cpu", choices=list(CPUS), action="append")
    parser.add_argument("--here", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(ratios(**arguments.here)))
        return
    columns = {}
    for cpu in arguments.cpu or CPUS:
        for threads in arguments.threads or (1, 2):
            for batch, padded in BATCHES:
                rounds = max(9, arguments.rounds // (1 if batch == 1 else 3))
                options = {"model": arguments.model, "batch": batch, "padded": padded, "rounds": rounds}
                head = f"{cpu}, {threads} thread{'s' * (threads > 1)}, batch {batch}{', padded' * padded}"
                columns[head] = elsewhere(cpu, threads, options)
    rows = next(iter(columns.values()))
    print("| | " + " | ".join(rows) + " |")
    print("|---" * (len(rows) + 1) + "|")
    for head, found in columns.items():
        cells = (f"{value:.1f} ms" if name == "stock" else f"{value:.2f}" for name, value in found.items())
        print(f"| {head} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
