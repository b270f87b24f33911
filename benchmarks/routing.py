"""A plan per request: retention of a mixed stream when it is routed, told its tasks, or under one plan for all.

``python benchmarks/routing.py``: the shipped LLaVA, ten tasks; writes docs/routing.md. About a quarter of an hour on
one core. Answers and scores are stored in benchmarks/runs, and a rerun resumes from them; ``--kind`` makes some of the
rows, ``--time`` the milliseconds.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from lookless import Loaded, Plan, Samples, Scores, calibrate, files, load_data, load_model, methods
from lookless.bench.dummy_model import make_dummy_model
from lookless.configs import shape_named
from lookless.data import Sample
from lookless.evaluation import normal, paired_difference, retention_estimate
from lookless.machine import processor
from lookless.markdown import markdown_table, spliced, wrapped
from lookless.reference import tasks_of
from lookless.routing import PlanSet, Router
from lookless.routing.centroids import Centroids
from lookless.routing.embeddings import Reader
from lookless.routing.planset import FALLBACK
from lookless.runtime.patching import applied
from lookless.search.objective import share_kept

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "routing.md"
BEGIN = "<!-- what follows is written by benchmarks/routing.py -->"
END = "<!-- end of what benchmarks/routing.py writes -->"
MEASURE = "visual_information_gain"
ALL = "all tasks"
#: Questions in other words than the tasks ever use.
REWORDED = {
    "existence": ("do you notice a red circle anywhere?", "would you find any blue star here?"),
    "attribute": ("the star has which colour?", "say the shape of that green object."),
    "counting": ("give me the number of red objects.", "how often does a circle appear?"),
    "spatial": ("where is the red circle, left or right of the blue star?", "does a red star lie under a blue ring?"),
    "text": ("tell me what is written on the sign.", "what text do you see?"),
    "chart": ("give the value of the blue bar.", "of the red and the green bar, which one is taller?"),
    "relation": ("next to the star on its left, what colour is there?", "what shape is next to the red one?"),
    "comparison": ("which colour is there most of?", "do we have more red or more blue objects?"),
    "table": ("read row star, column red.", "under red in row circle, what is there?"),
    "listing": ("tell me all objects that you see.", "give a list of every object."),
}


@dataclass(frozen=True)
class Remembering(Loaded):
    """A model that processes a prompt once: each set of one benchmark is fitted on the same prompts."""

    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def inputs(self, samples: Sequence[Sample]) -> dict[str, Any]:
        if len(samples) > 1:
            return super().inputs(samples)
        [sample] = samples
        if sample.hash not in self.known:
            self.known[sample.hash] = super().inputs(samples)
        return self.known[sample.hash]


@dataclass(frozen=True)
class Setting:
    """What is stored beside it depends on."""

    loaded: Loaded
    runs: Path
    questions: int
    calibration: int
    fitted: int

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        return tasks_of(self.loaded.name)

    @cached_property
    def held_out(self) -> dict[str, Samples]:
        return {task: load_data(f"reference:{task}", limit=self.questions) for task in self.tasks}

    @cached_property
    def calibrated_on(self) -> dict[str, Samples]:
        each = {t: load_data(f"reference:{t}", split="calibration", limit=self.calibration) for t in self.tasks}
        return {**each, ALL: Samples(ALL, tuple(sample for samples in each.values() for sample in samples))}

    @cached_property
    def routed_by(self) -> dict[str, Samples]:
        return {t: load_data(f"reference:{t}", split="calibration", limit=self.fitted) for t in self.tasks}

    @cached_property
    def expected(self) -> dict[str, list[str]]:
        return {task: [sample.answer for sample in samples] for task, samples in self.held_out.items()}

    def scores(self, task: str, position: str) -> Scores:
        path = self.runs / f"scores-{task}-{MEASURE}-{position}-{self.calibration}.json"
        if not path.exists():
            samples = self.calibrated_on[task]
            calibrate(self.loaded, samples, measure=MEASURE, position=position, progress=False).save(path)  # type: ignore[arg-type]
        return Scores.load(path)

    def answers(self, plan: Plan | None, task: str) -> list[str]:
        """To the held-out questions of ``task``."""
        name = "dense" if plan is None else hashlib.sha256(repr(plan.layers).encode()).hexdigest()[:16]
        path = self.runs / f"answers-{task}-{self.questions}-{name}.json"
        if not path.exists():
            with applied(self.loaded.model, plan):
                items = self.held_out[task].items
                chunks = [items[at : at + 25] for at in range(0, len(items), 25)]
                said = [answer for chunk in chunks for answer in self.loaded.answer(chunk, max_new_tokens=32)]
            files.write_text(path, files.dump(Answers(answers=tuple(said))))
        return [*Answers.model_validate_json(path.read_text()).answers]

    def right(self, plan: Plan | None, task: str) -> np.ndarray:
        """1.0 where the answer is right, ``[questions]``."""
        pairs = zip(self.answers(plan, task), self.expected[task], strict=True)
        return np.array([normal(answer) == normal(expected) for answer, expected in pairs], dtype=float)


class Answers(BaseModel):
    model_config = ConfigDict(frozen=True)

    answers: tuple[str, ...]


def v_skip(layers: int, position: str) -> Callable[[Setting, str], Plan]:
    def make(setting: Setting, task: str) -> Plan:
        if task == ALL:
            each = [setting.scores(t, position) for t in setting.tasks]
            return methods.METHODS["v-skip-universal"].make(*each, layers=layers)
        return methods.v_skip(setting.scores(task, position), layers=layers)

    return make


#: How the plan of a task, and that of all tasks together, are made.
KINDS: dict[str, Callable[[Setting, str], Plan]] = {
    "V-Skip, N = 7": v_skip(7, "last"),
    "V-Skip, N = 9": v_skip(9, "last"),
    "V-Skip, N = 9, scores over answers": v_skip(9, "answer"),
}


@dataclass(frozen=True)
class Stream:
    """All held-out questions under the plans of one kind, arrays ``[questions]`` of one task after the other.

    Attributes:
        plans: by task; ``universal``, the plan of all.
        names: of each question where it was routed.
    """

    setting: Setting
    plans: Mapping[str, Plan]
    universal: Plan
    names: Mapping[str, Sequence[str]]

    def under(self, choose: Callable[[str], Plan | None]) -> np.ndarray:
        return np.concatenate([self.setting.right(choose(task), task) for task in self.setting.tasks])

    @cached_property
    def dense(self) -> np.ndarray:
        return self.under(lambda task: None)

    @cached_property
    def told(self) -> np.ndarray:
        return self.under(lambda task: self.plans[task])

    @cached_property
    def one_for_all(self) -> np.ndarray:
        return self.under(lambda task: self.universal)

    @cached_property
    def routed(self) -> np.ndarray:
        return np.concatenate([self.routed_task(task, self.names[task]) for task in self.setting.tasks])

    def routed_task(self, task: str, names: Sequence[str]) -> np.ndarray:
        """The questions of ``task``, each under the plan of its name."""
        by_name = {name: self.setting.right(self.plans.get(name, self.universal), task) for name in {*names}}
        return np.array([by_name[name][index] for index, name in enumerate(names)])

    def at_random(self) -> np.ndarray:
        """What any plan of the set gives on average, the expectation of routing blindly."""
        return np.mean([self.under(lambda task, name=name: self.plans[name]) for name in self.setting.tasks], axis=0)

    def kept(self, which: np.ndarray) -> str:
        found = retention_estimate(which, self.dense)
        return "-" if found is None else str(found).replace("%", " %")

    def points(self, which: np.ndarray, other: np.ndarray) -> str:
        """How many points of retention ``which`` is above ``other``, on the same questions."""
        found, scale = paired_difference(which, other), 100 / self.dense.mean()
        return f"{found.value * scale:+.1f} [{found.low * scale:+.1f}, {found.high * scale:+.1f}]"

    @property
    def flops(self) -> str:
        """The share of the prefill's FLOPs kept, of the tasks' plans and of the one for all."""
        first = self.setting.scores(self.setting.tasks[0], "last")
        shape = (first.geometry, first.visual or 0.0, first.text or 0.0)
        mine = fmean(share_kept(plan, *shape) for plan in self.plans.values())
        return f"{mine:.0%}, {share_kept(self.universal, *shape):.0%}".replace("%", " %")

    @property
    def overlap(self) -> float:
        """Of two tasks' plans the share of rows that are equal, mean over pairs."""
        rows = [plan.layers for plan in self.plans.values()]
        pairs = [(a, b) for i, a in enumerate(rows) for b in rows[:i]]
        return fmean(fmean(x == y for x, y in zip(a, b, strict=True)) for a, b in pairs)


