"""How far a result is from the slow reference's, and where it is looked at."""

from __future__ import annotations

import pytest
import torch
import transformers.modeling_utils

from lookless.errors import PlanMismatchError
from lookless.runtime.families import geometry_of

TOLERANCE = 1e-4  # of the logits' scale, float32


def text_of(family, arguments) -> torch.Tensor:
    visual = torch.isin(arguments["input_ids"], torch.tensor(family.visual_ids))
    return arguments["attention_mask"].bool() & ~visual


def needs(model, plan) -> None:
    """Skip the test where layers of ``model`` cannot run ``plan``; tests/test_families.py has the list of these."""
    try:
        plan.check(geometry_of(model))
    except PlanMismatchError as reason:
        pytest.skip(str(reason))


def far(fast: torch.Tensor, slow: torch.Tensor) -> float:
    """Largest difference, as a share of the logits' scale."""
    return ((fast - slow).abs().max() / slow.abs().max()).item()


#: Since transformers 5.21 ``logits_to_keep`` may be a mask.
MASKS = hasattr(transformers.modeling_utils, "slice_logits_to_keep")


def text_logits(model, arguments, text: torch.Tensor) -> torch.Tensor:
    """Logits of the rows ``text`` alone. The call says that no other row is read, where transformers can say that."""
    if MASKS:
        return model(**arguments, logits_to_keep=text).logits
    return model(**arguments).logits[text]
