"""What one row of the table runs: a plan, on images of some size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from ..bench.timing import Timing, time_in_turn
from ..data import Sample
from ..loading import Loaded
from ..plan import Plan
from ..runtime.families import locate
from ..runtime.patching import reapplied
from .downsampling import downsampled


@dataclass(frozen=True)
class Entry:
    """A plan, on images whose sides are the share ``side`` of the stock model's.

    Attributes:
        plan: None is the stock model.
    """

    plan: Plan | None
    side: float = 1.0

    def images(self, loaded: Loaded) -> AbstractContextManager[Loaded]:
        """``loaded``, given images of that size."""
        return downsampled(loaded, self.side)


STOCK = Entry(None)


@torch.no_grad()
def time_entries(
    loaded: Loaded, samples: Sequence[Sample], entries: Sequence[Entry], *, repeats: int, warm_up: int = 2
) -> list[Timing]:
    """Milliseconds of the decoder's prefill of ``samples``, one batch, under each of ``entries``, timed in turn.

    The vision tower is not timed.
    """
    calls = [_prefill(loaded, samples, entry) for entry in entries]
    return time_in_turn(locate(loaded.model).layers, calls, repeats=repeats, warm_up=warm_up)


def _prefill(loaded: Loaded, samples: Sequence[Sample], entry: Entry) -> Callable[[], None]:
    with entry.images(loaded) as smaller:
        inputs = smaller.inputs(samples)
        put = reapplied(loaded.model, entry.plan)

    def run() -> None:
        with entry.images(loaded), put():
            loaded.model(**inputs, use_cache=True, logits_to_keep=1)

    return run
