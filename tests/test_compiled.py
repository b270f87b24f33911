"""Decoding under ``torch.compile``: the same answers as without, in one graph, as the stock model's is."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import DynamicCache

from families import FAMILIES
from lookless import Keep, Plan, Skip, apply

STEPS = 4
CELLS = {
    "frozen layers": {"attention": Skip(), "ffn": Skip()},
    "half the tokens": {"keep": Keep(0.5, rank="last_query_attention")},
    "image left out of the cache": {"decode": Skip()},
    "image withdrawn": {"keep": Keep(0)},
}


@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize(
    ("name", "kind"), [("llava", "one image"), ("llava", "padded left"), ("qwen3_vl", "one image")]
)
@torch.no_grad()
def test_decode_is_compiled_whole(name, kind, cells):
    family = FAMILIES[name]
    model, arguments = family.build(), family.batch(kind)
    layers = len(model.model.language_model.layers)
    plan = Plan.full(layers).at([2], **CELLS[cells])

    def run(step) -> torch.Tensor:
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

    def compiled() -> tuple[torch.Tensor, int]:
        torch._dynamo.reset()
        counters.clear()
        return run(torch.compile(model, backend="eager")), sum(counters["graph_break"].values())

    _, stock_breaks = compiled()
    with apply(model, plan):
        logits, breaks = compiled()
        torch.testing.assert_close(logits, run(model), rtol=1e-5, atol=1e-5)
    assert breaks == stock_breaks
    torch._dynamo.reset()
