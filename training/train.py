"""Trains a reference model from nothing: ``python -m training.train all``; each stage resumes where it stopped.

===== ====================== ======================================== ===============================
stage trains                 on                                       in LLaVA
===== ====================== ======================================== ===============================
see   tower, projector, two  dense labels, read off the visual rows   CLIP's pretraining
      thirds of the decoder  behind a third and behind two thirds
focus projector and decoder  statements, then questions, that read    feature alignment; and it
                             only the patches at which something is   stands in for a trained decoder
joint projector and decoder  questions, statements, descriptions,     visual instruction tuning
                             facts, that read the whole image
===== ====================== ======================================== ===============================

``graft`` stands in for ``see`` and ``focus`` where time is short: it begins from an earlier model (``graft.py``). So
does ``mix`` for a hybrid, which begins from the shipped Qwen3-VL (``hybrid.py``).
``--model qwen3_vl`` trains the second model by the same recipe; its mergers, DeepStack's among them, are the projector.
The tower is frozen after its stage, as LLaVA's is. Unlike LLaVA's, the decoder has read no text before it sees;
README.md in this folder says why, and what that changes.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lookless.reference import MODELS
from lookless.runtime.mixers import is_delta

from .architecture import ARCHITECTURES, WIDTH
from .batches import Batch, image_batch, talk_batch
from .describe import sample_world
from .graft import graft, graft_batch, grafting_loss
from .hybrid import borrow, fit, mixing_loss
from .losses import readers, seeing_loss, talking_loss
from .run import DEVICE, FAST, SEED, Run, optimizers
from .tokens import Words, build_tokenizer

STATING_STEPS = 500  # of the stage "focus": statements alone, until looking up has appeared
DENSE = 0.3  # weight of the dense labels beside answers; at 0.1 characters were unlearned (93 to 89 % of patches)


@dataclass(frozen=True)
class Job:
    """What a stage trains, for how many ``steps``, and the ``folder`` of its checkpoint and log.

    Attributes:
        earlier: the folder of the model that a graft begins from.
    """

    architecture: Any
    model: nn.Module
    heads: nn.ModuleDict
    words: Words
    folder: Path
    steps: int
    earlier: Path

    def run(self, stage: str, muon_lr: float, adam_lr: float) -> Run:
        trained = {"model": self.model, "heads": self.heads}
        return Run(self.folder, stage, self.steps, trained, optimizers(list(trained.values()), muon_lr, adam_lr))


def stage_see(job: Job) -> None:
    layers = job.model.model.language_model.layers
    job.model.lm_head.requires_grad_(False)
    layers[max(map(int, job.heads)) :].requires_grad_(False)
    job.run("see", 4e-3, 2e-3).train(
        lambda rng, step: image_batch(rng, job.words, 32),
        lambda b: seeing_loss(job.architecture, job.model, job.heads, b),
    )


def stage_graft(job: Job) -> None:
    architecture = job.architecture
    earlier = graft(architecture, job.model, job.words.tokenizer, job.earlier).to(DEVICE)
    architecture.freeze(job.model)
    decoder = job.model.model.language_model
    new = len(decoder.layers) - len(architecture.kept)
    for part in (job.model.lm_head, decoder.embed_tokens, decoder.norm, decoder.layers[new:]):
        part.requires_grad_(False)
    job.run("graft", 4e-3, 2e-3).train(
        lambda rng, step: graft_batch(rng, job.words, 16),
        lambda b: grafting_loss(architecture, job.model, earlier, job.heads, b, new),
    )


def stage_mix(job: Job) -> None:
    architecture = job.architecture
    donor = ARCHITECTURES[architecture.earlier]
    earlier = borrow(job.model, job.words.tokenizer, job.earlier).to(DEVICE)
    earlier.set_attn_implementation("eager" if FAST else "sdpa")
    job.model.requires_grad_(False)
    tower, layers = architecture.tower(job.model), job.model.model.language_model.layers
    for part in (tower.merger, *(layer.linear_attn for layer in layers if is_delta(layer))):
        part.requires_grad_(True)

    def batch(rng: random.Random, step: int) -> Batch:
        worlds = [sample_world(rng) for _ in range(8)]
        return talk_batch(rng, job.words, worlds, describing=0.0, facts=0.0, stating=0.2, room=64)

    fit(donor, job.model, earlier, batch(random.Random(f"{SEED}:fit"), 0).to(DEVICE))
    job.run("mix", 1e-2, 3e-3).train(
        batch,
        lambda b: mixing_loss(architecture, donor, job.model, earlier, job.heads, b),
    )


def stage_focus(job: Job) -> None:
    job.architecture.freeze(job.model)
    job.run("focus", 3e-3, 2e-3).train(
        lambda rng, step: talk_batch(
            rng,
            job.words,
            [sample_world(rng) for _ in range(16)],
            describing=0.0,
            facts=0.03,
            stating=1.0 if step < STATING_STEPS else 0.25,
            focus=True,
        ),
        lambda b: talking_loss(job.architecture, job.model, job.heads, b, DENSE),
    )


def stage_joint(job: Job) -> None:
    job.architecture.freeze(job.model)
    job.run("joint", 1.5e-3, 8e-4).train(
        lambda rng, step: talk_batch(
            rng,
            job.words,
            [sample_world(rng) for _ in range(8)],
            describing=0.05,
            facts=0.03,
            stating=0.2,
            room=job.architecture.room,
        ),
        lambda b: talking_loss(job.architecture, job.model, job.heads, b, DENSE),
    )


STAGES = {
    "see": (stage_see, 2000),
    "focus": (stage_focus, 2000),
    "graft": (stage_graft, 1200),
    "mix": (stage_mix, 150),
    "joint": (stage_joint, 3000),
}
FROM_NOTHING = ("see", "focus", "joint")
#: The stages that one builds on: the first that has been run.
NEEDS = {"see": (), "graft": (), "mix": (), "focus": ("see",), "joint": ("focus", "graft", "mix")}


def load_earlier(model: nn.Module, heads: nn.Module, folder: Path, stage: str) -> None:
    """The weights of the stage that ``stage`` builds on."""
    if not NEEDS[stage]:
        return
    found = [folder / f"{earlier}.pt" for earlier in NEEDS[stage] if (folder / f"{earlier}.pt").exists()]
    if not found:
        earlier = NEEDS[stage][0]
        raise SystemExit(f"stage {stage} builds on stage {earlier}: run `python -m training.train {earlier}` first")
    modules = torch.load(found[0], weights_only=True, map_location="cpu")["modules"]
    model.load_state_dict(modules["model"])
    heads.load_state_dict(modules["heads"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--model", choices=ARCHITECTURES, default="llava")
    parser.add_argument("--out", type=Path, help="checkpoints and logs; training/runs/MODEL if not given")
    parser.add_argument("--steps", type=int, help="instead of the stage's own number")
    parser.add_argument("--earlier", type=Path, help="of graft: the model to begin from; the shipped one if not given")
    arguments = parser.parse_args()
    architecture = ARCHITECTURES[arguments.model]
    out = arguments.out or Path("training/runs") / arguments.model
    out.mkdir(parents=True, exist_ok=True)
    for stage in FROM_NOTHING if arguments.stage == "all" else (arguments.stage,):
        torch.manual_seed(SEED)
        words = Words(build_tokenizer(architecture.prompt), architecture.prompt)
        model = architecture.build(words.tokenizer).train()
        heads = readers(len(model.model.language_model.layers), WIDTH)
        # Compiled, eager attention is fused, and the faster one on a CPU; not compiled, a step takes a quarter longer.
        model.set_attn_implementation("eager" if FAST else "sdpa")
        load_earlier(model, heads, out, stage)
        run, steps = STAGES[stage]
        earlier = arguments.earlier or MODELS[getattr(architecture, "earlier", arguments.model)]
        job = Job(architecture, model.to(DEVICE), heads.to(DEVICE), words, out, arguments.steps or steps, earlier)
        run(job)


if __name__ == "__main__":
    main()
