"""What a model's configuration alone tells, by the model's name: no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import reference
from .errors import GeometryError, first_line
from .geometry import Geometry

#: The decoder block of each kind of model; any other preset has Llama's.
_OF_KIND = {"qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "qwen3_vl": "qwen3"}
#: The decoder block of each kind of text model.
_OF_TEXT = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_OF_TEXT |= {f"{kind}_text": block for kind, block in _OF_KIND.items()}


@dataclass(frozen=True)
class Shape:
    """A decoder's numbers, and its kind of block: ``llama``, ``qwen2`` (biases), ``qwen3`` (norms)."""

    geometry: Geometry
    block: str

    def cut(self, layers: int | None) -> Shape:
        """Of the first ``layers`` layers, if that is given.

        Raises:
            GeometryError: there are not so many.
        """
        there = self.geometry.layers
        if layers is not None and not 1 <= layers <= there:
            raise GeometryError(f"{layers} layers were asked for and {self.geometry.model_type} has {there}.")
        return Shape(self.geometry.model_copy(update={"layers": layers or there}), self.block)


def geometry_named(name: str) -> Geometry:
    """Of a preset such as LLaVA-1.5-7B, a shipped model, a folder with a ``config.json``, or a model of the hub.

    Raises:
        GeometryError: there is none, or it cannot be read.
    """
    return Geometry.from_config(_config(name)) if _has_config(name) else Geometry.preset(name)


def shape_named(name: str) -> Shape:
    """As :func:`geometry_named`.

    Raises:
        GeometryError: there is none, it cannot be read, or its decoder's block is of no known kind.
    """
    if not _has_config(name):
        geometry = Geometry.preset(name)
        return Shape(geometry, _OF_KIND.get(geometry.model_type, "llama"))
    config = _config(name)
    text = config.get_text_config().model_type
    if text not in _OF_TEXT:
        raise GeometryError(f"the decoder of {name} is of kind {text!r}; known are {', '.join(_OF_TEXT)}.")
    return Shape(Geometry.from_config(config), _OF_TEXT[text])


def _has_config(name: str) -> bool:
    """Whether it is no preset's name: it is shipped, a folder with a configuration, or ``owner/name`` on the hub."""
    here = Path(name)
    return name in reference.NAMES or (here / "config.json").exists() or (len(here.parts) == 2 and not here.exists())


def _config(name: str) -> Any:
    import transformers  # a config.json may leave out what is default

    try:
        return transformers.AutoConfig.from_pretrained(reference.NAMES.get(name, name))
    except Exception as problem:  # a file that holds anything, and the errors of the hub and its transports
        raise GeometryError(f"{name}/config.json cannot be read as a configuration: {first_line(problem)}.") from None
