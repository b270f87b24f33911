"""All 32 layers of LLaVA-1.5-7B under the papers' plans, and how the figures of a few layers compare with them.

``python benchmarks/whole_model.py`` takes 14 GiB of memory and, on two cores with AVX-512, half an hour. Weights are
random. A CPU without bfloat16 instructions needs ``--dtype float32``, and where the weights of all layers do not fit
then, ``--distinct 8``: four layers each have the same ones, which are read from memory for each of them all the same.
In each round stock and plans run in turn on the first layers alone, and then on the whole decoder. Every timing is
stored in benchmarks/runs when it is made, so a run can end after ``--minutes`` and the next one goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers.initialization import no_init_weights

from lookless import Plan, files, flops
from lookless.bench.dummy_model import DummyModel, make_dummy_model
from lookless.bench.prefill_results import STOCK
from lookless.bench.timed_plans import LIVENESS, timed_plan
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
NAMES = (
    STOCK,
    "v-skip",
    "shortv",
    "vtw",
    "fastv",
    "operator-skipping",
    "redundancylens",
    "visipruner",
    LIVENESS,
    "alvts",
)
ROUNDS = {576: 3, 2110: 2}
FEW_LAYERS, WHOLE = "few", "whole"
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
    "first four layers, which ran in turn, too. VisiPruner decides prompt by prompt what remains, here by random "
    "weights: its FLOPs are those of the rows that ran."
)


@dataclass(frozen=True)
class Settings:
    """What is timed.

    Attributes:
        layers: of the model.
        distinct: of them, those with weights of their own.
        dtype: of the weights.
        rounds: by visual tokens of a prompt.
    """

    layers: int
    distinct: int
    dtype: torch.dtype
    rounds: Mapping[int, int]

    @property
    def timings(self) -> list[tuple[int, int, str, str]]:
        """Visual tokens, round, part and name of each, in order."""
        rounds = [(visual, index) for visual, count in self.rounds.items() for index in range(count)]
        return [(*one, part, name) for one in rounds for part in (FEW_LAYERS, WHOLE) for name in NAMES]

    def case(self, visual: int, part: str) -> Case:
        """The layers that are timed."""
        return Case(visual, self.layers if part == WHOLE else min(FEW, self.layers))

    @property
    def weights(self) -> str:
        """Whose weights layers have."""
        if self.distinct == self.layers:
            return "each layer with weights of its own"
        return f"weights of {self.distinct} layers, read from memory again by those that share them"


@dataclass(frozen=True)
class Case:
    """Rows of a prompt on the first ``layers`` layers."""

    visual: int
    layers: int

    @property
    def geometry(self) -> Geometry:
        return Geometry.preset(MODEL).model_copy(update={"layers": self.layers})

    def plan(self, name: str) -> Plan | None:
        return None if name == STOCK else timed_plan(name, self.geometry)

    def flops(self, plan: Plan | None) -> float | None:
        """Of one prefill, by the formula; None where a plan decides what it does."""
        if plan is None:
            return flops.prefill(self.geometry, visual=self.visual, text=TEXT).total
        if not plan.is_static:
            return None
        return flops.prefill(self.geometry, visual=self.visual, text=TEXT, plan=plan, kept=1).total


def make_whole(layers: int, distinct: int, dtype: torch.dtype) -> DummyModel:
    """The model, its weights one small random block again and again: drawing seven billion numbers takes minutes.
    Layers after the first ``distinct`` have the weights of earlier ones."""
    with no_init_weights():
        made = make_dummy_model(shape_named(MODEL).cut(min(layers, distinct)), dtype=dtype)
    block = (0.02 * torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))).to(dtype)
    with torch.no_grad():
        for weight in made.model.parameters():
            if weight.dim() > 1:  # norms are ones
                for part in weight.view(-1).split(len(block)):
                    part.copy_(block[: len(part)])
    decoder = made.model.model.language_model
    for index in range(distinct, layers):
        known = decoder.layers[index % distinct]
        layer = copy.deepcopy(known, {id(weight): weight for weight in known.parameters()})
        layer.self_attn.layer_idx = index
        decoder.layers.append(layer)
    made.model.config.get_text_config().num_hidden_layers = layers
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
def timed(made: DummyModel, case: Case, name: str) -> dict[str, float]:
    """Milliseconds of the layers, and FLOPs, of a plan or of the stock model."""
    before, plan = TEXT // 2, case.plan(name)
    inputs = made.inputs(visual=case.visual, before=before, after=TEXT - before, batch=1)
    with first_layers(made.model, case.layers):
        clock = Clock.of_layers(made.model.model.language_model.layers)
        with applied(made.model, plan), trace(made.model) as counted:
            made.model(**inputs, use_cache=True, logits_to_keep=1)
        clock.remove()
    rows = enumerate(counted.layers)
    spent = case.flops(plan) or sum(flops.layer(case.geometry, index, **row) for index, row in rows)
    print(f"{case.visual} visual tokens, {case.layers} layers, {name}: {clock.ms:.0f} ms", flush=True)
    return {"ms": clock.ms, "flops": spent}


def stored(folder: Path, timing: tuple[int, int, str, str]) -> Path:
    """Where one timing is."""
    visual, index, part, name = timing
    return folder / f"whole-{visual}-{index}-{part}-{name.replace(' ', '-')}.json"


def run(folder: Path, settings: Settings, minutes: float) -> None:
    """Make the timings that are not stored, as many as begin within ``minutes``."""
    started, made, warm = time.monotonic(), None, 0
    for timing in settings.timings:
        visual, _, part, name = timing
        path = stored(folder, timing)
        if path.exists():
            continue
        if time.monotonic() - started > 60 * minutes:
            return
        made = made or make_whole(settings.layers, settings.distinct, settings.dtype)
        if warm != visual:  # the first call of a length takes a fifth longer: its memory is new
            timed(made, settings.case(visual, FEW_LAYERS), STOCK)
            warm = visual
        files.write_text(path, json.dumps(timed(made, settings.case(visual, part), name), indent=1))


@dataclass(frozen=True)
class Share:
    """A plan's time and FLOPs, also as shares of the stock model's; of times the medians of the rounds."""

    seconds: float
    tflops: float
    time: float
    flops: float

    @classmethod
    def of(cls, name: str, rounds: list[dict[str, dict[str, float]]]) -> Share:
        """Of ``name`` in ``rounds``, each with what was timed by its name."""
        mine, full = rounds[0][name]["flops"], rounds[0][STOCK]["flops"]
        return cls(
            seconds=median(each[name]["ms"] for each in rounds) / 1e3,
            tflops=mine / 1e12,
            time=median(each[name]["ms"] / each[STOCK]["ms"] for each in rounds),
            flops=mine / full,
        )

    def expected(self, few: Share) -> float:
        """Time kept, if a FLOP cost as much over one of stock's as in ``few`` layers."""
        return self.flops * few.time / few.flops


