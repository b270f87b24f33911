"""The reference model and its tasks: a small LLaVA, trained by ``training/``, and images this package draws itself.

Images and questions are a function of split, task and index; splits share no seed, so no image, and training
draws from seeds of its own.
"""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from .draw import draw
from .questions import TASKS, pose

#: The folder of the shipped model, loadable by ``AutoModelForImageTextToText.from_pretrained``.
MODEL = Path(__file__).parent / "model"

__all__ = ["MODEL", "TASKS", "question"]


def question(task: str, split: str, index: int) -> tuple[Image.Image, str, str]:
    """One (image, question, answer) of ``task``."""
    world, asked, answer = pose(task, random.Random(f"{split}:{task}:{index}"))
    return draw(world), asked, answer
