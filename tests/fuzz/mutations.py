"""JSON that is nearly right: bytes changed at random are mostly no JSON at all, and say little of what comes after."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from typing import Any

STRANGE = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63 - 1, -(2**63), 0.5, -0.0, 1e308, 5e-324, "", "x", "..", "../x", "\x00"),
    *("\u2028", "é" * 50, "full", "skip", "0" * 64, [], {}, [[]], [None], {"": None}, [0.5] * 4, {"kind": "skip"}),
)


def mutated(content: bytes, rng: random.Random) -> bytes | None:
    """One of the lines of ``content`` as other JSON, or ``content`` as a whole; None where it is none."""
    lines = _lines(content)
    place = rng.randrange(len(lines))
    data, is_json = _parsed(lines[place])
    if not is_json:
        return None
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _changed(data, rng)
    return b"\n".join((*lines[:place], json.dumps(data).encode(), *lines[place + 1 :]))


@lru_cache(maxsize=1024)
def _lines(content: bytes) -> tuple[bytes, ...]:
    return (content,) if content.lstrip()[:1] == b"{" and b"\n{" not in content else tuple(content.split(b"\n"))


@lru_cache(maxsize=1024)
def _parsed(line: bytes) -> tuple[Any, bool]:
    """What ``line`` holds, which nobody changes, and whether it is JSON."""
    try:
        return json.loads(line), True
    except (ValueError, RecursionError):
        return None, False


def _changed(data: Any, rng: random.Random) -> Any:
    """``data`` with one thing in it changed."""
    if isinstance(data, dict | list) and data and rng.random() < 0.85:
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        key, made = rng.choice(keys), data.copy()
        what = rng.random()
        if what < 0.1:
            del made[key]
        elif what < 0.2 and isinstance(made, list):
            made.insert(key, made[key])
        elif what < 0.2:
            made[rng.choice(("kind", "task", "x", "schema_version", str(key) + "s"))] = made[key]
        else:
            made[key] = _changed(made[key], rng)
        return made
    if isinstance(data, int | float) and not isinstance(data, bool) and rng.random() < 0.4:
        return rng.choice((data + 1, data - 1, -data, data * 2, data / 3))
    return rng.choice(STRANGE)


def scrambled(content: bytes, rng: random.Random) -> bytes:
    """``content`` with some bytes changed, lost or added."""
    made = bytearray(content or b"{}")
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, what = rng.randrange(len(made) + 1), rng.random()
        if what < 0.5:
            made[at : at + 1] = rng.randbytes(1)
        elif what < 0.75:
            del made[at : at + rng.randrange(1, 9)]
        else:
            made[at:at] = rng.randbytes(rng.randrange(1, 6))
    return bytes(made)