def rounds_of(folder: Path, settings: Settings, visual: int, part: str) -> list[dict[str, dict[str, float]]]:
    """What is stored of each round, by name."""
    rounds: dict[int, dict[str, dict[str, float]]] = {}
    for timing in settings.timings:
        path = stored(folder, timing)
        if (timing[0], timing[2]) == (visual, part) and path.exists():
            rounds.setdefault(timing[1], {})[timing[3]] = json.loads(path.read_text())
    return [each for each in rounds.values() if STOCK in each]


def section(folder: Path, settings: Settings, visual: int) -> str:
    """A heading, sentences and the table; empty if nothing was timed."""
    found = {part: rounds_of(folder, settings, visual, part) for part in (WHOLE, FEW_LAYERS)}
    rounds = found[WHOLE]
    rows, off = [], []
    for name in NAMES:
        whole, few = (
            Share.of(name, mine) if (mine := [each for each in found[part] if name in each]) else None
            for part in (WHOLE, FEW_LAYERS)
        )
        if whole is None:
            continue
        cells = [name, f"{whole.seconds:.1f}", f"{whole.tflops:.3g} ({whole.flops:.1%})", f"{whole.time:.1%}"]
        cells.append("-" if name == STOCK else f"{(1 - whole.time) / (1 - whole.flops):.2f}")
        if few is not None:
            cells += ["-" if name == STOCK else f"{whole.expected(few):.1%}", f"{few.flops:.1%}", f"{few.time:.1%}"]
            off += [abs(whole.expected(few) - whole.time)] * (name != STOCK)
        rows.append((*cells, *["-"] * (len(HEADS) - len(cells))))
    if not rows:
        return ""
    few_layers = min(FEW, settings.layers)
    about = (
        f"{str(settings.dtype).removeprefix('torch.')}, {settings.weights}; {processor()}, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}; {len(rounds)} round{'s' * (len(rounds) > 1)}, timed in turn."
    )
    if off:
        about += (
            f" What {few_layers} layers let expect is off by {100 * sum(off) / len(off):.1f} points of time kept on "
            f"average and by {100 * max(off):.1f} at most."
        )
    title = f"### {MODEL}, {settings.layers} layers: {visual} visual and {TEXT} text tokens, batch 1"
    return "\n\n".join([title, about, markdown_table(HEADS, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = Geometry.preset(MODEL).layers
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs")
    parser.add_argument("--visual", type=int, action="append", help="tokens of a prompt; 576 and 2110 if not given")
    parser.add_argument("--rounds", type=int, help="3 of 576 visual tokens and 2 of 2110 if not given")
    parser.add_argument("--minutes", type=float, default=1e9, help="no timing begins later than that")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--layers", type=int, default=whole, help="fewer, to try the script")
    parser.add_argument("--distinct", type=int, default=whole, help="layers with weights of their own")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    lengths = {v: given.rounds or ROUNDS.get(v, 1) for v in given.visual or ROUNDS}
    settings = Settings(given.layers, min(given.layers, given.distinct), getattr(torch, given.dtype), lengths)
    run(given.runs, settings, given.minutes)
    found = [section(given.runs, settings, visual) for visual in lengths]
    if any(found):
        before = given.page.read_text() if given.page.exists() else ""
        files.write_text(given.page, spliced(before, BEGIN, END, wrapped("\n\n".join([WHAT, *filter(None, found)]))))


if __name__ == "__main__":
    main()
