"""Writes the trained model into the package: weights in bfloat16, processor, model card with measured scores.

``python training/export.py`` after ``python training/train.py all``.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil, GenerationConfig, LlavaProcessor

from architecture import build_model
from describe import PATCH
from lookless import evaluate, load_data, reference
from lookless.loading import load_model
from lookless.reference.worlds import IMAGE_SIZE
from tokens import CHAT_TEMPLATE, build_tokenizer

QUESTIONS = 500
SPLIT = "card"  # images that no choice was made by, as those of "test" were looked at while training
TARGETS = {"existence": 0.95, "attribute": 0.95, "counting": 0.9, "spatial": 0.95, "text": 0.85, "chart": 0.9}


def write_model(runs: Path, folder: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.load_state_dict(torch.load(runs / "joint.pt", weights_only=True)["modules"]["model"])
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.generation_config = GenerationConfig(**ids, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)


def stages(runs: Path) -> list[dict]:
    """Steps and seconds of each stage, from its log."""
    told = []
    for stage in ("tower", "focus", "joint"):
        log = runs / f"{stage}.jsonl"
        if log.exists():
            last = json.loads(log.read_text().splitlines()[-1])
            told.append({"stage": stage, "steps": last["step"], "seconds": last["s"]})
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("training/runs"))
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="for the card")
    arguments = parser.parse_args()
    write_model(arguments.runs, reference.MODEL)
    loaded = load_model("reference")
    accuracy = {}
    for task in reference.TASKS:
        result = evaluate(loaded, load_data(f"reference:{task}", split=SPLIT, limit=arguments.questions), batch=50)
        accuracy[task] = round(result.accuracy_dense.value, 4)
        print(task, result.accuracy_dense, flush=True)
    told = stages(arguments.runs)
    scores = {"accuracy": accuracy, "targets": TARGETS, "questions": arguments.questions, "stages": told}
    scores["machine"] = arguments.machine
    (reference.MODEL / "scores.json").write_text(json.dumps(scores, indent=2, sort_keys=True) + "\n")
    template = (Path(__file__).parent / "card.md").read_text()
    rows = "\n".join(f"| {t} | {accuracy[t]:.1%} | {TARGETS[t]:.0%} |" for t in accuracy)
    trained = "\n".join(f"| {s['stage']} | {s['steps']} | {s['seconds'] / 60:.0f} min |" for s in told)
    card = template.format(
        scores=rows,
        stages=trained,
        questions=arguments.questions,
        machine=arguments.machine,
        parameters=f"{sum(p.numel() for p in loaded.model.parameters()) / 1e6:.1f}",
    )
    (reference.MODEL / "README.md").write_text(card)


if __name__ == "__main__":
    main()
