"""One stage of training: optimisers, schedule, checkpoint, log. A stage that was cut off resumes at its checkpoint."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from .muon import Muon

SEED = 2026
MINUTES = 2  # between checkpoints
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# On a CPU without bfloat16, compiling won nothing either: 2.3 s a step of 16 images, as without.
FAST = DEVICE.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def optimizers(parts: list[nn.Module], muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between hidden states, AdamW for embeddings, heads, norms and the patch convolution."""
    muon, adam, tokens = [], [], []
    for part in parts:
        for name, p in part.named_parameters():
            if p.requires_grad:
                between = p.ndim == 2 and "embed" not in name and "head" not in name
                (muon if between else tokens if "embed_tokens" in name else adam).append(p)
    groups = [{"params": adam}]
    if tokens:  # they are of size one, and move accordingly
        groups.append({"params": tokens, "lr": 5 * adam_lr})
    return [
        Muon(muon, lr=muon_lr, weight_decay=0.01),
        torch.optim.AdamW(groups, lr=adam_lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


class Run:
    """One stage: its checkpoint, its schedule, its log."""

    def __init__(self, folder: Path, stage: str, steps: int, modules: dict[str, nn.Module], opts) -> None:
        self.path, self.stage, self.steps = folder / f"{stage}.pt", stage, steps
        self.modules, self.opts, self.step, self.seconds = modules, opts, 0, 0.0
        self.rates = [[g["lr"] for g in o.param_groups] for o in opts]
        self.log = folder / f"{stage}.jsonl"
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            self.step, self.seconds = saved["step"], saved["seconds"]
            for name, module in modules.items():
                module.load_state_dict(saved["modules"][name])
            if self.step < steps:
                for opt, state in zip(opts, saved["opts"], strict=True):
                    opt.load_state_dict(state)

    def save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "modules": {n: m.state_dict() for n, m in self.modules.items()},
            "opts": [o.state_dict() for o in self.opts],
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def schedule(self) -> float:
        """Warm up, hold, and decay linearly over the last 40 %."""
        return min(1.0, (self.step + 1) / 50, max(0.02, (1 - self.step / self.steps) / 0.4))

    def train(self, batch_of: Callable[[random.Random, int], object], loss_of: Callable) -> None:
        loss_of = torch.compile(loss_of, dynamic=False) if FAST else loss_of
        parameters = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        started = saved = time.time()
        mean, rights = None, []
        for batch in ahead(batch_of, self.stage, self.step, self.steps):
            scale = self.schedule()
            for opt, rates in zip(self.opts, self.rates, strict=True):
                for group, rate in zip(opt.param_groups, rates, strict=True):
                    group["lr"] = rate * scale
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=FAST):
                loss, right = loss_of(batch.to(DEVICE))
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for opt in self.opts:
                opt.step()
                opt.zero_grad(set_to_none=True)
            self.step += 1
            mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
            rights.append(right)
            if self.step % 25 == 0 or self.step == self.steps:
                now = time.time()
                self.seconds, started = self.seconds + now - started, now
                shares = [round(x, 3) for x in torch.stack(rights).mean(0).tolist()]
                rights.clear()
                line = {"step": self.step, "loss": round(mean, 4), "right": shares, "s": round(self.seconds)}
                print(self.stage, json.dumps(line), flush=True)
                with self.log.open("a") as log:
                    log.write(json.dumps(line) + "\n")
            if time.time() - saved > 60 * MINUTES or self.step == self.steps:
                self.save()
                saved = time.time()


def ahead(batch_of: Callable, stage: str, step: int, steps: int) -> Iterator:
    """Batches of the steps that are left, the next one made while this one trains. A batch is its step's seed."""
    with ThreadPoolExecutor(1) as pool:
        make = lambda i: batch_of(random.Random(f"{SEED}:train:{stage}:{i}"), i)  # noqa: E731
        nxt = pool.submit(make, step)
        for i in range(step, steps):
            batch = nxt.result()
            if i + 1 < steps:
                nxt = pool.submit(make, i + 1)
            yield batch
