"""How often is a certified plan's promise broken? Resampled certificates of plans for the shipped model.

``python benchmarks/certificate.py`` answers 200 questions of each of four tasks under every plan (ten minutes on one
core; what is answered is kept in ``--work``), and then draws and tests in seconds. It prints the tables of
docs/certificate.md.

The truth of a draw has to be known, so the pool of all questions is the population: a plan's true loss is its loss on
the pool, and questions are drawn from it *with* replacement, so that they are as independent as the tests take them to
be. (Halves of the pool would not do: the loss on the other half is itself an estimate, which a right promise misses
about half of the time where it is tight; and a half is drawn without replacement, which is surer than the tests know.)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

import lookless
from lookless import Evaluation, Plan, Skip, files, flops
from lookless.certification.bounds import exact_p_value
from lookless.certification.losses import LOSSES
from lookless.runtime.families import geometry_of

TASKS = ("attribute", "counting", "chart", "text")
POOL = 200
#: Questions of each task that choose the chain, and that test it.
TUNING, TESTING = 150, 300
#: A promise that this plan, by its true loss, misses by a hair is the hardest to test.
HARD = 3
VISUAL, TEXT = 144, 15  # tokens of a prompt, for the price


def plans(layers: int) -> dict[str, Plan]:
    """The plans tried: visual work that ends early, of both operators or of attention."""
    full = Plan.full(layers)
    both = {f"both from layer {at}": full.at(range(at, layers), attention=Skip(), ffn=Skip()) for at in (9, 8, 7, 6, 5)}
    attention = {f"attention from layer {at}": full.at(range(at, layers), attention=Skip()) for at in (7, 5)}
    return both | attention


def answered(work: Path) -> dict[str, tuple[float, list[Evaluation]]]:
    """Of each plan, its price (share of the stock FLOPs run) and its answers to the pool of each task."""
    loaded = lookless.load_model("reference")
    geometry = geometry_of(loaded.model)
    stock = flops.prefill(geometry, visual=VISUAL, text=TEXT).total
    tried = {}
    for name, plan in plans(geometry.layers).items():
        fitted = Plan(layers=plan.layers, geometry=geometry)
        price = flops.prefill(geometry, visual=VISUAL, text=TEXT, plan=fitted.live()).total / stock
        tried[name] = price, [_evaluation(work, loaded, task, fitted) for task in TASKS]
    return tried


def _evaluation(work: Path, loaded: lookless.Loaded, task: str, plan: Plan | None) -> Evaluation:
    path = work / f"{plan.hash if plan else 'dense'}.{task}.json"
    if not path.exists():
        dense = [answer.dense for answer in _evaluation(work, loaded, task, None).answers] if plan else None
        samples = lookless.load_data(f"reference:{task}", limit=POOL)
        found = lookless.evaluate(loaded, samples, plan, batch=50, max_new_tokens=8, dense=dense)
        files.write_text(path, files.dump(found))
        print(path.name, found.retention, flush=True)
    return Evaluation.model_validate_json(path.read_text())


class Pool(NamedTuple):
    """Losses of one kind: ``lost`` and ``counts`` are ``[plans, questions]`` and ``[questions]``, by task."""

    prices: np.ndarray
    lost: list[np.ndarray]
    counts: list[np.ndarray]

    @property
    def truth(self) -> np.ndarray:
        """``[plans, tasks]``"""
        return np.stack([lost.sum(1) / counts.sum() for lost, counts in zip(self.lost, self.counts, strict=True)], 1)

    def draw(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        """How many of ``size`` questions of each task are lost, ``[plans, tasks]``, and count, ``[tasks]``."""
        drawn = [rng.multinomial(size, np.full(len(counts), 1 / len(counts))) for counts in self.counts]
        bad = np.stack([lost @ times for lost, times in zip(self.lost, drawn, strict=True)], 1)
        return bad, np.array([counts @ times for counts, times in zip(self.counts, drawn, strict=True)])

    def of(self, task: int) -> Pool:
        return Pool(self.prices, [self.lost[task]], [self.counts[task]])


def pool(tried: dict[str, tuple[float, list[Evaluation]]], loss: str) -> Pool:
    """The losses of every answer."""
    of, first = LOSSES[loss].of, next(iter(tried.values()))[1]
    counts = [np.array([of(a) is not None for a in one.answers], dtype=int) for one in first]
    lost = [
        np.array([[of(a) or 0 for a in each[task].answers] for _, each in tried.values()], dtype=int)
        for task in range(len(TASKS))
    ]
    return Pool(np.array([price for price, _ in tried.values()]), lost, counts)


def chain(prices: np.ndarray, losses: np.ndarray) -> list[int]:
    """The Pareto front of price and loss, mild plans first."""
    order = sorted(range(len(prices)), key=lambda plan: (losses[plan], prices[plan]))
    least = accumulate((prices[plan] for plan in order), min)
    return [plan for plan, price in zip(order, least, strict=True) if prices[plan] == price]


class Draw(NamedTuple):
    """Which plan each rule takes; None for none. ``certified``: all that pass."""

    certified: list[int]
    naive: int | None
    naive_on_all: int | None


def draws(of: Pool, level: float, confidence: float, count: int) -> Iterator[Draw]:
    """Chain and test, ``count`` times."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        (bad, n), (bad_again, n_again) = of.draw(rng, TUNING), of.draw(rng, TESTING)
        order = chain(of.prices, (bad / n).max(1))
        p_values = exact_p_value(bad_again, n_again, level).max(1)
        stop = next((i for i, plan in enumerate(order) if p_values[plan] > 1 - confidence), len(order))
        both = (bad + bad_again) / (n + n_again)
        yield Draw(order[:stop], cheapest(of, bad / n, level), cheapest(of, both, level))


