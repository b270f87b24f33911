"""Steps of an engine: which tokens of which requests are scheduled at once, and which of them are visual."""

from __future__ import annotations

import numpy as np

T, V = False, True
#: visual tokens of each request's scheduled tokens, and how many tokens of it are in the cache already
STEPS = {
    "one prompt": [([T, T, V, V, V, T, T], 0)],
    "image first": [([V, V, T], 0)],
    "image last": [([T, V, V], 0)],
    "two images": [([T, V, V, T, V, T, T], 0)],
    "a chunk that is all image": [([V, V, V, V], 5)],
    "a later chunk": [([V, V, T, T], 6)],
    "text only": [([T, T, T], 0)],
    "decode": [([T], 9)],
    "mixed": [([T, T, V, V, T], 0), ([T], 12), ([V, V], 3), ([T, T], 4), ([V, T, V, T], 0)],
    "neighbours touch": [([T, V], 0), ([V, T], 0), ([T, T], 2)],
    "nothing scheduled of one": [([T, V, T], 0), ([], 4), ([T], 2)],
    "frames of a video": [([T, *[V, V, T] * 4, T], 0), ([V, V, T, V, V], 7)],
}


def flat(step):
    """Which rows are visual, where each request's start, and how long each request is then."""
    visual = np.array([v for tokens, _ in step for v in tokens], dtype=bool)
    starts = np.array([0, *np.cumsum([len(tokens) for tokens, _ in step])])
    lengths = np.array([past + len(tokens) for tokens, past in step])
    return visual, starts, lengths
