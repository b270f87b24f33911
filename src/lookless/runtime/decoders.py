"""What a decoder's layer is, said once: the norms around its two operators.

Which operators take part is seen at the layer itself (:mod:`lookless.runtime.mixers`, :mod:`lookless.runtime.ffn`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Block:
    """A kind of layer. The default is the Llama block: ``x += attention(norm(x)); x += ffn(norm(x))``.

    Attributes:
        before_ffn: the norm before the FFN, by name.
        after_attention, after_ffn: the norms of what the operators add; None without.
    """

    before_ffn: str = "post_attention_layernorm"
    after_attention: str | None = None
    after_ffn: str | None = None

    @property
    def norms(self) -> tuple[str, ...]:
        """Of a layer, all but the first, by name."""
        return tuple(filter(None, (self.after_attention, self.before_ffn, self.after_ffn)))

    def of_attention(self, layer: Any) -> nn.Module | None:
        """The norm of what the attention of ``layer`` adds; None without."""
        return None if self.after_attention is None else getattr(layer, self.after_attention)

    def of_ffn(self, layer: Any) -> nn.Module | None:
        """The norm of what the FFN of ``layer`` adds; None without."""
        return None if self.after_ffn is None else getattr(layer, self.after_ffn)


LLAMA = Block()
GLM = Block(after_attention="post_self_attn_layernorm", after_ffn="post_mlp_layernorm")
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
}
