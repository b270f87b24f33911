"""How much the vision tower itself attended to each visual token, for ranks before the first decoder layer.

A hook on one attention of the tower recomputes what that attention gave each patch, from its own projections, so it
works with any attention kernel. In a tower with a class token that is the attention of this token, one query row
(VisionZip, VisPruner); in one without, the mean over all patches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from .internals import require, require_arguments

#: what the hook does with the scores ``[patches of the call]``, one for each visual token in reading order
Report = Callable[[Tensor], None]


def capture_clip(inner: Any, report: Report) -> Any:
    """CLIP and SigLIP under LLaVA-1.5, where visual tokens are the tower's patches: the layer whose output is used."""
    layer = inner.config.vision_feature_layer
    layer = layer if isinstance(layer, int) else layer[-1]
    has_class = inner.config.vision_feature_select_strategy == "default"
    require(inner.vision_tower, "encoder")
    require(inner.vision_tower.encoder, "layers")
    module = inner.vision_tower.encoder.layers[layer].self_attn
    require(module, "q_proj", "k_proj", "num_heads", "scale")

    def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        query, key = module.q_proj(x[:, :1] if has_class else x), module.k_proj(x)
        query, key = (t.unflatten(-1, (module.num_heads, -1)).transpose(1, 2).float() for t in (query, key))
        given = (query @ key.transpose(2, 3) * module.scale).softmax(-1).mean((1, 2))
        report(given[:, 1 if has_class else 0 :].flatten())

    return module.register_forward_pre_hook(capture, with_kwargs=True)


def capture_qwen(inner: Any, report: Report) -> Any:
    """The tower of Qwen2-VL and Qwen3-VL: a visual token is the mean of the patches merged into it."""
    tower = inner.visual
    require(tower, "blocks", "spatial_merge_size")
    module = tower.blocks[-1].attn
    require(module, "qkv", "num_heads", "scaling")
    require_arguments(module, "cu_seqlens", "position_embeddings")
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb_vision

    def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        query, key, _ = module.qkv(x).unflatten(-1, (3, module.num_heads, -1)).unbind(1)
        query, key = (t.transpose(0, 1).float() for t in rotate(query, key, *kwargs["position_embeddings"]))
        given = x.new_zeros(x.shape[0])
        edges = kwargs["cu_seqlens"].tolist()
        for start, end in pairwise(edges):  # images, or frames, do not attend to each other
            scores = query[:, start:end] @ key[:, start:end].transpose(1, 2) * module.scaling
            given[start:end] = scores.softmax(-1).mean((0, 1)).to(x.dtype)
        report(given.unflatten(0, (-1, tower.spatial_merge_size**2)).mean(1))

    return module.register_forward_pre_hook(capture, with_kwargs=True)
