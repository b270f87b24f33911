"""What is timed: a dummy model of a geometry, or a loaded model on its own prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..configs import shape_named
from ..data import AS_IS, Reading, Sample
from ..errors import DataError, ModelError
from ..geometry import Geometry
from ..loading import DTYPES, check_device, load_model
from ..runtime.families import locate
from .dummy_model import make_dummy_model


@dataclass(frozen=True)
class Subject:
    """A model to time, and its prompts.

    Attributes:
        name: for reports.
        prompts: from a batch size, the inputs of each length to time.
        data: name of the prompts' data; None for random prompts.
    """

    name: str
    model: nn.Module
    geometry: Geometry
    prompts: Callable[[int], Iterable[dict[str, Any]]]
    data: str | None = None


def subject_of_geometry(
    name: str, *, layers: int | None, dtype: str, device: str, visual: Sequence[int] = (576,), text: int = 66
) -> Subject:
    """A dummy model with real layer shapes and random weights.

    Args:
        name: a preset's, a folder with a config.json, or a hub id.
        layers: how many of the first layers to build; None for all.
        dtype, device: of the weights.
        visual: visual tokens of a prompt, each a length to time.
        text: text tokens of a prompt, half of them before the image.

    Raises:
        GeometryError, ModelError: no such geometry, dtype, device or number of layers, or too little memory.
    """
    shape, chosen = shape_named(name).cut(layers), _dtype(dtype)
    check_device(device)
    made = make_dummy_model(shape, dtype=chosen, device=device)

    def prompts(batch: int) -> Iterator[dict[str, Any]]:
        for count in visual:
            yield made.inputs(visual=count, before=text // 2, after=text - text // 2, batch=batch)

    return Subject(cut_name(name, layers), made.model, made.geometry, prompts)


def cut_name(name: str, layers: int | None) -> str:
    """The name of a geometry, with how many of its layers run, if not all."""
    return f"{name}, {layers} layers" if layers else name


CHARTS = "reference:chart"
MOST_SAMPLES = 64  #: of a data file that are read


def subject_of_model(
    name: str,
    *,
    dtype: str,
    device: str,
    data: str | None = None,
    reading: Reading = AS_IS,
    sizes: Sequence[int] = (),
) -> Subject:
    """A loaded model, on images and questions of ``data``, or of a shipped task.

    The first :data:`MOST_SAMPLES` samples of ``data`` are sorted by their visual tokens, those without an image left
    out; the shortest, the middle and the longest are timed.

    Args:
        name: as for :func:`lookless.load_model`.
        dtype, device: of the weights.
        data, reading: as for :func:`lookless.load_data`, and how they are read.
        sizes: of images, in pixels of the longer side, each a length to time: that of the middle sample.

    Raises:
        ModelError: it cannot be loaded; or several sizes give the same number of visual tokens, as where a processor
            or a vision tower takes one size.
        DataError: there is no such data, or no image in it.
    """
    _dtype(dtype)
    given = reading.load(data or CHARTS, limit=MOST_SAMPLES)
    samples = [sample for sample in given if sample.pictures]
    if not samples:
        raise DataError(f"no sample of {data} has an image, and without one no plan does anything.")
    loaded = load_model(name, dtype=dtype, device=device)
    if reading.skip_bad:
        samples = [*loaded.fitting(replace(given, items=tuple(samples)))]
    located = locate(loaded.model)

    def visual(group: Sequence[Sample]) -> int:
        return int(located.visual(loaded.inputs(group)["input_ids"]).sum())

    counts = [visual([sample]) if data is not None else 0 for sample in samples]
    order = sorted(range(len(samples)), key=counts.__getitem__)

    def group(start: int, batch: int) -> list[Sample]:
        return [samples[order[(start + i) % len(order)]] for i in range(batch)]

    def prompts(batch: int) -> Iterator[dict[str, Any]]:
        last = max(0, len(order) - batch)
        groups = [group(start, batch) for start in (last, last // 2, 0)]
        if sizes:
            groups = [[_resized(sample, size) for sample in group(last // 2, batch)] for size in sizes]
        lengths = {visual(one): one for one in groups}  # one of each length
        if len(lengths) < len(set(sizes)):
            raise ModelError(
                f"images of {', '.join(map(str, sorted(sizes)))} pixels have {', '.join(map(str, sorted(lengths)))} "
                f"visual tokens of {name}, whose processor or vision tower brings them to one size: give other sizes."
            )
        for length in sorted(lengths):
            yield loaded.inputs(lengths[length])

    return Subject(name, loaded.model, located.geometry, prompts, given.name)


def _resized(sample: Sample, longer: int) -> Sample:
    """``sample`` with images of so many pixels at the longer side, and of the shape that they have."""
    images = []
    for image in sample.opened():
        share = longer / max(image.size)
        images.append(image.resize([max(1, round(share * side)) for side in image.size], Image.Resampling.BICUBIC))
    return replace(sample, images=tuple(images))


def _dtype(name: str) -> torch.dtype:
    if name == "auto" or name not in DTYPES:
        raise ModelError(f"dtype {name!r} is not one of {', '.join(n for n in DTYPES if n != 'auto')}.")
    found: torch.dtype = DTYPES[name]  # type: ignore[assignment]
    return found
