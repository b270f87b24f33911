"""The joint search against every method it contains, at equal FLOPs or equal time, on questions that none has seen.

All are calibrated on the same samples of all tasks, and each gives one plan for all tasks. Every finished piece is
written at once, so an interrupted run goes on::

    python benchmarks/optimize.py reference --out optimize-benchmark
    python benchmarks/optimize.py reference --out optimize-benchmark --by time
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from lookless import Plan, Scores, flops, load_data, load_model, methods, reference
from lookless.bench.latency import LatencyTable, measure_latency
from lookless.bench.timing import shares_of_stock, with_stock
from lookless.calibration.affine import Fitter
from lookless.comparison.entry import STOCK, Entry, time_entries
from lookless.data import Samples
from lookless.errors import LooklessError
from lookless.evaluation import evaluate, normal
from lookless.loading import Loaded
from lookless.optimize.chain import compared
from lookless.optimize.scored import MEASURES, task_scores
from lookless.progress import track
from lookless.runtime.families import locate
from lookless.scores import pooled
from lookless.search import (
    Front,
    GreedyOrder,
    Menu,
    Objective,
    by_flops,
    dop_depths,
    gsop_order,
    joint_search,
    measure_additive,
)
from lookless.search.additive import Additive
from lookless.search.fitting import with_fitted
from lookless.search.price import Pricing
from lookless.search.seeds import STAND_INS

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.15)
TIMES = (0.9, 0.8, 0.7, 0.6, 0.5)
NEAR = 0.03  #: how far from a budget the price of a rival may be
STEPS = 40  #: strengths of a method
FINALISTS = 10  #: plans of a budget that are compared on the selection samples
HOPELESS = 0.2  #: a method so far behind in fidelity is not run at smaller budgets
BATCH = 8  #: prompts in a call that is timed


@dataclass
class Bench:
    """One model, its samples, and what is known of them.

    Attributes:
        loaded: the model.
        args: of the command line.
    """

    loaded: Loaded
    args: argparse.Namespace

    @cached_property
    def tasks(self) -> list[str]:
        return list(reference.tasks_of(self.args.model))

    @cached_property
    def parts(self) -> list[list[Samples]]:
        """Of every task: to measure single changes, to search, and to select."""
        sizes = (self.args.calibration, self.args.tuning, self.args.selection)
        made: list[list[Samples]] = [[], [], []]
        for task in self.tasks:
            drawn, at = load_data(f"reference:{task}", split="calibration", limit=sum(sizes)), 0
            for part, size in zip(made, sizes, strict=True):
                part.append(Samples(drawn.name, drawn.items[at : at + size]))
                at += size
        return made

    @cached_property
    def tests(self) -> list[Samples]:
        return [load_data(f"reference:{task}", split="test", limit=self.args.questions) for task in self.tasks]

    @cached_property
    def single(self) -> Objective:
        return Objective(self.loaded, self.parts[0], position="answer")

    @cached_property
    def tuning(self) -> Objective:
        return Objective(self.loaded, self.parts[1], position="answer")

    @cached_property
    def fitter(self) -> Fitter:
        """Of the first half of the calibration samples; what single changes risk is of the other."""
        items = tuple(item for part in self.parts[0] for item in part.items[: self.half])
        return Fitter(self.loaded, Samples("calibration", items), progress=False)

    @property
    def half(self) -> int:
        return max(1, self.args.calibration // 2)

    @cached_property
    def menu(self) -> Menu:
        """Of the rows that are there without fitting; those of the additive table are all."""
        tower = locate(self.loaded.model).family.capture is not None
        return Menu.standard(self.single.geometry.layers, self.single.visual, tower=tower)

    @cached_property
    def kept(self) -> Pricing:
        return by_flops(self.tuning.geometry, self.tuning.visual, self.tuning.text)

    @cached_property
    def latency(self) -> LatencyTable:
        path = self.path("latency")
        if not path.exists():
            items = [part.items[0] for part in self.parts[0]][:BATCH]
            measure_latency(self.loaded, items, self.menu).save(path)
        return LatencyTable.load(path)

    @cached_property
    def additive(self) -> Additive:
        path = self.path("additive")
        if not path.exists():
            menu = self.menu if self.args.plain else with_fitted(self.menu, self.fitter)
            held = [Samples(part.name, part.items[self.half :] or part.items) for part in self.parts[0]]
            measure_additive(Objective(self.loaded, held, position="answer"), menu).save(path)
        return Additive.load(path)

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """By measure, of all tasks together, from single changes that were run."""
        each = list(zip(self.parts[0], self.single.tasks, strict=True))
        found = {m: pooled([task_scores(self.single, part, places, m) for part, places in each]) for m in MEASURES}
        return {**found, **{m: found[s].use_as(m) for m, s in STAND_INS.items()}}

    @cached_property
    def gsop(self) -> GreedyOrder:
        return gsop_order(self.tuning, stride=0.01, path=self.path("gsop"))

    def path(self, what: str) -> Path:
        return self.args.out / f"{self.args.model}.{what}.json"

    def dop(self, budget: float) -> Plan:
        return dop_depths(self.tuning, kept=budget, every=2, progress=False).plan

    def front(self, price: str, budgets: tuple[float, ...]) -> Front:
        """The joint search."""
        searched = {"dop": self.dop} if price == "kept" else {}
        found = joint_search(
            self.tuning,
            self.menu.having(self.additive.rows),
            self.additive,
            tasks=self.tasks,
            budgets=budgets,
            kept=self.kept,
            time=self.latency.pricing if price == "time" else None,
            price=price,
            scores=self.scores,
            searched=searched,
            proposals=self.args.proposals,
            patience=self.args.proposals,
            refit=None if self.args.plain else self.fitter.again,
            path=self.path(f"front.{price}"),
        )
        print(f"joint: {found.evaluations} plans, {found.seconds:.0f} s", flush=True)
        for gain in found.gains:
            print(f"{gain.budget:g} {gain.step} {gain.risk:.4f} by {gain.found_by}, {gain.evaluations}", flush=True)
        return found

    def selected(self, front: Front, budget: float) -> Plan:
        """Of the best within a budget, the one that loses least on the selection samples."""
        cheap = front.ranked(budget, front.price)[:FINALISTS]
        found = compared(self.loaded, self.parts[2], cheap, position="answer", progress=False)
        return min(found, key=lambda pair: pair[1])[0].plan

    def ladders(self) -> dict[str, list[Entry]]:
        """What each method runs at growing strength; down-sampling too."""
        found = {}
        for name, method in methods.METHODS.items():
            if method.strength is not None and all(measure in self.scores for measure in method.measures):
                found[name] = [Entry(plan) for plan in self._growing(method)]
        grid = round(self.tuning.visual**0.5)
        found["down-sampling"] = [Entry(None, side / grid) for side in range(grid - 1, 1, -1)]
        return {name: entries for name, entries in found.items() if entries}

    def _growing(self, method: methods.Method) -> Iterator[Plan]:
        objective, seen = self.single, set()
        lengths = round(objective.visual), round(objective.text)
        prompt = method.prompt_arguments(*lengths) if method.prompt_arguments else {}
        for step in range(1, STEPS + 1):
            knobs = {**prompt, **method.strength(objective.geometry.layers, step / STEPS)}
            try:
                plan = method.build(objective.geometry, {need: self.scores[need] for need in method.measures}, **knobs)
            except LooklessError:  # a strength out of the method's range
                continue
            if plan.is_static and plan.layers not in seen:
                seen.add(plan.layers)
                yield plan

    def share(self, entry: Entry) -> float:
        """Of the stock prefill's FLOPs."""
        if entry.plan is not None:
            return self.kept.share(entry.plan.layers)
        visual, text = self.tuning.visual, self.tuning.text
        few, all_ = (flops.prefill(self.tuning.geometry, visual=v, text=text) for v in (visual * entry.side**2, visual))
        return few.total / all_.total

    def timed(self, entries: list[Entry]) -> list[float]:
        """Prefill time of each as a share of the stock model's, all in turn: the median of ratios to the stock timings
        before and after."""
        items = [part.items[0] for part in self.tests][:BATCH]
        order = with_stock(STOCK, entries, 3)
        return shares_of_stock(time_entries(self.loaded, items, order, repeats=self.args.repeats, warm_up=1), 3)[0]

    def tested(self, entry: Entry, dense: dict[str, list[str]]) -> dict[str, list[float]]:
        """Fidelity and retention of each task."""
        fidelity, retention = [], []
        with entry.images(self.loaded) as loaded:
            for part in self.tests:
                answers = evaluate(loaded, part, entry.plan, dense=dense[part.name], progress=False).answers
                # down-sampling is no plan: its answers come as the dense ones, and are compared with the real ones
                mine = [answer.plan for answer in answers]
                if entry.plan is None:
                    mine = [answer.dense for answer in evaluate(loaded, part, progress=False).answers]
                stock = [normal(text) for text in dense[part.name]]
                wanted = [normal(answer.expected) for answer in answers]
                given = [normal(text or "") for text in mine]
                fidelity.append(fmean(g == s for g, s in zip(given, stock, strict=True)))
                right = sum(s == w for s, w in zip(stock, wanted, strict=True))
                retention.append(sum(g == w for g, w in zip(given, wanted, strict=True)) / max(1, right))
        return {"fidelity": fidelity, "retention": retention}


