"""A layer's cache that holds fewer keys than the sequence has tokens, right through generation.

To the rest of transformers it is as long as the sequence: masks, positions and lengths are the model's own. Only the
layer that reads it must cut the mask to the columns it holds: :func:`cut`. The position and kind of each token are kept
next to its key, so that cropping, reordering or resetting the cache does the same to them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..errors import ModelError

TEXT, VISUAL, UNKNOWN = 0, 1, -1
#: Layers that a pruned one may follow. Behind a sliding one it holds more than the window, and the mask says what is
#: read: the stock model takes the mask's length from a sliding layer, if there still is one.
PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)


class PrunedLayer(DynamicLayer):
    """Keys and values ``[batch, kv_heads, slots, head_dim]`` of some tokens of each prompt.

    Attributes:
        positions: which token each slot holds, -1 for none; int64 ``[batch, slots]``.
        kinds: what each slot's token is, one of TEXT, VISUAL, UNKNOWN; int8 ``[batch, slots]``.
        length: tokens of the sequence so far, held or not.
        is_ragged: some slots hold nothing; kept here so that a compiled decode step reads no tensor.
    """

    is_compileable = False
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.positions: Tensor | None = None
        self.kinds: Tensor | None = None
        self.length = 0
        self.is_ragged = False
        self._announced: tuple[int, int] | None = None

    @classmethod
    def following(cls, layer: Any) -> PrunedLayer:
        """A pruned layer that begins with what a plain dynamic ``layer`` holds, of unknown kinds."""
        pruned = cls()
        if length := layer.get_seq_length():
            held = layer.keys.shape[-2]  # of a sliding layer the last ones
            pruned.length = length - held
            pruned.append(layer.keys, layer.values, torch.arange(held), held)
        return pruned

    @property
    def is_whole(self) -> bool:
        """Whether every token of the sequence has its key in its own slot, as in a plain layer."""
        return not self.is_ragged and (self.length == 0 or self.keys.shape[-2] == self.length)

    def append(self, keys: Tensor, values: Tensor, positions: Tensor, new: int, kinds: Tensor | int = UNKNOWN) -> None:
        """Hold ``keys, values [batch, kv_heads, slots, head_dim]`` of the ``new`` next tokens.

        ``positions`` count from the first of them, ``[slots]``, or ``[batch, slots]`` with -1 where a slot is empty.
        ``kinds`` are of the new tokens, ``[batch, new]``, or one for all.
        """
        self.is_ragged = self.is_ragged or (positions.ndim == 2 and bool((positions < 0).any()))
        super().update(keys, values)
        positions = positions.to(keys.device).expand(keys.shape[0], -1)
        if isinstance(kinds, int):
            mine = torch.full_like(positions, kinds, dtype=torch.int8)
        else:
            mine = kinds.to(keys.device, torch.int8).gather(1, positions.clamp_min(0))
        positions = torch.where(positions < 0, positions, positions + self.length)
        self.positions = positions if self.positions is None else torch.cat((self.positions, positions), dim=1)
        self.kinds = mine if self.kinds is None else torch.cat((self.kinds, mine), dim=1)
        self.length += new

    def announce(self, new: int, kind: int) -> None:
        """A stock layer whose mask has been cut for this one is about to append ``new`` tokens of a kind."""
        self._announced = (new, kind)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What a stock layer calls: all the next tokens.

        Raises:
            ModelError: that layer's mask is not cut: the plan that made the cache is no longer applied.
        """
        new = key_states.shape[-2]
        announced, self._announced = self._announced, None
        if announced is None or announced[0] != new:
            if not self.is_whole:
                raise ModelError(
                    f"this cache holds {self.keys.shape[-2]} keys of {self.length} tokens in one of its layers, as a "
                    f"plan left some out, and no plan is applied to the model that reads it: apply the plan for as "
                    f"long as the cache is used, or begin a new cache."
                )
            announced = (new, TEXT if new == 1 else UNKNOWN)  # one token is a decode step
        self.append(key_states, value_states, torch.arange(new), new, announced[1])
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last tokens (a negative number of them); a positive number is the length to keep."""
        length = self.length + tokens_to_remove if tokens_to_remove <= 0 else min(tokens_to_remove, self.length)
        if self.positions is not None:
            assert self.kinds is not None
            self.positions = torch.where(self.positions < length, self.positions, -1)
            held = (self.positions >= 0).any(0)
            self.positions, self.kinds = self.positions[:, held], self.kinds[:, held]
            self.keys, self.values = self.keys[:, :, held], self.values[:, :, held]
            self.is_ragged = bool((self.positions < 0).any())
        self.length = length

    def reset(self) -> None:
        super().reset()
        self.positions, self.kinds, self.length, self.is_ragged, self._announced = None, None, 0, False, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx.to(self.keys.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.positions = None if self.positions is None else self.positions.repeat_interleave(repeats, dim=0)
        self.kinds = None if self.kinds is None else self.kinds.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.positions = None if self.positions is None else self.positions[indices, ...]
        self.kinds = None if self.kinds is None else self.kinds[indices, ...]


def layer_of(cache: Any, index: int) -> Any:
    """The cache's layer ``index``, or None if it has not been made yet."""
    return cache.layers[index] if index < len(cache.layers) else None


