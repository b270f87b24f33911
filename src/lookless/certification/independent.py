"""Questions about the same image are not independent: which are, and one of each."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..data import ImageFile, Sample, Samples


def image_files(sample: Sample) -> frozenset[Path]:
    """The files of its images; none for images in memory."""
    return frozenset(image.path.resolve() for image in sample.images if isinstance(image, ImageFile))


def one_per_image(samples: Samples, seed: int = 0) -> Samples:
    """``samples`` with one question, drawn at random, of those that share an image file; in their order.

    Samples without an image file all stay.
    """
    drawn = list(range(len(samples)))
    random.Random(seed).shuffle(drawn)
    taken: set[Path] = set()
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
