"""Does every plan pay where layers are small? The shipped model, batches of 1 and 8, one thread and two, and a CPU with
AVX2 only as well as this one. Ratios of a plan's prefill to stock's; under 1 it is faster.

``python benchmarks/small.py`` prints a Markdown table: three minutes on two cores, which should be left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

PLANS = ("v-skip", "nothing but liveness", "shortv", "ffn-skip", "operator-skipping", "fastv", "vtw")
#: name -> what a process is started with, to have PyTorch, oneDNN and MKL take no newer instructions than a smaller CPU has
CPUS = {
    "this CPU": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


def ratios(model: str, batch: int, rounds: int, plans: list[str], padded: bool) -> dict[str, float]:
    """Of the decoder, from its call to the end of its last layer, with what ``apply`` does before the first; and stock's ms."""
    import torch

    import lookless
    from lookless import Plan, methods
    from lookless.measure import Clock
    from lookless.models import locate
    from lookless.runtime import applied

    loaded = lookless.load_model(model)
    geometry = lookless.Geometry.from_config(loaded.model.config)
    samples = lookless.load_data("reference:chart", split="test", limit=batch).items
    inputs = loaded.inputs(samples if padded else [samples[0]] * batch)
    tables: dict[str, Plan | None] = {"stock": None, "nothing but liveness": Plan.full(geometry).live()}
    tables |= {name: methods.METHODS[name].sample(geometry) for name in plans if name in methods.METHODS}
    located = locate(loaded.model)
    each: dict[str, list[float]] = {name: [] for name in tables}
    with torch.no_grad():
        features = loaded.model.model.get_image_features(
            **{k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw")}
        )
        # The tower is the same under any plan, and left out, so that all of `apply` is in what is timed.
        loaded.model.model.get_image_features = lambda *_, **__: features
        for index in range(rounds + 3):
            for name, plan in tables.items():
                with applied(loaded.model, plan):
                    whole, layers = Clock(located.inner, located.layers[-1]), None
                    started = time.perf_counter()
                    loaded.model.model(**inputs, use_cache=True)
                    ms = (time.perf_counter() - started) * 1e3
                    whole.remove()
                if index >= 3:
                    each[name].append(ms)
    found = {
        name: median(mine / stock for mine, stock in zip(times, each["stock"], strict=True))
        for name, times in each.items()
    }
    return found | {"stock": median(each["stock"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--cpu", choices=list(CPUS), action="append")
    parser.add_argument("--plan", action="append")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    plans = arguments.plan or list(PLANS)
    if arguments.child:
        print(json.dumps(ratios(plans=plans, **arguments.child)))
        return
    columns = {}
    for cpu in arguments.cpu or CPUS:
        for threads in arguments.threads or (1, 2):
            for batch, padded in [(b, p) for b in arguments.batch or (1, 8) for p in ((False,) if b == 1 else (False, True))]:
                child = {"model": arguments.model, "batch": batch, "rounds": max(10, arguments.rounds // (1 if batch == 1 else 3)), "padded": padded}
                words = [sys.executable, __file__, "--child", json.dumps(child)]
                words += [word for plan in plans for word in ("--plan", plan)]
                environment = {**os.environ, **CPUS[cpu], "OMP_NUM_THREADS": str(threads)}
                done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
                columns[f"{cpu} t{threads} b{batch}{' padded' if padded else ''}"] = json.loads(done.stdout.splitlines()[-1])
    heads = list(columns)
    print("| | " + " | ".join(heads) + " |")
    print("|---|" + "---|" * len(heads))
    for name in next(iter(columns.values())):
        cells = [f"{c[name]:.1f} ms" if name == "stock" else f"{c[name]:.2f}" for c in columns.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
