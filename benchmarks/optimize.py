"""The joint search against every method it can contain, at equal FLOPs, on questions that neither has seen.

All are calibrated on the same samples of all tasks, and each gives one plan for all tasks. Every finished piece is
written at once, so an interrupted run goes on::

    python benchmarks/optimize.py reference --out optimize-benchmark
    python benchmarks/optimize.py reference --out optimize-benchmark --regret
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean

from lookless import Plan, Scores, load_data, load_model, methods, reference
from lookless.data import Samples
from lookless.evaluation import evaluate, normal
from lookless.loading import Loaded
from lookless.methods import Method
from lookless.optimize.run import MEASURES
from lookless.progress import track
from lookless.search import Menu, Objective, by_flops, dop_depths, gsop_order, joint_search, measure_additive
from lookless.search.additive import Additive, risk_of
from lookless.search.archive import Archive
from lookless.search.interactions import ACTIONS
from lookless.search.local import improve
from lookless.search.price import Pricing
from lookless.search.seeds import STAND_INS

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.15)
NEAR = 0.03
STEPS = 40


def samples_of(tasks: list[str], calibration: int, tuning: int, questions: int) -> tuple[list, list, list]:
    """Of every task: to measure single changes, to search, and to test."""
    drawn = [load_data(f"reference:{task}", split="calibration", limit=calibration + tuning) for task in tasks]
    first = [Samples(one.name, one.items[:calibration]) for one in drawn]
    second = [Samples(one.name, one.items[calibration:]) for one in drawn]
    return first, second, [load_data(f"reference:{task}", split="test", limit=questions) for task in tasks]


def scores_of(objective: Objective, samples: Samples) -> dict[str, Scores]:
    """By measure, of all tasks together, from single changes that were run."""
    full, found = Plan.full(objective.geometry), {}
    for name, row in MEASURES.items():
        cells = {column: cell for column, cell in row if not cell.is_full}
        plans = [full.at([layer], **cells) for layer in range(objective.geometry.layers)]
        rows = tuple(zip(*(objective.per_sample(plan) for plan in plans), strict=True))
        found[name] = Scores(
            name=name,
            position="answer",
            per_sample=rows,
            geometry=objective.geometry,
            visual=objective.visual,
            text=objective.text,
            sample_hashes=samples.hashes,
        )
    for measure, stand_in in STAND_INS.items():
        found[measure] = found[stand_in].use_as(measure)
    return found


def rivals(objective: Objective, scores: dict[str, Scores], budget: float, gsop: object) -> Iterator[tuple[str, Plan]]:
    """Each method's plan nearest to the budget, if it comes near: also those that rank by the vision tower."""
    prices = by_flops(objective.geometry, objective.visual, objective.text)
    for name, method in methods.METHODS.items():
        if method.strength is not None and all(measure in scores for measure in method.measures):
            plans = [plan for plan in _growing(method, objective, scores) if plan.is_static]
            nearest = min(plans, key=lambda plan: abs(prices.share(plan.layers) - budget), default=None)
            if nearest is not None and abs(prices.share(nearest.layers) - budget) <= NEAR:
                yield name, nearest
    for name, make in (
        ("dop", lambda: dop_depths(objective, kept=budget, every=2, progress=False).plan),
        *([("gsop", lambda: gsop.within(budget, visual=objective.visual, text=objective.text))] if gsop else []),
    ):
        try:
            yield name, make()
        except Exception as problem:
            print(f"{name} at {budget:g}: {problem}", flush=True)


def _growing(method: Method, objective: Objective, scores: dict[str, Scores]) -> Iterator[Plan]:
    prompt = {}
    if method.prompt_arguments:
        prompt = method.prompt_arguments(round(objective.visual), round(objective.text))
    for step in range(STEPS + 1):
        knobs = {**prompt, **method.strength(objective.geometry.layers, step / STEPS)}
        try:
            yield method.build(objective.geometry, {need: scores[need] for need in method.measures}, **knobs)
        except Exception:  # a strength out of the method's range
            continue


