"""Tiny random models of every family."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Generator
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

from helpers.family import END, PROMPTS, SECOND, SPECIAL, START, VIDEO, Family, Visual, finished
from helpers.models import IMAGE, TEXT, VISION, VISUAL, tiny_llava, tiny_llava_next
from helpers.qwen import DEEPSTACK, QWEN

__all__ = ["DEEPSTACK", "FAMILIES", "PROMPTS", "SECOND", "SPECIAL", "VIDEO", "Family", "Visual", "model_of"]

# LLaVA and LLaVA-NeXT


def _llava_image(generator: Generator) -> Visual:
    return Visual(torch.full((VISUAL,), IMAGE), {"pixel_values": torch.randn(1, 3, 32, 32, generator=generator)})


def _llava(attention: str = "sdpa") -> Any:
    return tiny_llava("clip-llama", attention)


def _llava_next(attention: str = "sdpa") -> Any:
    model = tiny_llava_next()
    model.set_attn_implementation(attention)
    return model


# LLaVA-OneVision


def _onevision(attention: str = "sdpa") -> LlavaOnevisionForConditionalGeneration:
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        text_config=Qwen2Config(**TEXT).to_dict(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[32, 32], [32, 64]],
    )
    return finished(LlavaOnevisionForConditionalGeneration(config), attention)


def _tiled_image(tiles: int) -> Callable[[Generator], Visual]:
    """``tiles`` side by side: 16 tokens of the whole, 16 of each tile, and a newline for each of 4 rows.

    Of LLaVA-OneVision also beside another image in the same prompt, where its processor would send
    ``batch_num_images`` and no tiles: two images of different sizes are the harder case.
    """

    def image(generator: Generator) -> Visual:
        return Visual(
            torch.full((16 + 4 * (4 * tiles + 1),), IMAGE),
            {
                "pixel_values": torch.randn(1, 1 + tiles, 3, 32, 32, generator=generator),
                "image_sizes": torch.tensor([[32, 32 * tiles]]),
            },
        )

    return image


def _onevision_video(generator: Generator) -> Visual:
    """Two frames, pooled to 4 tokens each, and one newline."""
    return Visual(
        torch.full((2 * 4 + 1,), VIDEO), {"pixel_values_videos": torch.randn(1, 2, 3, 32, 32, generator=generator)}
    )


# InternVL


def _internvl(decoder: Any) -> Callable[..., InternVLForConditionalGeneration]:
    def build(attention: str = "sdpa") -> InternVLForConditionalGeneration:
        torch.manual_seed(0)
        config = InternVLConfig(
            vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
            text_config=decoder.to_dict(),
            image_token_id=IMAGE,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
        return finished(InternVLForConditionalGeneration(config), attention)

    return build


def _internvl_image(tiles: int) -> Callable[[Generator], Visual]:
    """4 visual tokens a tile, all tiles between one START and END."""

    def image(generator: Generator) -> Visual:
        ids = torch.full((4 * tiles + 2,), IMAGE)
        ids[0], ids[-1] = START, END
        return Visual(ids, {"pixel_values": torch.randn(tiles, 3, 32, 32, generator=generator)})

    return image


_INTERNVL_IMAGES = {"image": _internvl_image(3), "wide": _internvl_image(4)}
_INTERNVL_DECODERS = {
    "qwen2": Qwen2Config(**TEXT),
    "qwen3": Qwen3Config(**TEXT, head_dim=16),
    "llama": LlamaConfig(**TEXT),
}

_ALL = [
    Family("llava", _llava, {"image": _llava_image, "wide": _llava_image}, (IMAGE,)),
    Family("llava_next", _llava_next, {"image": _tiled_image(1), "wide": _tiled_image(2)}, (IMAGE,)),
    Family(
        "llava_onevision",
        _onevision,
        {"image": _tiled_image(1), "wide": _tiled_image(2), "video": _onevision_video},
        (IMAGE, VIDEO),
    ),
    *QWEN,
    *(
        Family(f"internvl-{name}", _internvl(decoder), _INTERNVL_IMAGES, (IMAGE,))
        for name, decoder in _INTERNVL_DECODERS.items()
    ),
]
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}


@cache
def model_of(family: str) -> Any:
    """One model of a family for every test that leaves it as it was."""
    return FAMILIES[family].build()
