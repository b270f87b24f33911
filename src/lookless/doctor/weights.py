"""Whether the weights are all there, and numbers."""

from __future__ import annotations

from ..loading import Loaded
from .sections import Section


def weights(loaded: Loaded) -> Section:
    """Of a model that was loaded, which no tensor is missing from: how many there are, and which hold NaN."""
    tensors = loaded.model.state_dict()
    here = {name: one for name, one in tensors.items() if not one.is_meta}
    bad = [name for name, one in here.items() if one.is_floating_point() and not bool(one.isfinite().all())]
    facts = {"tensors": f"{len(tensors)}, every one from the checkpoint"}
    if len(here) < len(tensors):
        facts["not looked at"] = f"{len(tensors) - len(here)}, which are offloaded"
    facts["not finite"] = f"{bad[0]} and {len(bad) - 1} more" if len(bad) > 1 else bad[0] if bad else "none"
    return Section("Weights", facts, "wrong" if bad else "right")
