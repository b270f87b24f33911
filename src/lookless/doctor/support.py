"""What of a model's family is known, and which cells and ranks it is refused."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ..cells import Cell, Keep, Neurons, Sink, Skip, Top, Window
from ..errors import LooklessError
from ..geometry import Geometry
from ..layer_plan import spans
from ..loading import Loaded
from ..plan import Plan
from ..ranks import RANKS
from ..runtime.families import Located, locate
from .sections import Section

#: One of each cell that some decoders cannot run, by column.
CELLS: tuple[tuple[str, Cell], ...] = (
    ("attention", Window(8)),
    ("ffn", Neurons(0.5)),
    ("visible", Sink()),
    ("decode", Skip()),
)


def family(loaded: Loaded) -> Section:
    """The model, and what is refused."""
    located = locate(loaded.model)
    config: Any = loaded.model.config
    parameter = next(loaded.model.parameters())
    names = loaded.processor.tokenizer.convert_ids_to_tokens(list(located.visual_ids))
    numbers = sum(weight.numel() for weight in loaded.model.parameters())
    return Section(
        "Model",
        {
            "name": loaded.name + (f" at {loaded.revision}" if loaded.revision else ""),
            "decoder": f"{config.get_text_config().model_type}, {located.geometry}",
            "visual tokens": ", ".join(
                f"`{name}` ({one})" for name, one in zip(names, located.visual_ids, strict=True)
            ),
            "attention": str(config.get_text_config()._attn_implementation),
            "weights": f"{numbers / 1e6:,.1f} million in {str(parameter.dtype).removeprefix('torch.')} on "
            f"{parameter.device}",
            "fingerprint": f"{loaded.fingerprint}, of the architecture {located.geometry.fingerprint}",
            "refused cells": "; ".join(refused_cells(located.geometry)) or "none",
            "refused ranks": "; ".join(refused_ranks(located)) or "none",
        },
        "right",
    )


def refused_cells(geometry: Geometry) -> list[str]:
    """Each cell with the layers that cannot run it, and why."""
    found: dict[str, list[int]] = defaultdict(list)
    for column, cell in CELLS:
        for layer in range(geometry.layers):
            reason = _refusal(Plan.full(geometry).at([layer], **{column: cell}), geometry, layer)
            if reason is not None:
                found[reason].append(layer)
    return [f"layers {' '.join(spans(layers))}: {reason}" for reason, layers in found.items()]


def refused_ranks(located: Located) -> list[str]:
    """Each rank that no layer or only some can use, and why in the first of them."""
    found: dict[str, list[int]] = defaultdict(list)
    reasons: dict[str, str] = {}
    for rank, about in RANKS.items():
        layers = [0] if about.reads == "tower" else range(1, located.geometry.layers)
        for layer in layers:
            column: dict[str, Cell] = {"keep": Keep(0.5, rank=rank)} if layer else {"attention": Top(0.5, rank=rank)}
            reason = _refusal(Plan.full(located.geometry).at([layer], **column), located.geometry, layer, located)
            if reason is not None:
                found[rank].append(layer)
                reasons.setdefault(rank, reason)
    return [f"layers {' '.join(spans(layers))}: {reasons[rank]}" for rank, layers in found.items()]


def _refusal(plan: Plan, geometry: Geometry, layer: int, located: Located | None = None) -> str | None:
    """Why the ``layer`` cannot run its row; None where it can."""
    try:
        plan.check(geometry)
        if located is not None:
            located.reads_tower(plan)
    except LooklessError as problem:
        said = str(problem).removeprefix(f"layer {layer} of {geometry.model_type} cannot run ")
        return said.rstrip(".")
    return None
