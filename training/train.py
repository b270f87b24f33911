"""Trains the reference model from nothing: ``python training/train.py all``; each stage resumes where it stopped.

===== ========= ============================================================== =================================
stage trains    on                                                             as in LLaVA
===== ========= ============================================================== =================================
tower tower     dense labels of patches                                        CLIP's pretraining
text  decoder   worlds in words, questions about them, facts                   the language model's pretraining
align projector describing images and answering, decoder and tower frozen      feature alignment
joint all       images, questions, descriptions, facts                         visual instruction tuning
===== ========= ============================================================== =================================

``tower`` and ``text`` are independent: run them side by side, a core each.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from architecture import WIDTH, build_model
from batches import Batch, patch_batch, talk_batch
from labels import HEADS
from tokens import Words, build_tokenizer

SEED = 2026
FOCUS, FOCUS_STATING_STEPS = 8, 500
STATING_STEPS = 1000  # of the text stage: statements alone, until looking up has appeared


class Reader(nn.Module):
    """Heads that read the dense labels off the tower; thrown away after its stage."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in HEADS.items()})

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.norm(features)
        losses, right = [], []
        shown = (labels[..., 0] > 0).float()
        weight = (0.1 + 0.9 * shown).flatten()
        for i, head in enumerate(self.heads.values()):
            logits, label = head(x).float().flatten(0, 1), labels[..., i].flatten()
            losses.append((F.cross_entropy(logits, label, reduction="none") * weight).sum() / weight.sum())
            right.append(((logits.argmax(-1) == label).float() * shown.flatten()).sum() / shown.sum())
        return torch.stack(losses).sum(), torch.stack(right)


def visual_features(model, pixels: torch.Tensor) -> torch.Tensor:
    """``[batch, VISUAL, WIDTH]`` of the tower, class token dropped."""
    tower = model.model.vision_tower
    x = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers:
        x = layer(x, attention_mask=None)
    return x[:, 1:]


