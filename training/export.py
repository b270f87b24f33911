"""Writes the trained model into the package: weights in bfloat16, processor, model card with measured scores.

``python -m training.export`` after ``python -m training.train all``; both take ``--model``.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from lookless import evaluate, load_data, reference
from lookless.loading import Loaded

from .architecture import ARCHITECTURES
from .tokens import build_tokenizer
from .train import STAGES

QUESTIONS = 500
FOLDERS = {**reference.MODELS, "qwen3_5": reference.HYBRID}
SPLIT = "card"  # images that no choice was made by, as those of "test" were looked at while training
#: What a stage does, for the card.
STAGE = {
    "see": "tower, {bridge} and two thirds of the decoder, on what each patch shows",
    "focus": "{bridge} and decoder, on the patches at which something is; the tower is frozen from here on",
    "graft": "first four layers of the decoder and {bridge}, to hand on to layers of an earlier model what its deeper "
    "tower gave them; the tower is that tower's beginning, frozen",
    "mix": "gated delta rules and {bridge}, each on what the Qwen3-VL adds in its place; the rest is that model's",
    "joint": "{bridge} and decoder, on questions about whole images",
}


def write_model(architecture, runs: Path, folder: Path, stage: str = "joint") -> None:
    tokenizer = build_tokenizer(architecture.prompt)
    model = architecture.build(tokenizer)
    model.load_state_dict(torch.load(runs / f"{stage}.pt", weights_only=True, map_location="cpu")["modules"]["model"])
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    model.to(torch.bfloat16).save_pretrained(folder)
    architecture.processor(tokenizer).save_pretrained(folder)


def load(folder: Path) -> Loaded:
    """As a user would with stock classes."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return Loaded(model, AutoProcessor.from_pretrained(folder), folder.name, None)


def stages(runs: Path) -> list[dict]:
    """Steps and seconds of each stage, from its log."""
    ran = []
    for stage in STAGES:
        log = runs / f"{stage}.jsonl"
        if log.exists():
            last = json.loads(log.read_text().splitlines()[-1])
            ran.append({"stage": stage, "steps": last["step"], "seconds": last["s"]})
    return ran


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=ARCHITECTURES, default="llava")
    parser.add_argument("--runs", type=Path, help="checkpoints and logs; training/runs/MODEL if not given")
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="for the card")
    arguments = parser.parse_args()
    architecture, folder = ARCHITECTURES[arguments.model], FOLDERS[arguments.model]
    runs = arguments.runs or Path("training/runs") / arguments.model
    write_model(architecture, runs, folder)
    loaded = load(folder)
    accuracy = {}
    for task in reference.TASKS:
        result = evaluate(loaded, load_data(f"reference:{task}", split=SPLIT, limit=arguments.questions), batch=50)
        accuracy[task] = round(result.accuracy_dense.value, 4)
        print(task, result.accuracy_dense, flush=True)
    ran = stages(runs)
    scores = {"accuracy": accuracy, "questions": arguments.questions, "stages": ran}
    scores["machine"] = arguments.machine
    (folder / "scores.json").write_text(json.dumps(scores, indent=2, sort_keys=True) + "\n")
    parameters = sum(p.numel() for p in loaded.model.parameters())
    (folder / "README.md").write_text(card(architecture, scores, parameters))


def card(architecture, scores: dict, parameters: int) -> str:
    """The model card of what was measured."""
    what = {name: text.format(bridge=architecture.bridge) for name, text in STAGE.items()}
    stages = (
        f"| `{s['stage']}` | {what[s['stage']]} | {s['steps']} | {s['seconds'] / 60:.0f} min |"
        for s in scores["stages"]
    )
    accuracy = {task: scores["accuracy"][task] for task in reference.TASKS}
    return (
        (Path(__file__).parent / "card.md")
        .read_text()
        .format(
            architecture=architecture.card,
            parameters=f"{parameters / 1e6:.1f}",
            tasks=len(accuracy),
            questions=scores["questions"],
            scores="\n".join(f"| {task} | {share:.1%} |" for task, share in accuracy.items()),
            stages="\n".join(stages),
            machine=scores["machine"],
            about=architecture.about,
        )
    )


if __name__ == "__main__":
    main()
