"""Time, measured so that it can be compared: dense and plan in turn, in one process, after warm-up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from .loading import Loaded
from .models import locate
from .plan import Plan
from .runtime import applied


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each repeat, in the order run."""

    each_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return median(self.each_ms)


class Clock:
    """Times the decoder's layers alone, within a call of the whole model: the tower, the head and the final norm are
    the same under any plan, and in a model cut to a few layers would weigh more than they do."""

    def __init__(self, layers: torch.nn.ModuleList) -> None:
        self.ms = 0.0
        self._hooks = [
            layers[0].register_forward_pre_hook(self._start, with_kwargs=True),
            layers[-1].register_forward_hook(self._stop, with_kwargs=True),
        ]

    def _start(self, *_: Any) -> None:
        synchronise()
        self._started = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        synchronise()
        self.ms = (time.perf_counter() - self._started) * 1e3

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def synchronise() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.no_grad()
def time_prefill(
    loaded: Loaded, inputs: dict[str, Any], plans: Sequence[Plan | None], *, repeats: int = 10, warm_up: int = 2
) -> list[Timing]:
    """Milliseconds of the decoder's prefill of ``inputs`` under each of ``plans`` (None is dense).

    All are run one after the other in every repeat, so that whatever else the machine does falls on all alike.
    """
    clock = Clock(locate(loaded.model).layers)
    each: list[list[float]] = [[] for _ in plans]
    try:
        for repeat in range(warm_up + repeats):
            for plan, times in zip(plans, each, strict=True):
                with applied(loaded.model, plan):
                    loaded.model(**inputs, use_cache=True, logits_to_keep=1)
                if repeat >= warm_up:
                    times.append(clock.ms)
    finally:
        clock.remove()
    return [Timing(tuple(times)) for times in each]