def decode_loss(model, embeds, positions, segments, where, targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the answer tokens, and the share of them that is the argmax."""
    decoder = model.model.language_model
    length = embeds.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    key, query = segments[:, None, None, :], segments[:, None, :, None]
    mask = causal & ((key == 0) | (key == query)) & (key >= 0) | torch.eye(length, dtype=torch.bool)
    mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(~mask, -1e9)
    rotary = decoder.rotary_emb(embeds, positions)
    x = embeds
    for layer in decoder.layers:
        x = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
    x = decoder.norm(x.gather(1, where[..., None].expand(-1, -1, x.shape[-1])))
    logits = model.lm_head(x).float().flatten(0, 1)
    target = targets.flatten()
    right = ((logits.argmax(-1) == target) & (target >= 0)).sum() / (target >= 0).sum()
    return F.cross_entropy(logits, target), right


def text_loss(model, b: Batch):
    embeds = model.model.language_model.embed_tokens(b.ids)
    return decode_loss(model, embeds, b.positions, b.segments, b.where, b.targets)


def image_loss(model, b: Batch):
    with torch.no_grad():  # the tower stays as it is, as in LLaVA; Muon's steps are of one size and would wear it down
        features = visual_features(model, b.pixels)
    visual = model.model.multi_modal_projector(features)
    if b.shown is not None:
        visual = visual.gather(1, b.shown[..., None].expand(-1, -1, visual.shape[-1]))
    embeds = model.model.language_model.embed_tokens(b.ids)
    after = b.visual_at + visual.shape[1]
    embeds = torch.cat((embeds[:, : b.visual_at], visual.to(embeds.dtype), embeds[:, after:]), dim=1)
    return decode_loss(model, embeds, b.positions, b.segments, b.where, b.targets)


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
        torch.optim.Muon(muon, lr=muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
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
        compiled = torch.compile(loss_of, dynamic=False)
        parameters = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        started, mean = time.time(), None
        for batch in ahead(batch_of, self.stage, self.step, self.steps):
            scale = self.schedule()
            for opt, rates in zip(self.opts, self.rates, strict=True):
                for group, rate in zip(opt.param_groups, rates, strict=True):
                    group["lr"] = rate * scale
            with torch.autocast("cpu", torch.bfloat16):
                loss, right = compiled(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for opt in self.opts:
                opt.step()
                opt.zero_grad(set_to_none=True)
            self.step += 1
            mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
            if self.step % 25 == 0 or self.step == self.steps:
                now = time.time()
                self.seconds, started = self.seconds + now - started, now
                line = {"step": self.step, "loss": round(mean, 4), "right": right.tolist(), "s": round(self.seconds)}
                print(self.stage, json.dumps(line), flush=True)
                with self.log.open("a") as log:
                    log.write(json.dumps(line) + "\n")
            if self.step % 100 == 0 or self.step == self.steps:
                self.save()


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


def stage_tower(model, words, folder, steps):
    reader = Reader()
    tower = model.model.vision_tower
    run = Run(folder, "tower", steps, {"tower": tower, "reader": reader}, optimizers([tower, reader], 4e-3, 2e-3))
    run.train(lambda rng, step: patch_batch(rng, 32), lambda b: reader(visual_features(model, b[0]), b[1]))


def stage_text(model, words, folder, steps):
    parts = {"decoder": model.model.language_model, "head": model.lm_head}
    run = Run(folder, "text", steps, parts, optimizers(list(parts.values()), 3e-3, 3e-3))
    run.train(
        lambda rng, step: talk_batch(
            rng, words, 16, images=False, describing=0.05, facts=0.05, stating=1.0 if step < STATING_STEPS else 0.25
        ),
        lambda b: text_loss(model, b),
    )


def stage_align(model, words, folder, steps):
    for p in model.parameters():
        p.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    run = Run(folder, "align", steps, {"projector": projector}, optimizers([projector], 4e-3, 4e-3))
    run.train(
        lambda rng, step: talk_batch(rng, words, 16, images=True, describing=0.7, facts=0.0, stating=1.0),
        lambda b: image_loss(model, b),
    )
    model.requires_grad_(True)


def stage_focus(model, words, folder, steps):
    model.model.vision_tower.requires_grad_(False)
    run = Run(folder, "focus", steps, {"model": model}, optimizers([model], 3e-3, 2e-3))
    run.train(
        lambda rng, step: talk_batch(
            rng,
            words,
            32,
            images=True,
            describing=0.0,
            facts=0.03,
            stating=1.0 if step < FOCUS_STATING_STEPS else 0.25,
            focus=FOCUS,
            extras=step >= FOCUS_STATING_STEPS,
            room=64,
        ),
        lambda b: image_loss(model, b),
    )


def stage_joint(model, words, folder, steps):
    model.model.vision_tower.requires_grad_(False)
    run = Run(folder, "joint", steps, {"model": model}, optimizers([model], 2e-3, 1e-3))
    run.train(
        lambda rng, step: talk_batch(rng, words, 16, images=True, describing=0.1, facts=0.03, stating=0.25),
        lambda b: image_loss(model, b),
    )


STAGES = {
    "tower": (stage_tower, 2000),
    "text": (stage_text, 3000),
    "align": (stage_align, 100),
    "focus": (stage_focus, 1500),
    "joint": (stage_joint, 3000),
}
NEEDS = {"tower": (), "text": (), "align": ("tower", "text"), "focus": ("tower", "text", "align"), "joint": ("focus",)}


def load_earlier(model, folder: Path, stage: str) -> None:
    """The weights of the stages that ``stage`` builds on."""
    targets = {
        "tower": model.model.vision_tower,
        "decoder": model.model.language_model,
        "head": model.lm_head,
        "projector": model.model.multi_modal_projector,
        "model": model,
    }
    for earlier in NEEDS[stage]:
        path = folder / f"{earlier}.pt"
        if not path.exists():
            raise SystemExit(f"stage {stage} builds on stage {earlier}: run `python training/train.py {earlier}` first")
        for name, state in torch.load(path, weights_only=True)["modules"].items():
            if name in targets:
                targets[name].load_state_dict(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--out", type=Path, default=Path("training/runs"), help="checkpoints and logs")
    parser.add_argument("--steps", type=int, help="instead of the stage's own number")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        torch.manual_seed(SEED)
        words = Words(build_tokenizer())
        model = build_model(words.tokenizer).train()
        # On CPU the compiler fuses eager attention; its flash kernel took half of a step at head size 32.
        model.set_attn_implementation("eager")
        load_earlier(model, arguments.out, stage)
        run, steps = STAGES[stage]
        run(model, words, arguments.out, arguments.steps or steps)


if __name__ == "__main__":
    main()
