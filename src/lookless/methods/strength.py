"""How much a method does, as one number from 0 (nothing) to 1 (all it can): what a comparison at one budget turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: number of layers, strength -> the knobs
Strength = Callable[[int, float], dict[str, Any]]


def more_layers(layers: int, strength: float) -> dict[str, Any]:
    """Change that share of the layers."""
    return {"layers": round(strength * layers)}


def fewer_tokens(layers: int, strength: float) -> dict[str, Any]:
    """Drop that share of the visual tokens."""
    return {"keep": round(1 - strength, 4)}


def smaller_ratio(layers: int, strength: float) -> dict[str, Any]:
    """Leave that share of the visual tokens without an update."""
    return {"ratio": round(1 - strength, 4)}
