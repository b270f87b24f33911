"""What a decoder's layer is, said once: norms, windows, whose keys it reads, what a row undergoes that runs nothing.

Which operators take part is seen at the layer itself (:mod:`lookless.runtime.mixers`, :mod:`lookless.runtime.ffn`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .rows import Rows

#: What a row of a layer undergoes besides both operators: the layer, compact living rows, which these are, and the rest
#: of the layer's arguments, to the rows as they leave the layer.
PassBy = Callable[[Any, Tensor, Rows, Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class Block:
    """A kind of layer. The default is the Llama block: ``x += attention(norm(x)); x += ffn(norm(x))``.

    Attributes:
        before_attention, before_ffn: the norm before each operator, by name.
        ffn, last_norm: of a layer its FFN, and of the decoder the norm behind all layers, by name.
        after_attention, after_ffn: the norms of what the operators add; None without.
        beside_ffn: adds to what the FFN makes of rows, from the rows before its norm; None without.
        pass_by: see :data:`PassBy`; None where a row that runs no operator leaves as it came.
        slides: in some layers each row reads only keys at most ``self_attn.sliding_window - 1`` positions before it.
        shares_keys: some layers read keys and values that an earlier one made.
        norms_values: values are normed, and may be the keys before their norm.
        types: the argument of the model that says which tokens are visual; where a call brings it, neighbouring visual
            tokens see each other both ways. None where all attention is causal.
        types_in_windows: they do so only in layers with a window.
        caps_logits: the model bends its logits so that none is above ``final_logit_softcapping``.
    """

    before_attention: str = "input_layernorm"
    before_ffn: str = "post_attention_layernorm"
    ffn: str = "mlp"
    last_norm: str = "norm"
    after_attention: str | None = None
    after_ffn: str | None = None
    beside_ffn: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    pass_by: PassBy | None = None
    slides: bool = False
    shares_keys: bool = False
    norms_values: bool = False
    types: str | None = None
    types_in_windows: bool = False
    caps_logits: bool = False

    @property
    def norms(self) -> tuple[str, ...]:
        """Of a layer, all but the first, by name."""
        return tuple(filter(None, (self.after_attention, self.before_ffn, self.after_ffn)))

    def norm(self, layer: Any) -> Any:
        """The norm before what mixes the rows of ``layer``."""
        return getattr(layer, self.before_attention)

    def ffn_of(self, layer: Any) -> Any:
        """The FFN of ``layer``."""
        return getattr(layer, self.ffn)

    def of_attention(self, layer: Any) -> nn.Module | None:
        """The norm of what the attention of ``layer`` adds; None without."""
        return None if self.after_attention is None else getattr(layer, self.after_attention)

    def of_ffn(self, layer: Any) -> nn.Module | None:
        """The norm of what the FFN of ``layer`` adds; None without."""
        return None if self.after_ffn is None else getattr(layer, self.after_ffn)

    def reach(self, module: Any, length: int) -> int | None:
        """How many keys, itself among them, a row may read in an attention ``module``, by their positions; None for
        all in a sequence of ``length`` tokens."""
        size = module.sliding_window if self.slides else None
        return size if size is not None and size < length else None

    def embeds(self, layer: Any) -> tuple[str, ...]:
        """The projections of an embedding that ``layer`` adds to every row, by name; none without."""
        has = self.pass_by is not None and _embeds(layer)
        return ("per_layer_input_gate", "per_layer_projection") if has else ()

    def is_both_ways(self, module: Any) -> bool:
        """Whether an attention ``module`` lets visual tokens see those after them, in calls with :attr:`types`."""
        return not self.types_in_windows or bool(module.is_sliding)

    def borrows(self, layer: Any) -> bool:
        """Whether ``layer`` reads keys that an earlier one made, and makes none."""
        return self.shares_keys and bool(layer.self_attn.is_kv_shared_layer)

    def lends(self, layer: Any) -> bool:
        """Whether later layers read the keys that ``layer`` makes."""
        return self.shares_keys and bool(layer.self_attn.store_full_length_kv)


def _embeds(layer: Any) -> bool:
    return bool(getattr(layer, "hidden_size_per_layer_input", 0))


def add_experts(layer: Any, made: Tensor, x: Tensor) -> Tensor:
    """Where ``layer`` has a mixture of experts beside its FFN, both together: ``made`` by the FFN, and of the rows
    ``x`` before any norm, which a router reads."""
    if not layer.enable_moe_block:
        return made
    rows = x.flatten(0, -2)
    _, weights, chosen = layer.router(rows)
    routed = layer.experts(layer.pre_feedforward_layernorm_2(rows), chosen, weights).view_as(x)
    both: Tensor = layer.post_feedforward_layernorm_1(made) + layer.post_feedforward_layernorm_2(routed)
    return both


def pass_gemma4(layer: Any, x: Tensor, rows: Rows, arguments: Mapping[str, Any]) -> Tensor:
    """The embedding of its own that each layer adds, gated by the row, and the number that scales every row."""
    if _embeds(layer):
        gate = layer.act_fn(layer.per_layer_input_gate(x)) * rows.gather(arguments["per_layer_input"])
        x = x + layer.post_per_layer_input_norm(layer.per_layer_projection(gate))
    return x * layer.layer_scalar


LLAMA = Block()
GLM = Block(after_attention="post_self_attn_layernorm", after_ffn="post_mlp_layernorm")
LFM2 = Block(before_attention="operator_norm", before_ffn="ffn_norm", ffn="feed_forward", last_norm="embedding_norm")
GEMMA3 = Block(
    before_ffn="pre_feedforward_layernorm",
    after_attention="post_attention_layernorm",
    after_ffn="post_feedforward_layernorm",
    slides=True,
    types="token_type_ids",
)
GEMMA4 = Block(
    before_ffn=GEMMA3.before_ffn,
    after_attention=GEMMA3.after_attention,
    after_ffn=GEMMA3.after_ffn,
    beside_ffn=add_experts,
    pass_by=pass_gemma4,
    slides=True,
    shares_keys=True,
    norms_values=True,
    types="mm_token_type_ids",
    types_in_windows=True,
    caps_logits=True,
)
#: By the decoder's ``model_type``. Llama blocks have separate q, k, v, o projections (and norms of queries and keys in
#: Qwen3; a gate, or a gated delta rule, in Qwen3.5), causal also among visual tokens, and a gated FFN or a mixture of
#: gated experts.
DECODERS: dict[str, Block] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"),
            *("qwen3_vl_moe_text", "qwen3_5_text", "qwen3_5_moe_text", "paddleocr_vl_text", "glm4v_moe_text"),
        ),
        LLAMA,
    ),
    **dict.fromkeys(("glm4v_text", "glm_ocr_text"), GLM),
    "lfm2": LFM2,
    "gemma3_text": GEMMA3,
    "gemma4_text": GEMMA4,
    # Its masks are both ways in all layers, or under a static cache in windows alone: each layer's own is read.
    "gemma4_unified_text": replace(GEMMA4, beside_ffn=None, types_in_windows=False),
}


def block_of(config: Any) -> Block:
    """What the layers of a decoder with this configuration are."""
    block = DECODERS[config.model_type]
    is_causal = block.types == GEMMA4.types and config.use_bidirectional_attention != "vision"  # the small Gemma 4
    return replace(block, types=None) if is_causal else block
