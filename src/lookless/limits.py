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
BORROWED = "which has none of its own and reads those of layer {}: plan it there"
LENT = "whose keys and values later layers read as well: which of them are decoded with (decode) can be said, no more"
STATE = "whose {} keeps one state of all tokens and no key of any"


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
    if (kind := geometry.state_of(layer)) is not None:
        state = STATE.format(kind)
        if row.attention.window is not None:
            yield f"attention={row.attention}", f"{state}: use Skip, Top, Mean or Linear"
        if row.visible.is_sink:
            yield f"visible={row.visible}", f"{state}: use Skip"
        if not row.decode.is_full:
            yield f"decode={row.decode}", f"{state}: it is written by all tokens, or, by visible=Skip, by text alone"
    yield from _shared(row, geometry, layer)
    for rank in row.ranks:
        read = layer - 1 if RANKS[rank].reads == "previous" else layer
        if RANKS[rank].heads and (kind := geometry.state_of(read)) is not None:
            reads = f"which reads keys of layer {read}, {STATE.format(kind)}"
            yield f"a rank by {rank}", f"{reads}: rank by diversity or update_norm"
        lender = geometry.shares_keys_of(read)
        if RANKS[rank].heads and lender is not None:
            yield f"a rank by {rank}", f"which reads keys of layer {read}, {BORROWED.format(lender)}"


def _shared(row: LayerPlan, geometry: Geometry, layer: int) -> Iterator[tuple[str, str]]:
    """Where some layers read the keys and values that an earlier one made."""
    if geometry.shared is None:
        return
    lender, pairs = geometry.shares_keys_of(layer), zip(geometry.shared.layers, geometry.shared.lenders, strict=True)
    if not row.keep.is_full and (torn := [pair for pair in pairs if pair[1] < layer <= pair[0]]):
        reader, made = torn[0]
        yield f"keep={row.keep}", f"as layer {reader} reads keys that layer {made} made of all tokens: plan it there"
    if layer in geometry.shared.lenders and not row.visible.is_full:
        yield f"visible={row.visible}", LENT
    if lender is not None:
        cells = {"visible": row.visible, "decode": row.decode, "attention": row.attention}
        for column, cell in cells.items():
            if not cell.is_full if column != "attention" else cell.window is not None:
                yield f"{column}={cell}", BORROWED.format(lender)
