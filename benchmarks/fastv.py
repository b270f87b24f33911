"""FastV in lookless and as its authors run it, in turn in one process, on dummy layers of LLaVA-1.5-7B.

The authors' way (arXiv 2403.06764, their code without its eager attention maps): after the ranking layer, dropped rows
are removed from the hidden states, the positions and the mask once, and every later layer is a stock one over fewer
rows. Its rank is one row of attention, of the last token, computed beside that layer; all layers call PyTorch's fused
attention. ``python benchmarks/fastv.py --layers 8`` takes four gigabytes and a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lookless import methods
from lookless.bench.dummy_model import IMAGE, make_dummy_model
from lookless.bench.timing import Clock
from lookless.configs import shape_named
from lookless.runtime.patching import applied


class Authors:
    """The decoder's ``forward`` with dropped rows taken out in front of layer ``layer``."""

    def __init__(self, decoder: Any, image: tuple[int, int], layer: int, keep: float) -> None:
        self.decoder, self.image, self.layer, self.keep = decoder, image, layer, keep

    def __call__(self, inputs_embeds: Tensor) -> Tensor:
        decoder, x = self.decoder, inputs_embeds
        entered = x
        cache = DynamicCache(config=decoder.config)
        positions = torch.arange(x.shape[1], device=x.device)[None]
        rotary = decoder.rotary_emb(x, positions)
        for index, layer in enumerate(decoder.layers):
            if index == self.layer:
                rows = self.rows(decoder.layers[index - 1], entered, rotary)
                x, positions = x[:, rows], positions[:, rows]
                rotary = decoder.rotary_emb(x, positions)
            entered = x
            x = layer(x, attention_mask=None, position_embeddings=rotary, past_key_values=cache, use_cache=True)
        return x

    def rows(self, layer: Any, entered: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Text, and the visual tokens the last one attends to most in ``layer``."""
        attention, normed = layer.self_attn, layer.input_layernorm(entered)
        shape = (*normed.shape[:2], -1, attention.head_dim)
        last = attention.q_proj(normed[:, -1:]).view(1, 1, -1, attention.head_dim).transpose(1, 2)
        key = attention.k_proj(normed).view(shape).transpose(1, 2)
        _, key = apply_rotary_pos_emb(key, key, *rotary)
        last, _ = apply_rotary_pos_emb(last, last, *(t[:, -1:] for t in rotary))
        weights = (last @ key.transpose(2, 3) * attention.scaling).softmax(-1).mean(1)[0, 0]
        start, end = self.image
        best = weights[start:end].topk(round(self.keep * (end - start))).indices + start
        every = torch.arange(entered.shape[1], device=entered.device)
        return torch.cat((every[:start], best, every[end:])).sort().values


@torch.no_grad()
def compare(layers: int, visual: int, text: int, layer: int, rounds: int, dtype: torch.dtype) -> dict[str, list[float]]:
    """Milliseconds of the decoder's layers in each round."""
    made = make_dummy_model(shape_named("LLaVA-1.5-7B").cut(layers), dtype=dtype)
    inputs = made.inputs(visual=visual, before=text // 2, after=text - text // 2, batch=1)
    decoder = made.model.model.language_model
    assert int((inputs["input_ids"] == IMAGE).sum()) == visual
    authors = Authors(decoder, (text // 2, text // 2 + visual), layer, 0.5)
    embedded = torch.randn(1, visual + text, made.geometry.hidden).to(dtype)
    plan = methods.fastv(made.geometry, layer=layer, keep=0.5)
    each: dict[str, list[float]] = {"stock": [], "authors": [], "lookless": []}
    clock = Clock.of_layers(decoder.layers)
    for index in range(rounds + 1):
        for name, times in each.items():
            if name == "authors":
                started = time.perf_counter()
                authors(embedded)
                ms = (time.perf_counter() - started) * 1e3
            else:
                with applied(made.model, plan if name == "lookless" else None):
                    made.model(**inputs, use_cache=True, logits_to_keep=1)
                ms = clock.ms
            if index:
                times.append(ms)
    clock.remove()
    return each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--visual", type=int, default=576)
    parser.add_argument("--text", type=int, default=66)
    parser.add_argument("--drop-at", type=int, default=1, help="the layer in front of which tokens are dropped")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    given = parser.parse_args()
    each = compare(given.layers, given.visual, given.text, given.drop_at, given.rounds, getattr(torch, given.dtype))
    print(f"{given.layers} layers, {given.visual} visual and {given.text} text tokens, {given.dtype}:")
    for name, times in each.items():
        share = median(mine / stock for mine, stock in zip(times, each["stock"], strict=True))
        print(f"{name:10} {median(times):9.1f} ms   {share:.3f} of stock's time")


if __name__ == "__main__":
    main()
