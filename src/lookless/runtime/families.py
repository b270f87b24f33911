"""Model families: one row each. Where the decoder is, and which tokens are visual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..geometry import Geometry
from ..plan import Plan
from ..ranks import RANKS
from .decoders import DECODERS, Block, block_of
from .mixers import mixer_of
from .vision import Report, capture_clip, capture_qwen

#: Reasons why similar-looking models are not supported, by model_type.
NOT_CAUSAL = "lets image tokens attend to those after them, which the runtime's causal attention would get wrong"
REFUSED = {
    "paligemma": f"its prefix {NOT_CAUSAL}",
    "gemma3n": "its layers predict and correct several residual streams, so a row that skips both operators changes",
    "mllama": "its images are read by cross-attention layers and are no tokens of the decoder",
    "idefics2": "its resampler and Mistral decoder would need a row in lookless.runtime.families and a test",
    "llama4": "it attends by chunks, and its experts weigh their input",
    "qwen4_exp": "it has several residual streams, so a skipped operator is not the identity",
    "internvl_chat": "it is remote code; convert it to transformers' own InternVL (model_type 'internvl')",
}
#: Reasons why a decoder is not supported under a family that is, by its own model_type.
REFUSED_DECODERS = {
    "ministral3": "it multiplies queries by a number that grows with their position",
    "qwen2_moe": "its mixtures of experts were never tried",
}
#: Implementations whose masks row sets can cut.
ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class Family:
    """Where a multimodal model keeps what the runtime needs; paths are attribute names joined by dots.

    Attributes:
        inner: the module that merges image features into the text; it sees ``input_ids``.
        decoder: the language model below it, with ``layers`` and ``norm``.
        visual_ids: attributes of the configuration that hold the ids of visual placeholder tokens.
        capture: hooks the attention that its vision tower pays to each visual token; None where the way from patches
            to visual tokens (tiles and newlines, windows, pixel shuffling) is not followed.
        tower: the vision tower.
    """

    inner: str
    decoder: str
    visual_ids: tuple[str, ...]
    capture: Callable[[Any, Report], Any] | None = None
    tower: str = "model.vision_tower"


_IMAGE, _VIDEO = ("image_token_id",), ("image_token_id", "video_token_id")
FAMILIES: dict[str, Family] = {
    "llava": Family("model", "model.language_model", _IMAGE, capture_clip),
    "llava_next": Family("model", "model.language_model", _IMAGE),
    "llava_onevision": Family("model", "model.language_model", _VIDEO),
    "qwen2_vl": Family("model", "model.language_model", _VIDEO, capture_qwen, "model.visual"),
    "qwen2_5_vl": Family("model", "model.language_model", _VIDEO, None, "model.visual"),
    "qwen3_vl": Family("model", "model.language_model", _VIDEO, capture_qwen, "model.visual"),
    "qwen3_vl_moe": Family("model", "model.language_model", _VIDEO, capture_qwen, "model.visual"),
    "qwen3_5": Family("model", "model.language_model", _VIDEO, capture_qwen, "model.visual"),
    "qwen3_5_moe": Family("model", "model.language_model", _VIDEO, capture_qwen, "model.visual"),
    "internvl": Family("model", "model.language_model", _IMAGE),
    "smolvlm": Family("model", "model.text_model", _IMAGE, None, "model.vision_model"),
    "idefics3": Family("model", "model.text_model", _IMAGE, None, "model.vision_model"),
    "mistral3": Family("model", "model.language_model", _IMAGE),
    "lighton_ocr": Family("model", "model.language_model", _IMAGE, None, "model.vision_encoder"),
    "qianfan_ocr": Family("model", "model.language_model", _IMAGE),
    "vipllava": Family("model", "model.language_model", _IMAGE),
    "deepseek_vl": Family("model", "model.language_model", _IMAGE, None, "model.vision_model"),
    "paddleocr_vl": Family("model", "model.language_model", _IMAGE, None, "model.visual"),
    "glm4v": Family("model", "model.language_model", _IMAGE, None, "model.visual"),  # and videos have its id
    "glm46v": Family("model", "model.language_model", _IMAGE, None, "model.visual"),
    "glm_ocr": Family("model", "model.language_model", _IMAGE, None, "model.visual"),
    "glm4v_moe": Family("model", "model.language_model", _IMAGE, None, "model.visual"),
    "lfm2_vl": Family("model", "model.language_model", _IMAGE),
    "gemma3": Family("model", "model.language_model", _IMAGE),
    "gemma4": Family("model", "model.language_model", _VIDEO),
    "gemma4_unified": Family("model", "model.language_model", _VIDEO, None, "model.embed_vision"),
    "video_llama_3": Family("model", "model.language_model", _VIDEO, None, "model.vision_model"),
}


@dataclass(frozen=True)
class Located:
    """The parts of one model: see :class:`Family`; ``head`` is the whole of it, None where only the inner is given.
    ``block`` is what its layers are."""

    head: nn.Module | None
    inner: nn.Module
    decoder: nn.Module
    tower: nn.Module
    visual_ids: tuple[int, ...]
    geometry: Geometry
    family: Family
    block: Block

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.decoder.layers
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def norm(self) -> nn.Module:
        """The decoder's, behind all layers."""
        norm = getattr(self.decoder, self.block.last_norm)
        assert isinstance(norm, nn.Module)
        return norm

    def adding(self, layer: Any) -> dict[str, nn.Module]:
        """The modules whose outputs ``layer`` adds to the residual stream: its mixer and FFN, or the norms behind."""
        return {
            "attention": self.block.of_attention(layer) or mixer_of(layer),
            "ffn": self.block.of_ffn(layer) or self.block.ffn_of(layer),
        }

    def logits(self, states: Tensor) -> Tensor:
        """Of normed ``states [rows, hidden]``, float32 ``[rows, vocabulary]``, as the model's own head makes them."""
        assert self.head is not None
        made: Tensor = self.head.get_output_embeddings()(states)  # type: ignore[operator]
        config: Any = self.decoder.config
        cap = config.final_logit_softcapping if self.block.caps_logits else None
        return (made if cap is None else (made / cap).tanh() * cap).float()

    def visual(self, ids: Tensor) -> Tensor:
        """Bool, as ``ids``: which tokens are visual placeholders."""
        return torch.isin(ids, torch.tensor(self.visual_ids, device=ids.device))

    def modality(self, ids: Tensor) -> Tensor:
        """Int, as ``ids``: which of the visual placeholders each token is; 0 where none."""
        return torch.stack([ids == one for one in self.visual_ids]).int().argmax(0)

    def reads_tower(self, plan: Plan) -> bool:
        """Whether ``plan`` ranks by the vision tower.

        Raises:
            ModelError: it does, and the way from the tower's patches to visual tokens is not followed in this family.
        """
        rank = next((rank for row in plan.layers for rank in row.ranks if RANKS[rank].reads == "tower"), None)
        if rank is not None and self.family.capture is None:
            raise ModelError(
                f"ranking by {rank} needs one score of the vision tower for each visual token, and in "
                f"{self.geometry.model_type} tiles, windows or pixel shuffling come between them: rank by diversity, "
                f"or inside the decoder."
            )
        return rank is not None


