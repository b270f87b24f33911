"""All 32 layers of LLaVA-1.5-7B under the papers' plans, and how the figures of a few layers compare with them.

``python benchmarks/whole_model.py`` takes 14 GiB of memory and half an hour on two cores. Weights are random. Each
group of a round times stock and some plans in turn, on the whole decoder and on its first layers alone, and is stored
in benchmarks/runs as soon as it is timed, so a run can end after ``--minutes`` and the next one goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers.initialization import no_init_weights

from lookless import Plan, files, flops, methods
from lookless.bench.dummy_model import DummyModel, make_dummy_model
from lookless.bench.prefill_results import STOCK
from lookless.bench.timing import Clock
from lookless.configs import shape_named
from lookless.geometry import Geometry
from lookless.machine import processor
from lookless.markdown import markdown_table, spliced, wrapped
from lookless.runtime.patching import applied
from lookless.runtime.tracing import trace

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
BEGIN = "<!-- what follows is written by benchmarks/whole_model.py -->"
END = "<!-- end of what benchmarks/whole_model.py writes -->"
MODEL, TEXT, FEW = "LLaVA-1.5-7B", 66, 4
LIVE = "nothing but liveness"
#: plans timed together with one timing of the stock model
GROUPS = (
    (LIVE, "v-skip", "operator-skipping", "redundancylens", "alvts"),
    ("shortv", "vtw", "fastv", "visipruner"),
)
ROUNDS = {576: 3, 2110: 2}
HEADS = (
    "",
    "prefill s",
    "TFLOPs (kept)",
    "time kept",
    "efficiency",
    "expected of 4 layers",
    "4 layers: FLOPs kept",
    "4 layers: time kept",
)
WHAT = (
    "Expected of 4 layers: the FLOPs kept of all 32, times what a FLOP of this plan costs over one of stock's in the "
    "first four layers, which ran in the same rounds. VisiPruner decides prompt by prompt what remains, here by random "
    "weights: its FLOPs are those of the rows that ran."
)


@dataclass(frozen=True)
class Case:
    """Rows of a prompt on the first ``layers`` layers."""

    visual: int
    layers: int

    @property
    def geometry(self) -> Geometry:
        return Geometry.preset(MODEL).model_copy(update={"layers": self.layers})

    def plan(self, name: str) -> Plan | None:
        if name == STOCK:
            return None
        return Plan.full(self.geometry).live() if name == LIVE else methods.METHODS[name].sample(self.geometry)

    def flops(self, plan: Plan | None) -> float | None:
        """Of one prefill, by the formula; None where a plan decides what it does."""
        if plan is None:
            return flops.prefill(self.geometry, visual=self.visual, text=TEXT).total
        if not plan.is_static:
            return None
        return flops.prefill(self.geometry, visual=self.visual, text=TEXT, plan=plan, kept=1).total


def make_whole(layers: int) -> DummyModel:
    """The model, its weights one small random block again and again: drawing seven billion numbers takes minutes."""
    with no_init_weights():
        made = make_dummy_model(shape_named(MODEL).cut(layers), dtype=torch.bfloat16)
    block = (0.02 * torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))).bfloat16()
    with torch.no_grad():
        for weight in made.model.parameters():
            if weight.dim() > 1:  # norms are ones
                for part in weight.view(-1).split(len(block)):
                    part.copy_(block[: len(part)])
    return made


@contextmanager
def first_layers(model: Any, count: int) -> Iterator[None]:
    """The model with its first ``count`` layers alone."""
    decoder, text = model.model.language_model, model.config.get_text_config()
    every, before = decoder.layers, text.num_hidden_layers
    decoder.layers, text.num_hidden_layers = every[:count], count
    try:
        yield
    finally:
        decoder.layers, text.num_hidden_layers = every, before


@torch.no_grad()
def timed(made: DummyModel, case: Case, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Milliseconds of the layers, and FLOPs, of stock and of plans by name, one after the other."""
    before = TEXT // 2
    inputs = made.inputs(visual=case.visual, before=before, after=TEXT - before, batch=1)
    found = {}
    with first_layers(made.model, case.layers):
        clock = Clock.of_layers(made.model.model.language_model.layers)
        for name in (STOCK, *names):
            plan = case.plan(name)
            with applied(made.model, plan), trace(made.model) as counted:
                made.model(**inputs, use_cache=True, logits_to_keep=1)
            rows = enumerate(counted.layers)
            spent = case.flops(plan) or sum(flops.layer(case.geometry, index, **row) for index, row in rows)
            found[name] = {"ms": clock.ms, "flops": spent}
            print(f"{case.visual} visual tokens, {case.layers} layers, {name}: {clock.ms:.0f} ms", flush=True)
        clock.remove()
    return found


