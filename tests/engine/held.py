"""What the process of an engine holds: asked by tests through vLLM's ``/collective_rpc``, which runs it there.

Resident memory is also what allocators keep for later and what kernels were compiled; this is what something refers to.
"""

from __future__ import annotations

import gc

import torch


class Held:
    """Added to vLLM's worker by ``--worker-extension-cls``."""

    def held(self) -> dict[str, int]:
        """Objects that are alive, and tensors among them."""
        gc.collect()
        alive = gc.get_objects()
        return {"objects": len(alive), "tensors": sum(issubclass(type(each), torch.Tensor) for each in alive)}
