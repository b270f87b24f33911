"""The numbers of a decoder that plans and FLOPs depend on; read from any Hugging Face config, no weights needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from .errors import GeometryError
from .files import sentence

#: Decoders whose ``q_proj`` makes a gate beside each query.
GATED = ("qwen3_5_text", "qwen3_5_moe_text")
#: Mixtures of experts in which some layers may have a plain feed-forward network.
MIXED = ("qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text")


class Experts(BaseModel):
    """A mixture of experts in the place of the feed-forward network: each row passes the few that a router picks.

    Attributes:
        count: experts of a layer, E.
        used: how many of them a row passes, k.
        intermediate: inner width of one expert.
        shared: inner width of the gated network beside them that every row passes; 0 without one.
        dense: layers with a plain feed-forward network instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(gt=0)
    used: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    shared: int = Field(default=0, ge=0)
    dense: tuple[int, ...] = ()

    def read(self, rows: float) -> float:
        """How many experts' weights ``rows`` rows read, if each picks its experts at random."""
        missed: float = (1 - self.used / self.count) ** rows
        return self.count * (1 - missed)


class DeltaNet(BaseModel):
    """A gated delta rule in the place of attention: rows write into a state of each head and read from it.

    Attributes:
        key_heads, value_heads: heads of keys and of values; each of the latter has a state.
        key_dim, value_dim: widths of one key and of one value, and so the sides of a state.
        layers: those that have it; the others have attention.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_heads: int = Field(gt=0)
    value_heads: int = Field(gt=0)
    key_dim: int = Field(gt=0)
    value_dim: int = Field(gt=0)
    layers: tuple[int, ...]

    @property
    def written_width(self) -> int:
        """Columns that a row writes: query, key and value (which one matrix makes), decay and rate."""
        return 2 * self.key_width + self.read_width + 2 * self.value_heads

    @property
    def key_width(self) -> int:
        """Columns of the queries that a row writes, and of its keys."""
        return self.key_heads * self.key_dim

    @property
    def read_width(self) -> int:
        """Columns that a row reads, and of their gate."""
        return self.value_heads * self.value_dim

    @property
    def state(self) -> int:
        """Numbers of all states of a layer."""
        return self.value_heads * self.key_dim * self.value_dim


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
        experts: of a mixture of experts; None where every layer has one feed-forward network.
        delta: of the layers with a gated delta rule; None where every layer has attention.
        gated: what heads read is multiplied by a gate, which ``q_proj`` makes as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: str
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    experts: Experts | None = None
    delta: DeltaNet | None = None
    gated: bool = False

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a decoder has not is not written, so files and fingerprints of earlier versions stay as they are."""
        return {name: value for name, value in handler(self).items() if value is not None and value is not False}

    def experts_of(self, layer: int) -> Experts | None:
        """The mixture of experts of ``layer``; None where it has a plain feed-forward network."""
        return None if self.experts is None or layer in self.experts.dense else self.experts

    def delta_of(self, layer: int) -> DeltaNet | None:
        """The gated delta rule of ``layer``; None where it has attention."""
        return self.delta if self.delta is not None and layer in self.delta.layers else None

    def ffn_width(self, layer: int) -> int:
        """Inner width of all that a row passes in the feed-forward network of ``layer``."""
        experts = self.experts_of(layer)
        return self.intermediate if experts is None else experts.used * experts.intermediate + experts.shared

    def only(self, layer: int) -> Geometry:
        """A decoder of one layer, shaped as ``layer`` is."""
        experts, delta = self.experts_of(layer), self.delta_of(layer)
        alone = {
            "experts": None if experts is None else experts.model_copy(update={"dense": ()}),
            "delta": None if delta is None else delta.model_copy(update={"layers": (0,)}),
        }
        return self.model_copy(update={"layers": 1, **alone})

    @property
    def like(self) -> tuple[int, ...]:
        """Of each layer, the first one with its shape."""
        first: dict[tuple[bool, bool], int] = {}
        shapes = ((self.experts_of(layer) is None, self.delta_of(layer) is None) for layer in range(self.layers))
        return tuple(first.setdefault(shape, layer) for layer, shape in enumerate(shapes))

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
        experts = self.experts
        ffn = f"intermediate {self.intermediate}"
        if experts is not None:
            ffn = f"{experts.used} of {experts.count} experts of {experts.intermediate}"
        delta = "" if self.delta is None else f" ({len(self.delta.layers)} with a gated delta rule)"
        return (
            f"{self.model_type}: {self.layers} layers{delta}, hidden {self.hidden}, {ffn}, "
            f"{self.heads} heads ({self.kv_heads} key/value) of {self.head_dim}"
        )

    @classmethod
    def from_config(cls, config: Any) -> Geometry:
        """From a ``PretrainedConfig`` or the mapping in a ``config.json`` that spells its numbers out.

        Raises:
            GeometryError: a number is missing, with its name; or no decoder has such numbers.
        """
        top: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
        text = next((top[k] for k in ("text_config", "llm_config") if isinstance(top.get(k), Mapping)), top)
        model_type = str(top.get("model_type", "unknown"))

        def number(key: str) -> int:
            if not isinstance(text.get(key), int):
                raise GeometryError(
                    f"the configuration of {model_type} has no {key}; pass the loaded configuration "
                    f"(transformers.AutoConfig fills in defaults) and not a shortened config.json."
                )
            return int(text[key])

        heads, hidden = number("num_attention_heads"), number("hidden_size")
        layers = number("num_hidden_layers")
        try:
            experts = _experts(text, layers, number)
            return cls(
                model_type=model_type,
                layers=layers,
                hidden=hidden,
                intermediate=experts.intermediate if experts and not experts.dense else number("intermediate_size"),
                heads=heads,
                kv_heads=text.get("num_key_value_heads") or heads,
                head_dim=text.get("head_dim") or hidden // heads,
                experts=experts,
                delta=_delta(text, number),
                gated=text.get("model_type") in GATED,
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


def _experts(text: Mapping[str, Any], layers: int, number: Callable[[str], int]) -> Experts | None:
    """The mixture of experts of a decoder's configuration; None of a dense one."""
    key = next((k for k in ("num_experts", "num_local_experts") if text.get(k)), None)
    if key is None:
        return None
    is_mixed = text.get("model_type") in MIXED
    plain, step = (text.get("mlp_only_layers") or (), text.get("decoder_sparse_step") or 1) if is_mixed else ((), 1)
    return Experts(
        count=number(key),
        used=number("num_experts_per_tok"),
        intermediate=number("moe_intermediate_size"),
        shared=text.get("shared_expert_intermediate_size") or 0,
        dense=tuple(i for i in range(layers) if i in plain or (i + 1) % step),
    )


def _delta(text: Mapping[str, Any], number: Callable[[str], int]) -> DeltaNet | None:
    """The gated delta rule of a decoder's configuration; None of one with attention alone."""
    layers = tuple(i for i, kind in enumerate(text.get("layer_types") or ()) if kind == "linear_attention")
    if not layers:
        return None
    return DeltaNet(
        key_heads=number("linear_num_key_heads"),
        value_heads=number("linear_num_value_heads"),
        key_dim=number("linear_key_head_dim"),
        value_dim=number("linear_value_head_dim"),
        layers=layers,
    )


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
    "Qwen3-VL-30B-A3B": _row("qwen3_vl_moe", 48, 2048, 768, 32, 4, 128).model_copy(
        update={"experts": Experts(count=128, used=8, intermediate=768)}
    ),
    "Qwen3.5-9B": _row("qwen3_5", 32, 4096, 12288, 16, 4, 256).model_copy(
        update={
            "delta": DeltaNet(
                key_heads=16,
                value_heads=32,
                key_dim=128,
                value_dim=128,
                layers=tuple(i for i in range(32) if (i + 1) % 4),
            ),
            "gated": True,
        }
    ),
    "InternVL2-8B": _row("internvl", 32, 4096, 14336, 32, 8, 128),
}
