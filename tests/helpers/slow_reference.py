"""The slow reference for every cell: whole attention maps, every row computed, and what a plan spares thrown away.

One prompt at a time and without a cache: a conversation is one sequence cut into calls (``ends``), in which what a call
may read of earlier ones is said by a mask. Shares nothing with the runtime but the plan and the model's own modules:
no row sets, no cache, no liveness, and its own ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers import slow_gemma as gemma
from helpers import slow_glm as glm
from helpers import slow_lfm2 as lfm2
from helpers import slow_norms as norms
from helpers.slow_delta import is_gated, slow_state
from lookless import Filter, Full, Keep, Neurons, Plan, Sink, Skip, Top, Window
from lookless.fitted import Linear, Mean


@torch.no_grad()
def slow_logits(
    model, plan: Plan, arguments: dict[str, Tensor], visual_ids, ends: list[int] | None = None, tower=None
) -> Tensor:
    """Logits ``[batch, sequence, vocabulary]``; rows of padding mean nothing. ``ends`` are where calls end;
    ``tower`` is the attention the vision tower paid to each visual token of the batch."""
    entered, layers = _captured(model, arguments)
    ids = arguments["input_ids"]
    mask = arguments.get("attention_mask", torch.ones_like(ids)).bool()
    visual = torch.isin(ids, torch.tensor(visual_ids))
    states = []
    for b in range(len(ids)):
        prompt = Conversation(visual[b], mask[b], ends or [ids.shape[1]])
        prompt.embedded = [None if of_layer[3] is None else of_layer[3][b] for of_layer in entered]
        prompt.tower = None if tower is None else tower[int(visual[:b].sum()) : int(visual[: b + 1].sum())]
        x = entered[0][0][b]
        for index, layer in enumerate(layers):
            rotary = [t[b if t.shape[0] > 1 else 0] for t in entered[index][1]]
            x = prompt.layer(layer, plan, index, x, rotary)
            x = x + entered[index + 1][2][b]  # DeepStack
        states.append(norms.last(model.model.get_decoder())(x))
    return gemma.capped(model, model.lm_head(torch.stack(states)))


def _captured(model, arguments):
    """What enters each layer of the stock model, and what is added between layers."""
    layers = model.model.get_decoder().layers
    entered, left = [], []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: entered.append((args[0], kwargs["position_embeddings"], *args[1:])),
            with_kwargs=True,
        )
        for layer in layers
    ]
    hooks += [layer.register_forward_hook(lambda _, __, out: left.append(out)) for layer in layers]
    model.model(**arguments, use_cache=False)
    for hook in hooks:
        hook.remove()
    added = [x[0] - out for x, out in zip(entered[1:], left[:-1], strict=True)]
    zero = torch.zeros_like(left[0])
    embedded = [x[2] if len(x) > 2 else None for x in entered]
    rows = zip([*entered, entered[-1]], [zero, *added, zero], [*embedded, None], strict=True)
    return [(*x[:2], add, more) for x, add, more in rows], layers


class Conversation:
    """One prompt, or several calls' worth of it, on its way through the layers."""

    def __init__(self, visual: Tensor, real: Tensor, ends: list[int]) -> None:
        self.n, self.real, self.visual = len(visual), real, visual & real
        self.call = torch.bucketize(torch.arange(self.n), torch.tensor(ends), right=True)
        self.alive = self.visual.clone()
        self.calls = range(len(ends))
        self.filtered, self.idle = [False] * len(ends), [0] * len(ends)
        self.before = None  # what the layer before showed
        self.lent = {}  # keys and values that later layers read, and the row of the plan that says which are held
        self.first = None

    def layer(self, layer, plan: Plan, index: int, x: Tensor, rotary) -> Tensor:
        row = plan.layers[index]
        self.first = x if index == 0 else self.first
        if isinstance(row.keep, Keep):
            x = self.keep(row.keep, layer, index, x, rotary)
        if isinstance(row.keep, Filter):
            self.filter(row.keep)
        tops = {
            cell: self.best(cell, layer, index, x, rotary)
            for cell in (row.attention, row.ffn, row.decode)
            if isinstance(cell, Top)
        }
        x = self.ffn(layer, row, tops, self.attention(layer, row, tops, x, rotary))
        return gemma.pass_by(layer, x, self.embedded[index])

    # operators

    def project(self, attention, name, h, rotary):
        x = getattr(attention, f"{name}_proj")(h)
        x = x.view(self.n, -1, attention.head_dim * (2 if name == "q" and is_gated(attention) else 1))
        x = x[..., : attention.head_dim]  # behind a query comes its gate
        x = norms.of_heads(attention, name)(x)
        if rotary is None or name == "v":
            return x.transpose(0, 1)
        return glm.turned(attention, x, *(t[:, None] for t in rotary)).transpose(0, 1)

    def keys(self, module, h, rotary, held):
        """Keys and values for each query head, and the cells that say which of them a cache holds."""
        if gemma.borrows(module):
            return self.lent[module.layer_type]
        k, groups = self.project(module, "k", h, rotary), module.num_key_value_groups
        v = gemma.values(module, h) if gemma.is_gemma4(module) else self.project(module, "v", h, rotary)
        made = self.lent[getattr(module, "layer_type", None)] = *(x.repeat_interleave(groups, 0) for x in (k, v)), held
        return made

    def attention(self, layer, row, tops, x, rotary):
        state = getattr(layer, "linear_attn", getattr(layer, "conv", None))
        if state is not None:
            h = norms.before_attention(layer)(x)
            spread = (self.calls, self.call, self.visual, self.real, self.alive)
            return self.added(layer, row, tops, x, h, slow_state(state, h, row, *spread), {})
        module = layer.self_attn
        h = norms.before_attention(layer)(x)
        q, (k, v, held) = self.project(module, "q", h, rotary), self.keys(module, h, rotary, (row, tops))
        weights = q @ k.transpose(1, 2) * module.scaling
        weights = weights.masked_fill(~self.allowed(module, row, *held), -1e30).softmax(-1)
        sunk = v.clone()
        if isinstance(row.visible, Sink):
            for c in self.calls:
                mine = (self.visual & (self.call == c)).nonzero().flatten()
                alive = (self.alive & (self.call == c)).nonzero().flatten()
                if len(mine) and len(alive):
                    sunk[:, alive] = v[:, alive[:1]]
        out = weights @ sunk
        same = self.call[:, None] == self.call[None, :]
        out = torch.where(self.visual[None, :, None], (weights * same) @ v + (weights * ~same) @ sunk, out)
        out = out.transpose(0, 1)
        if is_gated(module):
            out = out * torch.sigmoid(module.q_proj(h).view(self.n, -1, 2, module.head_dim)[:, :, 1])
        update = norms.after_attention(layer)(lfm2.output_projection(module)(out.flatten(1)))
        shown = {"k": k, "v": v, "sunk": sunk, "rotary": rotary}
        return self.added(layer, row, tops, x, h, update, shown)

    def added(self, layer, row, tops, x, h, update, shown):
        """``x`` with the mixer's ``update`` of the rows that ask for it."""
        asks = ~self.visual & ~self.frozen(row)
        if isinstance(row.attention, Top):
            asks = asks | tops[row.attention]
        elif not isinstance(row.attention, Skip | Mean | Linear):
            asks = asks | self.alive
        update = update * asks[:, None]
        if isinstance(row.attention, Mean | Linear):
            update = update + self.fitted(row.attention, h)
        self.before = {"x": x, "h": h, "update": update, "layer": layer, "out": x + update, **shown}
        self.before["alive"] = self.alive.clone()
        return x + update

    def frozen(self, row):
        """Text before the image, of the call that begins the sequence."""
        if isinstance(row.before, Full):
            return torch.zeros(self.n, dtype=torch.bool)
        opening = self.visual & (self.call == 0)
        return self.real & opening.flip(0).cumsum(0).flip(0).bool() & ~opening.cumsum(0).bool()

    def allowed(self, module, row, held_row, tops):
        """``[query, key]``: who may read whom, where ``held_row`` says which keys are cached."""
        i, j = torch.arange(self.n)[:, None], torch.arange(self.n)[None, :]
        from_text, to_visual = ~self.visual[:, None], self.visual[None, :]
        same = self.call[:, None] == self.call[None, :]
        allowed = gemma.reachable(module, self) & self.real[None, :] & (~to_visual | self.alive[None, :])
        held = torch.ones(self.n, dtype=torch.bool)
        if isinstance(held_row.visible, Skip) or isinstance(held_row.decode, Skip):
            held = ~self.visual
        elif isinstance(held_row.decode, Top):
            held = ~self.visual | tops[held_row.decode]
        allowed &= same | held[None, :]
        if isinstance(row.visible, Skip):
            allowed &= ~(from_text & to_visual & same)
        if isinstance(row.attention, Window):
            allowed &= from_text | ~to_visual | ((i - j).abs() < row.attention.size)
        return allowed | (torch.eye(self.n, dtype=torch.bool) & ~allowed.any(1, keepdim=True))

    def ffn(self, layer, row, tops, x):
        h, after = norms.before_ffn(layer)(x), norms.after_ffn(layer)
        rows = ~self.visual & ~self.frozen(row)
        if isinstance(row.ffn, Top):
            rows = rows | tops[row.ffn]
        elif isinstance(row.ffn, Full):
            rows = rows | self.alive
        x = x + gemma.whole_ffn(layer, x, h) * rows[:, None]
        if isinstance(row.ffn, Neurons):
            for c in self.calls:
                mine = (self.alive & (self.call == c)).nonzero().flatten()
                if len(mine):
                    x = x.index_add(0, mine, after(self.neurons(lfm2.ffn(layer), row.ffn, h[mine])))
        return x + self.fitted(row.ffn, h) if isinstance(row.ffn, Mean | Linear) else x

    def fitted(self, cell, h):
        """What a fitted cell adds to each row, ``[n, hidden]``: nothing to text and to dead rows."""
        parts = {name: torch.from_numpy(part).to(h) for name, part in cell.weights.parts.items()}
        added = torch.zeros_like(h)
        for j in self.alive.nonzero().flatten():
            added[j] = parts["constant"]
            if isinstance(cell, Linear):
                added[j] += (parts["up"] @ parts["down"]) @ h[j]
        return added

    def neurons(self, mlp, cell, h):
        if lfm2.is_numbered(mlp):
            inner, down = lfm2.inner(mlp, h), mlp.w2
        elif glm.is_fused(mlp):
            inner, down = glm.inner(mlp, h), mlp.down_proj
        else:
            inner, down = mlp.act_fn(mlp.gate_proj(h)) * mlp.up_proj(h), mlp.down_proj
        count = max(1, round(cell.probe * len(h)))
        probes = [round(i * (len(h) - 1) / max(1, count - 1)) for i in range(count)]
        score = inner[probes].abs().mean(0)
        wanted = max(1, round(cell.ratio * len(score)))
        inner[:, score.argsort(descending=True)[wanted:]] = 0
        return down(inner)

    # which tokens

    def keep(self, cell, layer, index, x, rotary):
        x = x.clone()
        for c in self.calls:
            mine = (self.alive & (self.call == c)).nonzero().flatten()
            order = self.order(cell, c, layer, index, x, rotary)
            wanted = self.wanted(cell, c, len(mine))
            kept = [int(i) for i in order[:wanted]]
            if cell.recycle and wanted < len(mine):
                share = int(cell.recycle * (len(mine) - wanted))
                merged = share // 10 + 1
                material = order[wanted : wanted + max(share, merged)]
                kept += self.recycle(x, material, merged)
            self.alive[mine] = False
            self.alive[kept] = True
        return x

    def recycle(self, x, rows, merged):
        states = x[rows].clone()
        d = torch.stack([(states - s).norm(dim=-1) for s in states])
        rho = torch.exp(-(d.sort().values[:, : min(5, len(rows))] ** 2).mean(1) / x.shape[1])
        delta = torch.stack([d[i][rho > rho[i]].min() if (rho > rho[i]).any() else d.max() for i in range(len(rows))])
        peaks = (rho * delta).argsort(descending=True)[:merged]
        cluster = torch.stack([d[i][peaks].argmin() for i in range(len(rows))])
        for i, peak in enumerate(peaks):
            x[rows[peak]] = states[(cluster == i)].mean(0)
        return [int(rows[p]) for p in peaks]

    def wanted(self, cell, c, alive):
        count = int((self.visual & (self.call == c)).sum())
        if cell.count is not None:
            return min(cell.count, alive)
        return min(alive, max(1, round(cell.ratio * count))) if cell.ratio else 0

    def best(self, cell, layer, index, x, rotary):
        chosen = torch.zeros(self.n, dtype=torch.bool)
        for c in self.calls:
            order = self.order(cell, c, layer, index, x, rotary)
            chosen[order[: self.wanted(cell, c, len(order))]] = True
        return chosen

    def weights(self, shown, query, c):
        """Plain causal attention of rows ``query`` of call ``c`` in a layer, ``[heads, rows, n]``."""
        q = self.project(shown["layer"].self_attn, "q", shown["h"], shown["rotary"])[:, query]
        # What a plan left out of the cache is read here all the same: no test ranks where that would show.
        readable = self.real & (self.call <= c) & (~self.visual | shown["alive"])
        allowed = gemma.reachable(shown["layer"].self_attn, self)[query] & readable
        scores = q @ shown["k"].transpose(1, 2) * shown["layer"].self_attn.scaling
        return scores.masked_fill(~allowed, -1e30).softmax(-1)

    def shown_by(self, layer, x, rotary):
        module, h = layer.self_attn, norms.before_attention(layer)(x)
        k, v, _ = self.keys(module, h, rotary, None)
        return {"x": x, "h": h, "k": k, "v": v, "layer": layer, "rotary": rotary, "alive": self.alive.clone()}

    def last(self, c):
        """The last row of a call that takes part; where it ends in an image, the last visual one not dropped."""
        return ((self.call == c) & self.real & (~self.visual | self.alive)).nonzero().flatten()[-1:]

    def order(self, cell, c, layer, index, x, rotary):
        """Living visual rows of a call, best first."""
        mine = (self.alive & (self.call == c)).nonzero().flatten()
        if len(mine) < 2 or cell.is_none:
            return mine
        before = self.before
        here = None if not hasattr(layer, "self_attn") else self.shown_by(layer, x, rotary)
        in_call = self.call == c
        last = self.last(c)
        behind = (in_call & self.real & ~self.visual & (torch.arange(self.n) > mine[0])).nonzero().flatten()
        every = (self.visual & in_call).nonzero().flatten()
        raters = (in_call & self.real & ~self.visual & (torch.arange(self.n) > every[0])).nonzero().flatten()
        if cell.rank == "last_query_attention" or (cell.rank == "text_raters" and not len(raters)):
            score = self.weights(before, last, c).mean((0, 1))[mine]
        elif cell.rank == "instruction_attention":
            score = self.weights(here, last, c).mean((0, 1))[mine]
        elif cell.rank == "text_raters":
            rating = (self.first[every] @ self.first[raters].T).softmax(-1).mean(0)
            score = self.weights(before, raters[rating >= rating.mean()], c).mean((0, 1))[mine]
        elif cell.rank == "value_aware":
            score = torch.stack(
                [(self.weights(before, last, c)[:, 0, j, None] * before["v"][:, j]).norm() for j in mine]
            )
        elif cell.rank == "mutual_attention":
            count = min(16, len(mine))
            some = mine[sorted({round(i * (len(mine) - 1) / max(1, count - 1)) for i in range(count)})]
            score = self.weights(here, some, c).mean((0, 1))[mine]
            if len(behind):
                score = score + self.weights(here, behind, c).mean((0, 1))[mine]
        elif cell.rank == "key_norm":
            score = -before["k"].norm(dim=-1).mean(0)[mine]
        elif cell.rank == "attention_norm":
            score = before["update"].norm(dim=-1)[mine]
        elif cell.rank == "update_norm":
            score = (x - before["x"]).norm(dim=-1)[mine]
        elif cell.rank == "tower_attention":
            score = self.tower[[int((every == j).nonzero()) for j in mine]]
        elif cell.rank == "random":
            order = torch.rand(len(every), generator=torch.Generator().manual_seed(index))
            score = order[[int((every == j).nonzero()) for j in mine]]
        else:
            return self.spread_out(cell, c, mine, last, here, x)
        return mine[score.argsort(descending=True, stable=True)]

    def spread_out(self, cell, c, mine, last, here, x):
        wanted = self.wanted(cell, c, len(mine))
        cosine = F.cosine_similarity(x[mine][:, None], x[mine][None], dim=-1)
        if cell.rank == "tower_attention_then_diversity":
            best = self.tower.argsort(descending=True, stable=True).tolist()
            important, rest = best[: -(-wanted // 2)], sorted(best[-(-wanted // 2) :])
            while len(rest) > max(1, wanted - len(important)):
                alike = {i: max(cosine[i, j].item() for j in rest[1::2]) for i in rest[::2]}
                surplus = min(8, len(rest) - (wanted - len(important)))
                for i in sorted(alike, key=alike.get, reverse=True)[:surplus]:
                    rest.remove(i)
            kept = important + rest[: wanted - len(important)]
            return mine[kept + [i for i in best if i not in kept]]
        if cell.rank == "diversity":
            nearest = [max(cosine[i, j].item() for j in range(len(mine)) if j != i) for i in range(len(mine))]
            chosen = [min(range(len(mine)), key=lambda i: nearest[i])]
        else:
            q, k = (self.project(here["layer"].self_attn, name, here["h"], None) for name in "qk")
            k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)[:, mine]
            score = (q[:, last] @ k.transpose(1, 2) * here["layer"].self_attn.scaling).softmax(-1).mean((0, 1))
            chosen = score.argsort(descending=True)[: max(1, round(0.15 * wanted))].tolist()
        while len(chosen) < (len(mine) if getattr(cell, "recycle", 0) else wanted):
            left = [i for i in range(len(mine)) if i not in chosen]
            chosen.append(min(left, key=lambda i: max(cosine[i, j].item() for j in chosen)))
        return mine[chosen]

    def filter(self, cell):
        for c in self.calls:
            mine = (self.alive & (self.call == c)).nonzero().flatten()
            if not len(mine):
                continue
            last = self.last(c)
            weights = self.weights(self.before, last, c)[:, 0]
            whole = (weights[..., None] * self.before["v"]).sum(1).flatten()
            each = [(weights[:, j, None] * self.before["v"][:, j]).flatten() for j in mine]
            turned = min(F.cosine_similarity(whole - part, whole, dim=0).item() for part in each)
            if not self.filtered[c]:
                if turned < cell.cosine:
                    self.filtered[c] = True
                    for j, part in zip(mine, each, strict=True):
                        self.alive[j] = bool(part.norm() > cell.norm)
            else:
                self.idle[c] += turned >= cell.exit_cosine
                if self.idle[c] >= cell.patience:
                    self.alive[mine] = False
