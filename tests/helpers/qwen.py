"""Tiny random models of the Qwen-VL families: M-RoPE, towers that merge patches, DeepStack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from helpers.family import END, START, VIDEO, Family, Visual, finished, words
from helpers.models import IMAGE, TEXT

DEEPSTACK = 2  # decoder layers of the tiny Qwen3-VL behind which visual features are added

_PATCH, _MERGE = 4, 2  # pixels along a patch, patches along a visual token
_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}


def _mrope(*section: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section), **more}


_QWEN_TEXT = {**TEXT, "bos_token_id": None, "eos_token_id": None}  # the defaults are outside the vocabulary
_QWEN_VISION = {"num_heads": 2, "patch_size": _PATCH, "spatial_merge_size": _MERGE, "temporal_patch_size": 2}


def _qwen2(attention: str = "sdpa") -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={**_QWEN_TEXT, "rope_parameters": _mrope(2, 3, 3)},
        vision_config={**_QWEN_VISION, "depth": 1, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": 64},
        **_IDS,
    )
    return finished(Qwen2VLForConditionalGeneration(config), attention)


def _qwen2_5(attention: str = "sdpa") -> Qwen2_5_VLForConditionalGeneration:
    """A window of the tower is 2 x 2 visual tokens; its second block sees the whole image."""
    torch.manual_seed(0)
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
    config = Qwen2_5_VLConfig(
        text_config={**_QWEN_TEXT, "rope_parameters": _mrope(2, 3, 3)},
        vision_config={
            **_QWEN_VISION,
            **tower,
            "window_size": 2 * _MERGE * _PATCH,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 4,
        },
        **_IDS,
    )
    return finished(Qwen2_5_VLForConditionalGeneration(config), attention)


_QWEN3_TEXT = {**_QWEN_TEXT, "head_dim": 16, "rope_parameters": _mrope(4, 2, 2, mrope_interleaved=True)}
_QWEN3_VISION = {
    **_QWEN_VISION,
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": list(range(DEEPSTACK)),
}


def _qwen3(attention: str = "sdpa") -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(0)
    config = Qwen3VLConfig(text_config=_QWEN3_TEXT, vision_config=_QWEN3_VISION, **_IDS)
    return _seen_deepstack(Qwen3VLForConditionalGeneration(config), attention)


#: four experts, two of which a row passes; layer 1 has none of them
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "mlp_only_layers": [1]}


def _qwen3_moe(attention: str = "sdpa") -> Qwen3VLMoeForConditionalGeneration:
    torch.manual_seed(0)
    config = Qwen3VLMoeConfig(text_config={**_QWEN3_TEXT, **_MIXTURE}, vision_config=_QWEN3_VISION, **_IDS)
    return _seen_deepstack(Qwen3VLMoeForConditionalGeneration(config), attention)


#: gated attention in layers 1 and 3, which turns half of each head
_QWEN3_5_TEXT = {
    **_QWEN_TEXT,
    "head_dim": 32,
    "rope_parameters": _mrope(4, 2, 2, mrope_interleaved=True, partial_rotary_factor=0.5),
    "layer_types": ["linear_attention", "full_attention"] * 2 + ["linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
_QWEN3_5_VISION = {k: v for k, v in _QWEN3_VISION.items() if k != "deepstack_visual_indexes"}


def _qwen3_5(attention: str = "sdpa") -> Qwen3_5ForConditionalGeneration:
    torch.manual_seed(0)
    config = Qwen3_5Config(text_config=_QWEN3_5_TEXT, vision_config=_QWEN3_5_VISION, **_IDS)
    return finished(Qwen3_5ForConditionalGeneration(config), attention)


def _qwen3_5_moe(attention: str = "sdpa") -> Qwen3_5MoeForConditionalGeneration:
    torch.manual_seed(0)
    mixture = {**_MIXTURE, "shared_expert_intermediate_size": 40}
    config = Qwen3_5MoeConfig(text_config={**_QWEN3_5_TEXT, **mixture}, vision_config=_QWEN3_5_VISION, **_IDS)
    return finished(Qwen3_5MoeForConditionalGeneration(config), attention)


def _seen_deepstack(model: Any, attention: str) -> Any:
    with torch.no_grad():  # else what DeepStack adds is lost beside the residual stream
        for parameter in model.model.visual.deepstack_merger_list.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    return finished(model, attention)


def qwen_visual(frames: int, height: int, width: int, *, video: bool) -> Callable[[Generator], Visual]:
    """``height`` x ``width`` visual tokens for each of ``frames``, between START and END."""

    def visual(generator: Generator) -> Visual:
        grid = torch.tensor([[frames, height * _MERGE, width * _MERGE]])
        pixels = torch.randn(int(grid.prod()), 3 * 2 * _PATCH**2, generator=generator)
        ids = torch.full((frames * height * width + 2,), VIDEO if video else IMAGE)
        ids[0], ids[-1] = START, END
        names = ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_grid_thw")
        return Visual(ids, dict(zip(names, (pixels, grid), strict=True)))

    return visual


def _qwen2_5_video(generator: Generator) -> Visual:
    """As Qwen2-VL's, and how many seconds lie between two frames."""
    video = qwen_visual(2, 2, 3, video=True)(generator)
    return Visual(video.ids, {**video.arguments, "second_per_grid_ts": torch.tensor([0.5])})


def qwen3_video(token: int = VIDEO) -> Callable[[Generator], Visual]:
    """Each frame is an image of its own in the prompt, behind its time as text; their pixels are one video's."""

    def video(generator: Generator) -> Visual:
        frames = [qwen_visual(1, 2, 3, video=True)(generator) for _ in range(2)]
        ids = torch.cat([piece for frame in frames for piece in (words(3, generator), frame.ids)])
        pixels = torch.cat([frame.arguments["pixel_values_videos"] for frame in frames])
        grid = torch.tensor([[2, 2 * _MERGE, 3 * _MERGE]])
        ids = torch.where(ids == VIDEO, token, ids)
        return Visual(ids, {"pixel_values_videos": pixels, "video_grid_thw": grid})

    return video


def _qwen_visuals(video: Callable[[Generator], Visual]) -> dict[str, Callable[[Generator], Visual]]:
    return {
        "image": qwen_visual(1, 3, 4, video=False),
        "wide": qwen_visual(1, 2, 5, video=False),
        "video": video,
    }


QWEN = [
    Family("qwen2_vl", _qwen2, _qwen_visuals(qwen_visual(2, 2, 3, video=True)), (IMAGE, VIDEO), mrope=True),
    Family("qwen2_5_vl", _qwen2_5, _qwen_visuals(_qwen2_5_video), (IMAGE, VIDEO), mrope=True),
    Family("qwen3_vl", _qwen3, _qwen_visuals(qwen3_video()), (IMAGE, VIDEO), mrope=True),
    Family("qwen3_5", _qwen3_5, _qwen_visuals(qwen3_video()), (IMAGE, VIDEO), mrope=True),
    Family("qwen3_5_moe", _qwen3_5_moe, _qwen_visuals(qwen3_video()), (IMAGE, VIDEO), mrope=True),
    Family("qwen3_vl_moe", _qwen3_moe, _qwen_visuals(qwen3_video()), (IMAGE, VIDEO), mrope=True),
]
