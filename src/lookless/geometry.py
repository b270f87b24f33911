"""The numbers of a decoder that plans and FLOPs depend on; read from any Hugging Face config, no weights needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import GeometryError
from .files import sentence


class Geometry(BaseModel):
    """Shape of a language model's decoder.

    Attributes:
        model_type: the multimodal model's ``model_type`` in Hugging Face's configuration.
        layers: decoder layers, L.
        hidden: width of the residual stream, d.
        intermediate: inner width of the gated feed-forward network, m.
        heads: query heads, H.
        kv_heads: key and value heads; fewer than ``heads`` under grouped-query attention.
        head_dim: width of one head; ``heads * head_dim`` need not be ``hidden``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: str
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)

    @property
    def query_width(self) -> int:
        """Columns of ``q_proj`` and rows of ``o_proj``."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Columns of ``k_proj`` and of ``v_proj`` (``dk`` in the FLOPs formulas)."""
        return self.kv_heads * self.head_dim

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that differ when any number differs."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return (
            f"{self.model_type}: {self.layers} layers, hidden {self.hidden}, intermediate {self.intermediate}, "
            f"{self.heads} heads ({self.kv_heads} key/value) of {self.head_dim}"
        )

    @classmethod
    def from_config(cls, config: Any) -> Geometry:
        """From a ``PretrainedConfig`` or the mapping in a ``config.json`` that spells its numbers out.

        Raises:
            GeometryError: a number is missing, with its name; or the decoder is a mixture of experts.
        """
        top: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
        text = next((top[k] for k in ("text_config", "llm_config") if isinstance(top.get(k), Mapping)), top)
        model_type = str(top.get("model_type", "unknown"))
        if text.get("num_experts") or text.get("num_local_experts"):
            raise GeometryError(
                f"{model_type} has a mixture-of-experts decoder, whose feed-forward rows lookless cannot price yet; "
                f"dense decoders are supported."
            )

        def number(key: str) -> int:
            if not isinstance(text.get(key), int):
                raise GeometryError(
                    f"the configuration of {model_type} has no {key}; pass the loaded configuration "
                    f"(transformers.AutoConfig fills in defaults) and not a shortened config.json."
                )
            return int(text[key])

        heads, hidden = number("num_attention_heads"), number("hidden_size")
        try:
            return cls(
                model_type=model_type,
                layers=number("num_hidden_layers"),
                hidden=hidden,
                intermediate=number("intermediate_size"),
                heads=heads,
                kv_heads=text.get("num_key_value_heads") or heads,
                head_dim=text.get("head_dim") or hidden // heads,
            )
        except ValidationError as problem:
            raise GeometryError(
                f"the configuration of {model_type} is not a decoder's: {sentence(problem)}."
            ) from problem

    @classmethod
    def preset(cls, name: str) -> Geometry:
        """One of :data:`PRESETS`, by name in any case.

        Raises:
            GeometryError: no such name; the message lists them.
        """
        by_name = {key.lower(): geometry for key, geometry in PRESETS.items()}
        if name.lower() not in by_name:
            raise GeometryError(f"no geometry is called {name!r}; choose one of {', '.join(PRESETS)}.")
        return by_name[name.lower()]


def _row(kind: str, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int) -> Geometry:
    return Geometry(
        model_type=kind,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )


#: The models of the papers; numbers from the published ``config.json`` of each.
PRESETS: dict[str, Geometry] = {
    "LLaVA-1.5-7B": _row("llava", 32, 4096, 11008, 32, 32, 128),
    "LLaVA-1.5-13B": _row("llava", 40, 5120, 13824, 40, 40, 128),
    "LLaVA-NeXT-7B": _row("llava_next", 32, 4096, 11008, 32, 32, 128),
    "LLaVA-NeXT-13B": _row("llava_next", 40, 5120, 13824, 40, 40, 128),
    "Qwen2-VL-7B": _row("qwen2_vl", 28, 3584, 18944, 28, 4, 128),
    "Qwen2.5-VL-7B": _row("qwen2_5_vl", 28, 3584, 18944, 28, 4, 128),
    "Qwen3-VL-8B": _row("qwen3_vl", 36, 4096, 12288, 32, 8, 128),
    "InternVL2-8B": _row("internvl", 32, 4096, 14336, 32, 8, 128),
}
