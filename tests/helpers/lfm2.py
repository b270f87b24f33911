"""A tiny random LFM2-VL: short convolutions in layers 0, 2 and 4, attention in the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration, Siglip2VisionConfig

from helpers.family import Family, Visual, finished
from helpers.models import IMAGE, TEXT, VISION

_VISION = {k: v for k, v in VISION.items() if k != "image_size"}
_TEXT = {
    **TEXT,
    "model_type": "lfm2",
    "layer_types": ["conv", "full_attention"] * 2 + ["conv"],
    "intermediate_size": 144,  # of which it makes 96
    "block_multiple_of": 32,
}


def _build(attention: str = "sdpa", *, bias: bool = False) -> Any:
    torch.manual_seed(0)
    config = Lfm2VlConfig(
        text_config=_TEXT | {"conv_bias": bias},
        vision_config=Siglip2VisionConfig(**_VISION, num_patches=49, vision_use_head=False).to_dict(),
        image_token_id=IMAGE,
        projector_hidden_size=64,
        tie_word_embeddings=False,
    )
    return finished(Lfm2VlForConditionalGeneration(config), attention)


def _image(height: int, width: int) -> Callable[[Generator], Visual]:
    """``height`` x ``width`` visual tokens, each of four patches."""

    def image(generator: Generator) -> Visual:
        patches = 4 * height * width
        arguments = {
            "pixel_values": torch.randn(1, patches, 3 * 8 * 8, generator=generator),
            "spatial_shapes": torch.tensor([[2 * height, 2 * width]]),
            "pixel_attention_mask": torch.ones(1, patches, dtype=torch.int64),
        }
        return Visual(torch.full((height * width,), IMAGE), arguments)

    return image


LFM2 = Family("lfm2_vl", _build, {"image": _image(3, 4), "wide": _image(2, 6)}, (IMAGE,))
