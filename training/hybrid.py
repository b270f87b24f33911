"""A hybrid begun from a model with attention alone.

All that both have is copied: tower, words, norms, FFNs, and attention in the layers that keep it, whose gate starts
half open. What is left are the gated delta rules. Each learns, by itself and from its layer's own input, what the
attention in whose place it stands adds (as arXiv 2408.10189 does for Mamba); then all learn to answer together.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from lookless.runtime.mixers import is_delta, mixer_of

from .batches import Batch
from .delta import branches, mix, read
from .graft import handed_on, same_words
from .losses import dense_loss, embedded, merged, surroundings, visible, visual_rows


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
    """Queries, keys and values begin as attention's, of the row itself; heads forget after two to a thousand rows."""
    grouped = (getattr(old, part).weight.unflatten(0, (-1, module.head_k_dim)) for part in ("k_proj", "v_proj"))
    key, value = (w.repeat_interleave(module.num_v_heads // len(w), 0).flatten(0, 1) for w in grouped)
    module.in_proj_qkv.weight.copy_(torch.cat((old.q_proj.weight, key, value)))
    module.conv1d.weight.zero_()[..., -1] = 1
    module.A_log.zero_()
    module.dt_bias.copy_(torch.logspace(-3, -0.3, module.num_v_heads).expm1().log())


@torch.no_grad()
def fit(donor, model, earlier, b: Batch) -> None:
    """Gates and output projections of the delta rules by least squares on one batch: gates as open as a map of the
    rows alone can have them, and then what is read as near as it comes to what attention adds."""
    real = b.segments >= 0
    for module, h, added, tree in attended(donor, model, earlier, b):
        rows = h[real]
        open_gate = solved(rows, torch.full_like(rows[:, :1], 1.5))
        module.in_proj_z.weight.copy_(open_gate.expand_as(module.in_proj_z.weight))
        module.out_proj.weight.copy_(solved(read(module, h, tree)[real], added[real]))


def solved(x: torch.Tensor, y: torch.Tensor, ridge: float = 1e-2) -> torch.Tensor:
    """The matrix ``[out, in]`` that brings rows ``x`` nearest to ``y``."""
    square = x.T @ x
    square.diagonal().add_(ridge * square.diagonal().mean())
    return torch.linalg.solve(square, x.T @ y).T


@torch.no_grad()
def attended(donor, model, earlier, b: Batch, states: list[torch.Tensor] | None = None):
    """Of each delta rule: the module, the normed rows that come to the attention in whose place it stands, what that
    adds, and who stands before whom. ``states`` gets the ``earlier`` model's rows before and behind each layer.

    What its DeepStack adds behind the first layer, which the hybrid cannot, is in the embedding already.
    """
    decoder = earlier.model.language_model
    x = merged(embedded(decoder, b), b, sum(donor.visual(earlier, b.pixels)))
    tree, around = branches(b.segments, visible(b.segments)), surroundings(decoder, b, x)
    states = [] if states is None else states
    states.append(x)
    for layer, old in zip(model.model.language_model.layers, decoder.layers, strict=True):
        h = old.input_layernorm(x)
        added, _ = old.self_attn(hidden_states=h, **around)
        if is_delta(layer):
            yield layer.linear_attn, h, added, tree
        x = x + added
        x = x + old.mlp(old.post_attention_layernorm(x))
        states.append(x)


def mixing_loss(architecture, donor, model, earlier, heads: nn.ModuleDict, b: Batch):
    """Of each delta rule, and of the merger, the share that it misses of what the ``earlier`` model adds there.

    ``donor`` is the earlier model's architecture. Dense labels are read off the earlier model's states.
    """
    states, real = [], (b.segments >= 0).float()
    missed = [
        handed_on(mix(module, h, tree), added, real)
        for module, h, added, tree in [*attended(donor, model, earlier, b, states)]
    ]
    [mine] = architecture.visual(model, b.pixels)
    missed.append(handed_on(mine, visual_rows(b, states[0]), torch.ones(mine.shape[:2], device=mine.device)))
    labels, right = dense_loss(heads, b, states)
    shares = torch.stack(missed)
    return shares.sum() + 0.3 * labels, torch.cat((1 - shares.detach(), right))
