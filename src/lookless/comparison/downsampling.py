"""Smaller images, and so fewer visual tokens: the control that costs nobody a paper.

VTC-Bench (arXiv 2510.07143) finds that plain down-sampling beats most methods that drop tokens, and calls the questions
that it gets wrong the hard ones. Nothing is trained and nothing is planned here: the stock model is given a smaller
image. A model of dynamic resolution (Qwen-VL) takes it as it is. A tower of one size (LLaVA's CLIP or SigLIP) takes it
with its position embeddings interpolated, which it was not trained for.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import nn

from ..data import Sample
from ..errors import PlanError
from ..loading import Loaded
from ..runtime.families import locate

INTERPOLATE = "interpolate_pos_encoding"


@contextmanager
def downsampled(loaded: Loaded, side: float) -> Iterator[Loaded]:
    """``loaded`` on images whose sides are the share ``side`` of what they are now, rounded to whole visual tokens.

    Afterwards the model and its processor are as before.

    Raises:
        PlanError: the number of this family's visual tokens is not set by the size of the image alone.
    """
    images, located = loaded.processor.image_processor, locate(loaded.model)
    if side == 1:
        yield loaded
    elif hasattr(images, "merge_size"):
        yield _by_pixels(loaded, images, side)
    elif _is_interpolated(loaded.model, located.tower):
        with _interpolating(located.tower):
            yield _by_square(loaded, images, side)
    else:
        raise PlanError(
            f"how many visual tokens {loaded.name} makes of a smaller image is not known here: down-sampling is for "
            f"LLaVA with a tower that interpolates its position embeddings, and for Qwen-VL."
        )


def _is_interpolated(model: nn.Module, tower: nn.Module) -> bool:
    """Whether one image is one square of visual tokens, from a tower that takes other sizes when it is asked to."""
    config: Any = model.config
    return config.model_type == "llava" and INTERPOLATE in inspect.signature(tower.forward).parameters


@contextmanager
def _interpolating(tower: nn.Module) -> Iterator[None]:
    """The tower is asked to interpolate, which the model that calls it has no argument for."""
    hook = tower.register_forward_pre_hook(
        lambda _, args, given: (args, {**given, INTERPOLATE: True}), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()


def _by_square(loaded: Loaded, images: Any, side: float) -> Loaded:
    """The image processor resizes, and crops, to fewer patches."""
    vision = loaded.model.config.vision_config  # type: ignore[union-attr]
    patches = vision.image_size // vision.patch_size
    share = max(1, round(patches * side)) / patches
    smaller = copy.copy(images)
    for name in ("size", "crop_size"):
        given = getattr(images, name, None)
        if given is not None:
            setattr(smaller, name, {edge: round(share * length) for edge, length in _edges(given)})
    return replace(loaded, processor=_with(loaded.processor, smaller))


def _by_pixels(loaded: Loaded, images: Any, side: float) -> Loaded:
    """Images are made smaller before the image processor, whose least number of pixels is lifted.

    That number would enlarge them again; and the largest alone would leave small images as they are.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    unit = images.patch_size * images.merge_size
    bounds = dict(_edges(images.size))

    def resize(image: Image.Image) -> Image.Image:
        stock = smart_resize(image.height, image.width, unit, bounds["shortest_edge"], bounds["longest_edge"])
        height, width = (max(1, round(side * length / unit)) * unit for length in stock)
        return image.convert("RGB").resize((width, height), Image.Resampling(images.resample))

    smaller = copy.copy(images)
    smaller.size = {**bounds, "shortest_edge": unit * unit}
    return _Resizing(loaded.model, _with(loaded.processor, smaller), loaded.name, loaded.revision, resize)


@dataclass(frozen=True)
class _Resizing(Loaded):
    """Resizes every image before the processor sees it."""

    resize: Callable[[Image.Image], Image.Image]

    def inputs(self, samples: Sequence[Sample]) -> dict[str, Any]:
        return super().inputs([replace(s, images=tuple(self.resize(i) for i in s.opened())) for s in samples])


def _edges(size: Any) -> list[tuple[str, int]]:
    """Of a size as transformers keeps it, the edges that are given."""
    return [(edge, length) for edge, length in dict(size).items() if length is not None]


def _with(processor: Any, images: Any) -> Any:
    """A copy of ``processor`` with another image processor."""
    other = copy.copy(processor)
    other.image_processor = images
    return other
