"""What a checkpoint knows, and what it loses without its visual work: ``python -m training.needs --stage joint``.

Issues a table: answers right, task by task, of the whole model and with operators skipped for visual tokens; and the
KL of the next token when visual attention or FFN of one layer is skipped, mean over tasks.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

from lookless import Keep, LayerPlan, Plan, Skip, evaluate, reference, sweep
from lookless.data import Sample, Samples
from lookless.reference.questions import HARDER, TASKS

from .architecture import ARCHITECTURES
from .export import load, write_model

SAMPLES = 10  # a task, for the KL
LONGEST = 24  # tokens of an answer


def posed(task: str, split: str, limit: int) -> Samples:
    """As ``load_data``, which knows the tasks of the shipped models only."""
    asked = (reference.question(task, split, i) for i in range(limit))
    return Samples(f"reference:{task}", tuple(Sample((image,), question, answer) for image, question, answer in asked))


def plans(layers: int) -> dict[str, Plan]:
    full, late = Plan.full(layers), range(layers - layers // 3, layers)
    return {
        "attention": full.at(range(layers), attention=Skip()),
        "attention, last third": full.at(late, attention=Skip()),
        "ffn": full.at(range(layers), ffn=Skip()),
        "ffn, last third": full.at(late, ffn=Skip()),
        "both": full.at(range(layers), attention=Skip(), ffn=Skip()),
        "withdrawn at a third": full.at([layers // 3], keep=Keep(0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=ARCHITECTURES, default="llava")
    parser.add_argument("--runs", type=Path, help="checkpoints and logs; training/runs/MODEL if not given")
    parser.add_argument("--stage", default="joint")
    parser.add_argument("--questions", type=int, default=100, help="a task")
    parser.add_argument("--split", default="test")
    parser.add_argument("--dense", action="store_true", help="the whole model alone")
    arguments = parser.parse_args()
    runs = arguments.runs or Path("training/runs") / arguments.model
    folder = runs / "model"
    write_model(ARCHITECTURES[arguments.model], runs, folder, arguments.stage)
    loaded = load(folder)
    layers = loaded.model.config.text_config.num_hidden_layers
    edits = {} if arguments.dense else plans(layers)
    print("| task | full | " + " | ".join(edits) + " |\n|---|---|" + "---|" * len(edits))
    kept: dict[str, list[float]] = {name: [] for name in edits}
    for task in TASKS | HARDER:
        samples = posed(task, arguments.split, arguments.questions)
        how = {"batch": 50, "max_new_tokens": LONGEST, "progress": False}
        dense = evaluate(loaded, samples, **how)
        row = [f"{dense.accuracy_dense.value:.0%}"]
        for name, plan in edits.items():
            result = evaluate(loaded, samples, plan, dense=[a.dense for a in dense.answers], **how)
            if result.retention is not None:
                kept[name].append(result.retention.value)
            row.append("-" if result.retention is None else f"{result.retention.value:.0%}")
        print(f"| {task} | " + " | ".join(row) + " |", flush=True)
    if not edits:
        return
    print("| mean | | " + " | ".join(f"{fmean(shares):.0%}" for shares in kept.values()) + " |\n", flush=True)
    for name, cells in (("attention", LayerPlan(attention=Skip())), ("ffn", LayerPlan(ffn=Skip()))):
        effects = [sweep(loaded, posed(t, "calibration", SAMPLES), cells, name=name).mean for t in TASKS | HARDER]
        print(name, " ".join(f"{fmean(layer):.4f}" for layer in zip(*effects, strict=True)), flush=True)


if __name__ == "__main__":
    main()
