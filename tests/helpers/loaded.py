"""Stand-ins for what ``load_model`` and ``load_data`` return, over tiny models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from PIL import Image

from helpers.families import FAMILIES
from helpers.models import BATCHES, tiny_llava
from lookless import data

PIXEL = Image.new("RGB", (4, 4))
ONE = data.Samples("one", (data.Sample((PIXEL,), "q", ""),))


class TinyLoaded(SimpleNamespace):
    """As ``Loaded``, over a tiny random model: a sample's question names a batch of helpers/models.py."""

    def inputs(self, samples):
        return BATCHES[samples[0].question]()


def tiny_loaded(model: Any = None) -> TinyLoaded:
    return TinyLoaded(model=tiny_llava() if model is None else model, name="tiny", revision=None)


def loaded_of(model: Any, arguments: dict[str, Any]) -> SimpleNamespace:
    """As ``Loaded``, whose every sample is ``arguments``."""
    return SimpleNamespace(model=model, name="tiny", revision=None, inputs=lambda samples: dict(arguments))


def samples_of(*batches: str) -> data.Samples:
    """Samples for :class:`TinyLoaded`."""
    return data.Samples("tiny", tuple(data.Sample((PIXEL,), name, "") for name in batches))


def made(name: str) -> tuple[Any, dict[str, Any]]:
    """A fresh model of a family, and the arguments of a prompt with two images."""
    family = FAMILIES[name]
    return family.build(), family.batch("two images")