def cheapest(of: Pool, losses: np.ndarray, level: float) -> int | None:
    """The plan that one would take by its loss alone."""
    fine = np.flatnonzero(losses.max(1) <= level)
    return int(fine[of.prices[fine].argmin()]) if len(fine) else None


def share(broken: int, count: int) -> str:
    low, high = binomtest(broken, count).proportion_ci()
    return f"{broken / count:.1%} ({low:.1%} to {high:.1%})"


def held_or_not(of: Pool, level: float, confidence: float, count: int) -> str:
    """One row of the table."""
    breaks, taken = of.truth.max(1) > level, list(draws(of, level, confidence, count))

    def price(chosen: list[int | None]) -> str:
        return f"{np.mean([1.0 if plan is None else of.prices[plan] for plan in chosen]):.0%}"

    certified = [draw.certified[-1] if draw.certified else None for draw in taken]
    naive, on_all = [draw.naive for draw in taken], [draw.naive_on_all for draw in taken]
    cells = [share(sum(breaks[draw.certified].any() for draw in taken), count), price(certified)]
    for chosen in (naive, on_all):
        cells += [share(sum(plan is not None and breaks[plan] for plan in chosen), count), price(chosen)]
    return " | ".join([*cells, f"{np.mean([plan is None for plan in certified]):.0%}"])


def elsewhere(of: Pool, level: float, confidence: float, count: int) -> Iterator[str]:
    """Chain and test on one task; how often the plan taken breaks the promise on each."""
    truth = of.truth
    for task, name in enumerate(TASKS):
        chosen = [draw.certified[-1] for draw in draws(of.of(task), level, confidence, count) if draw.certified]
        cells = [f"{np.mean(truth[chosen, other] > level):.0%}" if chosen else "-" for other in range(len(TASKS))]
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("lookless-certificate"))
    parser.add_argument("--draws", type=int, default=2000)
    arguments = parser.parse_args()
    tried = answered(arguments.work)
    pools = {loss: pool(tried, loss) for loss in LOSSES}
    for loss, of in pools.items():
        print(f"\n{loss}, % | FLOPs run | " + " | ".join(TASKS))
        for name, price, losses in zip(tried, of.prices, of.truth, strict=True):
            print(f"| {name} | {price:.0%} | " + " | ".join(f"{100 * one:.1f}" for one in losses) + " |")
    print()
    hardest = float(sorted(pools["lost"].truth.max(1))[HARD]) - 1e-6
    for loss, level, confidence in (
        ("lost", 0.05, 0.95),
        ("lost", 0.1, 0.95),
        ("lost", 0.1, 0.8),
        ("lost", hardest, 0.95),
        ("lost", hardest, 0.8),
        ("changed", 0.05, 0.95),
        ("changed", 0.1, 0.95),
    ):
        row = held_or_not(pools[loss], level, confidence, arguments.draws)
        print(f"| {loss} | {1 - level:.1%} | {confidence:.0%} | {row} |")
    print()
    print(*elsewhere(pools["lost"], 0.05, 0.95, arguments.draws), sep="\n")


if __name__ == "__main__":
    main()
