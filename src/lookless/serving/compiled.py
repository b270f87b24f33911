"""The decoder's forward on reordered rows as one graph, where the engine compiles its decoder as one.

The graph is made while the engine warms up, beside vLLM's own. The rows of an operator are a slice, and the lengths of
slices are symbols in the graph, so one serves every step. A step that it cannot serve runs eagerly, and is counted with
the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.config import CompilationMode
from vllm.logger import init_logger
from vllm.sequence import IntermediateTensors

from .counters import COMPILED, EAGER, FAILED, FEW, OTHER, PIECES
from .layers import Running, Split

#: torch takes lengths of 0 and 1 for constants.
FEWEST = 2
#: Rows of a warm-up run, of which lengths that differ can be made.
WARM = 16


class CompiledSteps:
    """Runs a decoder on reordered rows.

    Args:
        decoder: vLLM's text model.
        running: what its layers look at.
        vllm_config: the engine's.

    Attributes:
        why_not: why no step is compiled, of :data:`~lookless.serving.counters.STEPS`; None if there is a graph, or will
            be one after the warm-up.
    """

    def __init__(self, decoder: Any, running: Running, vllm_config: Any) -> None:
        self.decoder, self.running = decoder, running
        self._signature = inspect.signature(decoder.forward)
        config = vllm_config.compilation_config
        reasons = {CompilationMode.NONE: EAGER, CompilationMode.DYNAMO_TRACE_ONCE: None}
        self.why_not: str | None = reasons.get(config.mode, PIECES)
        self._graph: Callable[..., Tensor] | None = None
        self._left = False
        self._options = {"backend": config.backend, "options": _options(config)} if self.why_not is None else {}

    def warm_up(self, *args: Any, **kwargs: Any) -> None:
        """Make the graph, from the arguments of a warm-up run."""
        if self.why_not is not None or self._graph is not None:
            return
        inputs = self.named(*args, **kwargs)
        count = inputs["positions"].shape[-1]
        if count < WARM:
            return
        rows = torch.arange(count, device=inputs["positions"].device)
        split = Split(rows[: count // 4], rows[: count // 2], rows, rows.clone())
        inputs = reordered(inputs, rows)
        for tensor, axis in _lengths(split, inputs):
            torch._dynamo.mark_dynamic(tensor, axis)
        self._graph = torch.compile(self._traced, fullgraph=True, dynamic=False, **self._options)
        try:
            self._graph(split, inputs)
        except torch._dynamo.exc.TorchDynamoException as problem:
            self.why_not = FAILED
            init_logger(__name__).warning("lookless: steps with visual tokens run eagerly: %s", problem)
        finally:
            self.running.split = None

    def named(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Arguments of the decoder's forward by name."""
        return self._signature.bind(*args, **kwargs).arguments

    def run(self, split: Split, inputs: dict[str, Any]) -> tuple[Tensor, str]:
        """The decoder's output for reordered ``inputs``, and how it was made, of the names of steps."""
        few = len(split.text) < FEWEST or len(split.rows) - len(split.read) < FEWEST
        why_not = self.why_not or (FAILED if self._graph is None else FEW if few else None)
        if why_not is None:
            assert self._graph is not None
            self._left = False
            with torch.compiler.set_stance("eager_on_recompile"):
                out = self._graph(split, inputs)
            return out, OTHER if self._left else COMPILED
        self.running.split, self.running.ran = split, 0
        try:
            return self.decoder.forward(**inputs), why_not
        finally:
            self.running.split = None

    def _traced(self, split: Split, inputs: dict[str, Any]) -> Tensor:
        if not torch.compiler.is_compiling():  # torch calls this itself, for lengths that the graph is not for
            self._left = True
        self.running.split, self.running.ran = split, 0
        out: Tensor = self.decoder.forward(**inputs)
        self.running.split = None
        return out


def reordered(inputs: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """A decoder's inputs in another order; of positions, which may have three to a token, the last axis."""
    moved = {}
    for name, value in inputs.items():
        if isinstance(value, IntermediateTensors):
            value = IntermediateTensors({key: tensor[rows] for key, tensor in value.tensors.items()})
        elif isinstance(value, Tensor):
            value = value[..., rows] if name == "positions" else value[rows]
        moved[name] = value
    return moved


def _lengths(split: Split, inputs: dict[str, Any]) -> Iterator[tuple[Tensor, int]]:
    """Tensors, and the axis of each whose length differs from step to step."""
    yield from ((tensor, 0) for tensor in split)
    for name, value in inputs.items():
        if isinstance(value, IntermediateTensors):
            yield from ((tensor, 0) for tensor in value.tensors.values())
        elif isinstance(value, Tensor):
            yield value, value.ndim - 1 if name == "positions" else 0


def _options(config: Any) -> dict[str, Any]:
    """As vLLM's, of its own graph; of torch's guards those of lengths are kept, so that none is taken for another."""
    given = dict(config.inductor_compile_config) if config.backend == "inductor" else {}
    return {**given, "guard_filter_fn": lambda guards: [guard.guard_type == "SHAPE_ENV" for guard in guards]}
