"""Tiny random models of families over a decoder that another family has as well.

Every cell is tested on those others. These are tested under a few plans, in which everything that a row of
:data:`lookless.runtime.families.FAMILIES` says would show: where the layers are, and which tokens are visual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    DeepseekVLConfig,
    Idefics3Config,
    LightOnOcrConfig,
    LlamaConfig,
    Mistral3Config,
    MistralConfig,
    PaddleOCRVLConfig,
    PixtralVisionConfig,
    PreTrainedConfig,
    QianfanOCRConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    VideoLlama3Config,
    VipLlavaConfig,
)

from helpers.family import END, START, VIDEO, Family, Visual, finished
from helpers.glm import GLM
from helpers.models import IMAGE, TEXT, VISION, VISUAL

_SPLIT = {k: v for k, v in VISION.items() if k not in ("image_size", "patch_size")}
_CLIP = CLIPVisionConfig(**VISION, projection_dim=32).to_dict()
_SIGLIP = SiglipVisionConfig(**VISION, vision_use_head=False).to_dict()
_PIXTRAL = PixtralVisionConfig(**VISION).to_dict()
_QIANFAN = {**_SPLIT, "image_size": (32, 32), "patch_size": (8, 8), "drop_path_rate": 0.0}
_VIDEO_LLAMA = {**_SPLIT, "patch_size": 8}

_LLAMA = LlamaConfig(**TEXT).to_dict()
_MISTRAL = MistralConfig(**TEXT, sliding_window=None).to_dict()
_QWEN2 = Qwen2Config(**TEXT).to_dict()
_QWEN3 = Qwen3Config(**TEXT, head_dim=16).to_dict()


def _model(config: PreTrainedConfig) -> Callable[..., Any]:
    def build(attention: str = "sdpa") -> Any:
        torch.manual_seed(0)
        return finished(AutoModelForImageTextToText.from_config(config), attention)

    return build


def _image(tokens: int, *shape: int, **more: Any) -> Callable[[Generator], Visual]:
    """An image of so many visual tokens, whose pixels have a ``shape``."""

    def image(generator: Generator) -> Visual:
        pixels = {"pixel_values": torch.randn(shape, generator=generator)}
        return Visual(torch.full((tokens,), IMAGE), {**pixels, **{k: torch.tensor(v) for k, v in more.items()}})

    return image


def _framed(height: int, width: int) -> Callable[[Generator], Visual]:
    """PaddleOCR-VL's: ``height`` x ``width`` visual tokens, each of four patches, between START and END."""

    def image(generator: Generator) -> Visual:
        ids = torch.full((height * width + 2,), IMAGE)
        ids[0], ids[-1] = START, END
        pixels = torch.randn(4 * height * width, 3, 8, 8, generator=generator)
        return Visual(ids, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 2 * height, 2 * width]])})

    return image


def _patches(tokens: int, grid: tuple[int, int, int], kind: str) -> Callable[[Generator], Visual]:
    """VideoLLaMA3's: patches in a row, of which four side by side are one visual token."""
    pixels, name = ("pixel_values", "image") if kind == "image" else ("pixel_values_videos", "video")

    def visual(generator: Generator) -> Visual:
        count = grid[0] * grid[1] * grid[2]
        arguments = {
            pixels: torch.randn(count, 3 * 8 * 8, generator=generator),
            f"{name}_grid_thw": torch.tensor([grid]),
            f"{name}_merge_sizes": torch.tensor([2]),
        }
        return Visual(torch.full((tokens,), IMAGE if kind == "image" else VIDEO), arguments)

    return visual


#: one image of 32 pixels, in patches of 8
_ONE = {"image": _image(VISUAL, 1, 3, 32, 32), "wide": _image(VISUAL, 1, 3, 32, 32)}
#: and four patches merged into one visual token
_MERGED = {"image": _image(4, 1, 3, 32, 32), "wide": _image(8, 2, 3, 32, 32)}
#: with tiles in a dimension of their own
_TILED = {"image": _image(4, 1, 1, 3, 32, 32), "wide": _image(12, 1, 3, 3, 32, 32)}
#: and with their sizes
_SIZED = {
    "image": _image(4, 1, 3, 32, 32, image_sizes=[[32, 32]]),
    "wide": _image(2, 1, 3, 32, 32, image_sizes=[[16, 32]]),
}
_GRIDS = {
    "image": _patches(4, (1, 4, 4), "image"),
    "wide": _patches(6, (1, 4, 6), "image"),
    "video": _patches(8, (2, 4, 4), "video"),
}

#: one decoder of its own: Llama's block with M-RoPE
_ERNIE = {
    **TEXT,
    "head_dim": 24,
    "use_bias": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 4, 5]},
    "bos_token_id": None,
    "eos_token_id": None,
}

_WIDE = {**VISION, "intermediate_size": 256}  # larger than the projector

_IDS = {"image_token_id": IMAGE}
_SPANS = {"vision_start_token_id": START, "vision_end_token_id": END, "video_token_id": VIDEO}
_TIED = {"tie_word_embeddings": False}
ALIKE = {
    family.name: family
    for family in (
        Family(
            "smolvlm",
            _model(SmolVLMConfig(vision_config=VISION, text_config=_LLAMA, **_IDS)),
            _TILED,
            (IMAGE,),
        ),
        Family(
            "idefics3",
            _model(Idefics3Config(vision_config=VISION, text_config=_LLAMA, **_IDS)),
            _TILED,
            (IMAGE,),
        ),
        Family(
            "mistral3",
            _model(Mistral3Config(vision_config=_PIXTRAL, text_config=_MISTRAL, image_token_index=IMAGE, **_TIED)),
            _SIZED,
            (IMAGE,),
        ),
        Family(
            "lighton_ocr",
            _model(LightOnOcrConfig(vision_config=_PIXTRAL, text_config=_QWEN3, **_IDS, **_TIED)),
            _SIZED,
            (IMAGE,),
        ),
        Family(
            "qianfan_ocr",
            _model(QianfanOCRConfig(vision_config=_QIANFAN, text_config=_QWEN3, **_IDS)),
            _MERGED,
            (IMAGE,),
        ),
        Family(
            "vipllava",
            _model(
                VipLlavaConfig(
                    vision_config=_CLIP, text_config=_LLAMA, image_token_index=IMAGE, vision_feature_layers=(-1, 0)
                )
            ),
            _ONE,
            (IMAGE,),
        ),
        Family(
            "deepseek_vl",
            _model(DeepseekVLConfig(vision_config=_SIGLIP, text_config=_LLAMA, **_IDS, **_TIED)),
            _ONE,
            (IMAGE,),
        ),
        Family(
            "video_llama_3",
            _model(VideoLlama3Config(vision_config=_VIDEO_LLAMA, text_config=_QWEN2, video_token_id=VIDEO, **_IDS)),
            _GRIDS,
            (IMAGE, VIDEO),
        ),
        Family(
            "paddleocr_vl",
            _model(PaddleOCRVLConfig(vision_config=_WIDE, text_config=_ERNIE, **_IDS, **_SPANS, **_TIED)),
            {"image": _framed(3, 4), "wide": _framed(2, 5)},
            (IMAGE,),
            mrope=True,
        ),
        *GLM,
    )
}
