"""What the experiments of RedundancyLens (arXiv 2501.19036) share: rankings of layers, and plans of the first few."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.replay import visual_prompts
from ..methods import redundancylens
from ..methods.redundancylens import window_at
from ..methods.selection import ranking
from ..plan import Plan
from ..search.greedy import redundancylens_order
from .answers import Outcomes
from .hooks import removed
from .lab import Lab

OPERATORS = ("attention", "ffn")
Order = tuple[int, ...]
#: of attention and of the FFN, the layers to be reduced first come first
Ranking = Callable[[Lab, str], tuple[Order, Order]]
GREEDY, ONE_LAYER, ACTIVATION, GRADIENT, VARIANCE = (
    "greedy search",
    "one layer's effect",
    "mean activation",
    "gradient",
    "output variance",
)
PRERANKED = 0.25  #: share of the layers that greedy search takes from the end; the paper's is not printed


def reduced(lab: Lab, task: str, ranking: Ranking, attention: int, ffn: int) -> Plan:
    """RedundancyLens in the first layers of a ranking."""
    return redundancylens(
        *ranking(lab, task), attention_layers=attention, ffn_layers=ffn, window=window_at(lab.work.visual)
    )


def on_tasks(lab: Lab, name: str, ranking: Ranking, attention: int, ffn: int, draw: int = 0) -> Outcomes:
    setting = f"{attention} {ffn}"
    return lab.on_tasks(
        name, lambda t: reduced(lab, t, ranking, attention, ffn).made_by(sample_hashes=None), setting=setting, draw=draw
    )


def greedy(lab: Lab, task: str) -> tuple[Order, Order]:
    """One order for all tasks, by the hybrid greedy search with the paper's penalty of 2."""
    found, window = [], window_at(lab.work.visual)
    for operator in OPERATORS:
        order = redundancylens_order(
            lab.work.objective,
            operator,  # type: ignore[arg-type]
            preranked=round(PRERANKED * lab.layers),
            window=window,
            path=lab.store.folder / f"redundancylens-{operator}.{window}.{lab.work.searched_on.hash}.json",
            progress=False,
        )
        found.append(tuple(order.candidates[index].layer for index in order.taken))
    return found[0], found[1]


def one_layer(lab: Lab, task: str) -> tuple[Order, Order]:
    """By the effect of reducing one layer alone: what `lookless plan redundancylens` takes."""
    return ranking(lab.scores(task, "window_effect")), ranking(lab.scores(task, "neuron_effect"))


def gradient(lab: Lab, task: str) -> tuple[Order, Order]:
    """By first-order influence on the answer's log-probability."""
    return ranking(lab.scores(task, "attention_influence")), ranking(lab.scores(task, "ffn_influence"))


def activation(lab: Lab, task: str) -> tuple[Order, Order]:
    return _lowest(lab, task, ACTIVATION)


def variance(lab: Lab, task: str) -> tuple[Order, Order]:
    return _lowest(lab, task, VARIANCE)


def random(seed: int) -> Ranking:
    """The control."""

    def drawn(lab: Lab, task: str) -> tuple[Order, Order]:
        generator, layers = Random(seed), [*range(lab.layers)]
        return tuple(generator.sample(layers, len(layers))), tuple(generator.sample(layers, len(layers)))

    return drawn


def _lowest(lab: Lab, task: str, what: str) -> tuple[Order, Order]:
    samples = lab.draw(task)
    found = lab.numbers(f"{task} outputs", ("outputs", samples.hash), lambda: _outputs(lab, task))
    orders = [tuple(sorted(range(lab.layers), key=lambda i: (found[f"{o} {what}"][i], -i))) for o in OPERATORS]
    return orders[0], orders[1]


@torch.no_grad()
def _outputs(lab: Lab, task: str) -> dict[str, tuple[float, ...]]:
    """Of what each operator adds to visual tokens: mean absolute value, and variance over tokens (mean over channels),
    by layer, over the tokens of all samples."""
    sums: dict[str, list[_Moments]] = {operator: [_Moments() for _ in range(lab.layers)] for operator in OPERATORS}
    for prompt in visual_prompts(lab.loaded, lab.draw(task), "", "last", False):
        with _recorded(lab, prompt.visual, sums) as inner:
            inner(**prompt.inputs, use_cache=False)
    return {
        f"{operator} {name}": tuple(getattr(moments, of) for moments in layers)
        for operator, layers in sums.items()
        for name, of in ((ACTIVATION, "size"), (VARIANCE, "variance"))
    }


class _Moments:
    """Sums over tokens, in float64: of absolute values, values and squares, ``[hidden]``."""

    def __init__(self) -> None:
        self.count = 0
        self.absolute = self.first = self.second = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """``x [tokens, hidden]``."""
        x = x.double().cpu()
        self.count += len(x)
        self.absolute, self.first = self.absolute + x.abs().sum(0), self.first + x.sum(0)
        self.second = self.second + x.square().sum(0)

    @property
    def size(self) -> float:
        return float((self.absolute / self.count).mean())

    @property
    def variance(self) -> float:
        return float((self.second / self.count - (self.first / self.count).square()).mean())


@contextmanager
def _recorded(lab: Lab, visual: Tensor, sums: dict[str, list[_Moments]]) -> Iterator[nn.Module]:
    """The inner model, whose operators' outputs at ``visual`` rows are added to ``sums``."""
    from ..runtime.families import locate
    from ..runtime.mixers import added_by

    located, hooks = locate(lab.loaded.model), []
    for index, layer in enumerate(located.layers):
        for operator, module in located.adding(layer).items():

            def add(_: nn.Module, __: Any, output: Any, moments: _Moments = sums[operator][index]) -> None:
                x = added_by(output)
                moments.add(x[0, visual.to(x.device)])

            hooks.append(module.register_forward_hook(add))
    with removed(hooks):
        yield located.inner


RANKINGS: dict[str, Ranking] = {
    GREEDY: greedy,
    ONE_LAYER: one_layer,
    ACTIVATION: activation,
    GRADIENT: gradient,
    VARIANCE: variance,
}
