"""Thousands of generations with random plans of every method on one model: does anything drift, leak or stay behind?

``python benchmarks/soak.py reference --generations 2000`` prints what it found, and ends with 1 if it is not all well:

* after each plan every module has its own methods and hooks again;
* at the end the stock model's logits are those of the beginning, to the bit, and so are its weights;
* memory is flat: what is resident in the last quarter is compared with the second;
* answers are those of fresh processes, each of which gives some, as its first.

With ``--minutes`` it ends earlier, with as many generations as there was time for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

import lookless
from lookless import Geometry, Loaded, Plan, Samples, Scores
from lookless.errors import LooklessError
from lookless.methods import METHODS
from lookless.methods.definition import Method

TOKENS, QUESTIONS, BATCH = 4, 24, 2
FLAT = 1.02  # of the memory of the second quarter


def plan_of(geometry: Geometry, number: int) -> Plan:
    """The plan of generation ``number``: each method in turn, at a strength and by scores that are random, and the same
    in any process."""
    names = sorted(METHODS)
    method = METHODS[names[number % len(names)]]
    rng = random.Random(number)
    while True:
        try:
            return _sampled(method, geometry, rng)
        except LooklessError:  # not every strength is a plan in a model of so few layers
            continue


def _sampled(method: Method, geometry: Geometry, rng: random.Random) -> Plan:
    knobs = {} if method.strength is None else method.strength(geometry.layers, rng.random())
    examples = {
        name: method.knobs[name].scaled(value, geometry.layers, method.paper_layers)
        for name, value in method.example_arguments.items()
    }
    scores = {
        need: Scores(name=need, per_sample=(tuple(rng.random() for _ in range(geometry.layers)),), geometry=geometry)
        for need in method.measures
    }
    plan = method.build(geometry, scores, **{**examples, **knobs})
    plan.check(geometry)
    return plan


def answered(loaded: Loaded, data: Samples, number: int) -> list[str]:
    """The answers of generation ``number``."""
    plan = plan_of(Geometry.from_config(loaded.model.config), number)
    first = number * BATCH % QUESTIONS
    with lookless.apply(loaded.model, plan):
        return loaded.answer(data.items[first : first + BATCH], max_new_tokens=TOKENS)


def opened(model: str) -> tuple[Loaded, Samples]:
    """The model, and questions that it was trained on."""
    return lookless.load_model(model), lookless.load_data("reference", split="test", limit=QUESTIONS)


def marks(model: Any) -> list[tuple[Any, ...]]:
    """Of each module what a plan may leave behind: attributes of its own, and how many hooks of each kind."""
    return [
        (name, *sorted(module.__dict__), len(module._forward_pre_hooks), len(module._forward_hooks))
        for name, module in model.named_modules()
    ]


def weights_hash(model: Any) -> str:
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def resident_mib() -> float:
    """Of this process; Linux says it in pages."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@torch.no_grad()
def soak(model: str, generations: int, minutes: float, fresh: int) -> dict[str, Any]:
    """What it did and found; see the top of this file."""
    loaded, data = opened(model)
    inputs = loaded.inputs(data.items[:BATCH])
    stock, weights = loaded.model(**inputs).logits, weights_hash(loaded.model)
    loaded.answer(data.items[:BATCH], max_new_tokens=1)  # the first call leaves marks of transformers' own
    before, end = marks(loaded.model), time.monotonic() + 60 * minutes
    answers, memory, unrestored = [], [], 0
    for number in range(generations):
        answers.append(answered(loaded, data, number))
        unrestored += marks(loaded.model) != before
        memory.append(resident_mib())
        if time.monotonic() > end:
            break
    count = len(answers)
    quarters = [median(memory[count * i // 4 : count * (i + 1) // 4]) for i in range(4)]
    tried = sorted({round(i * (count - 1) / max(1, fresh - 1)) for i in range(fresh)})
    return {
        "model": model,
        "generations": count,
        "methods": min(count, len(METHODS)),
        "resident_mib": [round(q, 1) for q in quarters],
        "most_mib": round(max(memory), 1),
        "is_flat": quarters[3] <= FLAT * quarters[1],
        "not_restored": unrestored,
        "stock_is_as_before": torch.equal(loaded.model(**inputs).logits, stock),
        "weights_are_as_before": weights_hash(loaded.model) == weights,
        "fresh_processes": len(tried),
        "other_in_fresh": [n for n in tried if in_fresh(model, n) != answers[n]],
    }


def in_fresh(model: str, number: int) -> list[str]:
    """The answers of generation ``number``, as the first that a process gives."""
    words = [sys.executable, __file__, model, "--only", str(number)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def is_well(found: dict[str, Any]) -> bool:
    kept = found["is_flat"] and found["stock_is_as_before"] and found["weights_are_as_before"]
    return bool(kept and not found["not_restored"] and not found["other_in_fresh"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--generations", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--fresh", type=int, default=12, help="processes that each give one of the answers again")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(json.dumps(answered(*opened(arguments.model), arguments.only)))
        return
    found = soak(arguments.model, arguments.generations, arguments.minutes, arguments.fresh)
    print(json.dumps(found, indent=1))
    sys.exit(0 if is_well(found) else 1)


if __name__ == "__main__":
    main()
