"""Where the reference models need their visual work; writes docs/reference_model.md.

Each operator of each layer is skipped by itself (KL of the next token), then all layers of an operator
at once (answers kept). It says how these models are like the papers' and how they are not.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from lookless import LayerPlan, Loaded, Plan, Skip, evaluate, load_data, load_model, reference, sweep
from lookless.runtime.families import geometry_of

SAMPLES, QUESTIONS = 20, 100
EDITS = {
    "attention": {"attention": Skip()},
    "ffn": {"ffn": Skip()},
    "both": {"attention": Skip(), "ffn": Skip()},
}
READING = """\
How to read it, and what these models are not. As in the papers, visual attention matters early and saturates with
depth, and how far differs by task: counting needs it most. Unlike the papers' models, these need little
visual work in the decoder altogether: their towers were trained on dense labels (what each patch shows, which place
a character has, how tall a bar is), so a patch carries nearly all that a question asks for, and text tokens
read it from any layer. Even frozen visual tokens keep most answers, of the LLaVA more than of the Qwen3-VL. In the
papers visual FFNs matter more than visual attention (V-Skip, Table 8: FFN-Skip loses first); in the LLaVA neither does,
in the Qwen3-VL they do. So a plan's *price* and *speed* can be studied on both, and that skipping where the scores are
low is safe; how fast answers are lost when a method errs shows on counting and text, and on every task where tokens are
dropped (results.md). What would bring them nearer: a decoder that has read text first, a tower with sparser
supervision, and questions that join several objects."""
PAGE = Path(__file__).parents[1] / "docs" / "reference_model.md"


def effects_of(loaded: Loaded) -> dict[tuple[str, str], tuple[float, ...]]:
    """(task, operator) to the mean KL of skipping it in each layer."""
    effects = {}
    for task in reference.TASKS:
        samples = load_data(f"reference:{task}", split="calibration", limit=SAMPLES)
        for edit, cells in EDITS.items():
            effects[task, edit] = sweep(loaded, samples, LayerPlan(**cells), name=edit).mean
            print(loaded.name, task, edit, flush=True)
    return effects


def section(loaded: Loaded) -> list[str]:
    """One model's tables."""
    geometry = geometry_of(loaded.model)
    layers, effects = geometry.layers, effects_of(loaded)
    lines = [
        f"## {loaded.name}: {geometry.model_type}",
        "",
        "### Mean over the six tasks",
        "",
        "| layer | attention | ffn | both |",
        "|---|---|---|---|",
    ]
    for layer in range(layers):
        cells = (fmean(effects[task, edit][layer] for task in reference.TASKS) for edit in EDITS)
        lines.append(f"| {layer} | " + " | ".join(f"{value:.5f}" for value in cells) + " |")
    lines += ["", "### Attention, task by task", "", "| layer | " + " | ".join(reference.TASKS) + " |"]
    lines += ["|---|" + "---|" * len(reference.TASKS)]
    for layer in range(layers):
        row = (effects[task, "attention"][layer] for task in reference.TASKS)
        lines.append(f"| {layer} | " + " | ".join(f"{value:.5f}" for value in row) + " |")
    lines += [
        "",
        "### All layers at once",
        "",
        "Share of the dense model's right answers kept when the operator is skipped in every layer or the last half,",
        f"{QUESTIONS} test questions a task.",
        "",
        "| task | dense accuracy | " + " | ".join(f"{e}, {w}" for e in EDITS for w in ("all", "last half")) + " |",
        "|---|---|" + "---|" * 2 * len(EDITS),
    ]
    for task in reference.TASKS:
        test = load_data(f"reference:{task}", limit=QUESTIONS)
        dense = evaluate(loaded, test)
        answers = [answer.dense for answer in dense.answers]
        row = []
        for cells in EDITS.values():
            for skipped in (range(layers), range(layers // 2, layers)):
                result = evaluate(loaded, test, Plan.full(layers).at(skipped, **cells), dense=answers)
                row.append("-" if result.retention is None else f"{result.retention.value:.0%}")
        lines.append(f"| {task} | {dense.accuracy_dense.value:.0%} | " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    lines = [
        "# Where the reference models need their visual work",
        "",
        READING,
        "",
        "Written by `python -m training.operator_profile`. KL in nats, the full model to the model with one operator",
        f"of one layer skipped for visual tokens; next token at the last prompt token, {SAMPLES} images a task, fp32.",
    ]
    for name in reference.NAMES:
        lines += ["", *section(load_model(name))]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
