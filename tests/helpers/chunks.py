"""A prompt in several calls over one cache, cut anywhere: also within an image."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from lookless import apply


def in_calls(model, plan, arguments, sizes) -> torch.Tensor:
    """Logits ``[1, sequence, vocabulary]`` of one prompt under ``plan``, so many tokens a call."""
    decoder, seen = model.model.language_model, []
    hook = decoder.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    model(**arguments)
    hook.remove()
    [whole], ids = seen, arguments["input_ids"]
    cache, said, at = DynamicCache(config=model.config.get_text_config()), [], 0
    with apply(model, plan):
        for size in sizes:
            part = slice(at, at + size)
            merged = {"inputs_embeds": whole["inputs_embeds"][:, part]}  # with the features of the images
            hook = decoder.register_forward_pre_hook(
                lambda _, args, kwargs, merged=merged: (args, {**kwargs, **merged}), with_kwargs=True
            )
            positions = whole["position_ids"]
            call = {"input_ids": ids[:, part]} | ({} if positions is None else {"position_ids": positions[..., part]})
            call["attention_mask"] = torch.ones(1, at + size, dtype=torch.long)
            said.append(model(**call, past_key_values=cache).logits)
            hook.remove()
            at += size
    return torch.cat(said, 1)