def fitted(setting: Setting, plans: Mapping[str, Plan], universal: Plan, without: str | None = None) -> Router:
    tasks = {task: (setting.routed_by[task], plans[task]) for task in setting.tasks if task != without}
    return Router(PlanSet.fit(setting.loaded, tasks, universal, progress=False), setting.loaded)


def names_of(router: Router, samples: Sequence[Sample]) -> list[str]:
    return [route.name for route in router.route_samples(samples)]


def kinds_table(streams: Mapping[str, Stream]) -> str:
    rows = []
    for kind, stream in streams.items():
        ways = (stream.told, stream.routed, stream.one_for_all)
        points = (stream.points(stream.routed, stream.told), stream.points(stream.routed, stream.one_for_all))
        alike = f"{stream.overlap:.0%}".replace("%", " %")
        rows.append((kind, stream.flops, alike, *map(stream.kept, ways), *points))
    heads = ("plans", "FLOPs kept: per task, one for all", "equal rows", "told the task", "routed", "one plan for all")
    return markdown_table((*heads, "routed - told", "routed - one for all"), rows)


def tasks_table(stream: Stream) -> str:
    """Right answers by task."""
    setting, rows = stream.setting, []
    for task in setting.tasks:
        ways = (None, stream.plans[task], stream.universal)
        dense, told, universal = (setting.right(plan, task).mean() for plan in ways)
        routed = stream.routed_task(task, stream.names[task]).mean()
        rows.append((task, *(f"{100 * value:.0f}" for value in (dense, told, routed, universal))))
    return markdown_table(("right answers, %", "dense", "told the task", "routed", "one plan for all"), rows)


