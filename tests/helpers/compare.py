"""How far a result is from the slow reference's, and where it is looked at."""

from __future__ import annotations

import torch

TOLERANCE = 1e-4  # of the logits' scale, float32


def text_of(family, arguments) -> torch.Tensor:
    visual = torch.isin(arguments["input_ids"], torch.tensor(family.visual_ids))
    return arguments["attention_mask"].bool() & ~visual


def far(fast: torch.Tensor, slow: torch.Tensor) -> float:
    """Largest difference, as a share of the logits' scale."""
    return ((fast - slow).abs().max() / slow.abs().max()).item()
