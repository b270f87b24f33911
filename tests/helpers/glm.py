"""Tiny random models of the GLM-4V families: norms behind branches, gate and up in one matrix, neighbours turned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    Glm4vConfig,
    Glm4vMoeConfig,
    Glm46VConfig,
    GlmOcrConfig,
    PreTrainedConfig,
)

from helpers.family import END, START, Family, finished
from helpers.models import IMAGE, TEXT
from helpers.qwen import qwen3_video, qwen_visual

_IDS = {"image_token_id": IMAGE, "image_start_token_id": START, "image_end_token_id": END, "video_token_id": 95}
_TOWER = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "image_size": 32,
    "patch_size": 4,
}


def _text(**more: Any) -> dict[str, Any]:
    """Half of each head of 16 is rotated."""
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    return {**TEXT, "bos_token_id": None, "eos_token_id": None, "rope_parameters": rotary, **more}


def _built(config: PreTrainedConfig) -> Callable[..., Any]:
    def build(attention: str = "sdpa") -> Any:
        torch.manual_seed(0)
        model = finished(AutoModelForImageTextToText.from_config(config), attention)
        for name, bias in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # it starts as zeros, whose confusion nobody would see
                bias.copy_(torch.randn(bias.shape) / 4)
        return model

    return build


#: eight experts in two groups, of which a row takes one, and of that two; the first layer has none of them
_MIXTURE = {
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "routed_scaling_factor": 1.5,
    "head_dim": 16,
}
_VISUALS = {"image": qwen_visual(1, 3, 4, video=False), "wide": qwen_visual(1, 2, 5, video=False)}
#: frames behind their times, whose tokens have an image's id
VIDEOS = {"image": qwen3_video(IMAGE)}

GLM = [
    Family(name, _built(config), _VISUALS, (IMAGE,), mrope=True)
    for name, config in {
        "glm4v": Glm4vConfig(text_config=_text(), vision_config=_TOWER, **_IDS),
        "glm46v": Glm46VConfig(
            text_config={**_text(), "model_type": "glm4v_text"},
            vision_config={**_TOWER, "model_type": "glm4v_vision"},
            **_IDS,
        ),
        "glm_ocr": GlmOcrConfig(
            text_config=_text(
                head_dim=24,
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 1.0,
                    "mrope_section": [4, 4, 4],
                },
            ),
            vision_config=_TOWER,
            **_IDS,
        ),
        "glm4v_moe": Glm4vMoeConfig(text_config=_text(**_MIXTURE), vision_config=_TOWER, **_IDS),
    }.items()
]
