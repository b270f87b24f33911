"""A hybrid begun from a model with attention alone.

All that both have is copied: tower, words, norms, FFNs, and attention in the layers that keep it, whose gate starts half
open. What is left are the gated delta rules. Each learns, by itself and from its layer's own input, what the attention
in whose place it stands adds (as arXiv 2408.10189 does for Mamba); then all learn to answer together.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from lookless.runtime.mixers import is_delta, mixer_of

from .batches import Batch
from .delta import branches, mix
from .graft import handed_on, same_words
from .losses import dense_loss, embedded, merged, surroundings, visible


def borrow(model, tokenizer: PreTrainedTokenizerFast, folder: Path) -> nn.Module:
    """The model in ``folder``, a Qwen3-VL; what it has in common with ``model``, a Qwen3.5, is now there."""
    earlier = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    same_words(model, earlier, tokenizer, folder)
    mine, its = model.model, earlier.model
    with torch.no_grad():
        for part in ("patch_embed", "pos_embed", "blocks", "merger"):
            getattr(mine.visual, part).load_state_dict(getattr(its.visual, part).state_dict())
        centred(mine.language_model.norm, its.language_model.norm)
        for layer, old in zip(mine.language_model.layers, its.language_model.layers, strict=True):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                centred(getattr(layer, norm), getattr(old, norm))
            layer.mlp.load_state_dict(old.mlp.state_dict())
            begin = delta_rule if is_delta(layer) else attention
            begin(mixer_of(layer), old.self_attn)
    return earlier


def centred(norm, old) -> None:
    """Qwen3.5 multiplies by one more than the weight."""
    norm.weight.copy_(old.weight - 1)


def attention(module, old) -> None:
    """Behind each head's query stands its gate: half of what is read passes a gate of zero."""
    query = module.q_proj.weight.unflatten(0, (-1, 2, module.head_dim))
    query[:, 0] = old.q_proj.weight.unflatten(0, (-1, module.head_dim))
    query[:, 1] = 0
    module.o_proj.weight.copy_(2 * old.o_proj.weight)
    for part in ("k_proj", "v_proj"):
        getattr(module, part).load_state_dict(getattr(old, part).state_dict())
    for part in ("q_norm", "k_norm"):
        centred(getattr(module, part), getattr(old, part))


def delta_rule(module, old) -> None:
    """Queries, keys and values begin as attention's, of the row itself; heads forget after two rows to after a thousand.
    What is read adds nothing yet."""
    grouped = (getattr(old, part).weight.unflatten(0, (-1, module.head_k_dim)) for part in ("k_proj", "v_proj"))
    key, value = (w.repeat_interleave(module.num_v_heads // len(w), 0).flatten(0, 1) for w in grouped)
    module.in_proj_qkv.weight.copy_(torch.cat((old.q_proj.weight, key, value)))
    module.conv1d.weight.zero_()[..., -1] = 1
    module.A_log.zero_()
    module.dt_bias.copy_(torch.logspace(-3, -0.3, module.num_v_heads).expm1().log())
    module.out_proj.weight.zero_()


def mixing_loss(architecture, donor, model, earlier, heads: nn.ModuleDict, b: Batch):
    """Of each delta rule, and of the merger, the share that it misses of what the ``earlier`` model adds there.

    ``donor`` is the earlier model's architecture. What its DeepStack adds behind the first layer, which the hybrid
    cannot, is to be in the embedding already. Dense labels are read off the earlier model's states.
    """
    decoder = earlier.model.language_model
    with torch.no_grad():
        image, *deeper = donor.visual(earlier, b.pixels)
    handed = image + sum(deeper)
    [mine] = architecture.visual(model, b.pixels)
    everywhere = torch.ones(mine.shape[:2], device=mine.device)
    missed = [handed_on(mine, handed, everywhere)]
    x = merged(embedded(decoder, b), b, handed)
    tree, around = branches(b.segments, visible(b.segments)), surroundings(decoder, b, x)
    real, states = (b.segments >= 0).float(), [x]
    for layer, old in zip(model.model.language_model.layers, decoder.layers, strict=True):
        with torch.no_grad():
            h = old.input_layernorm(x)
            added, _ = old.self_attn(hidden_states=h, **around)
            x = x + added
            x = x + old.mlp(old.post_attention_layernorm(x))
            states.append(x)
        if is_delta(layer):
            missed.append(handed_on(mix(layer.linear_attn, h, tree), added, real))
    labels, right = dense_loss(heads, b, states)
    missed = torch.stack(missed)
    return missed.sum() + 0.3 * labels, torch.cat((1 - missed.detach(), right))
