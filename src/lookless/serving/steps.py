"""One step of an engine: a flat batch of tokens of many requests, some of them visual. Needs no engine.

The tokens of a request are consecutive rows, ``[start, end)``: a whole prompt, a chunk of one, or a single decoded
token. Text rows are packed, and each run of consecutive text tokens becomes a *virtual request*: the same blocks of the
cache, and a length up to the run's last token. A backend's causal mask, aligned to the last key, is then exact for it,
whatever visual tokens are between the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ServingError

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TextRuns:
    """The text of one step.

    Attributes:
        rows: indices of the text rows in the flat batch, ascending, ``[text rows]``.
        request: index of each run's request, ``[runs]``.
        starts: where each run starts among the text rows, and then their number, ``[runs + 1]``.
        lengths: length of the sequence up to each run's last token, ``[runs]``.
    """

    rows: Numbers
    request: Numbers
    starts: Numbers
    lengths: Numbers

    @property
    def longest(self) -> int:
        """Rows of the longest run; 0 if there is none."""
        return int(np.diff(self.starts).max(initial=0))


def text_runs(visual: NDArray[np.bool_], starts: Numbers, lengths: Numbers) -> TextRuns:
    """The runs of text in one step.

    Args:
        visual: which of the scheduled tokens are visual, ``[tokens]``.
        starts: where each request's tokens start, and then their number, ``[requests + 1]``.
        lengths: length of each request's sequence up to its last scheduled token, ``[requests]``.
    """
    text = ~visual[: starts[-1]]
    first_of_request = np.zeros(len(text), dtype=bool)
    first_of_request[starts[:-1][np.diff(starts) > 0]] = True
    begins = text & (first_of_request | ~np.concatenate(([False], text[:-1])))
    ends = text & np.concatenate((first_of_request[1:] | ~text[1:], [True]))
    begin, end = begins.nonzero()[0], ends.nonzero()[0] + 1
    request = np.searchsorted(starts, begin, side="right") - 1
    after = starts[request + 1] - end  # tokens of the request after the run
    return TextRuns(
        rows=text.nonzero()[0],
        request=request,
        starts=np.concatenate(([0], np.cumsum(end - begin))),
        lengths=lengths[request] - after,
    )


def ends_in_text(visual: NDArray[np.bool_], starts: Numbers) -> bool:
    """Whether the last scheduled token of every request is text, so that no logits are computed from a visual row.

    Args:
        visual, starts: as for :func:`text_runs`.
    """
    last = starts[1:][np.diff(starts) > 0] - 1
    return not visual[last].any()


def check_ran(ran: Sequence[int], layers: int) -> None:
    """Raises: ServingError: in a step with visual tokens not each of so many ``layers`` ran under the plan."""
    missed = sorted(set(range(layers)) - set(ran))
    if missed:
        raise ServingError(
            f"the plan is not in force: layer {missed[0]} of the model ran without it. Another plug-in, or a compiled "
            f"graph, has taken its place: start vLLM without them (VLLM_PLUGINS=lookless, --enforce-eager)."
        )