def tested(loaded: Loaded, tests: list[Samples], plan: Plan, dense: dict[str, list[str]]) -> dict[str, list[float]]:
    """Fidelity and retention of each task."""
    fidelity, retention = [], []
    for part in tests:
        if part.name not in dense:
            dense[part.name] = [answer.dense for answer in evaluate(loaded, part, progress=False).answers]
        answers = evaluate(loaded, part, plan, dense=dense[part.name], progress=False).answers
        right = [normal(a.dense) == normal(a.expected) for a in answers]
        kept = [normal(a.plan or "") == normal(a.expected) for a in answers]
        fidelity.append(fmean(normal(a.plan or "") == normal(a.dense) for a in answers))
        retention.append(sum(kept) / max(1, sum(right)))
    return {"fidelity": fidelity, "retention": retention}


def compare(args: argparse.Namespace) -> None:
    """Search, then test every plan at every budget; print a table."""
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{args.model}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    loaded = load_model(args.model)
    tasks = list(reference.tasks_of(args.model))
    first, second, tests = samples_of(tasks, args.calibration, args.tuning, args.questions)
    single = Objective(loaded, first, position="answer")
    menu = Menu.standard(single.geometry.layers, single.visual)
    table = args.out / f"{args.model}.additive.json"
    additive = Additive.load(table) if table.exists() else measure_additive(single, menu)
    additive.save(table)
    scores = scores_of(single, Samples("all", tuple(item for part in first for item in part)))
    objective = Objective(loaded, second, position="answer")
    print(f"additive: {additive.evaluations} plans, {additive.seconds:.0f} s", flush=True)
    gsop = None
    if args.gsop:
        gsop = gsop_order(objective, stride=0.01, path=args.out / f"{args.model}.gsop.json")
        print(f"gsop: {gsop.evaluations} plans, {gsop.seconds:.0f} s", flush=True)
    searched = {"dop": lambda budget: dop_depths(objective, kept=budget, every=2, progress=False).plan}
    if gsop is not None:
        searched["gsop"] = lambda budget: gsop.within(budget, visual=objective.visual, text=objective.text)
    front = joint_search(
        objective,
        menu,
        additive,
        tasks=tasks,
        budgets=BUDGETS,
        kept=by_flops(objective.geometry, objective.visual, objective.text),
        scores=scores,
        searched=searched,
        proposals=args.proposals,
        path=args.out / f"{args.model}.front.json",
    )
    print(f"joint: {front.evaluations} plans, {front.seconds:.0f} s", flush=True)
    for gain in front.gains:
        print(
            f"{gain.budget:g} {gain.step} risk {gain.risk:.4f} by {gain.found_by}, {gain.evaluations} plans", flush=True
        )
    dense: dict[str, list[str]] = results.setdefault("dense", {})
    for budget in BUDGETS:
        best = front.within(budget)
        plans = [("joint", best.plan)] if best else []
        for name, plan in (*plans, *rivals(objective, scores, budget, gsop)):
            key = f"{budget:g} {name}"
            if key not in results:
                price = by_flops(objective.geometry, objective.visual, objective.text).share(plan.layers)
                results[key] = {"kept": price, **tested(loaded, tests, plan, dense)}
                path.write_text(json.dumps(results))
                one = results[key]
                print(f"{key}: {summary(one)}", flush=True)
    report(results)


def summary(one: dict) -> str:
    """One line."""
    return (
        f"kept {one['kept']:.3f}  fidelity {fmean(one['fidelity']):.3f} worst {min(one['fidelity']):.3f}  "
        f"retention {fmean(one['retention']):.3f} worst {min(one['retention']):.3f}"
    )


def report(results: dict) -> None:
    """A table in Markdown: at each budget the joint plan, and for each figure the best single method."""
    print("| FLOPs | | fidelity, mean | worst task | retention, mean | worst task |\n|---|---|---:|---:|---:|---:|")
    for budget in BUDGETS:
        found = {k.split(" ", 1)[1]: v for k, v in results.items() if k.startswith(f"{budget:g} ")}
        joint = found.pop("joint", None)
        if joint is None or not found:
            continue
        figures = [(f, w) for f in ("fidelity", "retention") for w in (fmean, min)]
        best = [max(found, key=lambda name: w(found[name][f])) for f, w in figures]
        mine = [f"{w(joint[f]):.1%}" for f, w in figures]
        theirs = [f"{w(found[name][f]):.1%} ({name})" for (f, w), name in zip(figures, best, strict=True)]
        print(f"| {budget:g} | joint | {' | '.join(mine)} |\n| | best single method | {' | '.join(theirs)} |")


