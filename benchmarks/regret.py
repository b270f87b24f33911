"""What additive, greedy and joint choice lose against brute force, where a few layers have few choices.

python benchmarks/regret.py --layers 2 3 4 5 --tasks 3
"""

from __future__ import annotations

import argparse
import random
from itertools import product

from lookless import Plan, load_data, load_model, reference
from lookless.progress import track
from lookless.search import Menu, Objective, by_flops, measure_additive
from lookless.search.additive import risk_of
from lookless.search.archive import Archive
from lookless.search.interactions import ACTIONS
from lookless.search.local import improve
from lookless.search.price import Pricing


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
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 3, 4, 5], help="that have a choice")
    parser.add_argument("--tasks", type=int, default=3, help="how many")
    parser.add_argument("--tuning", type=int, default=1, help="samples of each task")
    parser.add_argument("--proposals", type=int, default=40)
    regret(parser.parse_args())


if __name__ == "__main__":
    main()
