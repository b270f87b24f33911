"""Fast path = slow reference, on the user's own model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cells import Keep, Skip
from ..geometry import Geometry
from ..loading import Loaded
from ..plan import Plan
from ..runtime.patching import apply
from .prompt import Prompt
from .sections import Section
from .slow import left_out, slow_logits

#: The largest difference that rounding makes, of the largest logit: kernels for other shapes add in another order.
ROUNDING = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.08}


@dataclass(frozen=True)
class Difference:
    """How far logits are apart.

    Attributes:
        fast: between the runtime and the slow reference, the largest.
        moved: between the slow reference and the stock model: what the plan does.
        limit: what rounding may make of ``fast``.
        agrees: the next token is the same.
    """

    fast: float
    moved: float
    limit: float
    agrees: bool

    @property
    def is_right(self) -> bool:
        return self.fast <= self.limit

    def __str__(self) -> str:
        token = "the same next token" if self.agrees else "another next token"
        return f"logits differ by {self.fast:.2g} at most, rounding allows {self.limit:.2g}; {token}"


@torch.no_grad()
def difference(loaded: Loaded, prompt: Prompt, plan: Plan) -> Difference:
    """Between the runtime and the slow reference, at the last token of ``prompt``."""
    model: Any = loaded.model
    slow = slow_logits(model, prompt.located, plan, prompt.inputs)
    stock = last_logits(model, prompt)
    with apply(model, plan):
        fast = last_logits(model, prompt)
    return Difference(
        fast=float((fast - slow).abs().max()),
        moved=float((stock - slow).abs().max()),
        limit=ROUNDING.get(next(model.parameters()).dtype, 0.08) * float(slow.abs().max()),
        agrees=int(fast.argmax()) == int(slow.argmax()),
    )


@torch.no_grad()
def last_logits(model: Any, prompt: Prompt) -> Tensor:
    """Of the last token, float32 ``[vocabulary]``."""
    logits: Tensor = model(**prompt.inputs, use_cache=False, logits_to_keep=1).logits
    return logits[0, -1].float()


def trial(geometry: Geometry) -> Plan:
    """A plan of cells that every method has: skipped attention, a skipped FFN, both, and the image withdrawn."""
    last = geometry.layers - 1
    quarter = [last * i // 4 for i in range(5)]
    plan = Plan.full(geometry).at(quarter[1:2], attention=Skip()).at(quarter[2:3], ffn=Skip())
    plan = plan.at(quarter[3:4], attention=Skip(), ffn=Skip())
    return plan if geometry.states is not None else plan.at(quarter[4:], keep=Keep(0))


def fast_is_slow(loaded: Loaded, prompt: Prompt, plan: Plan | None) -> Section:
    """The trial plan, and ``plan`` where hooks can have it."""
    facts = {
        "image": prompt.source,
        "prompt": f"{prompt.visual} visual and {prompt.text} text tokens",
    }
    tried = {"trial plan": trial(prompt.located.geometry)} | ({} if plan is None else {"your plan": plan})
    found = []
    for name, one in tried.items():
        missing = left_out(one, prompt.located)
        if missing:
            facts[name] = f"not compared: {missing[0]}{_more(missing)} needs more than hooks; the tests compare it"
            continue
        found.append(difference(loaded, prompt, one))
        facts[name] = f"{found[-1]}; the plan moves them by {found[-1].moved:.2g}"
        if found[-1].moved < 3 * found[-1].limit:
            facts[name] += ", which is so little that this says nothing of it"
    return Section("Fast path = slow reference", facts, "right" if all(one.is_right for one in found) else "wrong")


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
