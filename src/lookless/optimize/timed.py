"""What the best plans really take: timed here, in turn with the stock model, where the search went by a table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..bench.timing import shares_of_stock, time_prefill, with_stock
from ..data import Sample
from ..loading import Loaded
from ..progress import track
from ..search.front import Candidate

REPEATS = 5
BETWEEN = 3  #: plans timed between two timings of the stock model


def timed(
    loaded: Loaded, samples: Sequence[Sample], plans: Sequence[Candidate], *, progress: bool = True
) -> tuple[Candidate, ...]:
    """``plans`` with the times that were measured on a prefill of ``samples``, in place of those of a table."""
    if not plans:
        return ()
    inputs = loaded.inputs(samples)
    order = with_stock(None, [one.plan for one in plans], BETWEEN)
    rounds = []
    for index in track(range(REPEATS + 1), "timing the best", progress):
        shares, _ = shares_of_stock(time_prefill(loaded, inputs, order, repeats=1, warm_up=0), BETWEEN)
        if index:  # the first round warms the caches
            rounds.append(shares)
    found = [median(shares) for shares in zip(*rounds, strict=True)]
    return tuple(one.model_copy(update={"time": share}) for one, share in zip(plans, found, strict=True))
