"""The numbers of a decoder that plans and FLOPs depend on; read from any Hugging Face config, no weights needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from .errors import GeometryError
from .files import sentence
from .parts import Convolution, DeltaNet, Experts, OtherHeads, SharedKeys, Sliding, convolution_of, intermediate_of

#: Decoders whose ``q_proj`` makes a gate beside each query.
GATED = ("qwen3_5_text", "qwen3_5_moe_text")
#: Decoders with heads of two shapes, layers that share keys, and embeddings of each layer.
GEMMA4 = ("gemma4_text", "gemma4_unified_text")
#: Mixtures of experts in which some layers may have a plain feed-forward network.
MIXED = ("qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text")


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
        convolution: of the layers with a short convolution; None where there is none.
        gated: what heads read is multiplied by a gate, which ``q_proj`` makes as well.
        sliding: of the layers with a sliding window; None where every row reads all keys before it.
        other_heads: of the layers with other heads; None where all are alike.
        shared: of the layers that read keys of earlier ones; None where every layer makes its own.
        embedded: width of an embedding that each layer adds to each row; 0 without one.
        both_ways: layers in which the visual tokens of an image see each other both ways.
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
    convolution: Convolution | None = None
    gated: bool = False
    sliding: Sliding | None = None
    other_heads: OtherHeads | None = None
    shared: SharedKeys | None = None
    embedded: int = Field(default=0, ge=0)
    both_ways: tuple[int, ...] = ()

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a decoder has not is not written, so files and fingerprints of earlier versions stay as they are."""
        return {name: value for name, value in handler(self).items() if value}

    def experts_of(self, layer: int) -> Experts | None:
        """The mixture of experts of ``layer``; None where it has a plain feed-forward network."""
        return None if self.experts is None or layer in self.experts.dense else self.experts

    def delta_of(self, layer: int) -> DeltaNet | None:
        """The gated delta rule of ``layer``; None where it has attention."""
        return self.delta if self.delta is not None and layer in self.delta.layers else None

    def convolution_of(self, layer: int) -> Convolution | None:
        """The short convolution of ``layer``; None where it has none."""
        found = self.convolution
        return found if found is not None and layer in found.layers else None

    def state_of(self, layer: int) -> str | None:
        """What ``layer`` has in the place of attention, in words; None where it has attention."""
        if self.delta_of(layer) is not None:
            return "gated delta rule"
        return None if self.convolution_of(layer) is None else "short convolution"

    @property
    def states(self) -> str | None:
        """What some layers have in the place of attention, in words; None where all have attention."""
        return next(filter(None, map(self.state_of, range(self.layers))), None)

    def shares_keys_of(self, layer: int) -> int | None:
        """The earlier layer whose keys and values ``layer`` reads; None where it makes its own."""
        shared = self.shared
        return None if shared is None else dict(zip(shared.layers, shared.lenders, strict=True)).get(layer)

    @property
    def owners(self) -> tuple[int, ...] | None:
        """Of each layer, the one whose keys and values it reads; None where each reads its own."""
        if self.shared is None:
            return None
        lent = ((layer, self.shares_keys_of(layer)) for layer in range(self.layers))
        return tuple(layer if owner is None else owner for layer, owner in lent)

    def reach_of(self, layer: int) -> int | None:
        """How many keys, itself among them, a row of ``layer`` may read; None for all before it."""
        return self.sliding.size if self.sliding is not None and layer in self.sliding.layers else None

    def heads_of(self, layer: int) -> OtherHeads | None:
        """The heads of ``layer``, where they are not as in :attr:`kv_heads` and :attr:`head_dim`."""
        return self.other_heads if self.other_heads is not None and layer in self.other_heads.layers else None

    def ffn_width(self, layer: int) -> int:
        """Inner width of all that a row passes in the feed-forward network of ``layer``."""
        experts = self.experts_of(layer)
        if experts is not None:
            return experts.used * experts.intermediate + experts.shared
        return self.intermediate if self.shared is None or layer not in self.shared.layers else self.shared.intermediate

    def only(self, layer: int) -> Geometry:
        """A decoder of one layer, shaped as ``layer`` is."""

        def alone(part: Any, **update: Any) -> Any:
            return None if part is None else part.model_copy(update=update)

        borrows = self.shares_keys_of(layer) is not None
        parts = {
            "experts": alone(self.experts_of(layer), dense=()),
            "delta": alone(self.delta_of(layer), layers=(0,)),
            "convolution": alone(self.convolution_of(layer), layers=(0,)),
            "sliding": alone(self.sliding if self.reach_of(layer) else None, layers=(0,)),
            "other_heads": alone(self.heads_of(layer), layers=(0,)),
            "shared": alone(self.shared if borrows else None, layers=(0,), lenders=(0,)),
            "both_ways": (0,) if layer in self.both_ways else (),
        }
        return self.model_copy(update={"layers": 1, **parts})

    @property
    def like(self) -> tuple[int, ...]:
        """Of each layer, the first one with its shape."""
        first: dict[tuple[bool, ...], int] = {}

        def shape(layer: int) -> tuple[bool, ...]:
            parts = (self.experts_of(layer), self.state_of(layer), self.heads_of(layer))
            numbers = (self.reach_of(layer), self.shares_keys_of(layer))
            return *(part is None for part in (*parts, *numbers)), layer in self.both_ways

        return tuple(first.setdefault(shape(layer), layer) for layer in range(self.layers))

    def query_width(self, layer: int = 0) -> int:
        """Columns of ``q_proj`` and rows of ``o_proj`` of ``layer`` (``dq`` in the FLOPs formulas)."""
        return self.heads * (self.heads_of(layer) or self).head_dim

    def key_width(self, layer: int = 0) -> int:
        """Columns of ``k_proj`` and of ``v_proj`` of ``layer`` (``dk`` in FLOPs formulas); 0 where there are none."""
        heads = self.heads_of(layer) or self
        return 0 if self.shares_keys_of(layer) is not None else heads.kv_heads * heads.head_dim

    def has_values(self, layer: int) -> bool:
        """Whether a projection of their own makes the values of ``layer``."""
        heads = self.heads_of(layer)
        return heads is None or not heads.keys_are_values

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
        if self.convolution is not None:
            delta += f" ({len(self.convolution.layers)} with a short convolution)"
        if self.sliding is not None:
            delta += f" ({len(self.sliding.layers)} with a window of {self.sliding.size})"
        if self.shared is not None:
            delta += f" ({len(self.shared.layers)} without keys of their own)"
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
                intermediate=experts.intermediate if experts and not experts.dense else intermediate_of(text, number),
                heads=heads,
                kv_heads=text.get("num_key_value_heads") or heads,
                head_dim=text.get("head_dim") or hidden // heads,
                experts=experts,
                delta=_delta(text, number),
                convolution=convolution_of(text, number),
                gated=text.get("model_type") in GATED,
                sliding=_sliding(text, number),
                both_ways=_both_ways(text, layers),
                **_gemma4(text, layers, number),
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
    key = next((k for k in ("num_experts", "num_local_experts", "n_routed_experts") if text.get(k)), None)
    if key is None or text.get("enable_moe_block") is False:
        return None
    if text.get("model_type") in GEMMA4:
        return Experts(
            count=number(key),
            used=number("top_k_experts"),
            intermediate=number("moe_intermediate_size"),
            shared=number("intermediate_size"),
            beside=True,
        )
    if key == "n_routed_experts":
        return Experts(
            count=number(key),
            used=number("num_experts_per_tok"),
            intermediate=number("moe_intermediate_size"),
            shared=number("n_shared_experts") * number("moe_intermediate_size"),
            weighed=False,
            dense=tuple(range(min(layers, number("first_k_dense_replace")))),
        )
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


