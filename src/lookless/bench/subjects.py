"""What is timed: a dummy model of a geometry, or a loaded model on its own prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..configs import shape_named
from ..data import load_data
from ..errors import DataError, ModelError
from ..geometry import Geometry
from ..loading import DTYPES, check_device, load_model
from ..runtime.families import locate
from .dummy_model import make_dummy_model


@dataclass(frozen=True)
class Subject:
    """What is timed: a model, and what is put to it.

    Attributes:
        prompts: prompts of each of the lengths to be timed, by how many are in a batch.
        data: whose prompts they are; None for random ones.
    """

    name: str
    model: nn.Module
    geometry: Geometry
    prompts: Callable[[int], Iterable[dict[str, Any]]]
    data: str | None = None


def of_geometry(
    name: str, *, layers: int | None, dtype: str, device: str, visual: Sequence[int] = (576,), text: int = 66
) -> Subject:
    """Real layer shapes with random weights; prompts of each of ``visual`` tokens, and of ``text``.

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
    """Of a geometry, of which only the first ``layers`` layers may run."""
    return f"{name}, {layers} layers" if layers else name


CHARTS = "reference:chart"
MOST = 64  #: samples of a data file that are looked at


def of_model(name: str, *, dtype: str, device: str, data: str | None = None) -> Subject:
    """A model that is loaded, on images and questions of ``data``, or of a shipped task; lengths are the processor's.

    Of ``data`` the first :data:`MOST` samples that have an image are put in order of their visual tokens, and the
    shortest, the middle and the longest are timed.

    Raises:
        ModelError: it cannot be loaded.
        DataError: there is no such data, or no image in it.
    """
    _dtype(dtype)
    given = load_data(data or CHARTS, split="test", limit=MOST)
    samples = [sample for sample in given if sample.images]
    if not samples:
        raise DataError(f"no sample of {data} has an image, and without one no plan does anything.")
    loaded = load_model(name, dtype=dtype, device=device)
    located = locate(loaded.model)
    counts = [0] * len(samples)
    if data is not None:
        counts = [int(located.visual(loaded.inputs([sample])["input_ids"]).sum()) for sample in samples]
    order = sorted(range(len(samples)), key=counts.__getitem__)

    def prompts(batch: int) -> Iterator[dict[str, Any]]:
        last = max(0, len(order) - batch)
        groups = [[order[(start + i) % len(order)] for i in range(batch)] for start in (0, last // 2, last)]
        lengths = {sum(counts[i] for i in group): group for group in reversed(groups)}  # one of each length
        for length in sorted(lengths):
            yield loaded.inputs([samples[i] for i in lengths[length]])

    return Subject(name, loaded.model, located.geometry, prompts, given.name)


def _dtype(name: str) -> torch.dtype:
    if name == "auto" or name not in DTYPES:
        raise ModelError(f"dtype {name!r} is not one of {', '.join(n for n in DTYPES if n != 'auto')}.")
    found: torch.dtype = DTYPES[name]  # type: ignore[assignment]
    return found
