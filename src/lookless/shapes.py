"""A decoder of real layer shapes with random weights, so that a 7B model can be timed without a download.

Every geometry runs in LLaVA's wrapping over the decoder block of its own kind (biases, grouped queries, norms of
queries and keys); visual features are random, and no vision tower runs. M-RoPE costs what rotary embedding costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from .errors import ModelError
from .geometry import Geometry

IMAGE, WORD = 0, 1
VOCABULARY = 8  # the head is not timed
DECODERS = {"qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "qwen3_vl": "qwen3"}  # any other has Llama's block


@dataclass(frozen=True)
class Shaped:
    """The model, and prompts for it."""

    model: Any
    geometry: Geometry

    def inputs(self, *, visual: int, before: int, after: int, batch: int) -> dict[str, torch.Tensor]:
        """``batch`` prompts of ``before`` text tokens, an image of ``visual`` and ``after`` text tokens."""
        ids = torch.full((batch, before + visual + after), WORD)
        ids[:, before : before + visual] = IMAGE
        weight = self.model.model.language_model.embed_tokens.weight
        features = torch.randn(batch, visual, self.geometry.hidden, dtype=weight.dtype, device=weight.device)
        self.model.model.get_image_features = lambda *_, **__: SimpleNamespace(pooler_output=list(features))
        pixels = torch.zeros(batch, 3, 2, 2, dtype=weight.dtype, device=weight.device)
        return {"input_ids": ids.to(weight.device), "pixel_values": pixels}


def decoder(geometry: Geometry, layers: int | None) -> dict[str, Any]:
    """The decoder's configuration, of the first ``layers`` layers if that is given.

    Raises:
        ModelError: more layers are asked for than there are.
    """
    if layers is not None and not 1 <= layers <= geometry.layers:
        raise ModelError(f"{layers} layers were asked for and {geometry.model_type} has {geometry.layers}.")
    return {
        "model_type": DECODERS.get(geometry.model_type, "llama"),
        "hidden_size": geometry.hidden,
        "intermediate_size": geometry.intermediate,
        "num_hidden_layers": layers or geometry.layers,
        "num_attention_heads": geometry.heads,
        "num_key_value_heads": geometry.kv_heads,
        "head_dim": geometry.head_dim,
        "max_position_embeddings": 32768,
    }


def shaped(geometry: Geometry, *, layers: int | None = None, dtype: torch.dtype, device: str = "cpu") -> Shaped:
    """A model of ``geometry``, of its first ``layers`` layers if that is given.

    Raises:
        ModelError: more layers are asked for than there are.
    """
    text = {**decoder(geometry, layers), "vocab_size": VOCABULARY, "pad_token_id": WORD}
    tower = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=2, patch_size=1
    )
    config = LlavaConfig(
        vision_config=tower.to_dict(), text_config=text, image_token_index=IMAGE, vision_feature_layer=-1
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.model.language_model.rotary_emb.inv_freq = model.model.language_model.rotary_emb.inv_freq.float()
    return Shaped(model, Geometry.from_config(model.config))