Offer = tuple[str, Entry, float]  # name, what it runs, its price


def by_flops_offers(bench: Bench) -> Callable[[float], Iterator[Offer]]:
    """At a budget of FLOPs: the joint plan, and of each method the strength nearest to the budget."""
    front, ladders = bench.front("kept", BUDGETS), bench.ladders()
    searched: dict[str, Callable[[float], Plan]] = {"dop": bench.dop}
    if bench.args.gsop:
        lengths = {"visual": bench.tuning.visual, "text": bench.tuning.text}
        searched["gsop"] = lambda budget: bench.gsop.within(budget, **lengths)

    def offers(budget: float) -> Iterator[Offer]:
        plan = Entry(bench.selected(front, budget))
        yield "joint", plan, bench.share(plan)
        for name, entries in ladders.items():
            price, place = min((abs(bench.share(entry) - budget), i) for i, entry in enumerate(entries))
            if price <= NEAR:
                yield name, entries[place], bench.share(entries[place])
        for name, make in searched.items():
            try:
                entry = Entry(make(budget))
            except LooklessError as problem:
                print(f"{name} at {budget:g}: {problem}", flush=True)
            else:
                yield name, entry, bench.share(entry)

    return offers


def by_time_offers(bench: Bench) -> Callable[[float], Iterator[Offer]]:
    """At a budget of measured milliseconds: all are timed in turn, and each offers what comes nearest below."""
    front = bench.front("time", tuple(bench.args.times))
    ladders = {name: thinned(entries, bench.args.strengths) for name, entries in bench.ladders().items()}
    best = sorted((c for c in front.candidates if (c.time or 1) < 1), key=lambda c: c.risk)
    bins = [[c for c in best if low - 0.15 <= (c.time or 1) <= low + 0.1][:9] for low in bench.args.times]
    mine = {c.plan.layers: c for few in bins for c in few}
    flat = [*(Entry(c.plan) for c in mine.values()), *(entry for entries in ladders.values() for entry in entries)]
    times = dict(zip(map(id, flat), bench.timed(flat), strict=True))
    joint = [(times[id(entry)], c) for entry, c in zip(flat, mine.values(), strict=False)]
    error = fmean(abs(time - (c.time or 1)) for time, c in joint)
    print(f"the latency table is off by {error:.3f} of the stock time, mean of {len(joint)} plans", flush=True)

    def offers(budget: float) -> Iterator[Offer]:
        cheap = sorted(((time, c) for time, c in joint if time <= budget), key=lambda pair: pair[1].risk)
        if cheap:
            few = [c for _, c in cheap[:FINALISTS]]
            found = compared(bench.loaded, bench.parts[2], few, position="answer", progress=False)
            plan = min(found, key=lambda pair: pair[1])[0].plan
            yield "joint", Entry(plan), next(time for time, c in cheap if c.plan.layers == plan.layers)
        for name, entries in ladders.items():
            within = [entry for entry in entries if times[id(entry)] <= budget + NEAR / 2]
            if within:  # the dearest strength within the budget
                entry = max(within, key=lambda entry: bench.share(entry))
                yield name, entry, times[id(entry)]

    return offers


