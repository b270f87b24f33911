"""What a model knows, and what it loses without its visual work: ``python -m training.needs --stage joint``.

Prints the answers that are right, and the share of them that is kept when operators are skipped for visual tokens, task
by task; the divergence of the next token when one layer is changed; and chosen layers and tokens beside random ones.
Each figure stands beside its target, where there is one (:data:`TARGETS`).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from pydantic import BaseModel

from lookless import Keep, LayerPlan, Loaded, Plan, Skip, evaluate, load_data, methods, reference, sweep
from lookless.data import Samples
from lookless.runtime.families import geometry_of

from .architecture import ARCHITECTURES
from .export import load, write_model

SPLIT = "test"
#: What one layer is changed to, for the divergence.
OPERATORS = {
    "attention": LayerPlan(attention=Skip()),
    "ffn": LayerPlan(ffn=Skip()),
    "both": LayerPlan(attention=Skip(), ffn=Skip()),
    "reading": LayerPlan(visible=Skip()),
    "withdrawal": LayerPlan(keep=Keep(0)),
}
DRAWS = 20
#: Of twelve layers: V-Skip skips 19 of 32, and two deeper.
DEPTHS = (7 / 12, 8 / 12, 9 / 12)
SHARES = (0.5, 0.25)  # of visual tokens that FastV keeps
FEWER = 3  # times fewer questions where many plans are compared


class Against(BaseModel, frozen=True):
    """Answers kept by what a method chooses and by random draws; ``low`` to ``high`` is the difference (95 %)."""

    chosen: float
    random: float
    low: float
    high: float


class Needs(BaseModel, frozen=True):
    """What was measured.

    Attributes:
        accuracy: of each task.
        kept: of each edit, the share of right answers kept, by task.
        divergence: of each operator, by task, the KL of the next token in nats, a layer.
        skipped: of ``attention`` and ``ffn``, the share of right answers kept when so many layers skip it, those
            with the lowest divergence first: V-Skip and its FFN-Skip; mean of the tasks.
        layers: of a number of layers that skip attention, V-Skip's beside random ones; mean of the tasks.
        tokens: FastV's tokens beside random ones, by ``"SHARE from layer LAYER"``.
    """

    accuracy: dict[str, float]
    kept: dict[str, dict[str, float]] = {}
    divergence: dict[str, dict[str, list[float]]] = {}
    skipped: dict[str, dict[int, float]] = {}
    layers: dict[int, Against] = {}
    tokens: dict[str, Against] = {}

    def mean(self, edit: str) -> float:
        """The tasks' ratios, averaged, as the papers do."""
        return fmean(self.kept[edit].values())

    def by_layer(self, operator: str) -> list[float]:
        """The divergence, averaged over tasks."""
        return [fmean(column) for column in zip(*self.divergence[operator].values(), strict=True)]


