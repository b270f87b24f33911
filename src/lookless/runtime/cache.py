"""A layer's cache that holds fewer keys than the sequence has tokens, right through generation.

To the rest of transformers it is as long as the sequence: masks, positions and lengths are the model's own. Only the
layer that reads it must cut the mask to the columns it holds: :func:`cut`. What is remembered of each token lies beside
its key, so that whatever crops, reorders or resets the cache does the same to what is remembered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ..errors import ModelError

TEXT, VISUAL, UNKNOWN = 0, 1, -1


class PrunedLayer(DynamicLayer):
    """Keys and values ``[batch, kv_heads, slots, head_dim]`` of some tokens of each prompt.

    Attributes:
        places: which token each slot holds, -1 for none; int64 ``[batch, slots]``.
        kinds: what each slot's token is, one of TEXT, VISUAL, UNKNOWN; int8 ``[batch, slots]``.
        length: tokens of the sequence so far, held or not.
        is_ragged: some slots hold nothing; told apart here so that a compiled decode step need not look.
    """

    is_compileable = False
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.places: Tensor | None = None
        self.kinds: Tensor | None = None
        self.length = 0
        self.is_ragged = False
        self._announced: tuple[int, int] | None = None

    @classmethod
    def following(cls, layer: Any) -> PrunedLayer:
        """A pruned layer that begins with what a plain dynamic ``layer`` holds, of unknown kinds."""
        pruned = cls()
        if layer.get_seq_length():
            new = layer.keys.shape[-2]
            pruned.append(layer.keys, layer.values, torch.arange(new), new)
        return pruned

    @property
    def is_whole(self) -> bool:
        """Whether every token of the sequence has its key in its own slot, as in a plain layer."""
        return not self.is_ragged and (self.length == 0 or self.keys.shape[-2] == self.length)

    def append(self, keys: Tensor, values: Tensor, places: Tensor, new: int, kinds: Tensor | int = UNKNOWN) -> None:
        """Hold ``keys, values [batch, kv_heads, slots, head_dim]`` of the ``new`` next tokens.

        ``places`` counts from the first of them, ``[slots]``, or ``[batch, slots]`` with -1 where a slot holds nothing.
        ``kinds`` are of the new tokens, ``[batch, new]``, or one for all.
        """
        self.is_ragged = self.is_ragged or (places.ndim == 2 and bool((places < 0).any()))
        super().update(keys, values)
        places = places.to(keys.device).expand(keys.shape[0], -1)
        if isinstance(kinds, int):
            mine = torch.full_like(places, kinds, dtype=torch.int8)
        else:
            mine = kinds.to(keys.device, torch.int8).gather(1, places.clamp_min(0))
        places = torch.where(places < 0, places, places + self.length)
        self.places = places if self.places is None else torch.cat((self.places, places), dim=1)
        self.kinds = mine if self.kinds is None else torch.cat((self.kinds, mine), dim=1)
        self.length += new

    def announce(self, new: int, kind: int) -> None:
        """A stock layer whose mask has been cut for this one is about to append ``new`` tokens of a kind."""
        self._announced = (new, kind)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What a stock layer calls: all the next tokens.

        Raises:
            ModelError: nobody has cut that layer's mask: the plan that made the cache is no longer applied.
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
        """Forget the last tokens (a negative number of them); a positive number is the length to leave, as of old."""
        length = self.length + tokens_to_remove if tokens_to_remove <= 0 else min(tokens_to_remove, self.length)
        if self.places is not None:
            assert self.kinds is not None
            self.places = torch.where(self.places < length, self.places, -1)
            held = (self.places >= 0).any(0)
            self.places, self.keys, self.values = self.places[:, held], self.keys[:, :, held], self.values[:, :, held]
            self.kinds = self.kinds[:, held]
            self.is_ragged = bool((self.places < 0).any())
        self.length = length

    def reset(self) -> None:
        super().reset()
        self.places, self.kinds, self.length, self.is_ragged, self._announced = None, None, 0, False, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx.to(self.keys.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.places = None if self.places is None else self.places.repeat_interleave(repeats, dim=0)
        self.kinds = None if self.kinds is None else self.kinds.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.places = None if self.places is None else self.places[indices, ...]
        self.kinds = None if self.kinds is None else self.kinds[indices, ...]


def layer_of(cache: Any, index: int) -> Any:
    """The cache's layer ``index``, or None if it has not been made yet."""
    return cache.layers[index] if index < len(cache.layers) else None


def remember(cache: Any, index: int) -> None:
    """Make layer ``index`` of ``cache`` remember which of its tokens are visual, if it is plain and dynamic."""
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    if type(cache.layers[index]) is DynamicLayer and not cache.offloading:
        cache.layers[index] = PrunedLayer.following(cache.layers[index])


def store(
    cache: Any, index: int, keys: Tensor, values: Tensor, places: Tensor | None, new: int, visual: Tensor
) -> None:
    """Put keys and values ``[batch, kv_heads, slots, head_dim]`` of the ``new`` next tokens into the cache.

    ``places [batch, slots]`` are theirs among the new ones; None: all. ``visual``, bool ``[batch, new]``, says which
    are visual. An empty cache then holds the tensors themselves, not copies, so nobody may change them.

    Raises:
        ModelError: some are left out, and the cache is of a kind that holds every token.
    """
    if places is not None:
        while len(cache.layers) <= index:
            cache.layers.append(DynamicLayer())
        if type(cache.layers[index]) is DynamicLayer:
            cache.layers[index] = PrunedLayer.following(cache.layers[index])
    layer = layer_of(cache, index)
    if isinstance(layer, PrunedLayer):
        layer.append(keys, values, torch.arange(new) if places is None else places, new, visual)
    elif places is not None:
        raise ModelError(
            f"this plan leaves visual keys out of the cache, and a {type(layer).__name__} holds every token: "
            f"generate with the default dynamic cache."
        )
    elif type(layer) is DynamicLayer and not layer.is_initialized and not cache.offloading:
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
    else:
        cache.update(keys, values, index)


def cut(mask: Tensor | None, layer: Any, new: int) -> Tensor | None:
    """The stock ``mask [batch, 1, queries, sequence]`` for the keys ``layer`` will hold with ``new`` tokens more.

    None, where stock masks nothing, stays None unless some slots are empty. The new tokens come last.
    """
    if not isinstance(layer, PrunedLayer) or layer.places is None or (mask is None and not layer.is_ragged):
        return mask
    if layer.is_whole:
        return mask
    coming = torch.arange(layer.length, layer.length + new, device=layer.places.device)
    places = torch.cat((layer.places, coming.expand(layer.places.shape[0], -1)), dim=1)
    return select(mask, places, new)


def select(mask: Tensor | None, places: Tensor, queries: int) -> Tensor:
    """``mask``'s columns ``places [batch, slots]``, and none where that is -1; None masks nothing."""
    empty = (places < 0)[:, None, None]
    if mask is None:
        return (~empty).expand(-1, 1, queries, -1)
    batch = places.shape[0]
    wide = mask.expand(batch, -1, -1, -1)
    index = places.clamp_min(0)[:, None, None].expand(-1, wide.shape[1], wide.shape[2], -1)
    picked = wide.gather(3, index)
    return picked & ~empty if picked.dtype == torch.bool else picked.masked_fill(empty, torch.finfo(picked.dtype).min)