def thinned(entries: list[Entry], most: int) -> list[Entry]:
    """At most ``most`` of them, evenly by place."""
    count = min(most, len(entries))
    return [entries[round(i * (len(entries) - 1) / max(1, count - 1))] for i in range(count)]


def compare(args: argparse.Namespace) -> None:
    """Search, then test every plan at every budget; print a table."""
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(load_model(args.model), args)
    path = bench.path(f"results.{args.by}")
    results = json.loads(path.read_text()) if path.exists() else {}
    dense: dict[str, list[str]] = results.setdefault("dense", {})
    for part in bench.tests:
        if part.name not in dense:
            dense[part.name] = [a.dense for a in evaluate(bench.loaded, part, progress=False).answers]
    offers = by_flops_offers(bench) if args.by == "flops" else by_time_offers(bench)
    behind: set[str] = set()
    budgets = BUDGETS if args.by == "flops" else tuple(args.times)
    for budget in budgets:
        for name, entry, price in track(list(offers(budget)), f"{budget:g}", True):
            key = f"{budget:g} {name}"
            if key not in results and name not in behind:
                made = {"price": price, "kept": bench.share(entry), "rows": str(entry.plan or entry.side)}
                results[key] = {**made, **bench.tested(entry, dense)}
                path.write_text(json.dumps(results))
                print(f"{key}: {summary(results[key])}", flush=True)
        found = {name: fmean(one["fidelity"]) for name, one in at(results, budget).items()}
        behind |= {name for name, value in found.items() if value < max(found.values()) - HOPELESS}
    report(results, budgets)


