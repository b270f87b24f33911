"""The shipped models in the form that vLLM loads: published names of weights, and a processor for videos too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..reference import NAMES

WEIGHTS = "model.safetensors"


def servable(model: str, folder: Path) -> str:
    """What vLLM can load: a converted copy in ``folder`` of a shipped model; any other ``model`` as it is.

    ``folder`` must not exist yet.
    """
    if model not in NAMES:
        return model
    shutil.copytree(NAMES[model], folder)
    if "qwen3" in model:
        _with_videos(folder)
    else:
        _published_names(folder)
    return str(folder)


def _published_names(folder: Path) -> None:
    """vLLM looks for CLIP's weights under ``vision_model``, as in published checkpoints."""
    from safetensors.torch import load_file, save_file

    tower = "vision_tower."
    weights = load_file(folder / WEIGHTS)
    renamed = {name.replace(tower, f"{tower}vision_model."): weight for name, weight in weights.items()}
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})


def _with_videos(folder: Path) -> None:
    """Add a video processor, which vLLM requires; the shipped processor is for images alone, to need no torchvision."""
    from transformers import AutoProcessor, AutoTokenizer, Qwen3VLProcessor, Qwen3VLVideoProcessor

    images = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    size, patch = images["size"], images["patch_size"]
    Qwen3VLProcessor(
        AutoProcessor.from_pretrained(folder).image_processor,
        AutoTokenizer.from_pretrained(folder),
        Qwen3VLVideoProcessor(size=size, patch_size=patch, temporal_patch_size=2, merge_size=2),
        chat_template=(folder / "chat_template.jinja").read_text(),
    ).save_pretrained(folder)