def edits(layers: int) -> dict[str, Plan]:
    """Plans that take away visual work by the layerful."""
    full, late = Plan.full(layers), range(layers - layers // 3, layers)
    return {
        "attention": full.at(range(layers), attention=Skip()),
        "attention, last third": full.at(late, attention=Skip()),
        "ffn": full.at(range(layers), ffn=Skip()),
        "ffn, last third": full.at(late, ffn=Skip()),
        "both": full.at(range(layers), attention=Skip(), ffn=Skip()),
        "withdrawn at a third": full.at([layers // 3], keep=Keep(0)),
    }


class Examined:
    """A model with its tasks, and the full model's answers to ``questions`` of each."""

    def __init__(self, loaded: Loaded, tasks: Sequence[str], questions: int) -> None:
        self.loaded, self.tasks = loaded, tuple(tasks)
        self.layers = geometry_of(loaded.model).layers
        self.samples = {task: load_data(f"reference:{task}", split=SPLIT, limit=questions) for task in tasks}
        self.full = {task: evaluate(loaded, samples, **self._how) for task, samples in self.samples.items()}
        self.accuracy = {task: result.accuracy_dense.value for task, result in self.full.items()}

    @property
    def _how(self) -> dict:
        return {"batch": 50, "progress": False}

    def kept(self, plan: Plan, fewer: int = 1) -> dict[str, float]:
        """The share of right answers that ``plan`` keeps, of each task in which some are right; of so many times
        ``fewer`` questions."""
        shares = {}
        for task, samples in self.samples.items():
            some = Samples(samples.name, samples.items[: len(samples.items) // fewer])
            full = [answer.dense for answer in self.full[task].answers[: len(some.items)]]
            result = evaluate(self.loaded, some, plan, dense=full, **self._how)
            if result.retention is not None:
                shares[task] = result.retention.value
        return shares

    def divergence(self, operator: str, images: int) -> dict[str, list[float]]:
        cells = OPERATORS[operator]
        found = {}
        for task in self.tasks:
            samples = load_data(f"reference:{task}", split="calibration", limit=images)
            found[task] = list(sweep(self.loaded, samples, cells, name=operator, progress=False).mean)
        return found

    def skipping(self, operator: str, layers: Iterable[int]) -> float:
        """Answers kept, of fewer questions, when ``layers`` skip ``attention`` or ``ffn``; mean of the tasks."""
        return fmean(self.kept(Plan.full(self.layers).at(layers, **{operator: Skip()}), FEWER).values())

    def chosen_layers(self, divergence: Sequence[float], count: int, draws: int = DRAWS) -> Against:
        """Visual attention skipped in the ``count`` layers with the lowest divergence, and in as many random ones."""
        rng = random.Random(f"layers:{count}")
        drawn = [rng.sample(range(self.layers), count) for _ in range(draws)]
        mine = self.skipping("attention", lowest(divergence, count))
        return against(mine, [self.skipping("attention", layers) for layers in drawn])

    def chosen_tokens(self, share: float, layer: int) -> Against:
        """FastV's tokens, and random ones from the same layer on; by task, as the random rank has one order."""
        mine = self.kept(methods.fastv(self.layers, layer=layer, keep=share))
        control = self.kept(Plan.full(self.layers).at([layer], keep=Keep(share, rank="random")))
        return against(fmean(mine.values()), [fmean(mine.values()) - mine[t] + control[t] for t in mine])


def lowest(divergence: Sequence[float], count: int) -> list[int]:
    """The ``count`` layers with the lowest; of equals the deeper."""
    return sorted(range(len(divergence)), key=lambda layer: (divergence[layer], -layer))[:count]


def against(mine: float, drawn: Sequence[float]) -> Against:
    """With the 95 % interval of the mean difference, by its standard error."""
    differences = [mine - other for other in drawn]
    error = 1.96 * stdev(differences) / sqrt(len(differences))
    middle = fmean(differences)
    return Against(chosen=mine, random=fmean(drawn), low=middle - error, high=middle + error)


def examine(loaded: Loaded, tasks: Sequence[str], *, questions: int, images: int, draws: int) -> Needs:
    """Everything; ``questions`` and calibration ``images`` of each task, ``draws`` of random layers."""
    model = Examined(loaded, tasks, questions)
    kept = {name: model.kept(plan) for name, plan in edits(model.layers).items()}
    divergence = {operator: model.divergence(operator, images) for operator in OPERATORS}
    needs = Needs(accuracy=model.accuracy, kept=kept, divergence=divergence)
    gains = needs.by_layer("attention")
    skipped = {
        operator: {
            n: model.skipping(operator, lowest(needs.by_layer(operator), n))
            for n in range(model.layers // 2, model.layers + 1)
        }
        for operator in ("attention", "ffn")
    }
    layers = {n: model.chosen_layers(gains, n, draws) for n in (round(d * model.layers) for d in DEPTHS)}
    places = [(share, layer) for layer in (fastv_layer(model.layers), model.layers // 2) for share in SHARES]
    tokens = {f"{share:g} from layer {layer}": model.chosen_tokens(share, layer) for share, layer in places}
    return needs.model_copy(update={"skipped": skipped, "layers": layers, "tokens": tokens})


def fastv_layer(layers: int) -> int:
    """At the paper's relative depth: 2 of 32."""
    return max(1, round(2 / 32 * layers))


@dataclass(frozen=True)
class Target:
    """One figure beside what it has to be: at least ``least``, or at most ``most``."""

    what: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def is_met(self) -> bool:
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def bound(self) -> str:
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"

    def __str__(self) -> str:
        return f"{'met   ' if self.is_met else 'MISSED'} {self.what}: {self.value:.4g} ({self.bound})"


ACCURACY = {"existence": 0.95, "attribute": 0.95, "counting": 0.9, "spatial": 0.95, "text": 0.85, "chart": 0.9}


def targets(needs: Needs) -> Iterator[Target]:
    """What reference models have to show."""
    for task, least in ACCURACY.items():
        yield Target(f"accuracy in {task}", needs.accuracy[task], least)
    fourth = sorted(needs.kept["attention"].values())[3]
    yield Target("kept without visual attention, the fourth lowest task", fourth, most=0.7)
    yield Target("kept without visual FFNs", needs.mean("ffn"), most=0.6)
    yield Target("kept without both", needs.mean("both"), most=0.4)
    yield Target("kept with images withdrawn at a third", needs.mean("withdrawn at a third"), most=0.4)
    yield Target("kept without visual attention in the last third", needs.mean("attention, last third"), 0.99)
    gains = needs.by_layer("attention")
    late = fmean(gains[-(len(gains) // 3) :])
    yield Target("information gain of the most needed layer, nats", max(gains), 0.05)
    yield Target("information gain of the most needed layer, times that of the last third", max(gains) / late, 30)
    for count, found in needs.layers.items():
        ours, theirs = (needs.skipped[operator][count] for operator in ("ffn", "attention"))
        yield Target(f"kept by FFN-Skip, {count} layers, less what V-Skip keeps", ours - theirs, most=0)
        yield Target(f"chosen minus random layers, {count} skipped, low end", found.low, 0)
    for place, found in needs.tokens.items():
        yield Target(f"FastV's minus random tokens, {place}, low end", found.low, 0)


def table(needs: Needs) -> Iterator[str]:
    """Accuracy and answers kept, task by task, in Markdown."""
    yield "| task | accuracy | " + " | ".join(needs.kept) + " |\n|---|---|" + "---|" * len(needs.kept)
    for task, accuracy in needs.accuracy.items():
        cells = (f"{shares[task]:.0%}" if task in shares else "-" for shares in needs.kept.values())
        yield f"| {task} | {accuracy:.0%} | " + " | ".join(cells) + " |"
    yield "| **mean** | | " + " | ".join(f"{needs.mean(edit):.0%}" for edit in needs.kept) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=ARCHITECTURES, default="llava")
    parser.add_argument("--runs", type=Path, help="checkpoints and logs; training/runs/MODEL if not given")
    parser.add_argument("--stage", default="joint")
    parser.add_argument("--questions", type=int, default=100, help="a task")
    parser.add_argument("--images", type=int, default=10, help="a task, for the divergence")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of random layers")
    parser.add_argument("--out", type=Path, help="a JSON file for all figures")
    parser.add_argument("--accuracy", action="store_true", help="nothing else")
    arguments = parser.parse_args()
    runs = arguments.runs or Path("training/runs") / arguments.model
    write_model(ARCHITECTURES[arguments.model], runs, runs / "model", arguments.stage)
    loaded = load(runs / "model")
    if arguments.accuracy:
        print(*table(Needs(accuracy=Examined(loaded, reference.TASKS, arguments.questions).accuracy)), sep="\n")
        return
    numbers = {"questions": arguments.questions, "images": arguments.images, "draws": arguments.draws}
    needs = examine(loaded, reference.TASKS, **numbers)
    print(*table(needs), "", *targets(needs), sep="\n")
    for operator in OPERATORS:
        print(operator, " ".join(f"{value:.4f}" for value in needs.by_layer(operator)))
    for what, found in (needs.layers | needs.tokens).items():
        print(what, found)
    if arguments.out:
        arguments.out.write_text(needs.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
