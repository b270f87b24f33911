"""What does freezing text before the image cost, where visual tokens are frozen already?

``python benchmarks/before.py``: the reference model, all tasks, prompts as they are and with a system prompt before
them; writes its part of docs/cells.md. Some minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from lookless import Loaded, Plan, Samples, Scores, Skip, calibrate, evaluate, files, load_data, load_model
from lookless.flops import prefill
from lookless.machine import processor
from lookless.markdown import markdown_table, spliced, wrapped
from lookless.runtime.families import locate
from lookless.runtime.prompts import prompts_of
from lookless.search import Objective

PAGE = Path(__file__).parents[1] / "docs" / "cells.md"
BEGIN = "<!-- what follows is written by benchmarks/before.py -->"
END = "<!-- end of what benchmarks/before.py writes -->"
COUNTS = (3, 5, 7, 9)  # layers frozen, of the lowest effect
SYSTEM = "Look at the picture and answer the question. Give the answer alone, in a word or a number. "


def with_system(loaded: Loaded, words: str) -> Loaded:
    """``loaded``, whose prompts begin with ``words``."""
    images = loaded.processor
    images.chat_template = words + images.chat_template
    return replace(loaded, processor=images)


def lengths(loaded: Loaded, samples: Samples) -> dict[str, float]:
    """Mean tokens of a prompt: visual, text, and of it before the image."""
    found = [prompts_of(locate(loaded.model), loaded.inputs([sample])) for sample in samples.items]
    told = [(p.counts[0], len(p.text[0]), len(p.before[0])) for p in found if p is not None]
    return {name: fmean(each) for name, each in zip(("visual", "text", "before"), zip(*told, strict=True), strict=True)}


def table(loaded: Loaded, scores: Scores, test: Samples) -> str:
    """Plans that freeze visual tokens in the layers of the lowest ``scores``, and text before the image too."""
    told = lengths(loaded, test)
    full, objective = Plan.full(scores.geometry), Objective(loaded, test, position="answer", progress=False)
    stock = evaluate(loaded, test, progress=False)
    dense, rows = [answer.dense for answer in stock.answers], []
    whole = prefill(scores.geometry, **told, kept=1).total
    for count in COUNTS:
        image = full.at(scores.lowest(count), attention=Skip(), ffn=Skip())
        for name, plan in {"visual tokens": image, "and text before": image.at(image.frozen, before=Skip())}.items():
            kept = evaluate(loaded, test, plan, dense=dense, progress=False)
            figures = (kept.fidelity, kept.retention)
            shares = [f"{100 * each.value:.1f}" if each is not None else "-" for each in figures]
            price = prefill(scores.geometry, **told, plan=plan, kept=1).total / whole
            rows.append([str(count), name, f"{objective(plan):.4f}", *shares, f"{100 * price:.1f}"])
            print(rows[-1], flush=True)
    heads = ["layers", "frozen", "KL, nats", "same answers, %", "retention, %", "FLOPs, %"]
    lead = (
        f"{told['visual']:.0f} visual tokens and {told['text']:.0f} of text, {told['before']:.0f} of them before the "
        f"image; the full model gets {100 * stock.accuracy_dense.value:.1f} % right."
    )
    return f"{lead}\n\n{markdown_table(heads, rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--fit", type=int, default=20, help="samples to score layers on")
    parser.add_argument("--test", type=int, default=40, help="samples to test on")
    chosen = parser.parse_args(arguments)
    train = load_data("reference", split="calibration", limit=chosen.fit)
    test = load_data("reference", split="test", limit=chosen.test)
    loaded = load_model(chosen.model)
    scores = calibrate(loaded, train, measure="freeze_effect", progress=False)
    parts = [
        f"`{chosen.model}`, all ten tasks; layers scored on {chosen.fit} questions, tested on {chosen.test} others. "
        f"{processor()}.",
        "### Prompts as they are",
        table(loaded, scores, test),
        f'### After the system prompt "{SYSTEM.strip()}"',
        table(with_system(loaded, SYSTEM), scores, test),
    ]
    page = PAGE.read_text(encoding="utf-8")
    files.write_text(PAGE, spliced(page, BEGIN, END, wrapped("\n\n".join(parts))))


if __name__ == "__main__":
    main()
