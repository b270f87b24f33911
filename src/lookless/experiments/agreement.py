"""How far two choices of layers, or two orders of them, agree."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations
from statistics import fmean

from scipy.stats import spearmanr


def jaccard(a: Collection[int], b: Collection[int]) -> float:
    """What two sets share, of what is in either; 1 of two empty ones."""
    both, either = set(a) & set(b), set(a) | set(b)
    return len(both) / len(either) if either else 1.0


def mean_jaccard(sets: Sequence[Collection[int]]) -> float:
    """Over all pairs; 1 of a single set."""
    pairs = [jaccard(a, b) for a, b in combinations(sets, 2)]
    return fmean(pairs) if pairs else 1.0


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, of two lists of scores; 0 where one is constant."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return float(spearmanr(a, b).statistic)
