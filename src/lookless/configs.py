"""What a model's configuration alone says, by the model's name: no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import reference
from .errors import GeometryError, first_line
from .files import check_file
from .geometry import Geometry

#: The decoder block of each kind of model; any other preset has Llama's.
_OF_KIND = {"qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "qwen3_vl": "qwen3", "qwen3_vl_moe": "qwen3_moe"}
_OF_KIND |= {kind: f"{kind}_text" for kind in ("qwen3_5", "qwen3_5_moe", "gemma4")}
#: The decoder block of each kind of text model.
_OF_TEXT = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3_moe"}
_OF_TEXT |= {f"{kind}_text": block for kind, block in _OF_KIND.items()}
_OF_TEXT |= {kind: kind for kind in ("qwen3_5_text", "qwen3_5_moe_text", "gemma4_text")}
_OF_TEXT |= {kind: kind for kind in ("glm4v_text", "glm_ocr_text", "glm4v_moe_text")}
_OF_TEXT |= {"paddleocr_vl_text": "llama", "lfm2": "lfm2"}


@dataclass(frozen=True)
class Shape:
    """A decoder's geometry and its kind of block.

    Attributes:
        geometry: its numbers.
        block: ``llama``, ``qwen2`` (with biases), ``qwen3`` (with norms of queries and keys), ``qwen3_moe`` (and a
            mixture of experts), ``qwen3_5_text`` or ``qwen3_5_moe_text`` (with gates and gated delta rules),
            ``glm4v_text`` or ``glm_ocr_text`` (with norms behind both operators), ``glm4v_moe_text``,
            ``lfm2`` (with short convolutions), or
            ``gemma4_text`` (with windows, two norms around each operator and shared keys).
    """

    geometry: Geometry
    block: str

    def cut(self, layers: int | None) -> Shape:
        """The shape of the first ``layers`` layers alone; all layers, if None.

        Raises:
            GeometryError: ``layers`` is below 1 or more than there are.
        """
        there = self.geometry.layers
        if layers is not None and not 1 <= layers <= there:
            raise GeometryError(f"{layers} layers were asked for and {self.geometry.model_type} has {there}.")
        return Shape(self.geometry.model_copy(update={"layers": layers or there}), self.block)


def geometry_named(name: str) -> Geometry:
    """The geometry of a preset, a shipped model, a folder with a ``config.json``, or a model on the hub.

    Raises:
        GeometryError: there is none of that name, or its configuration cannot be read.
    """
    return Geometry.from_config(_config(name)) if _has_config(name) else Geometry.preset(name)


def shape_named(name: str) -> Shape:
    """As :func:`geometry_named`, with the kind of the decoder's block.

    Raises:
        GeometryError: there is none of that name, its configuration cannot be read, or its block is of no known kind.
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
    """Whether ``name`` is not a preset but a shipped model, a folder with a configuration, or a hub id."""
    here = Path(name)
    return name in reference.SHIPPED or (here / "config.json").exists() or (len(here.parts) == 2 and not here.exists())


def _config(name: str) -> Any:
    import transformers  # a config.json may leave out what is default

    try:
        own = Path(reference.SHIPPED.get(name, name)) / "config.json"
        if own.exists():
            check_file(own)
        return transformers.AutoConfig.from_pretrained(reference.SHIPPED.get(name, name), trust_remote_code=False)
    except Exception as problem:  # any file content, and any error of the hub and its transports
        raise GeometryError(
            f"{name}/config.json cannot be read as a configuration: {first_line(problem)}."
        ) from problem