def bytes_of(cache: Any) -> int:
    """Bytes of the keys, values and states that a cache holds."""
    names = ("keys", "values", "conv_states", "recurrent_states")
    held = tree_leaves([[getattr(layer, name, None) for name in names] for layer in cache.layers])
    return sum(each.nbytes for each in held if isinstance(each, Tensor))


def remember_kinds(cache: Any, index: int) -> None:
    """Make layer ``index`` of ``cache`` keep which of its tokens are visual, if it is plain and dynamic."""
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    if type(cache.layers[index]) in PLAIN and not cache.offloading:
        cache.layers[index] = PrunedLayer.following(cache.layers[index])


def store(
    cache: Any, index: int, keys: Tensor, values: Tensor, positions: Tensor | None, new: int, visual: Tensor
) -> None:
    """Put keys and values ``[batch, kv_heads, slots, head_dim]`` of the ``new`` next tokens into the cache.

    ``positions [batch, slots]`` are theirs among the new ones; None: all. ``visual``, bool ``[batch, new]``, says which
    are visual. An empty cache then holds the tensors themselves, not copies, so they must not be changed.

    Raises:
        ModelError: some are left out, and the cache is of a kind that holds every token.
    """
    if positions is not None:
        while len(cache.layers) <= index:
            cache.layers.append(DynamicLayer())
        if type(cache.layers[index]) in PLAIN:
            cache.layers[index] = PrunedLayer.following(cache.layers[index])
    layer = layer_of(cache, index)
    if isinstance(layer, PrunedLayer):
        layer.append(keys, values, torch.arange(new) if positions is None else positions, new, visual)
    elif positions is not None:
        raise ModelError(
            f"this plan leaves visual keys out of the cache, and a {type(layer).__name__} holds every token: "
            f"generate with the default dynamic cache."
        )
    elif type(layer) is DynamicLayer and not layer.is_initialized and not cache.offloading:
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
    else:
        cache.update(keys, values, index)


def cut(mask: Tensor | None, layer: Any, new: int, coming: int | None = None) -> Tensor | None:
    """The stock ``mask [batch, 1, new, sequence]`` for the keys ``layer`` will hold with ``coming`` tokens more, by
    default the ``new`` ones.

    None, where stock masks nothing, stays None unless some slots are empty. The new tokens come last.
    """
    if not isinstance(layer, PrunedLayer) or layer.positions is None or (mask is None and not layer.is_ragged):
        return mask
    total = layer.length + (new if coming is None else coming)
    if layer.is_whole and (mask is None or mask.shape[-1] >= total):
        return mask
    after = torch.arange(layer.length, total, device=layer.positions.device)
    positions = torch.cat((layer.positions, after.expand(layer.positions.shape[0], -1)), dim=1)
    return select(mask, positions, new, total)


def stock_mask(mask: Tensor | None, cache: Any, index: int, new: int, kind: int, *, has_window: bool) -> Tensor | None:
    """The mask of a stock call of ``new`` tokens of one kind, for a layer whose cache may hold fewer keys than there
    are. The cache then knows what comes next; through a window it must know which tokens are visual."""
    if has_window:
        remember_kinds(cache, index)
    layer = layer_of(cache, index)
    if isinstance(layer, PrunedLayer):
        layer.announce(new, kind)
    return cut(mask, layer, new)


def select(mask: Tensor | None, positions: Tensor, queries: int, total: int) -> Tensor:
    """``mask``'s columns ``positions [batch, slots]``, and none where that is -1; None masks nothing. The mask of a
    sliding layer has columns of the last of ``total`` tokens alone."""
    if mask is not None and mask.shape[-1] < total:
        positions = positions - (total - mask.shape[-1])
    empty = (positions < 0)[:, None, None]
    if mask is None:
        return (~empty).expand(-1, 1, queries, -1)
    batch = positions.shape[0]
    wide = mask.expand(batch, -1, -1, -1)
    index = positions.clamp_min(0)[:, None, None].expand(-1, wide.shape[1], wide.shape[2], -1)
    picked = wide.gather(3, index)
    return picked & ~empty if picked.dtype == torch.bool else picked.masked_fill(empty, torch.finfo(picked.dtype).min)
