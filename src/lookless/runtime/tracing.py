"""What really ran: the rows each operator of each layer was called with, counted at the modules themselves.

The counters are hooks on the projections, not on the runtime, so they count a stock model, a planned one, and a plan
that silently does nothing alike. What is counted runs as it does uncounted, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident

from torch import nn

from .counting import RowCounter
from .families import Located, locate
from .mixers import is_convolution, is_delta

#: operator -> the module whose input rows are its rows
OPERATORS = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "ffn": "mlp"}
#: the same where a gated delta rule mixes: rows that read from its state, and rows that write
OF_DELTA = {"query": "linear_attn.in_proj_z", "key": "linear_attn.in_proj_qkv"}
#: and where a short convolution does: rows that read, and those that it brings to one of them
OF_CONVOLUTION = {"query": "conv.out_proj", "key": "conv.in_proj"}


@dataclass
class Trace:
    """``layers[l][operator]``: rows over all calls, of all threads, and all prompts so far; operators are
    :data:`OPERATORS`."""

    layers: list[dict[str, int]]

    def clear(self) -> None:
        for layer in self.layers:
            layer.update(dict.fromkeys(layer, 0))


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Count rows while the block runs::

        with lookless.apply(model, plan), lookless.trace(model) as t:
            model(**inputs)
        t.layers[0]["query"]

    Raises:
        ModelError: the model's family is not supported.
    """
    with rows_of(locate(model)) as counted:
        yield counted


@contextmanager
def rows_of(located: Located, *, thread: int | None = None) -> Iterator[Trace]:
    """Count rows of the model's layers while the block runs: of all threads, or of one by its number."""
    layers = located.layers
    adding = Lock()
    counted = Trace([dict.fromkeys(OPERATORS, 0) for _ in layers])

    def counter(layer: dict[str, int], operator: str) -> RowCounter:
        def count(rows: int) -> None:
            if thread is None or get_ident() == thread:
                with adding:
                    layer[operator] += rows

        return RowCounter(count)

    hooks = [
        layer.get_submodule(path).register_forward_pre_hook(counter(row, operator), with_kwargs=True)
        for layer, row in zip(layers, counted.layers, strict=True)
        for operator, path in _paths(layer, located.block.ffn).items()
        if operator != "key" or not located.block.borrows(layer)  # which makes none
    ]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def _paths(layer: nn.Module, ffn: str) -> dict[str, str]:
    """As :data:`OPERATORS`, of this ``layer``."""
    mixer = OF_DELTA if is_delta(layer) else OF_CONVOLUTION if is_convolution(layer) else {}
    return {**OPERATORS, **mixer, "ffn": ffn}
