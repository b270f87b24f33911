"""Tiny random models of Gemma: windows, two norms around each operator, keys that layers share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Generator
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    SiglipVisionConfig,
)

from helpers.family import END, START, VIDEO, Family, Visual, finished
from helpers.models import IMAGE, TEXT, VISION, VOCABULARY

WINDOW = 8
_SLIDING, _FULL = "sliding_attention", "full_attention"
_GEMMA4_TEXT = {
    **{k: v for k, v in TEXT.items() if k != "num_key_value_heads"},
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": WINDOW,
    "layer_types": [_SLIDING, _FULL, _SLIDING, _SLIDING, _FULL],
    "final_logit_softcapping": 30.0,
    "bos_token_id": None,
    "eos_token_id": None,
}
#: as E2B and E4B: the last two layers read keys of those before, and each layer has an embedding of its own
SMALL = {
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}
#: as 31B: keys are values in layers without a window, and images are read both ways in those with one
LARGE = {
    "num_key_value_heads": 2,
    "attention_k_eq_v": True,
    "use_bidirectional_attention": "vision",
    "num_global_key_value_heads": 1,
    "hidden_size_per_layer_input": 0,
}
#: as 26B-A4B
EXPERTS = {**LARGE, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48}
_GEMMA4_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 64,
}
_PATCHES = 64  # of the largest image; the others are padded


def _gemma4(**text: Any) -> Callable[..., Any]:
    def build(attention: str = "sdpa") -> Gemma4ForConditionalGeneration:
        torch.manual_seed(0)
        config = Gemma4Config(
            text_config={**_GEMMA4_TEXT, **text},
            vision_config=_GEMMA4_VISION,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            boi_token_id=START,
            eoi_token_id=END,
        )
        model = finished(Gemma4ForConditionalGeneration(config), attention)
        for layer in model.model.language_model.layers:
            layer.layer_scalar.uniform_(0.5, 1.5)
        return model

    return build


def _unified(attention: str = "sdpa") -> Gemma4UnifiedForConditionalGeneration:
    """Its images are patches, each a visual token, and no tower sees them."""
    torch.manual_seed(0)
    text = {k: v for k, v in {**_GEMMA4_TEXT, **LARGE}.items() if k != "hidden_size_per_layer_input"}
    config = Gemma4UnifiedConfig(
        text_config=text,
        vision_config={
            "patch_size": 4,
            "pooling_kernel_size": 1,
            "mm_embed_dim": 32,
            "mm_posemb_size": 16,
            "output_proj_dims": 32,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        boi_token_id=START,
        eoi_token_id=END,
    )
    return finished(Gemma4UnifiedForConditionalGeneration(config), attention)


def _patches(generator: Generator, frames: int, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and places of the patches of images of so many patches, padded."""
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(-1)
    places = torch.full((frames, _PATCHES, 2), -1)
    places[:, : len(place)] = place
    return torch.rand(frames, _PATCHES, 3 * 4 * 4, generator=generator), places


def _image(width: int, height: int) -> Callable[[Generator], Visual]:
    """Four patches side by side are one visual token."""

    def image(generator: Generator) -> Visual:
        pixels, places = _patches(generator, 1, width, height)
        ids = torch.full((width * height // 4 + 2,), IMAGE)
        ids[0], ids[-1] = START, END
        return Visual(ids, {"pixel_values": pixels, "image_position_ids": places})

    return image


def _video(generator: Generator) -> Visual:
    """Two frames of 4 tokens each."""
    pixels, places = _patches(generator, 2, 4, 4)
    arguments = {"pixel_values_videos": pixels, "video_position_ids": places, "num_frames_per_video": torch.tensor([2])}
    return Visual(torch.full((8,), VIDEO), arguments)


_VISUALS = {"image": _image(8, 6), "wide": _image(8, 8), "video": _video}


def _unified_image(width: int, height: int) -> Callable[[Generator], Visual]:
    def image(generator: Generator) -> Visual:
        pixels, places = _patches(generator, 1, width, height)
        return Visual(torch.full((width * height,), IMAGE), {"pixel_values": pixels, "image_position_ids": places})

    return image


_UNIFIED = {"image": _unified_image(4, 3), "wide": _unified_image(4, 4)}

# Gemma 3

_GEMMA3_TEXT = {
    **TEXT,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": [_SLIDING, _FULL, _SLIDING, _SLIDING, _FULL],
    "query_pre_attn_scalar": 24,
    "bos_token_id": None,
    "eos_token_id": None,
}


def _gemma3(attention: str = "sdpa") -> Gemma3ForConditionalGeneration:
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=_GEMMA3_TEXT,
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        image_token_id=IMAGE,
        boi_token_id=START,
        eoi_token_id=END,
        mm_tokens_per_image=16,
    )
    model = finished(Gemma3ForConditionalGeneration(config), attention)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model


def _gemma3_image(generator: Generator) -> Visual:
    ids = torch.full((18,), IMAGE)
    ids[0], ids[-1] = START, END
    return Visual(ids, {"pixel_values": torch.randn(1, 3, 32, 32, generator=generator)})


_GEMMA3 = {"image": _gemma3_image, "wide": _gemma3_image}
_TYPES = "mm_token_type_ids"
GEMMA = {
    family.name: family
    for family in (
        Family("gemma4", _gemma4(**SMALL), _VISUALS, (IMAGE, VIDEO)),
        Family("gemma3", _gemma3, _GEMMA3, (IMAGE,), types="token_type_ids"),
        Family("gemma4-experts", _gemma4(**EXPERTS), _VISUALS, (IMAGE, VIDEO), types=_TYPES),
        Family("gemma4_unified", _unified, _UNIFIED, (IMAGE, VIDEO), types=_TYPES),
        Family("gemma4-large", _gemma4(**LARGE), _VISUALS, (IMAGE, VIDEO), types=_TYPES),
    )
}


@cache
def model_of(name: str) -> Any:
    """One model of a family for every test that leaves it as it was."""
    return GEMMA[name].build()
