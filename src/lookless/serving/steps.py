"""One step of an engine: a flat batch of tokens of many requests, some of them visual. Needs no engine.

A request's tokens stand one behind the other, ``[start, end)``; each may be a whole prompt, a chunk of one, or a single
token being decoded. Rows of text are packed, and each run of consecutive text tokens becomes a *virtual request*: the
same blocks of the cache, as long as the sequence up to the run's last token. A backend's causal mask, aligned to the
last key, is then exact for it, whatever visual tokens stand between the runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Runs:
    """The text of one step.

    Attributes:
        rows: text rows of the flat batch, ascending, ``[text rows]``.
        request: of each run, which request it is of, ``[runs]``.
        starts: where each run starts among the text rows, and their number, ``[runs + 1]``.
        lengths: tokens of the sequence up to each run's last token, ``[runs]``.
    """

    rows: Numbers
    request: Numbers
    starts: Numbers
    lengths: Numbers

    @property
    def longest(self) -> int:
        """Rows of the longest run; 0 if there is none."""
        return int(np.diff(self.starts).max(initial=0))


def runs_of_text(visual: NDArray[np.bool_], starts: Numbers, lengths: Numbers) -> Runs:
    """The runs of text in one step.

    Args:
        visual: which of the scheduled tokens are visual, ``[tokens]``.
        starts: where each request's tokens start, and where the last one's end, ``[requests + 1]``.
        lengths: tokens of each request's sequence up to its last scheduled one, ``[requests]``.
    """
    text = ~visual[: starts[-1]]
    first_of_request = np.zeros(len(text), dtype=bool)
    first_of_request[starts[:-1][np.diff(starts) > 0]] = True
    begins = text & (first_of_request | ~np.concatenate(([False], text[:-1])))
    ends = text & np.concatenate((first_of_request[1:] | ~text[1:], [True]))
    begin, end = begins.nonzero()[0], ends.nonzero()[0] + 1
    request = np.searchsorted(starts, begin, side="right") - 1
    behind = starts[request + 1] - end  # tokens of the request after the run
    return Runs(
        rows=text.nonzero()[0],
        request=request,
        starts=np.concatenate(([0], np.cumsum(end - begin))),
        lengths=lengths[request] - behind,
    )


def ends_in_text(visual: NDArray[np.bool_], starts: Numbers) -> bool:
    """Whether the last scheduled token of every request is text, so that no answer is read from a visual row."""
    last = starts[1:][np.diff(starts) > 0] - 1
    return not visual[last].any()