def _sliding(text: Mapping[str, Any], number: Callable[[str], int]) -> Sliding | None:
    """The sliding windows of a decoder's configuration; None of one in which all rows read all keys before them."""
    layers = tuple(i for i, kind in enumerate(text.get("layer_types") or ()) if kind == "sliding_attention")
    return Sliding(size=number("sliding_window"), layers=layers) if layers else None


def _both_ways(text: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Layers in which images are read both ways: Gemma 3's, and those of the large Gemma 4."""
    kind = text.get("model_type")
    if kind == "gemma3_text":
        return tuple(range(layers))
    if kind not in GEMMA4 or text.get("use_bidirectional_attention") != "vision":
        return ()
    kinds: list[str] = text["layer_types"]
    return tuple(i for i in range(layers) if kinds[i] == "sliding_attention" or kind == "gemma4_unified_text")


def _gemma4(text: Mapping[str, Any], layers: int, number: Callable[[str], int]) -> dict[str, Any]:
    """What a Gemma 4 decoder has besides: other heads, layers that share keys, embeddings of each layer."""
    if text.get("model_type") not in GEMMA4:
        return {}
    kinds: list[str] = text["layer_types"]
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    layered: Mapping[str, Any] = {str(k).lstrip("0"): v for k, v in (text.get("per_layer_config") or {}).items()}
    own = layered.get(str(full[0]).lstrip("0"), {}) if full else {}  # its keys are numbers, padded with zeros
    joined = bool(text.get("attention_k_eq_v"))
    kv_heads = own.get("num_key_value_heads") or text.get("num_global_key_value_heads") if joined else None
    heads = {
        "kv_heads": kv_heads or number("num_key_value_heads"),
        "head_dim": own.get("head_dim") or text.get("global_head_dim") or number("head_dim"),
    }
    is_other = joined or heads != {"kv_heads": number("num_key_value_heads"), "head_dim": number("head_dim")}
    first, shared = layers - (text.get("num_kv_shared_layers") or 0), None
    if first < layers:
        lenders = tuple(max(j for j in range(first) if kinds[j] == kind) for kind in kinds[first:])
        wide = number("intermediate_size") * (2 if text.get("use_double_wide_mlp") else 1)
        shared = SharedKeys(layers=tuple(range(first, layers)), lenders=lenders, intermediate=wide)
    return {
        "other_heads": OtherHeads(layers=full, keys_are_values=joined, **heads) if full and is_other else None,
        "shared": shared,
        "embedded": text.get("hidden_size_per_layer_input") or 0,
    }


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


def _gemma4_row(
    layers: int, hidden: int, intermediate: int, *, kv_heads: int, period: int, borrowing: int, wide: int
) -> Geometry:
    """One of the small Gemma 4: every ``period``-th layer has no window, and the last ``borrowing`` no keys."""
    full = [i for i in range(layers) if (i + 1) % period == 0]
    first = layers - borrowing
    lenders = (max(j for j in range(first) if (j in full) == (i in full)) for i in range(first, layers))
    return _row("gemma4", layers, hidden, intermediate, 8, kv_heads, 256).model_copy(
        update={
            "sliding": Sliding(size=512, layers=tuple(i for i in range(layers) if i not in full)),
            "other_heads": OtherHeads(layers=tuple(full), kv_heads=kv_heads, head_dim=512),
            "shared": SharedKeys(layers=tuple(range(first, layers)), lenders=tuple(lenders), intermediate=wide),
            "embedded": 256,
        }
    )


#: The models of the papers; numbers from the published ``config.json`` of each.
PRESETS: dict[str, Geometry] = {
    "LLaVA-1.5-7B": _row("llava", 32, 4096, 11008, 32, 32, 128),
    "LLaVA-1.5-13B": _row("llava", 40, 5120, 13824, 40, 40, 128),
    "LLaVA-NeXT-7B": _row("llava_next", 32, 4096, 11008, 32, 32, 128),
    "LLaVA-NeXT-13B": _row("llava_next", 40, 5120, 13824, 40, 40, 128),
    "Qwen2-VL-7B": _row("qwen2_vl", 28, 3584, 18944, 28, 4, 128),
    "Qwen2.5-VL-7B": _row("qwen2_5_vl", 28, 3584, 18944, 28, 4, 128),
    "Qwen3-VL-2B": _row("qwen3_vl", 28, 2048, 6144, 16, 8, 128),
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
    "Gemma-4-E2B": _gemma4_row(35, 1536, 6144, kv_heads=1, period=5, borrowing=20, wide=12288),
    "Gemma-4-E4B": _gemma4_row(42, 2560, 10240, kv_heads=2, period=6, borrowing=18, wide=10240),
    "InternVL2-8B": _row("internvl", 32, 4096, 14336, 32, 8, 128),
}
