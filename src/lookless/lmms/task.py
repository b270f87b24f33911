"""What the tasks of :mod:`lookless.lmms.export` call: what a line asks, and when an answer is right.

A line is JSON and is read here, as a text: the JSON reader of `datasets` takes answers that look like dates for dates.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data import load_image
from ..evaluation import normal


def images(doc: dict[str, str]) -> list[Any]:
    """The images of a line, decoded as :func:`lookless.load_data` decodes them."""
    return [load_image(Path(path)) for path in json.loads(doc["text"])["images"]]


def question(doc: dict[str, str]) -> str:
    """The question alone: no prompt is put before or behind it."""
    return str(json.loads(doc["text"])["question"])


def answer(doc: dict[str, str]) -> str:
    """What the model should answer."""
    return str(json.loads(doc["text"])["answer"])


def score(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """Exact match as in :class:`lookless.evaluation.Evaluation`: apart from case and a final full stop."""
    return {"exact_match": float(normal(results[0]) == normal(answer(doc)))}
