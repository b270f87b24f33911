"""Of the time to the first token in vLLM, what is the decoder's, and how it compares with the FLOPs that a plan keeps.

``python benchmarks/first_token.py``, where vLLM is installed, writes its part of docs/performance.md: two minutes on
two cores. A server's time to first token also has the vision tower, which no plan changes, and the server. Here the
engine runs in this process, stock and then plan, one request at a time, and tower and decoder are timed on their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from lookless import Plan, files, flops, methods
from lookless.bench.prefill_results import STOCK
from lookless.bench.traffic_client import Served, served_geometry
from lookless.bench.traffic_results import PLAN
from lookless.machine import processor
from lookless.markdown import markdown_table, spliced, wrapped

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
BEGIN = "<!-- what follows is written by benchmarks/first_token.py -->"
END = "<!-- end of what benchmarks/first_token.py writes -->"
MODEL, LAYERS, METHOD, VISUAL, TEXT = "LLaVA-1.5-7B", 3, "shortv", 576, 66
REQUESTS, WARM_UP = 24, 2
HEADS = ("", "request ms", "vision tower ms", "decoder ms")
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}


def measure(which: str, folder: Path, plan: Path, side: int) -> dict[str, float]:
    """Milliseconds of a request for one token and of its parts, and its text tokens; the medians of some."""
    import numpy as np
    import vllm
    from PIL import Image

    options: dict[str, Any] = {"additional_config": {"lookless": {"plan": str(plan)}}} if which == PLAN else {}
    llm = vllm.LLM(
        str(folder),
        dtype="bfloat16",
        load_format="dummy",
        max_model_len=1024,
        kv_cache_memory_bytes=1 << 30,
        enable_prefix_caching=False,
        **options,
    )
    tower: list[float] = []
    decoder: list[float] = []

    def watch(model: Any) -> None:
        kind, inner = type(model), type(model.get_language_model().model)
        kind.embed_multimodal = timed(kind.embed_multimodal, tower)
        inner.__call__ = timed(inner.__call__, decoder)

    llm.apply_model(watch)
    one = vllm.SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    numbers, tokenizer, whole, text = np.random.default_rng(0), llm.get_tokenizer(), [], []
    for _ in range(WARM_UP + REQUESTS):
        words = tokenizer.decode(numbers.integers(7, 60, TEXT).tolist())
        image = Image.fromarray(numbers.integers(0, 255, (side, side, 3), dtype=np.uint8))
        started = time.perf_counter()
        asked = {"prompt": f"<image>\n{words}", "multi_modal_data": {"image": image}}
        [out] = llm.generate(asked, one, use_tqdm=False)
        whole.append((time.perf_counter() - started) * 1e3)
        text.append(len(out.prompt_token_ids) - VISUAL)
    times = zip(HEADS[1:], (whole, tower, decoder), strict=True)
    return {name: median(each[WARM_UP:]) for name, each in times} | {"text": median(text)}


def timed(stock: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    """``stock``, which adds the milliseconds of each call to ``into``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        out = stock(*args, **kwargs)
        into.append((time.perf_counter() - started) * 1e3)
        return out

    return call


def apart(which: str, served: Served, plan: Path) -> dict[str, float]:
    """As :func:`measure`, in a process of its own: an engine leaves much behind."""
    words = [sys.executable, __file__, "--one", which, served.path, str(plan), str(served.side)]
    done = subprocess.run(words, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def section(found: dict[str, dict[str, float]], served: Served, plan: Plan) -> str:
    text = found[PLAN]["text"]
    full, run = (flops.prefill(served.geometry, visual=VISUAL, text=text, plan=p).total for p in (None, plan.live()))
    rows = [(which, *(f"{times[name]:.0f}" for name in HEADS[1:])) for which, times in found.items()]
    kept = {name: found[PLAN][name] / found[STOCK][name] for name in HEADS[1:]}
    rows.append(("kept", *(f"{share:.1%}" for share in kept.values())))
    decoder = kept[HEADS[-1]]
    told = (
        f"{served.name}, {METHOD}, {VISUAL} visual and {text:.0f} text tokens, bfloat16, {processor()}, "
        f"{len(os.sched_getaffinity(0))} cores; median of {REQUESTS} requests for one token, alone in the engine. The "
        f"plan keeps {run / full:.1%} of the decoder's FLOPs and {decoder:.1%} of its time, {decoder * full / run:.2f} "
        f"times as much."
    )
    return "\n\n".join([told, markdown_table(HEADS, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--one", nargs=4, metavar=("WHICH", "MODEL", "PLAN", "SIDE"), help="one engine, as JSON")
    given = parser.parse_args()
    if given.one:
        which, folder, plan, side = given.one
        print(json.dumps(measure(which, Path(folder), Path(plan), int(side))))
        return
    with tempfile.TemporaryDirectory() as work:
        served = served_geometry(MODEL, Path(work) / "model", layers=LAYERS, visual=VISUAL)
        planned = methods.METHODS[METHOD].sample(served.geometry)
        planned.save_pretrained(Path(work) / "plan")
        found = {which: apart(which, served, Path(work) / "plan") for which in (STOCK, PLAN)}
    before = given.page.read_text() if given.page.exists() else ""
    files.write_text(given.page, spliced(before, BEGIN, END, wrapped(section(found, served, planned))))


if __name__ == "__main__":
    main()
