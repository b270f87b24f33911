"""The shipped models as vLLM reads models: other names of weights, and a processor for videos as well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..reference import NAMES

WEIGHTS = "model.safetensors"


def servable(model: str, folder: Path) -> str:
    """What vLLM can load: a copy in ``folder`` of a shipped model, and any other ``model`` as it is."""
    if model not in NAMES:
        return model
    shutil.copytree(NAMES[model], folder)
    if "qwen3" in model:
        _with_videos(folder)
    else:
        _published_names(folder)
    return str(folder)


def _published_names(folder: Path) -> None:
    """vLLM looks for CLIP's weights below ``vision_model``, where published checkpoints have them."""
    from safetensors.torch import load_file, save_file

    tower = "vision_tower."
    weights = load_file(folder / WEIGHTS)
    renamed = {name.replace(tower, f"{tower}vision_model."): weight for name, weight in weights.items()}
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})


def _with_videos(folder: Path) -> None:
    """It is shipped with a processor of images alone, which needs no torchvision; vLLM asks for one of videos."""
    from transformers import AutoProcessor, AutoTokenizer, Qwen3VLProcessor, Qwen3VLVideoProcessor

    told = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    size, patch = told["size"], told["patch_size"]
    Qwen3VLProcessor(
        AutoProcessor.from_pretrained(folder).image_processor,
        AutoTokenizer.from_pretrained(folder),
        Qwen3VLVideoProcessor(size=size, patch_size=patch, temporal_patch_size=2, merge_size=2),
        chat_template=(folder / "chat_template.jinja").read_text(),
    ).save_pretrained(folder)
