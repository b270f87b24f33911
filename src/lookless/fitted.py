"""The cells whose numbers are fitted to a model: an affine map in place of an operator.

Fitted in closed form, without training: :class:`lookless.calibration.affine.Fitter`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .cells import Affine
from .weights import Weights


class Mean(Affine):
    """As ``attention`` or ``ffn``: one constant is added to all visual tokens in place of the operator's output.

    Mostly the mean of that output over visual tokens of calibration samples. It costs no product.
    """

    kind: Literal["mean"] = "mean"

    def __init__(self, *weights: Weights, **fields: Any) -> None:
        super().__init__(**dict(zip(("weights",), weights, strict=False)), **fields)

    @model_validator(mode="after")
    def _a_constant(self) -> Mean:
        if self.weights.is_bound and self.weights.rank:
            raise ValueError(f"Mean is a constant, and its weights are of rank {self.weights.rank}")
        return self


class Linear(Affine):
    """As ``attention`` or ``ffn``: an affine map of low ``rank`` of the operator's input takes its place.

    Linear maps in place of operators are known: CAPA (arXiv 2602.00247) has them for the FFN of visual tokens, NBL
    (arXiv 2505.21077) for the attention, and ReplaceMe (arXiv 2505.02819) for whole blocks of all tokens. Two products,
    ``2 x rank x hidden`` multiply-adds a token.
    """

    kind: Literal["linear"] = "linear"
    rank: int = Field(gt=0)

    def __init__(self, *weights: Weights, **fields: Any) -> None:
        if weights and weights[0].is_bound:
            fields.setdefault("rank", weights[0].rank)
        super().__init__(**dict(zip(("weights",), weights, strict=False)), **fields)

    @model_validator(mode="after")
    def _of_its_rank(self) -> Linear:
        if self.weights.is_bound and self.weights.rank != self.rank:
            raise ValueError(f"Linear is of rank {self.rank}, and its weights are of rank {self.weights.rank}")
        return self

    @property
    def inner(self) -> int:
        return self.rank

    def __str__(self) -> str:
        return f"linear {self.rank}"
