"""What the best plans really take: timed here, in turn with the stock model, where the search went by a table."""

from __future__ import annotations

from collections.abc import Sequence

from ..bench.timing import prefill_shares
from ..data import Sample
from ..loading import Loaded
from ..search.front import Candidate

REPEATS = 5
BETWEEN = 3  #: plans timed between two timings of the stock model


def timed(
    loaded: Loaded, samples: Sequence[Sample], plans: Sequence[Candidate], *, progress: bool = True
) -> tuple[Candidate, ...]:
    """``plans`` with the times that were measured on a prefill of ``samples``, in place of those of a table."""
    if not plans:
        return ()
    rows = [one.plan for one in plans]
    found, _ = prefill_shares(
        loaded, loaded.inputs(samples), rows, every=BETWEEN, repeats=REPEATS, what="timing the best", progress=progress
    )
    return tuple(one.model_copy(update={"time": share}) for one, share in zip(plans, found, strict=True))
