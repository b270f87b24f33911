"""Times the papers' methods at the real layer shapes of four models, and padded batches; writes docs/performance.md.

``python benchmarks/performance.py``: half an hour on two cores. Results are stored in benchmarks/runs, and a rerun
resumes from them.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from transformers import DynamicCache

import lookless
from lookless import Plan, files, methods
from lookless.bench import prefill_report as report
from lookless.bench.dummy_model import IMAGE, WORD, make_dummy_model
from lookless.bench.prefill import Whole, bench_prefill
from lookless.bench.prefill_results import SCHEMA_VERSION, STOCK, PrefillReport
from lookless.bench.subjects import subject_of_geometry
from lookless.bench.timed_plans import timed_plans
from lookless.bench.timing import Clock
from lookless.configs import shape_named
from lookless.errors import LooklessError
from lookless.figures import TimeKept, save_figure, time_figure
from lookless.geometry import Geometry
from lookless.markdown import markdown_table, spliced, wrapped
from lookless.runtime.patching import applied

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
FIGURE = ROOT / "docs" / "images" / "performance.png"
BEGIN = "<!-- what follows is written by benchmarks/performance.py -->"
END = "<!-- end of what benchmarks/performance.py writes -->"
METHODS = ("v-skip", "operator-skipping", "shortv", "vtw", "fastv")
TEXT = 66
PADDED = (
    "Six layers of LLaVA-1.5-7B, eight prompts of 96 to 384 tokens, four fifths of them visual, padded on the left; "
    "bfloat16, median of 5 rounds, timed in turn."
)
UNDER = "a prompt with an image, under the break-even point"
NO_PLAN = (
    "`apply(model, plan, break_even=N)` on the shipped reference model, whose layers take half a millisecond; "
    "float32, median of 120 pairs, timed in turn."
)
CUT = (
    "Three or four layers of each model ran, one of them as its last, where work on visual tokens is dead: its result "
    "is never read. In a whole model that is one layer of 28 to 36. So skipping dead work saves a larger share here, "
    "and what a plan keeps of these layers is not what it keeps of the whole model."
)
#: (geometry, visual tokens, layers, rounds): as many layers and rounds as two cores do in minutes
RUNS = (
    ("LLaVA-1.5-7B", 576, 4, 7),
    ("LLaVA-NeXT-7B", 2110, 3, 4),
    ("Qwen2.5-VL-7B", 1200, 3, 5),
    ("Qwen3-VL-8B", 1200, 3, 5),
    ("Qwen2.5-VL-7B", 4800, 3, 3),
    ("Qwen3-VL-8B", 4800, 3, 3),
)


def timed(folder: Path, device: str) -> list[PrefillReport]:
    reports = []
    for name, visual, layers, rounds in RUNS:
        path = folder / f"{name}-{visual}-{device}.json"
        if path.exists():
            reports.append(files.load(path, PrefillReport, LooklessError, SCHEMA_VERSION))
            continue
        subject = subject_of_geometry(name, layers=layers, dtype="bfloat16", device=device, visual=[visual], text=TEXT)
        whole = Geometry.preset(name)
        [inputs] = subject.prompts(1)
        found = bench_prefill(
            subject.model,
            inputs,
            timed_plans(subject.geometry, METHODS),
            name=subject.name,
            whole=Whole(whole, timed_plans(whole, METHODS)),
            repeats=rounds,
            warm_up=1,
            decode=2,
        )
        files.write_text(path, files.dump(found))
        reports.append(found)
        print(path, flush=True)
    return reports


@torch.no_grad()
def padded(rounds: int = 5) -> str:
    """Eight prompts of one to four times a length in one batch: stock computes the padding, too."""
    made = make_dummy_model(shape_named("LLaVA-1.5-7B").cut(6), dtype=torch.bfloat16)
    lengths = [n * 96 for n in (1, 1, 2, 2, 3, 3, 4, 4)]
    ids = torch.full((8, max(lengths)), WORD)
    mask = torch.zeros_like(ids)
    visual = [round(0.8 * n) for n in lengths]
    for b, (length, count) in enumerate(zip(lengths, visual, strict=True)):
        mask[b, -length:] = 1
        ids[b, -length + 8 : -length + 8 + count] = IMAGE
    inputs = made.inputs(visual=sum(visual), before=1, after=1, batch=1) | {"input_ids": ids, "attention_mask": mask}
    plans: dict[str, Plan | None] = {"stock": None, **timed_plans(made.geometry, ("v-skip", "shortv"))}
    each: dict[str, list[float]] = {name: [] for name in plans}
    clock = Clock.of_layers(made.model.model.language_model.layers)
    for index in range(rounds + 1):
        for name, plan in plans.items():
            with applied(made.model, plan):
                made.model(**inputs, logits_to_keep=1)
            if index:
                each[name].append(clock.ms)
    clock.remove()
    shares = {name: median(s / t for s, t in zip(each["stock"], times, strict=True)) for name, times in each.items()}
    return markdown_table(("", "real tokens/s, over stock's"), ((n, f"{s:.2f}") for n, s in shares.items()))


def figure(reports: list[PrefillReport]) -> None:
    """Every plan on every model: time kept by FLOPs kept."""
    points = [
        TimeKept(t.name, f"{r.model.split(',')[0]}, {r.visual} visual tokens", t.flops_kept, t.time_kept)
        for r in reports
        for t in r.timed
        if t.name != STOCK and t.flops_kept is not None
    ]
    save_figure(time_figure(points, report.describe(reports[0]).split(";")[0]), FIGURE)


@torch.no_grad()
def overhead(rounds: int = 60) -> str:
    """What ``apply`` costs where no plan runs, over stock's time, on the shipped model, whose layers are small."""
    loaded = lookless.load_model("reference")
    image = loaded.inputs(lookless.load_data("reference:chart", split="test", limit=1).items)
    model, ids = loaded.model, image["input_ids"]
    text = {"input_ids": torch.full_like(ids, int(ids[0, -1])), "attention_mask": image["attention_mask"]}
    plan = methods.METHODS["shortv"].sample(lookless.Geometry.from_config(model.config))
    each: dict[str, list[tuple[float, float]]] = {UNDER: [], "a prompt without an image": [], "a decode step": []}

    def times(plan: Plan | None) -> list[float]:
        cache, taken = DynamicCache(config=model.config.get_text_config()), []
        calls = [lambda: model(**image, past_key_values=cache, logits_to_keep=1), lambda: model(**text)]
        calls += [lambda: model(input_ids=ids[:, -1:], past_key_values=cache)] * 5
        with nullcontext() if plan is None else lookless.apply(model, plan, break_even=10**9):
            for call in calls:
                started = time.perf_counter()
                call()
                taken.append(time.perf_counter() - started)
        return [*taken[:2], median(taken[2:])]

    for index in range(2 * rounds):
        order = (None, plan) if index % 2 else (plan, None)  # the second one finds warmer caches
        found = {which is None: times(which) for which in order}
        for name, ours, stock in zip(each, found[False], found[True], strict=True):
            each[name].append((ours, stock))
    shares = {name: median(ours / stock for ours, stock in pairs[4:]) for name, pairs in each.items()}
    return markdown_table(("", "time, over stock's"), ((name, f"{share:.3f}") for name, share in shares.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    reports = timed(arguments.runs, arguments.device)
    figure(reports)
    parts = ["![Time kept by FLOPs kept](images/performance.png)", CUT, report.note(reports)]
    parts += map(report.markdown_section, reports)
    parts += ["### Padded batches", PADDED, padded(), "### Where no plan runs", NO_PLAN, overhead()]
    before = PAGE.read_text() if PAGE.exists() else ""
    files.write_text(PAGE, spliced(before, BEGIN, END, wrapped("\n\n".join(parts))))


if __name__ == "__main__":
    main()
