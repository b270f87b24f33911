"""Which group a vector belongs to, and whether it belongs to one at all; arrays only.

Groups are Gaussians of one shrunk covariance, so a vector goes to the centroid with the least Mahalanobis distance
(linear discriminant analysis), in closed form and without labels beyond the groups. Two numbers say whether to believe
it: how far that centroid is, as Lee et al. find vectors of no group (arXiv 1807.03888), and that distance as a share of
the second one's, Lowe's ratio. Both are compared with those of vectors that were held out of the fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SHRINKAGE = 0.1  # of the covariance, towards the same variance in every direction
RANK = 128  # directions in which variance is estimated, at most: others share one
LEAST_VARIANCE = 1e-4  # of standardised features: groups of one vector have none
FOLDS = 5
DECIMALS = 6  # of distances and ratios: the same vector, summed in another order, is not farther


@dataclass(frozen=True)
class Centroids:
    """Groups of vectors ``[features]``.

    Attributes:
        mean, scale: ``[features]``, standardise a vector; the scale of a feature that never varied is zero.
        basis: ``[features, rank]``, orthonormal; within groups the directions are uncorrelated.
        variance: ``[rank]``, within groups; ``floor``, ``[1]``, that of every direction outside the basis.
        centres: ``[groups, rank]``, of the standardised vectors, in the basis.
    """

    mean: Array
    scale: Array
    basis: Array
    variance: Array
    floor: Array
    centres: Array

    @classmethod
    def fit(cls, vectors: Array, groups: NDArray[np.int64]) -> Centroids:
        """Of ``vectors``, ``[vectors, features]``, and the group of each, counted from 0."""
        mean, deviation = vectors.mean(0), vectors.std(0)
        varies = deviation > 1e-9 * max(1.0, float(deviation.max()))
        scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
        standard = (vectors - mean) * scale
        centres = np.stack([standard[groups == group].mean(0) for group in range(groups.max() + 1)])
        within = standard - centres[groups]
        plain = float((within**2).sum()) / (len(within) * max(1, int(varies.sum())))
        floor = max(SHRINKAGE * plain, LEAST_VARIANCE)
        spanned = np.linalg.svd(standard, full_matrices=False)[2][:RANK].T
        inside = within @ spanned
        variance, turn = np.linalg.eigh(inside.T @ inside / len(inside))
        basis = spanned @ turn
        return cls(mean, scale, basis, (1 - SHRINKAGE) * variance.clip(0) + floor, np.array([floor]), centres @ basis)

    def distances(self, vector: Array) -> Array:
        """Of one vector, ``[features]``, to each centre, ``[groups]``."""
        standard = (vector - self.mean) * self.scale
        inside = standard @ self.basis
        outside = max(0.0, float(standard @ standard - inside @ inside)) / self.floor[0]
        return np.sqrt((self._white - inside * self._weight) ** 2 @ np.ones(len(inside)) + outside)

    @cached_property
    def _weight(self) -> Array:
        return 1 / np.sqrt(self.variance)

    @cached_property
    def _white(self) -> Array:
        return self.centres * self._weight

    def nearest(self, vector: Array, kinds: NDArray[np.int64]) -> Nearest:
        """Where it matters only of which of ``kinds`` a group is, ``[groups]``."""
        distances = self.distances(vector)
        group = int(distances.argmin())
        second = float(distances[kinds != kinds[group]].min(initial=np.inf))
        distance = float(distances[group])
        return Nearest(group, round(distance, DECIMALS), round(distance / second if second else 1.0, DECIMALS))

    def tensors(self) -> dict[str, Array]:
        """By name, to be saved."""
        return {field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True)
class Nearest:
    """The nearest group, its distance, and the same as a share of the distance to the nearest of another kind; 0 where
    there is none."""

    group: int
    distance: float
    ratio: float


def held_out(vectors: Array, groups: NDArray[np.int64], kinds: NDArray[np.int64]) -> list[Nearest]:
    """For each vector what :meth:`Centroids.nearest` says if it was fitted without it and without others of its fold.

    Every group needs :data:`FOLDS` vectors.
    """
    found: dict[int, Nearest] = {}
    for fold in _folds(groups):
        fitted = Centroids.fit(np.delete(vectors, fold, axis=0), np.delete(groups, fold))
        found |= {int(index): fitted.nearest(vectors[index], kinds) for index in fold}
    return [found[index] for index in range(len(vectors))]


def _folds(groups: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Indices, with an equal part of each group in each fold."""
    rng = np.random.default_rng(0)
    members = [rng.permutation(np.flatnonzero(groups == group)) for group in np.unique(groups)]
    for fold in range(FOLDS):
        yield np.concatenate([indices[fold::FOLDS] for indices in members])


@dataclass(frozen=True)
class Belief:
    """How sure a :class:`Nearest` is, from those of vectors that were held out.

    Attributes:
        distances, ratios: theirs, ascending.
        torn: ratios above it are no evidence: among vectors held out, too many with such ratios were wrong.
    """

    distances: Array
    ratios: Array
    torn: float

    @classmethod
    def of(cls, held: list[Nearest], wrong: NDArray[np.bool_], doubt: float) -> Belief:
        """Where at most a share ``doubt`` of the nearest groups that are believed may be ``wrong``."""
        distances, ratios = (np.array([getattr(one, name) for one in held]) for name in ("distance", "ratio"))
        order = np.argsort(ratios, kind="stable")
        # Vectors with the same ratio are believed together.
        ends = np.flatnonzero(np.append(np.diff(ratios[order]) > 0, True))
        shares = np.cumsum(wrong[order])[ends] / (ends + 1)
        good = ends[shares <= doubt]
        torn = 1.0 if not wrong.any() else float(ratios[order][good[-1]]) if len(good) else -1.0
        return cls(np.sort(distances), ratios[order], torn)

    def confidence(self, one: Nearest) -> float:
        """The share of held-out vectors that were at least as far or as torn, times two, as either is a reason to
        doubt; a p-value. Zero where held-out vectors were wrong too often."""
        if one.ratio > self.torn:
            return 0.0
        farther = min(self._at_least(self.distances, one.distance), self._at_least(self.ratios, one.ratio))
        return min(1.0, 2 * farther)

    @staticmethod
    def _at_least(known: Array, value: float) -> float:
        return float(len(known) - np.searchsorted(known, value) + 1) / (len(known) + 1)
