"""How many operators run, which is the same on every CPU and under any load: no plan calls many more than stock.

Where a layer is small its operators' number is its time: each call costs microseconds, and at several threads waits for
all of them. Counted are operators that make floating-point numbers, views aside; row sets are whole numbers, a few to a
prompt, and made once for all layers.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.families import FAMILIES
from lookless.bench.timed_plans import timed_plans
from lookless.geometry import Geometry
from lookless.runtime.families import locate
from lookless.runtime.patching import applied

PLANS = ("v-skip", "shortv", "ffn-skip", "operator-skipping", "vtw")
ROWS = 8
ONCE = 8  # masks, and rotary embeddings of row sets
ATTENTION = ("scaled_dot_product", "bmm")
FREE = ("view", "_unsafe_view", "slice", "transpose", "t", "expand", "select", "split", "unsqueeze", "alias", "permute")
MAKES = ("empty", "empty_like", "new_empty", "detach", "lift_fresh")


class Counted(TorchDispatchMode):
    """Operators by name, between entering and leaving."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        name = operator.overloadpacket.__name__
        first = made[0] if isinstance(made, tuple | list) else made
        if name not in FREE + MAKES and isinstance(first, torch.Tensor) and first.is_floating_point():
            self.of[name] += 1
        return made

    @property
    def attention(self) -> int:
        return sum(count for name, count in self.of.items() if any(part in name for part in ATTENTION))


def work_of(model, plan, arguments) -> Counted:
    """From the first layer's input to the last one's output."""
    layers, counted = locate(model).layers, Counted()
    hooks = [
        layers[0].register_forward_pre_hook(lambda *_: counted.__enter__() and None),
        layers[-1].register_forward_hook(lambda *_: counted.__exit__(None, None, None)),
    ]
    with applied(model, plan):
        model(**arguments, use_cache=True, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return counted


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_prompts_alike_are_one_batch(name):
    """As many attention calls as stock, and one more where text stands before and behind the image. In such a layer
    rows are taken out of a tensor, and what two calls made is joined, and added to a copy of the stream at two
    places."""
    family = FAMILIES[name]
    model = family.build()
    arguments = family.arguments(*[(5, "image", 7)] * ROWS)
    stock = work_of(model, None, arguments)
    for method, plan in timed_plans(Geometry.from_config(model.config), PLANS).items():
        ran, planned = work_of(model, plan, arguments), sum(not row.is_full for row in plan.live().layers)
        assert ran.attention <= stock.attention + planned, (method, ran.of)
        assert ran.of.total() <= stock.of.total() + 6 * planned + ONCE, (method, ran.of, stock.of)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_prompts_that_differ_are_one_call(name):
    """Rows of all prompts stand one behind the other, and go into few rectangles: a layer's operators are as many for
    sixteen prompts as for eight, and its attention is one call."""
    family = FAMILIES[name]
    model = family.build()
    for method, plan in timed_plans(Geometry.from_config(model.config), PLANS).items():
        few, many = (
            work_of(model, plan, family.arguments(*[(5, "image", 7)] * count, (5, "image", 9))) for count in (7, 15)
        )
        assert many.of == few.of, method
        assert many.attention == len(plan.layers), method
