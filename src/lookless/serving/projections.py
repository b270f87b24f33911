"""vLLM's fused projection of queries, keys and values, in two: not every row that makes keys also makes queries.

A step without visual tokens wants it fused: two products and their concatenation are more steps than one, which shows
where a layer is small. So a small one is held as it was, too; of a large one that is lost in the time that its weights
take to be read, and they are held once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear

SMALL = 1 << 20  #: weights of queries up to which the fused projection is held beside the two


class SplitProjection(nn.Module):
    """vLLM's fused projection of queries, keys and values, in two.

    Attributes:
        fused: as vLLM built it; None of a large one.
    """

    def __init__(self, fused: Any) -> None:
        super().__init__()
        options = {
            "bias": fused.bias is not None,
            "quant_config": fused.quant_config,
            "params_dtype": fused.params_dtype,
        }
        size, prefix = fused.head_size, fused.prefix
        self.query = ColumnParallelLinear(
            fused.hidden_size, fused.total_num_heads * size, prefix=f"{prefix}.query", **options
        )
        self.key_value = QKVParallelLinear(
            fused.hidden_size, size, 0, fused.total_num_kv_heads, prefix=f"{prefix}.key_value", **options
        )
        self.fused = fused if fused.hidden_size * fused.total_num_heads * size <= SMALL else None

    def queries(self, x: Tensor) -> Tensor:
        """``[rows, hidden]`` to ``[rows, heads * head_dim]``."""
        query, _ = self.query(x)
        return query

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[rows, hidden]`` to twice ``[rows, kv_heads * head_dim]``."""
        both, _ = self.key_value(x)
        key, value = both.chunk(2, dim=-1)
        return key, value

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """As the fused one: ``[rows, hidden]`` to ``[rows, (heads + 2 * kv_heads) * head_dim]``."""
        if self.fused is not None:
            whole: tuple[Tensor, None] = self.fused(x)
            return whole
        both, _ = self.key_value(x)
        return torch.cat((self.queries(x), both), dim=-1), None

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Iterable[str]:
        """Load what the checkpoint has of the fused projection; vLLM's loader sets ``shard_id``: q, k or v."""
        for name, weight in weights:
            shard = weight.shard_id  # type: ignore[attr-defined]
            part = "query" if shard == "q" else "key_value"
            parameter = getattr(self.get_submodule(part), name)
            if shard == "q":
                parameter.weight_loader(parameter, weight)
            else:
                parameter.weight_loader(parameter, weight, shard)
            yield f"{part}.{name}"
            if self.fused is not None:
                whole = getattr(self.fused, name)
                whole.weight_loader(whole, weight, shard)
                yield f"fused.{name}"
