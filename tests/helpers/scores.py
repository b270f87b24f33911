"""Scores by hand, for a model of LLaVA-1.5-7B's geometry at any depth."""

from __future__ import annotations

from lookless import Geometry, Scores

SEVEN = Geometry.preset("LLaVA-1.5-7B")


def of(layers: int) -> Geometry:
    return SEVEN.model_copy(update={"layers": layers})


def scored(*means: float, name: str = "visual_information_gain", **fields) -> Scores:
    return Scores(name=name, per_sample=(means,), geometry=of(len(means)), **fields)


def risks(*rows: tuple[float, ...]) -> list[Scores]:
    names = ("visual_information_gain", "ffn_effect", "freeze_effect")
    return [scored(*row, name=name) for name, row in zip(names, rows, strict=True)]
