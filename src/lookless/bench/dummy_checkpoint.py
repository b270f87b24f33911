"""A dummy checkpoint: real layer shapes and no weights, for engines that draw weights of their own.

As in :mod:`lookless.bench.dummy_model`, it is LLaVA with the decoder block of the geometry's kind. Its CLIP tower has
real widths and is cut to the same share of its layers as the decoder. Tokenizer and vocabulary are those of the shipped
model: small, so that the head does not cost as much as a few layers.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from .. import files
from ..configs import Shape
from ..errors import ModelError
from ..reference import MODEL
from .dummy_model import decoder

PATCH = 14
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_channels": 3,
    "projection_dim": 768,
}
TOWER_LAYERS = 24
LONGEST = 4096
WORDS = ("tokenizer.json", "chat_template.jinja", "generation_config.json")
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def write_dummy_checkpoint(shape: Shape, folder: Path, *, whole: int, visual: int = 576) -> int:
    """Write the checkpoint of ``shape`` into ``folder``.

    Args:
        shape: of the decoder, cut to the layers that run.
        folder: made if it is not there.
        whole: layers of the whole decoder.
        visual: tokens of an image, of any size.

    Returns:
        The side of an image that needs no resizing, in pixels.

    Raises:
        ModelError: ``visual`` is not a square number, or vLLM does not serve plans for this decoder.
    """
    patches = math.isqrt(visual)
    if patches**2 != visual:
        raise ModelError(f"an image is a square of patches here, and {visual} is no square: try {patches**2}.")
    side = patches * PATCH
    folder.mkdir(parents=True, exist_ok=True)
    for name in WORDS:
        shutil.copy(MODEL / name, folder / name)
    _write(folder / "config.json", _config(shape, whole, side))
    _write(folder / "processor_config.json", _processor(side))
    _write(folder / "tokenizer_config.json", {**_read("tokenizer_config.json"), "model_max_length": LONGEST})
    return side


def _config(shape: Shape, whole: int, side: int) -> dict[str, Any]:
    shipped = _read("config.json")
    text = {**decoder(shape), "max_position_embeddings": LONGEST}
    if shape.block not in ARCHITECTURES:
        raise ModelError(f"plans for {shape.geometry.model_type} run in transformers alone, so vLLM is not timed.")
    text["architectures"] = [ARCHITECTURES[shape.block]]
    for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"):
        text[name] = shipped["text_config"][name]
    depth = max(1, round(TOWER_LAYERS * text["num_hidden_layers"] / whole))
    tower = {**TOWER, "image_size": side, "patch_size": PATCH, "num_hidden_layers": depth}
    visual = (side // PATCH) ** 2
    return {**shipped, "text_config": text, "vision_config": tower, "image_seq_length": visual}


def _processor(side: int) -> dict[str, Any]:
    shipped, size = _read("processor_config.json"), {"height": side, "width": side}
    images = {**shipped["image_processor"], "size": size, "crop_size": size}
    return {**shipped, "image_processor": images, "patch_size": PATCH}


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MODEL / name).read_text(encoding="utf-8"))
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(content, indent=2) + "\n")
