"""A prompt as one vector: the mean of the model's own input embeddings of its text, and how much of it is visual."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ModelError
from ..runtime.families import locate

_ROWS = 4096  # hashed at a time


class Reader:
    """Reads prompts of one model.

    A vector has one number more than an embedding: the logarithm of the number of visual tokens, so that plans may
    differ by the size of images too.
    """

    def __init__(self, model: nn.Module) -> None:
        self.table = table_of(model)
        self.visual_ids = np.array(locate(model).visual_ids)

    def vectors(self, inputs: Mapping[str, Any]) -> list[NDArray[np.float64] | None]:
        """One per prompt of a batch, ``[hidden + 1]``; None for a prompt without text.

        Args:
            inputs: the model's arguments, ``input_ids`` and perhaps ``attention_mask``, ``[prompts, tokens]``.

        Raises:
            ModelError: there are no ids.
        """
        ids = inputs.get("input_ids")
        if ids is None:
            raise ModelError("a prompt is routed by its text, and these inputs have no input_ids: pass them.")
        mask = inputs.get("attention_mask")
        rows = ids.cpu().numpy()
        real = np.ones_like(rows, dtype=bool) if mask is None or mask.ndim != 2 else mask.cpu().numpy().astype(bool)
        return [self._vector(row[there]) for row, there in zip(rows, real, strict=True)]

    @torch.no_grad()
    def _vector(self, ids: NDArray[np.int64]) -> NDArray[np.float64] | None:
        visual = np.isin(ids, self.visual_ids)
        text = torch.as_tensor(ids[~visual], device=self.table.device)
        if not len(text):
            return None
        # In double precision, so that the order of the sum, and with it padding, moves nothing that is compared.
        mean = self.table[text].cpu().double().mean(0).numpy()
        return np.append(mean, math.log1p(visual.sum()))


def table_of(model: nn.Module) -> Tensor:
    """The input embeddings, ``[vocabulary, hidden]``."""
    table: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    return table


def hash_of_table(table: Tensor) -> str:
    """sha256 of the embeddings' shape and values in bfloat16, so that float32 and bfloat16 copies of one checkpoint are
    the same; 16 hex digits."""
    digest = hashlib.sha256(repr(tuple(table.shape)).encode())
    for rows in table.detach().split(_ROWS):
        digest.update(rows.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_of_tokenizer(tokenizer: Any) -> str:
    """sha256 of its tokens and their ids, 16 hex digits."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()[:16]
