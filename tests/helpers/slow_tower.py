"""What the vision tower pays to each visual token, by the attention maps that it returns itself."""

from __future__ import annotations

import torch


def tower_maps(name, model, arguments):
    if name == "llava":
        maps = model.model.vision_tower(arguments["pixel_values"], output_attentions=True).attentions[-1]
        return maps[:, :, 0, 1:].mean(1).flatten()
    grid = arguments["image_grid_thw"]
    maps = []
    block = model.model.visual.blocks[-1].attn
    interface = type(block).forward.__globals__["eager_attention_forward"]

    def spy(module, *args, **kwargs):
        out = interface(module, *args, **kwargs)
        if module is block:
            maps.append(out[1])
        return out

    type(block).forward.__globals__["eager_attention_forward"] = spy
    try:
        model.model.visual(arguments["pixel_values"], grid_thw=grid)
    finally:
        type(block).forward.__globals__["eager_attention_forward"] = interface
    return torch.cat([m[0].mean((0, 1)) for m in maps]).unflatten(0, (-1, 4)).mean(1)
