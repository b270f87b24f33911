"""Whether a plan is in force: what ran is compared with what the plan leaves.

A plan that silently does nothing, or a part of it, gives answers and times that are taken for the plan's. So every call
checks that each layer ran under it, and the first prefill counts rows at the modules, as ``lookless.trace`` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident

import torch

from ..errors import ModelError
from ..layer_plan import LayerWork
from ..plan import Plan
from .families import Located
from .forward import ForwardPass
from .mixers import is_convolution
from .prompts import Prompts
from .tracing import OPERATORS, Trace, rows_of

INSTEAD = (
    "another library has taken the layers' calls since, or a compiled graph from before runs: apply the plan last, and "
    "see what `lookless doctor` says of the model"
)


def check_layers(running: ForwardPass) -> None:
    """Raises: ModelError: not every layer ran in this pass."""
    missed = [index for index, calls in enumerate(running.calls) if not calls]
    if missed:
        raise ModelError(f"the plan is not in force: layer {missed[0]} of the model ran without it; {INSTEAD}.")


@contextmanager
def checked_rows(plan: Plan, works: Sequence[LayerWork], located: Located, prompts: Prompts) -> Iterator[None]:
    """Count the rows of a prefill under ``plan``, which :func:`is_countable` and computes ``works``, while the block
    runs.

    Raises:
        ModelError: at the end, an operator ran on other rows than the plan leaves.
    """
    expected = predicted(plan, works, located, prompts)  # before tokens are dropped
    with rows_of(located, thread=get_ident()) as counted:
        yield
    check_rows(plan, expected, counted)


def is_countable(plan: Plan, prompts: Prompts) -> bool:
    """Whether the rows are known beforehand: of a static plan, at the beginning of a sequence, and where hooks run; not
    where the stock model may leave rows out of layers that share keys."""
    if prompts.block.shares_keys:
        return False
    return plan.is_static and prompts.is_plain_prefill and not prompts.past and not torch.compiler.is_compiling()


def predicted(plan: Plan, works: Sequence[LayerWork], located: Located, prompts: Prompts) -> list[dict[str, int]]:
    """Of each layer the rows of each operator that are known beforehand, all prompts of the call together."""
    total = [dict.fromkeys(OPERATORS, 0) for _ in works]
    kept = tuple(rows[:0] for rows in prompts.text) if prompts.kept is None else prompts.kept
    lengths = (map(len, rows) for rows in (prompts.text, prompts.before, kept, prompts.split(kept)[1]))
    for visual, text, before, read, behind in zip(prompts.counts, *lengths, strict=True):
        for layer, work, alive in zip(total, works, plan.alive(visual), strict=True):
            more = {"before": before, "kept": read if work.ffn.before else behind}
            rows = work.rows(text=text, visual=visual, alive=alive, **more)
            layer |= {operator: layer[operator] + int(rows[operator]) for operator in OPERATORS}
    for layer, module in zip(total, located.layers, strict=True):
        if is_convolution(module):  # of the rows that it may read it makes those that it brings to one
            del layer["key"]
    return total


def check_rows(plan: Plan, expected: Sequence[dict[str, int]], counted: Trace) -> None:
    """Raises: ModelError: an operator ran on other rows than ``expected``. Ranks project some rows more."""
    for index, (row, wanted, ran) in enumerate(zip(plan.layers, expected, counted.layers, strict=True)):
        later = plan.layers[index + 1].ranks if index + 1 < len(plan.layers) else ()
        is_ranked = bool(row.ranks or later)
        for operator in wanted:
            if ran[operator] != wanted[operator] and not (is_ranked and operator != "ffn"):
                raise ModelError(
                    f"the plan is not in force: {operator} of layer {index} ran on {ran[operator]} rows, and the plan "
                    f"leaves {wanted[operator]}; {INSTEAD}."
                )