def groups_of(folder: Path, visual: int, rounds: int) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The file of each group of each round, and the plans in it."""
    for index in range(rounds):
        for number, names in enumerate(GROUPS):
            yield folder / f"whole-{visual}-{index}-{number}.json", names


def run(folder: Path, layers: int, visuals: list[int], rounds: int | None, minutes: float) -> None:
    """Time the groups that are not stored, as many as begin within ``minutes``."""
    started, made = time.monotonic(), None
    for visual in visuals:
        for path, names in groups_of(folder, visual, rounds or ROUNDS.get(visual, 1)):
            if path.exists():
                continue
            if time.monotonic() - started > 60 * minutes:
                return
            if made is None:
                made = make_whole(layers)
                timed(made, Case(64, min(FEW, layers)), ())  # a warm-up
            cases = {"few": Case(visual, min(FEW, layers)), "whole": Case(visual, layers)}
            found = {which: timed(made, case, names) for which, case in cases.items()}
            files.write_text(path, json.dumps(found, indent=1))


@dataclass(frozen=True)
class Share:
    """A plan's time and FLOPs as shares of the stock model's, and both: medians of the rounds."""

    seconds: float
    tflops: float
    time: float
    flops: float


def shares(found: list[dict[str, dict[str, float]]], name: str) -> Share:
    """Of ``name``, from the groups that it was timed in."""
    mine = [group for group in found if name in group]
    return Share(
        seconds=median(group[name]["ms"] for group in mine) / 1e3,
        tflops=mine[0][name]["flops"] / 1e12,
        time=median(group[name]["ms"] / group[STOCK]["ms"] for group in mine),
        flops=mine[0][name]["flops"] / mine[0][STOCK]["flops"],
    )


def section(folder: Path, visual: int, rounds: int) -> str:
    """A heading, a sentence and the table; empty if nothing was timed."""
    stored = [json.loads(path.read_text()) for path, _ in groups_of(folder, visual, rounds) if path.exists()]
    if not stored:
        return ""
    few, whole = ([group[which] for group in stored] for which in ("few", "whole"))
    rows, off = [], []
    for name in (STOCK, *(n for names in GROUPS for n in names)):
        if not any(name in group for group in whole):
            continue
        one, cut = shares(whole, name), shares(few, name)
        expected = one.flops * cut.time / cut.flops
        if name != STOCK:
            off.append(abs(expected - one.time))
        saves = name != STOCK and one.flops < 1
        rows.append(
            (
                name,
                f"{one.seconds:.1f}",
                f"{one.tflops:.3g} ({one.flops:.1%})",
                f"{one.time:.1%}",
                f"{(1 - one.time) / (1 - one.flops):.2f}" if saves else "-",
                f"{expected:.1%}" if name != STOCK else "-",
                f"{cut.flops:.1%}",
                f"{cut.time:.1%}",
            )
        )
    count = {sum(name in group for group in whole) for names in GROUPS for name in names}
    times = " to ".join(map(str, sorted({min(count), max(count)})))
    about = (
        f"bfloat16, {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}; each plan timed "
        f"{times} times, in turn with stock. What four layers let expect is off by {100 * sum(off) / len(off):.1f} "
        f"points of time kept on average and by {100 * max(off):.1f} at most."
    )
    return "\n\n".join([f"### All 32 layers: {visual} visual and {TEXT} text tokens", about, markdown_table(HEADS, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs")
    parser.add_argument("--visual", type=int, action="append", help="tokens of a prompt; 576 and 2110 if not given")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--minutes", type=float, default=1e9, help="no group begins later than that")
    parser.add_argument("--layers", type=int, default=Geometry.preset(MODEL).layers, help="fewer, to try the script")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    visuals = given.visual or [*ROUNDS]
    run(given.runs, given.layers, visuals, given.rounds, given.minutes)
    found = [section(given.runs, visual, given.rounds or ROUNDS.get(visual, 1)) for visual in visuals]
    if any(found):
        before = given.page.read_text() if given.page.exists() else ""
        files.write_text(given.page, spliced(before, BEGIN, END, wrapped("\n\n".join([WHAT, *filter(None, found)]))))


if __name__ == "__main__":
    main()
