"""Decoding under ``torch.compile``: the same answers as without, in one graph, as the stock model's is."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import DynamicCache

from helpers.families import FAMILIES
from lookless import Keep, Plan, Skip, apply

STEPS = 4
CELLS = {
    "frozen layers": {"attention": Skip(), "ffn": Skip()},
    "half the tokens": {"keep": Keep(0.5, rank="last_query_attention")},
    "image left out of the cache": {"decode": Skip()},
    "image withdrawn": {"keep": Keep(0)},
}


def decoded(family, model, arguments, step) -> torch.Tensor:
    """Logits of a few decode steps, each made by ``step``."""
    cache, mask, more = DynamicCache(config=model.config.get_text_config()), arguments["attention_mask"], {}
    model(**arguments, past_key_values=cache)
    logits = []
    for at in range(STEPS):
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
        if not family.mrope:  # with a mask, transformers' own Qwen models cannot be compiled
            more = {"attention_mask": mask}
        ids = arguments["input_ids"][:, -1:] - at % 2
        logits.append(step(input_ids=ids, past_key_values=cache, **more).logits)
    return torch.stack(logits)


def compiled(family, model, arguments) -> tuple[torch.Tensor, int]:
    """The same with the model compiled, and the number of graph breaks."""
    torch._dynamo.reset()
    counters.clear()
    logits = decoded(family, model, arguments, torch.compile(model, backend="eager"))
    torch._dynamo.reset()
    return logits, sum(counters["graph_break"].values())


@cache
def stock_breaks(name: str, kind: str) -> int:
    family = FAMILIES[name]
    return compiled(family, family.build(), family.batch(kind))[1]


@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize(
    ("name", "kind"), [("llava", "one image"), ("llava", "padded left"), ("qwen3_vl", "one image")]
)
@torch.no_grad()
def test_decode_is_compiled_whole(name, kind, cells):
    family = FAMILIES[name]
    model, arguments = family.build(), family.batch(kind)
    with apply(model, Plan.full(len(model.model.language_model.layers)).at([2], **CELLS[cells])):
        logits, breaks = compiled(family, model, arguments)
        torch.testing.assert_close(logits, decoded(family, model, arguments, model), rtol=1e-5, atol=1e-5)
    assert breaks == stock_breaks(name, kind)
