"""A dummy model: real layer shapes with random weights, so that a 7B model can be timed without a download.

Every geometry but Gemma 4's runs as LLaVA with the decoder block of its own kind (biases, grouped queries, norms of
queries and keys). Visual features are random, and no vision tower runs. M-RoPE is replaced by rotary embedding, which
costs the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, Gemma4Config, LlavaConfig

from ..configs import Shape
from ..geometry import Geometry
from ..parts import Experts
from .timing import check_memory

IMAGE, WORD = 0, 1
GEMMA4 = "gemma4_text"
VOCABULARY = 8  # the head is not timed


@dataclass(frozen=True)
class DummyModel:
    """A model of real layer shapes, and prompts for it."""

    model: Any
    geometry: Geometry

    def inputs(self, *, visual: int, before: int, after: int, batch: int) -> dict[str, torch.Tensor]:
        """``batch`` prompts of ``before`` text tokens, an image of ``visual`` tokens and ``after`` text tokens.

        Raises:
            ModelError: their hidden states do not fit into free memory.
        """
        weight = self.model.model.language_model.embed_tokens.weight
        states = batch * (before + visual + after) * self.geometry.hidden * weight.itemsize
        check_memory(4 * states, str(weight.device), f"{batch} prompts of {before + visual + after} tokens")
        ids = torch.full((batch, before + visual + after), WORD)
        ids[:, before : before + visual] = IMAGE
        shape, generator = (batch, visual, self.geometry.hidden), torch.Generator(weight.device).manual_seed(0)
        features = torch.randn(shape, generator=generator, dtype=weight.dtype, device=weight.device)
        self.model.model.get_image_features = lambda *_, **__: SimpleNamespace(pooler_output=list(features))
        pixels = torch.zeros(batch, 3, 2, 2, dtype=weight.dtype, device=weight.device)
        return {"input_ids": ids.to(weight.device), "pixel_values": pixels}


def decoder(shape: Shape) -> dict[str, Any]:
    """The decoder's configuration."""
    geometry = shape.geometry
    if shape.block == GEMMA4:
        return _common(shape) | _gemma4(geometry)
    delta = geometry.delta
    state = (
        {}
        if delta is None
        else {
            "linear_num_key_heads": delta.key_heads,
            "linear_num_value_heads": delta.value_heads,
            "linear_key_head_dim": delta.key_dim,
            "linear_value_head_dim": delta.value_dim,
            "layer_types": [
                "full_attention" if geometry.delta_of(layer) is None else "linear_attention"
                for layer in range(geometry.layers)
            ],
        }
    )
    return {**_mixture(geometry.experts), **state, **_common(shape), **_glm(shape), **_lfm2(geometry)}


def _common(shape: Shape) -> dict[str, Any]:
    """What every decoder's configuration has."""
    geometry = shape.geometry
    return {
        "model_type": shape.block,
        "hidden_size": geometry.hidden,
        "intermediate_size": geometry.intermediate,
        "num_hidden_layers": geometry.layers,
        "num_attention_heads": geometry.heads,
        "num_key_value_heads": geometry.kv_heads,
        "head_dim": geometry.head_dim,
        "max_position_embeddings": 32768,
    }


def _glm(shape: Shape) -> dict[str, Any]:
    """Of GLM's decoders, half of whose heads are rotated: M-RoPE of one axis."""
    if not shape.block.startswith("glm"):
        return {}
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return {
        "tie_word_embeddings": False,
        "rope_parameters": {**rotary, "mrope_section": [shape.geometry.head_dim // 4, 0, 0]},
    }


def _lfm2(geometry: Geometry) -> dict[str, Any]:
    """Of a decoder with short convolutions."""
    convolution = geometry.convolution
    if convolution is None:
        return {}
    kinds = ["full_attention" if geometry.state_of(i) is None else "conv" for i in range(geometry.layers)]
    return {"layer_types": kinds, "conv_L_cache": convolution.kernel, "block_auto_adjust_ff_dim": False}


def _mixture(experts: Experts | None) -> dict[str, Any]:
    """The part of a decoder's configuration that is about its experts."""
    if experts is None:
        return {}
    names = {
        "num_experts_per_tok": experts.used,
        "moe_intermediate_size": experts.intermediate,
        "norm_topk_prob": True,
    }
    if not experts.weighed:
        shared = {"n_shared_experts": experts.shared // experts.intermediate}
        return {**names, **shared, "n_routed_experts": experts.count, "first_k_dense_replace": len(experts.dense)}
    shared = {"shared_expert_intermediate_size": experts.shared}
    return {**names, **shared, "num_experts": experts.count, "mlp_only_layers": [*experts.dense]}


def _gemma4(geometry: Geometry) -> dict[str, Any]:
    """What a Gemma 4 decoder has besides."""
    layers, sliding, other = range(geometry.layers), geometry.sliding, geometry.other_heads
    shared = sum(geometry.shares_keys_of(layer) is not None for layer in layers)
    return {
        "layer_types": ["full_attention" if geometry.reach_of(i) is None else "sliding_attention" for i in layers],
        "sliding_window": sliding.size if sliding else 1,
        "global_head_dim": other.head_dim if other else geometry.head_dim,
        "num_global_key_value_heads": other.kv_heads if other else None,
        "attention_k_eq_v": bool(other and other.keys_are_values),
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": bool(shared and geometry.ffn_width(geometry.layers - 1) > geometry.intermediate),
        "hidden_size_per_layer_input": geometry.embedded,
        "vocab_size_per_layer_input": VOCABULARY,
    }


def make_dummy_model(shape: Shape, *, dtype: torch.dtype, device: str = "cpu") -> DummyModel:
    """A dummy model of ``shape``.

    Raises:
        ModelError: its weights do not fit into free memory.
    """
    check_memory(
        _weights(shape.geometry) * dtype.itemsize, device, f"{shape.geometry.layers} layers of it, in {dtype},"
    )
    text = {**decoder(shape), "vocab_size": VOCABULARY, "pad_token_id": WORD}
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config: Any
    if shape.block == GEMMA4:
        config = Gemma4Config(vision_config={**tower, "head_dim": 8}, text_config=text, image_token_id=IMAGE)
    else:
        seen = CLIPVisionConfig(**tower, image_size=2, patch_size=1).to_dict()
        config = LlavaConfig(vision_config=seen, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    rotary = model.model.language_model.rotary_emb
    for name, buffer in [*rotary.named_buffers()]:
        setattr(rotary, name, buffer.float())
    return DummyModel(model, Geometry.from_config(model.config))


def _weights(g: Geometry) -> int:
    """Number of weights in all layers."""

    def ffn(layer: int) -> int:
        experts = g.experts_of(layer)
        return 3 * (g.ffn_width(layer) if experts is None else experts.count * experts.intermediate + experts.shared)

    def mixer(layer: int) -> int:
        delta = g.delta_of(layer)
        if delta is not None:
            return delta.written_width + 2 * delta.read_width
        if g.convolution_of(layer) is not None:
            return 4 * g.hidden
        return (2 + g.gated) * g.query_width(layer) + (1 + g.has_values(layer)) * g.key_width(layer) + 2 * g.embedded

    return sum(g.hidden * (mixer(layer) + ffn(layer)) for layer in range(g.layers))
