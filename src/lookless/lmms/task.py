"""What the tasks of :mod:`lookless.lmms.export` call: what a line asks, and when an answer is right.

A line is JSON and is read here, as a text: the JSON reader of `datasets` takes answers that look like dates for dates.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data import load_image
from ..metrics import metric_named


def images(doc: dict[str, str]) -> list[Any]:
    """The images of a line, decoded as :func:`lookless.load_data` decodes them."""
    return [load_image(Path(path)) for path in json.loads(doc["text"])["images"]]


def question(doc: dict[str, str]) -> str:
    """The question alone: no prompt is put before or behind it."""
    return str(json.loads(doc["text"])["question"])


def answer(doc: dict[str, str]) -> str:
    """What the model should answer; of several right answers the first."""
    return str(json.loads(doc["text"])["answers"][0])


def score(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """By the metric of the data, as :func:`lookless.evaluate` scores; ``exact_match`` is what lmms-eval calls it."""
    line = json.loads(doc["text"])
    return {"exact_match": metric_named(line["metric"]).score(results[0], line["answers"])}
