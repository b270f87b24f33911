"""Layers that stock transformers runs on the last rows alone: those whose logits are kept, where keys are shared.

Behind the last layer that makes keys, no row is read by another (Gemma 4 E2B and E4B), so ``logits_to_keep`` leaves the
stock model a row or a few of each prompt, in layers, masks and embeddings. None of these is visual (the call of the
model sees to that), so a plan asks nothing of them but which keys they read: those that the layers before hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .attention import all_keys
from .cache import select
from .prompts import Prompts


def run_last_rows(
    layer: nn.Module, prompts: Prompts, x: Tensor, arguments: Mapping[str, Any], stock: Callable[..., Tensor] | None
) -> Tensor:
    """The stock ``layer`` on the last rows ``x [batch, kept, hidden]``, over the keys that are lent to it."""
    kind, mask = layer.self_attn.layer_type, arguments["attention_mask"]  # type: ignore[union-attr]
    lent = prompts.lent[kind]

    def call() -> tuple[Tensor, Tensor, Tensor | None]:
        key, value, positions = all_keys(prompts, lent.rows, lent.key, lent.value, lent.past)
        if mask is None and bool((positions >= 0).all()):  # the last row reads all keys
            return key, value, None
        return key, value, select(mask, positions, x.shape[1], prompts.past + prompts.length)

    key, value, own = prompts.once(("last rows", kind, x.device), call)
    key, value, own = (None if t is None else t.to(x.device) for t in (key, value, own))
    given = {**arguments, "attention_mask": own, "shared_kv_states": {kind: (key, value)}}
    out: Tensor = type(layer).forward(layer, x, **given) if stock is None else stock(x, **given)
    return out
