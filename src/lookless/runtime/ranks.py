"""Which visual tokens are the best: one function per rank, from what one prompt shows at a layer's input to an order.

A rank named in a plan (:data:`lookless.cells.RANKS`) is a function here. It sees one prompt at a time (:class:`View`),
so none knows of padding, batches or caches. Scores of a rank that reads attention cost a few rows of queries, never an
attention map, and work beside any attention kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cells import Choice, Filter, Keep
from .layer import Seen, may_read, project
from .prompts import Prompts


@dataclass(frozen=True)
class View:
    """One prompt at the input of one layer.

    Attributes:
        b: the prompt's place in the batch.
        prompts: of the call.
        hidden: the layer's input, ``[sequence, hidden]``.
        seen: what the attention of the layer before computed, or of this one, as the rank asks.
        embedded: the first layer's input, ``[sequence, hidden]``.
        tower: attention the tower paid to each visual token of the prompt, ``[visual]``; None if not captured.
        wanted: how many tokens will be kept.
        layer: its number.
        merged: how many of the dropped are merged; they follow the kept in the order.
    """

    b: int
    prompts: Prompts
    hidden: Tensor
    seen: Seen | None
    embedded: Tensor | None
    tower: Tensor | None
    wanted: int
    layer: int
    merged: int = 0

    @cached_property
    def alive(self) -> Tensor:
        """Living visual rows, int64 ``[alive]``, where the tensors are."""
        return self.prompts.alive[self.b].to(self.hidden.device)

    @cached_property
    def text(self) -> Tensor:
        """Text rows, without what is behind the prompt's end."""
        rows = self.prompts.text[self.b]
        return rows[rows < self.prompts.end].to(self.hidden.device)

    @cached_property
    def last(self) -> Tensor:
        """The last row of the prompt that takes part, ``[1]``."""
        return torch.tensor([self.prompts.last[self.b]], device=self.hidden.device)

    @cached_property
    def _compact(self) -> tuple[int, slice]:
        """Where this prompt stands in compact tensors of ``seen``."""
        assert self.seen is not None
        rows = self.seen.rows
        if not rows.packed:
            return self.b, slice(None)
        start = sum(map(len, rows.prompts[: self.b]))
        return 0, slice(start, start + len(rows.prompts[self.b]))

    def _places(self, rows: Tensor) -> Tensor:
        """Rows of the sequence as places among ``seen``'s rows of this prompt."""
        assert self.seen is not None
        return torch.searchsorted(self.seen.rows.prompts[self.b].to(rows.device), rows)

    def query(self, rows: Tensor, *, rotated: bool = True) -> Tensor:
        """Queries ``[heads, rows, head_dim]`` of some rows of the prompt."""
        return self._project("q", rows, rotated)

    def key(self, *, rotated: bool = True) -> Tensor:
        """Keys ``[kv_heads, alive, head_dim]``."""
        if not rotated:
            return self._project("k", self.alive, False)
        assert self.seen is not None
        group, here = self._compact
        return self.seen.key[group, here][self._places(self.alive)].transpose(0, 1)

    def _project(self, which: str, rows: Tensor, rotated: bool) -> Tensor:
        assert self.seen is not None
        group, here = self._compact
        normed = self.seen.normed[group, here][self._places(rows)][None]
        rotary = None
        if rotated:
            cos, sin = self.seen.rotary
            b = self.b if cos.shape[0] > 1 else 0
            rotary = (cos[b, rows][None], sin[b, rows][None])
        return project(self.seen.module, which, normed, rotary)[0].transpose(0, 1)

    def _weights(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of some rows over every key they may read, ``[heads, rows, keys]``, and those keys' values
        ``[kv_heads, keys, head_dim]``; the keys of this call come last, in the order of ``seen``."""
        assert self.seen is not None
        group, here = self._compact
        key, value = (t[group, here].transpose(0, 1) for t in (self.seen.key, self.seen.value))
        places = self.seen.rows.prompts[self.b].to(rows.device) + self.prompts.past
        past = self.seen.past
        if past is not None:
            key, value = torch.cat((past.keys[self.b], key), dim=1), torch.cat((past.values[self.b], value), dim=1)
            places = torch.cat((past.places[self.b], places))
        query = self.query(rows)
        groups = query.shape[0] // key.shape[0]
        scores = query.float() @ key.repeat_interleave(groups, dim=0).float().transpose(1, 2)
        scores = scores * self.seen.module.scaling
        mask = self.seen.mask if self.seen.mask is None or len(self.seen.mask) == 1 else self.seen.mask[self.b, None]
        allowed = may_read(mask, places[None], rows[None], self.prompts.past)[0]
        if allowed.dtype == torch.bool:
            scores = scores.masked_fill(~allowed, float("-inf"))
        else:
            scores = scores + allowed.float()
        return scores.softmax(-1), value

    def attention(self, rows: Tensor) -> Tensor:
        """Attention of some rows on the living visual tokens, float32 ``[heads, rows, alive]``."""
        weights, _ = self._weights(rows)
        assert self.seen is not None
        return weights[..., -len(self.seen.rows.prompts[self.b]) :][..., self._places(self.alive)]

    def contributions(self) -> tuple[Tensor, Tensor]:
        """What each living visual token gives the last prompt token, attention x value of all heads side by side,
        ``[alive, heads * head_dim]``, and the sum over all tokens, ``[heads * head_dim]``; before ``o_proj``."""
        weights, value = self._weights(self.last)
        assert self.seen is not None
        value = value.repeat_interleave(weights.shape[0] // value.shape[0], dim=0).float()
        each = weights.transpose(1, 2) * value  # [heads, keys, head_dim]
        mine = each[:, -len(self.seen.rows.prompts[self.b]) :][:, self._places(self.alive)]
        return mine.transpose(0, 1).flatten(1), each.sum(1).flatten()


def best(scores: Tensor) -> Tensor:
    """Scores to an order, best first; equal ones in reading order."""
    return scores.argsort(descending=True, stable=True)


def last_query_attention(view: View) -> Tensor:
    """FastV (arXiv 2403.06764): attention of the last prompt token in the layer before, mean over heads. Its text says
    the average attention a token receives; its code reads the last token, as do all who compare with it."""
    return best(view.attention(view.last).mean((0, 1)))


def text_raters(view: View) -> Tensor:
    """SparseVLM (arXiv 2410.04417): attention of the raters. Those are the text tokens behind the image that, by the
    embeddings, visual tokens resemble more than average."""
    assert view.embedded is not None
    first = view.prompts.first[view.b].to(view.hidden.device)
    behind = view.text[view.text > first[0]]
    if not len(behind):
        return last_query_attention(view)
    visual, text = view.embedded[first].float(), view.embedded[behind].float()
    rating = (visual @ text.T).softmax(-1).mean(0)
    return best(view.attention(behind[rating >= rating.mean()]).mean((0, 1)))


def value_aware(view: View) -> Tensor:
    """VisiPruner (arXiv 2510.17205): length of attention x value."""
    each, _ = view.contributions()
    return best(each.norm(dim=-1))


def mutual_attention(view: View) -> Tensor:
    """After ALVTS (arXiv 2606.14277): attention of visual tokens plus that of text tokens behind the image, in the
    layer about to run. The paper computes it with trained low-rank selectors and for all visual queries; here the
    model's own projections are asked for 16 of them, evenly spaced, and nothing is trained."""
    places = torch.linspace(0, len(view.alive) - 1, min(16, len(view.alive))).round().long().unique()
    some = view.alive[places.to(view.alive.device)]
    score = view.attention(some).mean((0, 1))
    behind = view.text[view.text > view.alive[0]]
    return best(score + view.attention(behind).mean((0, 1)) if len(behind) else score)


def key_norm(view: View) -> Tensor:
    """Short keys are attended to most (arXiv 2406.11430); used for visual tokens by ViTCoP."""
    return best(-view.key().float().norm(dim=-1).mean(0))


def attention_norm(view: View) -> Tensor:
    """DASH (arXiv 2604.18103): tokens whose attention still changes them. Length of the attention's update."""
    assert view.seen is not None
    assert view.seen.left is not None
    update = view.seen.left[view.b, view.alive] - view.seen.entered[view.b, view.alive]
    return best(update.float().norm(dim=-1))


def update_norm(view: View) -> Tensor:
    """V2Drop (CVPR 2026): tokens that the layer before changed most."""
    assert view.seen is not None
    return best((view.hidden[view.alive] - view.seen.entered[view.b, view.alive]).float().norm(dim=-1))


def random(view: View) -> Tensor:
    """The control: an order that knows nothing, the same for every prompt of a length, another in every layer."""
    generator = torch.Generator().manual_seed(view.layer)
    order = torch.rand(view.prompts.counts[view.b], generator=generator).to(view.hidden.device)
    first = view.prompts.first[view.b].to(view.hidden.device)
    return best(order[torch.searchsorted(first, view.alive)])


def _distances(x: Tensor) -> Tensor:
    """1 - cosine, ``[rows, rows]``. Symmetric to the bit, which a matmul is not: two rows that are each other's
    nearest are then equally far from all, and the earlier one is chosen on every machine."""
    x = F.normalize(x.float(), dim=-1)
    cosine = x @ x.T
    return 1 - (cosine + cosine.T) / 2


def _farthest(distances: Tensor, chosen: list[int], wanted: int) -> list[int]:
    """``chosen`` and then, one by one, the row farthest from all chosen so far."""
    nearest = distances[chosen].amin(0)
    nearest[chosen] = -1
    while len(chosen) < wanted:
        following = int(nearest.argmax())
        chosen = [*chosen, following]
        nearest = torch.minimum(nearest, distances[following])
        nearest[following] = -1
    return chosen


def diversity(view: View) -> Tensor:
    """DivPrune (arXiv 2503.02175): greedy max-min distance. The first is the one whose nearest neighbour is
    farthest."""
    distances = _distances(view.hidden[view.alive])
    alone = distances + torch.diag(torch.full_like(distances[0], float("inf")))
    ordered = min(view.wanted + view.merged, len(view.alive))
    chosen = _farthest(distances, [int(alone.amin(0).argmax())], ordered)
    return torch.tensor(chosen, device=view.hidden.device)


def attention_then_diversity(view: View) -> Tensor:
    """HalfV (arXiv 2604.16462) as released for Qwen2.5-VL: a few by the last token's attention without rotary
    embedding (10 to 20 % there, 15 % here), the rest by farthest-point sampling of hidden states. The released code
    takes distances behind the model's final norm; here they are cosines of the states themselves."""
    query, key = view.query(view.last, rotated=False), view.key(rotated=False)
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    assert view.seen is not None
    scores = (query.float() @ key.float().transpose(1, 2) * view.seen.module.scaling).softmax(-1).mean((0, 1))
    seeds = best(scores)[: max(1, round(0.15 * view.wanted))].tolist()
    ordered = min(view.wanted + view.merged, len(view.alive))
    return torch.tensor(_farthest(_distances(view.hidden[view.alive]), seeds, ordered), device=view.hidden.device)


def tower_attention(view: View) -> Tensor:
    """VisionZip (arXiv 2412.04467): attention the vision tower paid to the token."""
    return best(_tower(view))


def tower_attention_then_diversity(view: View) -> Tensor:
    """VisPruner (arXiv 2412.01818): half by the tower's attention; of the rest, those least alike. In rounds, every
    other token is compared with the tokens between, and the most redundant (at most eight) are dropped."""
    order = best(_tower(view)).tolist()
    wanted = min(view.wanted, len(view.alive))
    important, rest = order[: (wanted + 1) // 2], sorted(order[(wanted + 1) // 2 :])
    target = wanted - len(important)
    features = F.normalize(view.hidden[view.alive].float(), dim=-1)
    while len(rest) > target and len(rest) > 1:
        even, odd = rest[::2], rest[1::2]
        alike = (features[even] @ features[odd].T).amax(1)
        dropped = best(alike)[: min(8, len(rest) - target, len(even))].tolist()
        gone = {even[i] for i in dropped}
        rest = [token for token in rest if token not in gone]
    kept = [*important, *rest[:target]]
    return torch.tensor([*kept, *(token for token in order if token not in kept)], device=view.hidden.device)


def _tower(view: View) -> Tensor:
    assert view.tower is not None
    first = view.prompts.first[view.b].to(view.hidden.device)
    return view.tower.to(view.hidden.device)[torch.searchsorted(first, view.alive)]


Ranker = Callable[[View], Tensor]
#: name -> the function that orders a prompt's living visual tokens, best first: at least those kept and merged
RANKERS: dict[str, Ranker] = {
    "last_query_attention": last_query_attention,
    "instruction_attention": last_query_attention,  # the same question, asked of the layer about to run
    "text_raters": text_raters,
    "value_aware": value_aware,
    "mutual_attention": mutual_attention,
    "key_norm": key_norm,
    "attention_norm": attention_norm,
    "update_norm": update_norm,
    "diversity": diversity,
    "attention_then_diversity": attention_then_diversity,
    "tower_attention": tower_attention,
    "tower_attention_then_diversity": tower_attention_then_diversity,
    "random": random,
}


def select(cell: Choice, view: View) -> Tensor:
    """The rows that ``cell`` chooses of the prompt's living visual rows, ascending, on the CPU."""
    alive = view.prompts.alive[view.b]
    if view.wanted >= len(alive):
        return alive
    if not view.wanted:
        return alive[:0]
    assert cell.ranks_by is not None
    order = RANKERS[cell.ranks_by](view).cpu()
    return alive[order[: view.wanted]].sort().values


def recycle(cell: Keep, view: View) -> tuple[Tensor, Tensor] | None:
    """Rows that carry merged tokens, int64 ``[merged]`` on the CPU, and their states ``[merged, hidden]``.

    SparseVLM (arXiv 2410.04417, Sec. 3.4): the best of the dropped tokens are clustered around density peaks, and each
    cluster becomes one token, its mean. It stands where its peak stood, so no position is renumbered; the first release
    of the authors' code appends merged tokens and renumbers.
    """
    alive, count = view.prompts.alive[view.b], view.prompts.counts[view.b]
    merged = int(cell.recycled(count, len(alive)))
    if not merged:
        return None
    assert cell.ranks_by is not None
    material = max(merged, int(cell.recycle * (len(alive) - view.wanted)))
    order = RANKERS[cell.ranks_by](replace(view, merged=material)).cpu()
    rows = alive[order[view.wanted : view.wanted + material]]
    states = view.hidden[rows.to(view.hidden.device)]
    exact = "donot_use_mm_for_euclid_dist"  # the fast way cancels where tokens are nearly alike
    distances = torch.cdist(states.float(), states.float(), compute_mode=exact)
    neighbours = min(5, len(rows))
    density = (-distances.topk(neighbours, largest=False).values.square().mean(1) / states.shape[1]).exp()
    denser = density[None, :] > density[:, None]
    apart = distances.masked_fill(~denser, float("inf")).amin(1)
    apart = torch.where(apart.isinf(), distances.amax(), apart)
    peaks = (density * apart).topk(merged).indices
    member = distances[:, peaks].argmin(1)
    member[peaks] = torch.arange(merged, device=member.device)
    means = torch.stack([states[member == i].mean(0) for i in range(merged)])
    return rows[peaks.cpu()], means


class Filtering:
    """A :class:`~lookless.cells.Filter` on its way through one pass: each prompt's own state."""

    def __init__(self, prompts: int) -> None:
        self.filtered, self.idle = [False] * prompts, [0] * prompts

    def select(self, cell: Filter, view: View) -> Tensor:
        """The rows of the prompt that stay alive."""
        alive = view.prompts.alive[view.b]
        if not len(alive):
            return alive
        each, whole = view.contributions()
        cosine = F.cosine_similarity(whole - each, whole[None], dim=-1).amin()
        if not self.filtered[view.b]:
            if cosine < cell.cosine:
                self.filtered[view.b] = True
                return alive[(each.norm(dim=-1) > cell.norm).cpu()]
            return alive
        self.idle[view.b] += int(cosine >= cell.exit_cosine)
        return alive[:0] if self.idle[view.b] >= cell.patience else alive
