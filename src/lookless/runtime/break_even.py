"""From how many visual tokens on a plan pays: measured once for a model, a plan and a machine, and remembered.

A plan spares work in proportion to the visual tokens, and costs some microseconds of Python in every layer whatever
their number. With small layers and few tokens the second is more: such calls are better left to the stock model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor

from .. import files
from ..machine import processor
from ..plan import Plan
from ..version import __version__
from .families import Located
from .prompts import Prompts

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)  # visual tokens
TEXT = (16, 48)  # tokens before and after them
SECONDS = 2.0
ROUNDS = 15  # at most, of one size
PAYS = 0.98  # of the stock model's time: nearer to it is noise

#: Runs the decoder on embeddings ``[1, rows, hidden]``: under the plan where it is given prompts, else as stock.
Run = Callable[[Tensor, Prompts | None], Any]


def break_even_of(located: Located, plan: Plan, run: Run) -> int:
    """The smallest of :data:`SIZES` that ``plan`` pays for: one prompt, random embeddings, decoder alone.

    Takes two seconds, on a large model the time of a few small prompts; then it is read from a file in the user's
    cache folder. Where the two seconds end before a size pays it is the next size, and where none pays twice the
    largest.
    """
    path = _folder() / f"{_key(located, plan)}.json"
    found = _remembered(path)
    if found is None:
        first = located.block.norm(located.layers[0]).weight
        found = smallest_that_pays(lambda visual, until: _share(visual, until, first, located.geometry.hidden, run))
        with contextlib.suppress(OSError):  # a folder that cannot be written is measured for each time
            files.write_text(path, json.dumps({"visual_tokens": found, "plan": plan.hash, "machine": processor()}))
    return found


def smallest_that_pays(share: Callable[[int, float], float], seconds: float = SECONDS) -> int:
    """The first of :data:`SIZES` whose ``share`` of the stock model's time says that the plan pays.

    ``share`` is given the visual tokens and the moment until which it may measure.
    """
    end = time.perf_counter() + seconds
    for place, visual in enumerate(SIZES):
        now = time.perf_counter()
        if place and now >= end:
            return visual
        if share(visual, now + max(0.0, end - now) / (len(SIZES) - place)) < PAYS:
            return visual
    return 2 * SIZES[-1]


@torch.no_grad()
def _share(visual: int, until: float, like: Tensor, width: int, run: Run) -> float:
    """The plan's time over stock's, the median of rounds in which both run, one at the least."""
    before, after = TEXT
    is_visual = torch.zeros(1, before + visual + after, dtype=torch.bool)
    is_visual[:, before : before + visual] = True
    embedded = torch.randn(1, is_visual.shape[1], width, device=like.device, dtype=like.dtype)
    shares: list[float] = []
    for number in range(ROUNDS + 1):
        planned = _seconds(lambda: run(embedded, Prompts(is_visual, None, device=like.device)), like.device)
        stock = _seconds(lambda: run(embedded, None), like.device)
        is_late = time.perf_counter() > until
        if number or is_late:  # the first round warms up, where there is time for another
            shares.append(planned / stock)
        if is_late:
            break
    return median(shares)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _key(located: Located, plan: Plan) -> str:
    """A hash of all that the measured time depends on."""
    layer: Any = located.layers[0]
    weight = located.block.norm(layer).weight
    kinds = sorted({type(module).__name__ for module in layer.modules()})  # quantised projections have their own
    device = processor() if weight.device.type == "cpu" else torch.cuda.get_device_name(weight.device)
    parts = [
        plan.hash,
        str(weight.dtype),
        kinds,
        device,
        torch.get_num_threads(),
        torch.backends.cpu.get_cpu_capability(),
        located.decoder.config._attn_implementation,  # type: ignore[union-attr]
        [__version__, torch.__version__, transformers.__version__],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lookless" / "break_even"


def _remembered(path: Path) -> int | None:
    """What an earlier measurement found; None where there is none, or the file is not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["visual_tokens"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) and found > 0 else None