def routes_table(
    setting: Setting, router: Router, names: Mapping[str, Sequence[str]], unseen: Mapping[str, Counter]
) -> str:
    rows = []
    for task in setting.tasks:
        found, left = Counter(names[task]), unseen[task]
        image = setting.held_out[task].items[0].images
        again = names_of(router, [Sample(image, question, "") for question in REWORDED[task]])
        wrong = sum(count for name, count in found.items() if name not in (task, FALLBACK))
        others = ", ".join(f"{n} {c}" for n, c in left.most_common() if n != FALLBACK) or "-"
        rows.append((task, *map(str, (found[task], found[FALLBACK], wrong, left[FALLBACK])), others, ", ".join(again)))
    heads = ("task", "routed to it", "fell back", "wrong", "left out of the set: fell back", "and went to")
    return markdown_table((*heads, "two questions in other words went to"), rows)


def times(setting: Setting, router: Router) -> str:
    """Microseconds of a route and of a prefill of the same prompt, one by one, in turn."""
    model, each, whole = setting.loaded.model, [], []
    for task in setting.tasks:
        inputs = setting.loaded.inputs([setting.held_out[task].items[0]])
        for _ in range(12):
            at = time.perf_counter()
            router.route(inputs)
            each.append(time.perf_counter() - at)
            at = time.perf_counter()
            with torch.no_grad():
                model(**inputs, logits_to_keep=1)
            whole.append(time.perf_counter() - at)
    mine, prefill = median(each) * 1e6, median(whole) * 1e3
    return (
        f"A route takes {mine:.0f} microseconds, median of {len(each)}, and the prefill after it {prefill:.1f} ms: "
        f"{mine / prefill / 10:.1f} % of it ({processor()}, {torch.get_num_threads()} threads)."
    )