def at(results: dict, budget: float) -> dict[str, dict]:
    """What was tested at a budget, by name."""
    return {key.split(" ", 1)[1]: one for key, one in results.items() if key.startswith(f"{budget:g} ")}


def summary(one: dict) -> str:
    """One line."""
    return (
        f"price {one['price']:.3f}  fidelity {fmean(one['fidelity']):.3f} worst {min(one['fidelity']):.3f}  "
        f"retention {fmean(one['retention']):.3f} worst {min(one['retention']):.3f}"
    )


def report(results: dict, budgets: tuple[float, ...]) -> None:
    """A table in Markdown: at each budget the joint plan, and for each figure the best single method."""
    print("| budget | | fidelity, mean | worst task | retention, mean | worst task |\n|---|---|---:|---:|---:|---:|")
    removed: dict[str, float] = {}
    for budget in budgets:
        found = at(results, budget)
        for name, one in found.items():
            if fmean(one["retention"]) >= 0.995:
                removed[name] = max(removed.get(name, 0.0), 1 - one["price"])
        joint = found.pop("joint", None)
        if joint is None or not found:
            continue
        figures = [(f, w) for f in ("fidelity", "retention") for w in (fmean, min)]
        best = [max(found, key=lambda name: w(found[name][f])) for f, w in figures]
        mine = [f"{w(joint[f]):.1%}" for f, w in figures]
        theirs = [f"{w(found[name][f]):.1%} ({name})" for (f, w), name in zip(figures, best, strict=True)]
        print(f"| {budget:g} | joint | {' | '.join(mine)} |\n| | best single method | {' | '.join(theirs)} |")
    most = sorted(removed.items(), key=lambda pair: -pair[1])
    print("removed at 99.5 % retention:", ", ".join(f"{name} {share:.3f}" for name, share in most))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="reference")
    parser.add_argument("--out", type=Path, default=Path("optimize-benchmark"))
    parser.add_argument("--by", choices=("flops", "time"), default="flops")
    parser.add_argument("--questions", type=int, default=25, help="of each task, to test on")
    parser.add_argument("--calibration", type=int, default=4, help="samples of each task for single changes")
    parser.add_argument("--tuning", type=int, default=8, help="samples of each task that the search sees")
    parser.add_argument("--selection", type=int, default=16, help="samples of each task that its best are compared on")
    parser.add_argument("--proposals", type=int, default=250, help="of the joint search at each budget")
    parser.add_argument("--times", type=float, nargs="+", default=TIMES, help="budgets, with --by time")
    parser.add_argument("--strengths", type=int, default=14, help="of each method that are timed")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each")
    parser.add_argument("--plain", action="store_true", help="no fitted cells on the menu")
    parser.add_argument("--gsop", action="store_true", help="also search GSOP's order: as long as all else")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
