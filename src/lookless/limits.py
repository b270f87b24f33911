"""What the layers of some decoders cannot be asked for: cells that are refused by name, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .errors import PlanMismatchError
from .geometry import Geometry
from .layer_plan import LayerPlan
from .ranks import RANKS

EXPERTS = (
    "and its FFN is a mixture of experts, whose router already picks a part of the neurons for each row: use Skip, "
    "Top, Mean or Linear"
)
STATE = "whose gated delta rule keeps one state of all tokens and no key of any"


def check_cells(rows: Sequence[LayerPlan], geometry: Geometry) -> None:
    """Raises: PlanMismatchError: a cell of these ``rows`` of a plan asks a layer for what it cannot do."""
    for layer, row in enumerate(rows):
        refused = next(_refused(row, geometry, layer), None)
        if refused is not None:
            cell, reason = refused
            raise PlanMismatchError(f"layer {layer} of {geometry.model_type} cannot run {cell}, {reason}.")


def can_run(row: LayerPlan, geometry: Geometry, layer: int) -> bool:
    """Whether ``layer`` can do all that ``row`` asks for."""
    return next(_refused(row, geometry, layer), None) is None


def _refused(row: LayerPlan, geometry: Geometry, layer: int) -> Iterator[tuple[str, str]]:
    """Cells in words, and why each cannot be run."""
    if row.ffn.neurons is not None and geometry.experts_of(layer) is not None:
        yield f"ffn={row.ffn}", EXPERTS
    if geometry.delta_of(layer) is not None:
        if row.attention.window is not None:
            yield f"attention={row.attention}", f"{STATE}: use Skip, Top, Mean or Linear"
        if row.visible.is_sink:
            yield f"visible={row.visible}", f"{STATE}: use Skip"
        if not row.decode.is_full:
            yield f"decode={row.decode}", f"{STATE}: it is written by all tokens, or, by visible=Skip, by text alone"
    for rank in row.ranks:
        read = layer - 1 if RANKS[rank].reads == "previous" else layer
        if RANKS[rank].heads and geometry.delta_of(read) is not None:
            yield f"a rank by {rank}", f"which reads keys of layer {read}, {STATE}: rank by diversity or update_norm"