def time_of_large_table() -> str:
    """Of a route alone, with the embeddings of LLaVA-1.5-7B's shape and ten tasks; random numbers."""
    made = make_dummy_model(shape_named("LLaVA-1.5-7B").cut(2), dtype=torch.bfloat16)
    reader = Reader(made.model)
    prompts = [made.inputs(visual=576, before=33, after=33, batch=1) for _ in range(100)]
    groups = np.arange(500) % 10
    vectors = np.stack([vector for inputs in prompts for vector in reader.vectors(inputs)])
    vectors = np.concatenate([vectors + 0.01 * np.random.default_rng(0).normal(size=vectors.shape) for _ in range(5)])
    fitted, each = Centroids.fit(vectors, groups), []
    for inputs in prompts:
        at = time.perf_counter()
        [vector] = reader.vectors(inputs)
        fitted.nearest(vector, np.arange(10))
        each.append(time.perf_counter() - at)
    return f"With a hidden size of 4096 and 642 tokens, as in LLaVA-1.5-7B, {median(each) * 1e6:.0f} microseconds."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs")
    parser.add_argument("--questions", type=int, default=40, help="held-out questions of each task")
    parser.add_argument("--calibration", type=int, default=20, help="samples of each task that plans are made of")
    parser.add_argument("--fit", type=int, default=50, help="prompts of each task that the router is fitted on")
    parser.add_argument("--kind", choices=list(KINDS), action="append")
    parser.add_argument(
        "--time", action="store_true", help="measure milliseconds and stop: on a machine with no other work"
    )
    parser.add_argument("--only", action="store_true", help="store answers and write no page")
    given = parser.parse_args()
    read = load_model(given.model)
    loaded = Remembering(read.model, read.processor, read.name, read.revision)
    setting = Setting(loaded, given.runs / f"routing-{given.model}", given.questions, given.calibration, given.fit)
    kinds = {}
    for kind in given.kind or KINDS:
        plans = {task: KINDS[kind](setting, task) for task in setting.tasks}
        kinds[kind] = (plans, KINDS[kind](setting, ALL))
        for task in setting.tasks:
            for plan in (None, plans[task], kinds[kind][1]):
                setting.right(plan, task)
        print(kind, flush=True)
    if given.only:
        return
    first = next(iter(kinds.values()))
    router = fitted(setting, *first)
    told = given.runs / "routing-times.json"
    if given.time:
        files.write_text(told, files.dump(Answers(answers=(times(setting, router), time_of_large_table()))))
        return
    names = {task: names_of(router, setting.held_out[task].items) for task in setting.tasks}
    unseen = {
        task: Counter(names_of(fitted(setting, *first, without=task), setting.held_out[task].items))
        for task in setting.tasks
    }
    streams = {kind: Stream(setting, plans, universal, names) for kind, (plans, universal) in kinds.items()}
    blind = next(iter(streams.values()))
    blind = blind.kept(blind.at_random())
    spent = " ".join(Answers.model_validate_json(told.read_text()).answers) if told.exists() else ""
    total, every = len(setting.tasks) * given.questions, Counter(n for task in names for n in names[task])
    hit = sum(name == task for task in names for name in names[task])
    astray = total - hit - every[FALLBACK]
    lines = [
        f"`{given.model}`, {len(setting.tasks)} tasks, {given.questions} held-out questions of each in one stream; "
        f"plans made of {given.calibration} samples of each task, the router of {given.fit} questions. Intervals: "
        f"95 %, over questions.",
        "",
        kinds_table(streams),
        "",
        f"{next(iter(kinds))}, each question under a plan of the set at random: {blind}.",
        "",
        f"Of {total} questions {hit} took the plan of their task, {every[FALLBACK]} fell back, and {astray} took "
        f"another. {spent}",
        "",
        routes_table(setting, router, names, unseen),
    ]
    for kind, stream in streams.items():
        lines += ["", f"### {kind}", "", tasks_table(stream)]
    before = PAGE.read_text() if PAGE.exists() else ""
    files.write_text(PAGE, spliced(before, BEGIN, END, wrapped("\n".join(lines))))


if __name__ == "__main__":
    main()