def geometry_of(model: nn.Module) -> Geometry:
    """The geometry of a loaded model."""
    return Geometry.from_config(model.config)


def family_of(config: Any) -> Family:
    """The row of :data:`FAMILIES` for a model's configuration; needs no weights.

    Raises:
        ModelError: the family or its decoder is not supported; says what is.
    """
    model_type = getattr(config, "model_type", type(config).__name__)
    family = FAMILIES.get(model_type)
    if family is None and model_type in REFUSED:
        raise ModelError(f"models of type {model_type!r} are not supported: {REFUSED[model_type]}.")
    if family is None:
        raise ModelError(f"models of type {model_type!r} are not supported; supported are {', '.join(FAMILIES)}.")
    text = config.get_text_config()
    if text.model_type in REFUSED_DECODERS:
        reason = REFUSED_DECODERS[text.model_type]
        raise ModelError(f"{model_type} over a {text.model_type!r} decoder is not supported: {reason}.")
    if text.model_type not in DECODERS:
        raise ModelError(
            f"{model_type} over a {text.model_type!r} decoder is not supported; "
            f"supported decoders are {', '.join(DECODERS)}."
        )
    if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        raise ModelError(f"this {text.model_type} decoder lets text attend to what comes after it: it is no generator.")
    kinds = getattr(text, "layer_types", None)
    slides = getattr(text, "sliding_window", None) is not None and getattr(text, "use_sliding_window", True)
    if not DECODERS[text.model_type].slides and ("sliding_attention" in kinds if kinds else slides):
        raise ModelError(
            f"this {text.model_type} decoder slides a window of {text.sliding_window} tokens over its keys, which the "
            f"runtime does not know; set sliding_window to None if prompts are shorter than that."
        )
    return family


def locate(model: nn.Module) -> Located:
    """The parts of ``model`` that the runtime works on: one with a language head, or the inner one without.

    Raises:
        ModelError: the family, its decoder or its attention implementation is not supported; says what is.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile, whose wrapper calls the model it wraps
    base = getattr(model, "get_base_model", None)  # of peft, whose wrapper does so, too
    model = model if base is None else base()
    config: Any = getattr(model, "config", model)
    family = family_of(config)
    attention = config.get_text_config()._attn_implementation
    if attention not in ATTENTION:
        raise ModelError(
            f"attention implementation {attention!r} is not supported; load the model with "
            f"attn_implementation={ATTENTION[0]!r}."
        )
    has_head = hasattr(model, family.inner)
    inner = model.get_submodule(family.inner) if has_head else model
    decoder = inner.get_submodule(family.decoder.removeprefix(f"{family.inner}."))
    geometry, block = geometry_of(model), block_of(config.get_text_config())
    _check_live(decoder, block, geometry)
    ids = (getattr(config, name, None) for name in family.visual_ids)
    return Located(
        head=model if has_head else None,
        inner=inner,
        decoder=decoder,
        tower=inner.get_submodule(family.tower.removeprefix(f"{family.inner}.")),
        visual_ids=tuple(i for i in ids if i is not None),
        geometry=geometry,
        family=family,
        block=block,
    )


def _check_live(decoder: Any, block: Block, geometry: Geometry) -> None:
    """Raises: ModelError: the modules are not those that the configuration, by which plans are checked, describes."""
    weight = getattr(getattr(decoder, block.last_norm), "weight", torch.empty(0))
    here = {"layers": len(decoder.layers), "hidden": weight.numel()}
    for what, number in here.items():
        said = getattr(geometry, what)
        if number not in (0, said):
            raise ModelError(
                f"the model's configuration says {what} {said} and its decoder has {number}: it was changed after it "
                f"was loaded, so no plan can be checked against it; set its configuration right, too."
            )
