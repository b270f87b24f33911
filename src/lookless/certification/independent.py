"""Questions about the same image are not independent: which are, and one of each."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..data import Sample, Samples
from ..errors import DataError
from ..metrics import metric_named


def image_files(sample: Sample) -> frozenset[str]:
    """The files of its images, or their contents where a table holds them; none for images in memory."""
    return frozenset(picture.key for picture in sample.pictures if not isinstance(picture, Image.Image))


def one_by_one(metric: str, data: str) -> str:
    """``metric``, if it scores single questions of ``data``.

    Raises:
        DataError: it is of pairs of questions about one image.
    """
    if metric_named(metric).total == "mme":
        raise DataError(
            f"{data} is scored by MME's pairs of questions about an image, and here each question is scored by itself: "
            f"take the metric yes-no, which does that."
        )
    return metric


def one_per_image(samples: Samples, seed: int = 0) -> Samples:
    """``samples`` with one question, drawn by ``seed``, of those that share an image file; in their order.

    Samples without an image file all stay.
    """
    drawn = list(range(len(samples)))
    random.Random(seed).shuffle(drawn)
    taken: set[str] = set()
    kept: set[int] = set()
    for index in drawn:
        files = image_files(samples.items[index])
        if not files & taken:
            taken |= files
            kept.add(index)
    return replace(samples, items=tuple(item for index, item in enumerate(samples.items) if index in kept))


def image_groups(images: Sequence[Collection[str]]) -> np.ndarray:
    """A number for each question, ``[questions]``, the same for those that share an image, or that share one with a
    third; a question without an image is alone.

    Args:
        images: of each question.
    """
    known: dict[str, int] = {}
    pairs = [(n, known.setdefault(image, len(known))) for n, own in enumerate(images) for image in own]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    size = len(images) + len(known)
    graph = coo_array((np.ones(len(pairs)), (rows, len(images) + columns)), shape=(size, size))
    labels: np.ndarray = connected_components(graph, directed=False)[1][: len(images)]
    return np.unique(labels, return_inverse=True)[1]
