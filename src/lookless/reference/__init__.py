"""The reference models, a small LLaVA, Qwen3-VL and Qwen3.5, and their tasks on images that this package draws itself.

Split, task and index determine an image and its question. Splits share no seed, and so no image; training uses
other seeds.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image

from .draw import draw
from .questions import TASKS, pose

#: The folders of the shipped models by architecture, loadable by ``AutoModelForImageTextToText.from_pretrained``.
MODELS = {"llava": Path(__file__).parent / "model", "qwen3_vl": Path(__file__).parent / "qwen3_vl"}
MODEL = MODELS["llava"]
#: The models that documents compare, by the names that ``load_model`` takes.
NAMES = {"reference": MODELS["llava"], "reference-qwen3-vl": MODELS["qwen3_vl"]}
#: A hybrid, trained for a few minutes: for what depends on the kind of a layer's mixer.
HYBRID = Path(__file__).parent / "qwen3_5"
#: All that are shipped, by name.
SHIPPED = {**NAMES, "reference-qwen3-5": HYBRID}

__all__ = ["HYBRID", "MODEL", "MODELS", "NAMES", "SHIPPED", "TASKS", "question", "tasks_of"]


def question(task: str, split: str, index: int) -> tuple[Image.Image, str, str]:
    """One (image, question, answer) of ``task``."""
    world, asked, answer = pose(task, random.Random(f"{split}:{task}:{index}"))
    return draw(world), asked, answer


def tasks_of(model: str) -> tuple[str, ...]:
    """The tasks that a shipped model was trained on, by its card; every task for another model."""
    if model not in SHIPPED:
        return tuple(TASKS)
    card = json.loads((SHIPPED[model] / "scores.json").read_text())
    return tuple(task for task in TASKS if task in card["accuracy"])
