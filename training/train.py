"""Trains a reference model from nothing: ``python training/train.py all``; each stage resumes where it stopped.

===== ================= ============================================ ===============================
stage trains            on                                           in LLaVA
===== ================= ============================================ ===============================
tower tower             what each patch shows                        CLIP's pretraining
focus projector and     the patches at which something is:           feature alignment; and it
      decoder           statements, then questions                   stands in for a trained decoder
joint projector and     whole images: questions, statements,         visual instruction tuning
      decoder           descriptions, facts
===== ================= ============================================ ===============================

``--model qwen3_vl`` trains the second model by the same recipe; its mergers, DeepStack's among them, are the projector.
The tower is frozen after its stage, as LLaVA's is. Unlike LLaVA's, the decoder has read no text before it sees;
README.md in this folder says why, and what that changes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from architecture import ARCHITECTURES
from batches import patch_batch, talk_batch
from losses import Reader, image_loss
from run import SEED, Run, optimizers
from tokens import Words, build_tokenizer

FOCUS = 8  # patches shown in the stage of that name; no image has more than six things
STATING_STEPS = 500  # of that stage: statements alone and no other patch, until looking up has appeared


def stage_tower(architecture, model, words, folder, steps):
    reader = Reader(architecture.features_width)
    tower = architecture.tower(model)
    run = Run(folder, "tower", steps, {"tower": tower, "reader": reader}, optimizers([tower, reader], 4e-3, 2e-3))
    run.train(lambda rng, step: patch_batch(rng, 32), lambda b: reader(architecture.features(model, b[0]), b[1]))


def stage_focus(architecture, model, words, folder, steps):
    architecture.freeze(model)
    run = Run(folder, "focus", steps, {"model": model}, optimizers([model], 3e-3, 2e-3))
    run.train(
        lambda rng, step: talk_batch(
            rng,
            words,
            32,
            describing=0.0,
            facts=0.03,
            stating=1.0 if step < STATING_STEPS else 0.25,
            focus=FOCUS,
            extras=step >= STATING_STEPS,
            room=64,
        ),
        lambda b: image_loss(architecture, model, b),
    )


def stage_joint(architecture, model, words, folder, steps):
    architecture.freeze(model)
    run = Run(folder, "joint", steps, {"model": model}, optimizers([model], 2e-3, 1e-3))
    run.train(
        lambda rng, step: talk_batch(rng, words, 16, describing=0.05, facts=0.03, stating=0.1),
        lambda b: image_loss(architecture, model, b),
    )


STAGES = {"tower": (stage_tower, 2000), "focus": (stage_focus, 1500), "joint": (stage_joint, 3400)}
NEEDS = {"tower": None, "focus": "tower", "joint": "focus"}


def load_earlier(architecture, model, folder: Path, stage: str) -> None:
    """The weights of the stage that ``stage`` builds on."""
    earlier = NEEDS[stage]
    if earlier is None:
        return
    path = folder / f"{earlier}.pt"
    if not path.exists():
        raise SystemExit(f"stage {stage} builds on stage {earlier}: run `python training/train.py {earlier}` first")
    modules = torch.load(path, weights_only=True)["modules"]
    if "model" in modules:
        model.load_state_dict(modules["model"])
    else:
        architecture.tower(model).load_state_dict(modules["tower"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--model", choices=ARCHITECTURES, default="llava")
    parser.add_argument("--out", type=Path, help="checkpoints and logs; training/runs/MODEL if not given")
    parser.add_argument("--steps", type=int, help="instead of the stage's own number")
    arguments = parser.parse_args()
    architecture = ARCHITECTURES[arguments.model]
    out = arguments.out or Path("training/runs") / arguments.model
    out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        torch.manual_seed(SEED)
        words = Words(build_tokenizer(architecture.prompt), architecture.prompt)
        model = architecture.build(words.tokenizer).train()
        # On CPU the compiler fuses eager attention; its flash kernel took half of a step at head size 32.
        model.set_attn_implementation("eager")
        load_earlier(architecture, model, out, stage)
        run, steps = STAGES[stage]
        run(architecture, model, words, out, arguments.steps or steps)


if __name__ == "__main__":
    main()
