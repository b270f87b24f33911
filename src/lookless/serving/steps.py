"""One step of an engine: a flat batch of tokens of many requests, some of them visual. Needs no engine.

The tokens of a request are consecutive rows, ``[start, end)``: a whole prompt, a chunk of one, or a single decoded
token. A planned step computes its rows in another order, text first, so that the rows of every operator are a slice.
For the attention kernel, rows that follow each other in the order and in a request become a *virtual request*: the same
blocks of the cache, and a length up to the last of them. A backend's causal mask, aligned to the last key, is then
exact for it, whatever other tokens are between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ServingError

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Order:
    """The order in which a step's rows are computed: text rows, then visual rows from which an answer is read, then
    all other visual rows, then padding; within each the order of the batch.

    Attributes:
        rows: of each place, the row of the flat batch, ``[rows]``.
        places: of each row of the flat batch, its place, ``[rows]``.
        text: how many rows are text.
        read: how many are text or are answered from.
        tokens: how many are no padding.
    """

    rows: Numbers
    places: Numbers
    text: int
    read: int
    tokens: int


def text_first(visual: NDArray[np.bool_], starts: Numbers) -> Order:
    """The order of one step. An answer, or the logits of a chunk, are read from the last scheduled token of a request.

    Args:
        visual: which rows are visual tokens, ``[rows]``; padding is not.
        starts: where each request's tokens start, and then where padding does, ``[requests + 1]``.
    """
    tokens = int(starts[-1])
    kind = np.where(visual[:tokens], 2, 0)
    last = starts[1:][np.diff(starts) > 0] - 1
    kind[last[visual[last]]] = 1
    rows = np.concatenate((np.argsort(kind, kind="stable"), np.arange(tokens, len(visual))))
    places = np.empty_like(rows)
    places[rows] = np.arange(len(rows))
    return Order(rows, places, int((kind == 0).sum()), int((kind <= 1).sum()), tokens)


@dataclass(frozen=True, eq=False)
class Runs:
    """Query rows as virtual requests.

    Attributes:
        request: index of each run's request, ``[runs]``.
        starts: where each run starts among the query rows, and then their number, ``[runs + 1]``.
        lengths: length of the sequence up to each run's last token, ``[runs]``.
    """

    request: Numbers
    starts: Numbers
    lengths: Numbers

    @property
    def longest(self) -> int:
        """Rows of the longest run; 0 if there is none."""
        return int(np.diff(self.starts).max(initial=0))


def runs_of(rows: Numbers, starts: Numbers, lengths: Numbers) -> Runs:
    """The runs of query rows.

    Args:
        rows: of the flat batch, in the order in which they are computed, ``[query rows]``.
        starts: where each request's tokens start, and then their number, ``[requests + 1]``.
        lengths: length of each request's sequence up to its last scheduled token, ``[requests]``.
    """
    request = np.searchsorted(starts, rows, side="right") - 1
    follows = (np.diff(rows) == 1) & (np.diff(request) == 0)
    begin = np.flatnonzero(np.concatenate(([True], ~follows))[: len(rows)])
    end = np.append(begin[1:], len(rows))[: len(begin)]
    after = starts[request[begin] + 1] - rows[end - 1] - 1  # tokens of the request after the run
    return Runs(request[begin], np.append(begin, len(rows)), lengths[request[begin]] - after)


def text_alone(rows: Numbers, starts: Numbers, lengths: Numbers, visual: Numbers) -> tuple[Runs, Numbers]:
    """Text rows in a cache that holds the text of each request alone, without gaps.

    Args:
        rows, starts, lengths: of text rows, as for :func:`runs_of`.
        visual: how many visual tokens each request has before the step, ``[requests]``.

    Returns:
        the rows as virtual requests, one for each request that has some; and the place of each row in its request's
        cache, ``[rows]``.
    """
    request = np.searchsorted(starts, rows, side="right") - 1
    counts = np.bincount(request, minlength=len(lengths))
    past = lengths - np.diff(starts) - visual
    some = np.flatnonzero(counts)
    begin = np.concatenate(([0], np.cumsum(counts)))
    places = past[request] + np.arange(len(rows)) - begin[request]
    return Runs(some, np.append(begin[some], len(rows)), (past + counts)[some]), places


class VisualPast:
    """How many visual tokens of each request are behind it.

    A request is known by its first block, which is its own where no prefix is shared, and it starts at its first token,
    also where it was put off.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int]] = {}

    def before(self, blocks: Numbers, visual: NDArray[np.bool_], starts: Numbers, lengths: Numbers) -> Numbers:
        """Of a step, ``[requests]``; it is remembered then.

        Args:
            blocks: the first block of each request, ``[requests]``.
            visual, starts, lengths: of the step, as for :func:`text_first` and :func:`runs_of`.

        Raises:
            ServingError: a request goes on where it was not left.
        """
        before = np.zeros_like(lengths)
        scheduled = np.diff(starts)
        for index, (block, count, length) in enumerate(
            zip(blocks.tolist(), scheduled.tolist(), lengths.tolist(), strict=True)
        ):
            if not count:
                continue
            if past := length - count:
                tokens, before[index] = self._seen.get(block, (0, 0))
                if tokens != past:
                    raise ServingError(
                        f"a request goes on behind {past} tokens, of which {tokens} were seen: a plan that withdraws "
                        f"visual tokens does not know this way of scheduling."
                    )
            new = int(visual[starts[index] : starts[index + 1]].sum())
            self._seen[block] = (length, int(before[index]) + new)
        return before


def check_ran(ran: int, layers: int) -> None:
    """Raises: ServingError: in a step with visual tokens not each of so many ``layers`` ran under the plan."""
    if ran != layers:
        raise ServingError(
            f"the plan is not in force: {ran} of the model's {layers} layers ran under it. Another plug-in, or a "
            f"compiled graph, has taken their place: start vLLM without them (VLLM_PLUGINS=lookless, --enforce-eager)."
        )
