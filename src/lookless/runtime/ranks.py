"""Which visual tokens are the best: one function per rank, from what one prompt shows at a layer's input to an order.

A rank is declared in :data:`lookless.ranks.RANKS`, and computed by the function of the same name here. It sees one
prompt at a time (:class:`View`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cells import Choice, Filter, Keep
from .view import View

Ranker = Callable[[View], Tensor]
#: name -> the function that orders a prompt's living visual tokens, best first: at least those kept and merged
RANKERS: dict[str, Ranker] = {}


def ranker(function: Ranker) -> Ranker:
    """Make ``function`` the rank of its name."""
    RANKERS[function.__name__] = function
    return function


def best(scores: Tensor) -> Tensor:
    """Scores to an order, best first; equal ones in reading order."""
    return scores.argsort(descending=True, stable=True)


@ranker
def last_query_attention(view: View) -> Tensor:
    """FastV (arXiv 2403.06764): attention of the last prompt token in the layer before, mean over heads. Its text says
    the average attention a token receives; its code reads the last token, as do all who compare with it."""
    return best(view.attention(view.last).mean((0, 1)))


@ranker
def instruction_attention(view: View) -> Tensor:
    """PyramidDrop (arXiv 2410.17247): the same of the layer that is about to run."""
    return last_query_attention(view)


@ranker
def text_raters(view: View) -> Tensor:
    """SparseVLM (arXiv 2410.04417): attention of the raters. Those are the text tokens after the image that, by the
    embeddings, visual tokens resemble more than average."""
    assert view.embedded is not None
    after = view.text[view.text > view.first[0]]
    if not len(after):
        return last_query_attention(view)
    visual, text = view.embedded[view.first].float(), view.embedded[after].float()
    rating = (visual @ text.T).softmax(-1).mean(0)
    return best(view.attention(after[rating >= rating.mean()]).mean((0, 1)))


@ranker
def value_aware(view: View) -> Tensor:
    """VisiPruner (arXiv 2510.17205): length of attention x value."""
    each, _ = view.contributions()
    return best(each.norm(dim=-1))


@ranker
def mutual_attention(view: View) -> Tensor:
    """After ALVTS (arXiv 2606.14277): attention of visual tokens plus that of text tokens after the image, in the
    layer about to run. The paper computes it with trained low-rank selectors and for all visual queries; here the
    model's own projections compute 16 of them, evenly spaced, and nothing is trained."""
    indices = torch.linspace(0, len(view.alive) - 1, min(16, len(view.alive))).round().long().unique()
    some = view.alive[indices.to(view.alive.device)]
    score = view.attention(some).mean((0, 1))
    after = view.text[view.text > view.alive[0]]
    return best(score + view.attention(after).mean((0, 1)) if len(after) else score)


@ranker
def key_norm(view: View) -> Tensor:
    """Short keys are attended to most (arXiv 2406.11430); used for visual tokens by ViTCoP."""
    return best(-view.key().float().norm(dim=-1).mean(0))


@ranker
def attention_norm(view: View) -> Tensor:
    """DASH (arXiv 2604.18103): tokens whose attention still changes them. Length of the attention's update."""
    return best(view.attention_update.float().norm(dim=-1))


@ranker
def update_norm(view: View) -> Tensor:
    """V2Drop (CVPR 2026): tokens that the layer before changed most."""
    return best(view.layer_update.float().norm(dim=-1))


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


@ranker
def diversity(view: View) -> Tensor:
    """DivPrune (arXiv 2503.02175): greedy max-min distance. The first is the one whose nearest neighbour is
    farthest."""
    distances = _distances(view.hidden[view.alive])
    alone = distances + torch.diag(torch.full_like(distances[0], float("inf")))
    ordered = min(view.wanted + view.merged, len(view.alive))
    chosen = _farthest(distances, [int(alone.amin(0).argmax())], ordered)
    return torch.tensor(chosen, device=view.hidden.device)


@ranker
def attention_then_diversity(view: View) -> Tensor:
    """HalfV (arXiv 2604.16462) as released for Qwen2.5-VL: a few by the last token's attention without rotary
    embedding (10 to 20 % there, 15 % here), the rest by farthest-point sampling of hidden states. The released code
    takes distances after the model's final norm; here they are cosines of the states themselves."""
    query, key = view.query(view.last, rotated=False), view.key(rotated=False)
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    scores = (query.float() @ key.float().transpose(1, 2) * view.scaling).softmax(-1).mean((0, 1))
    seeds = best(scores)[: max(1, round(0.15 * view.wanted))].tolist()
    ordered = min(view.wanted + view.merged, len(view.alive))
    return torch.tensor(_farthest(_distances(view.hidden[view.alive]), seeds, ordered), device=view.hidden.device)


@ranker
def tower_attention(view: View) -> Tensor:
    """VisionZip (arXiv 2412.04467): attention the vision tower paid to the token."""
    return best(view.tower_scores)


@ranker
def tower_attention_then_diversity(view: View) -> Tensor:
    """VisPruner (arXiv 2412.01818): half by the tower's attention; of the rest, those least alike. In rounds, every
    other token is compared with the tokens between, and the most redundant (at most eight) are dropped."""
    order = best(view.tower_scores).tolist()
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


@ranker
def random(view: View) -> Tensor:
    """The control: an order that depends on nothing, the same for every prompt of a length, another in every layer."""
    generator = torch.Generator().manual_seed(view.layer)
    order = torch.rand(view.prompts.counts[view.b], generator=generator).to(view.hidden.device)
    return best(order[torch.searchsorted(view.first, view.alive)])


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
    cluster becomes one token, its mean. It takes the position of its peak, so no position is renumbered; the first
    release of the authors' code appends merged tokens and renumbers.
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