def regret(args: argparse.Namespace) -> None:
    """Brute force over all choices in a few layers of the model, against the additive, the greedy and the joint one.

    Every other layer stays full, so that all ``4 ** layers`` plans can be run.
    """
    loaded = load_model(args.model)
    tasks = list(reference.tasks_of(args.model))[: args.tasks]
    parts = [load_data(f"reference:{task}", split="calibration", limit=args.tuning) for task in tasks]
    objective = Objective(loaded, parts, position="answer", progress=False)
    prices = by_flops(objective.geometry, objective.visual, objective.text)
    full, layers = Plan.full(objective.geometry), args.layers
    menu = Menu(
        objective.geometry.layers,
        rows=ACTIONS[:1],
        special=dict.fromkeys(layers, ACTIONS[1:]),
        shares=(),
        ranks=(),
    )
    additive = measure_additive(objective, menu, progress=False)
    every = []
    for rows in track(list(product(ACTIONS, repeat=len(layers))), "every plan", True):
        plan = full
        for layer, row in zip(layers, rows, strict=True):
            plan = plan.at([layer], attention=row.attention, ffn=row.ffn)
        every.append((prices.share(plan.layers), risk_of(objective, plan)))
    print(f"{len(every)} plans of layers {layers}, on {len(objective)} samples", flush=True)
    cheapest = min(price for price, _ in every)
    for share in (0.25, 0.4, 0.55, 0.7, 0.85):
        budget = 1 - share * (1 - cheapest)
        best = min(risk for price, risk in every if price <= budget + 1e-9)
        choice, _ = additive.plan(budget, prices, full)
        archive = Archive(objective, tuple(tasks), menu, prices)
        archive.add(choice, "additive")
        rng = random.Random(0)
        joint = improve(
            archive, menu, additive, budget, proposals=args.proposals, patience=args.proposals, rng=rng, progress=False
        )
        greedy = _greedy(objective, prices, full, layers, budget)
        found = {"additive": risk_of(objective, choice), "greedy": risk_of(objective, greedy), "joint": joint.risk}
        said = ", ".join(f"{name} {risk - best:.4f}" for name, risk in found.items())
        print(f"kept {budget:.3f}: least risk {best:.4f}; regret: {said}", flush=True)


def _greedy(objective: Objective, prices: Pricing, plan: Plan, layers: list[int], budget: float) -> Plan:
    """The change of least added risk for what it saves, again and again."""
    while prices.share(plan.layers) > budget + 1e-9:
        now, risk = prices.share(plan.layers), risk_of(objective, plan)
        steps = []
        for layer, row in product(layers, ACTIONS[1:]):
            other = plan.at([layer], attention=row.attention, ffn=row.ffn)
            saved = now - prices.share(other.layers)
            if saved > 1e-9:
                steps.append(((risk_of(objective, other) - risk) / saved, layer, other))
        plan = min(steps, key=lambda step: step[:2])[2]
    return plan


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="reference")
    parser.add_argument("--out", type=Path, default=Path("optimize-benchmark"))
    parser.add_argument("--questions", type=int, default=25, help="of each task, to test on")
    parser.add_argument("--calibration", type=int, default=2, help="samples of each task for single changes")
    parser.add_argument("--tuning", type=int, default=6, help="samples of each task that the search sees")
    parser.add_argument("--proposals", type=int, default=60)
    parser.add_argument("--gsop", action="store_true", help="also search GSOP's order: as long as all else")
    parser.add_argument("--regret", action="store_true", help="brute force over a few layers instead")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="with --regret")
    parser.add_argument("--tasks", type=int, default=4, help="with --regret: how many")
    args = parser.parse_args()
    (regret if args.regret else compare)(args)


if __name__ == "__main__":
    main()
