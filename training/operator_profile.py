"""Where the reference models need their visual work: ``python -m training.operator_profile``.

Measures each shipped model (:mod:`training.needs`), keeps the figures in ``needs.json`` in a working folder, and writes
docs/reference_model.md from them. A rerun measures only what is missing.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from lookless import load_model, reference
from lookless.markdown import wrapped

from .needs import DRAWS, FEWER, Against, Needs, examine, table, targets

PAGE = Path(__file__).parents[1] / "docs" / "reference_model.md"
QUESTIONS, IMAGES = 100, 10
INTRODUCTION = f"""\
# Where the reference models need their visual work

Two small trained models ship with the package. What they lose without visual work decides what
can be studied on them. This page measures it; `python -m training.operator_profile` writes it.

* **Answers kept**: of the right answers of the full model, the share that stays right under a plan,
  {QUESTIONS} test questions a task, greedy, exact match, fp32. The mean is of the tasks' ratios.
* **Divergence**: KL in nats from the full model's next token to that of the model with one change
  in one layer, at the last prompt token, {IMAGES} images a task, mean over tasks. `attention` and `ffn`
  are skipped for visual tokens; under `reading` text does not attend to that layer's visual keys;
  under `withdrawal` no visual token remains from that layer on.
* **By the number of layers that skip**: answers kept when visual attention (V-Skip) or FFNs (FFN-Skip)
  are skipped in so many layers, those with the lowest divergence first; {QUESTIONS // FEWER} questions a task.
* **Chosen and random**: visual attention skipped in the layers with the lowest divergence, against
  {DRAWS} random draws of as many layers, {QUESTIONS // FEWER} questions a task; FastV's tokens against random ones.
"""

#: What to make of the figures; written by hand after each training.
READING = {
    "reference": """
A LLaVA whose tower has one layer, so the decoder has to look. As in the papers, visual attention and
FFNs are needed early and not late: layers 0 to 3 work out what is where, layers 5 to 11 read it, and
the last third does nothing for visual tokens that the answer can see. Text and lists of objects lose
everything without either operator. Which layers skip matters: at V-Skip's relative depth (7 of 12)
the layers of lowest divergence keep far more than random ones. Two figures are unlike the papers'.
FFN-Skip keeps more than V-Skip at every depth (V-Skip, Table 8, has it the other way round): what
FFNs do for visual tokens is nearly all in layers 2 and 3. And FastV's attention ranks no better than
chance at its paper's depth, as text does not read the image in the first layers; from the middle on
it ranks better than chance.
""",
    "reference-qwen3-vl": """
A Qwen3-VL, with grouped queries, M-RoPE and DeepStack, whose tower has one layer, too. It answers
better than the LLaVA and needs its visual work as much, at much the same depths: layers 0 to 4 work
out what is where, layers 8 to 11 read it, and skipping visual attention in the last third loses
nothing. The layers of lowest divergence keep far more than random ones. FastV's tokens beat random
ones clearly from the middle layer on, with a quarter of them 92 against 58 %; at its paper's depth
they do on average, but not on every task. FFN-Skip keeps more than V-Skip here as well.
""",
}


def prose(text: str) -> str:
    """``text`` wrapped anew: a line that begins no paragraph, item or heading continues the one before."""
    return wrapped(re.sub(r"(?<!\n)\n +|(?<!\n)\n(?![\n*#])", " ", text.strip()))


def section(name: str, needs: Needs) -> Iterator[str]:
    """One model's tables."""
    yield f"\n## {name}\n"
    yield prose(READING[name]) + "\n"
    yield "### Answers kept\n"
    yield from table(needs)
    yield "\n### Divergence by layer\n"
    yield "| layer | " + " | ".join(needs.divergence) + " |\n|---|" + "---|" * len(needs.divergence)
    rows = zip(*(needs.by_layer(operator) for operator in needs.divergence), strict=True)
    for layer, values in enumerate(rows):
        yield f"| {layer} | " + " | ".join(f"{value:.4f}" for value in values) + " |"
    yield "\nOf `attention`, task by task:\n"
    by_task = needs.divergence["attention"]
    yield "| layer | " + " | ".join(by_task) + " |\n|---|" + "---|" * len(by_task)
    for layer, values in enumerate(zip(*by_task.values(), strict=True)):
        yield f"| {layer} | " + " | ".join(f"{value:.4f}" for value in values) + " |"
    yield "\n### By the number of layers that skip\n"
    yield "| layers | " + " | ".join(needs.skipped) + " |\n|---|" + "---|" * len(needs.skipped)
    for count in needs.skipped["attention"]:
        yield f"| {count} | " + " | ".join(f"{kept[count]:.0%}" for kept in needs.skipped.values()) + " |"
    yield "\n### Chosen and random\n"
    yield "| what | chosen | random | difference, 95 % interval |\n|---|---|---|---|"
    for count, found in needs.layers.items():
        yield _against(f"attention skipped in {count} layers", found)
    for place, found in needs.tokens.items():
        yield _against(f"tokens kept: {place}", found)
    missed = [target for target in targets(needs) if not target.is_met]
    if missed:
        yield "\n### What this model does not show\n"
        yield from (f"* {target.what}: {target.value:.3g}, expected {target.bound}" for target in missed)


def _against(what: str, found: Against) -> str:
    difference = f"{found.chosen - found.random:+.0%} [{found.low:+.0%}, {found.high:+.0%}]"
    return f"| {what} | {found.chosen:.0%} | {found.random:.0%} | {difference} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("training/runs"), help="folder of the figures")
    arguments = parser.parse_args()
    lines = [prose(INTRODUCTION)]
    for name in reference.NAMES:
        figures = arguments.work / f"{name}-needs.json"
        if not figures.exists():
            needs = examine(load_model(name), reference.tasks_of(name), questions=QUESTIONS, images=IMAGES, draws=DRAWS)
            figures.parent.mkdir(parents=True, exist_ok=True)
            figures.write_text(needs.model_dump_json(indent=1) + "\n")
        lines += section(name, Needs.model_validate_json(figures.read_text()))
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
