"""Better cells than zero? A constant and maps of low rank in place of what a plan skips, on questions not seen.

``python benchmarks/cells.py``: the reference model, all tasks, both operators; writes docs/cells.md. About ten minutes
on one core. Results are stored in benchmarks/runs, and a rerun resumes from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from statistics import fmean, geometric_mean

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from lookless import Loaded, Plan, Samples, Skip, Top, calibrate, evaluate, files, load_data, load_model
from lookless.calibration.affine import OPERATORS, RIDGE, Fitter, Operator
from lookless.calibration.gradients import frozen_parameters, update_gradients
from lookless.calibration.regression import Moments
from lookless.calibration.replay import record_activations, visual_prompts
from lookless.cells import Affine, Cell
from lookless.fitted import Linear, Mean
from lookless.machine import processor
from lookless.markdown import markdown_table, spliced, wrapped
from lookless.runtime.families import locate
from lookless.search import Objective
from lookless.weights import Weights

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cells.md"
BEGIN = "<!-- what follows is written by benchmarks/cells.py -->"
END = "<!-- end of what benchmarks/cells.py writes -->"
RANKS = (0, 1, 2, 4, 8, 16)
RIDGES = (1e-4, 1e-1, 1.0)  # beside the default
MEASURES = {"attention": "visual_information_gain", "ffn": "ffn_effect"}
MORE = (0, 8, 32)  # ranks where all are skipped
FEW = 7
COUNTS = (FEW, 11)  # layers in which an operator is skipped, of the lowest effect
SKIPS = {operator: {operator: Skip()} for operator in OPERATORS}
Place = tuple[int, str]  # layer and operator


class Rung(BaseModel):
    """One plan of the ladder.

    Attributes:
        name: of what takes the operator's place.
        operator: attention or ffn; "both" for both in each layer.
        layers: where.
        distance: KL from the full model's answers, in nats, mean over samples.
        fidelity: share of answers that are the full model's; None where not asked.
        retention: right answers, as a share of the full model's right ones.
        flops: share of the full model's prefill FLOPs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    operator: str
    layers: tuple[int, ...]
    distance: float
    fidelity: float | None = None
    retention: float | None = None
    flops: float


class Results(BaseModel):
    """All plans of one model, and what they were measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    fitted_on: int
    tested_on: int
    processor: str
    rungs: tuple[Rung, ...] = ()


def noise(cell: Affine, seed: int) -> Affine:
    """A cell of the same kind whose numbers are random, each part as long as ``cell``'s."""
    rng, parts = np.random.default_rng(seed), []
    for part in cell.weights.parts.values():
        drawn = rng.standard_normal(part.shape)
        parts.append(drawn * np.linalg.norm(part) / np.linalg.norm(drawn))
    weights = Weights.of(*parts)
    return Linear(weights) if cell.inner else Mean(weights)


def noisy(make: Callable[[], Plan]) -> Plan:
    """What ``make`` makes, with noise in place of each fitted cell."""
    plan = make()
    for layer, row in enumerate(plan.layers):
        cells = {o: noise(getattr(row, o), layer) for o in OPERATORS if getattr(row, o).affine}
        plan = plan.at([layer], **cells)
    return plan


def optimal_constants(loaded: Loaded, samples: Samples, *, draws: int = 2, shrink: float = 0.1) -> dict[Place, Mean]:
    """For each operator the constant of least expected loss, to second order, by the gradients of random directions of
    the answer's logits: errors ``e(i)`` of visual tokens cost ``(sum over i of <g(i), e(i)>) ** 2``. Ridge regression
    of as many equations as there are samples and directions."""
    located = locate(loaded.model)
    sums: dict[Place, list[tuple[Tensor, Tensor]]] = {}
    generator = torch.Generator().manual_seed(0)
    for prompt in visual_prompts(loaded, samples, "gradients", "answer", False):
        with frozen_parameters(loaded.model), record_activations(located) as recorded, torch.enable_grad():
            last = located.inner(**prompt.inputs, use_cache=False).last_hidden_state
            logits = loaded.model.get_output_embeddings()(last[0, prompt.read]).float()
            for _ in range(draws):
                direction = torch.randn(logits.shape, generator=generator) / logits.shape[1] ** 0.5
                both = update_gradients((direction * logits).sum(), recorded, keep_graph=True)
                for operator, gradients, updates in zip(
                    OPERATORS, both, (recorded.attention, recorded.ffn), strict=True
                ):
                    for layer, (g, y) in enumerate(zip(gradients, updates, strict=True)):
                        g, y = g[0, prompt.visual].double(), y.detach()[0, prompt.visual].double()
                        sums.setdefault((layer, operator), []).append((g.sum(0), (g * y).sum()))
    return {place: Mean(_optimal(parts, shrink)) for place, parts in sums.items()}


def _optimal(parts: list[tuple[Tensor, Tensor]], shrink: float) -> Weights:
    slopes, wanted = (torch.stack(part) for part in zip(*parts, strict=True))
    gram = slopes @ slopes.T
    damping = shrink * gram.trace() / len(gram) + 1e-12  # in the last layer all are zero
    return Weights.of(slopes.T @ torch.linalg.solve(gram + damping * torch.eye(len(gram), dtype=gram.dtype), wanted))


def unweighted(loaded: Loaded, samples: Samples) -> dict[Place, dict[int, Affine]]:
    """The mean and the map of rank 8 to which every visual token counts the same, on the states of the full model."""
    located, moments = locate(loaded.model), {}
    for prompt in visual_prompts(loaded, samples, "states", "last", False):
        with frozen_parameters(loaded.model), record_activations(located) as recorded, torch.enable_grad():
            located.inner(**prompt.inputs, use_cache=False)
        with torch.no_grad():
            for layer, module in enumerate(located.layers):
                x, a, f = (
                    t[0, prompt.visual]
                    for t in (recorded.inputs[layer][0], recorded.attention[layer], recorded.ffn[layer])
                )
                seen = {"attention": (module.input_layernorm(x), a), "ffn": (module.post_attention_layernorm(x + a), f)}
                for operator, (inputs, outputs) in seen.items():
                    moments.setdefault((layer, operator), Moments(x.shape[1])).add(inputs, outputs)
    return {
        place: {0: Mean(each.fit(rank=0)), 8: Linear(each.fit(rank=8, ridge=RIDGE))} for place, each in moments.items()
    }


class Bench:
    """Measures each plan once; what a run before measured is read."""

    def __init__(self, path: Path, name: str, fitted: int, tested: int) -> None:
        self.path, self.loaded = path, load_model(name)
        self.train = load_data("reference", split="calibration", limit=fitted)
        self.test = load_data("reference", split="test", limit=tested)
        self.objective = Objective(self.loaded, self.test, position="answer", progress=False)
        self.results = Results(model=name, fitted_on=len(self.train), tested_on=len(self.test), processor=processor())
        self.fitter = Fitter(self.loaded, self.train, progress=False)
        self.dense = [answer.dense for answer in evaluate(self.loaded, self.test, progress=False).answers]
        if path.exists():
            self.results = Results.model_validate_json(path.read_text())

    @cached_property
    def constants(self) -> dict[Place, Mean]:
        return optimal_constants(self.loaded, self.train)

    @cached_property
    def cells(self) -> dict[tuple[int, Operator], dict[int, Affine]]:
        return self.fitter.alone(ranks=RANKS)

    def add(
        self, name: str, operator: str, layers: tuple[int, ...], make: Callable[[], Plan], *, answers: bool = False
    ) -> None:
        if any((r.name, r.operator, r.layers) == (name, operator, layers) for r in self.results.rungs):
            return
        plan = make()
        kept = evaluate(self.loaded, self.test, plan, dense=self.dense, progress=False) if answers else None
        rung = Rung(
            name=name,
            operator=operator,
            layers=layers,
            distance=self.objective(plan),
            fidelity=None if kept is None or kept.fidelity is None else kept.fidelity.value,
            retention=None if kept is None or kept.retention is None else kept.retention.value,
            flops=self.objective.kept(plan),
        )
        self.results = self.results.model_copy(update={"rungs": (*self.results.rungs, rung)})
        files.write_text(self.path, files.dump(self.results))
        print(rung, flush=True)


def alone(bench: Bench) -> None:
    """Each operator of each layer, with nothing else planned."""
    full = Plan.full(bench.objective.geometry)
    constants, plain = bench.constants, unweighted(bench.loaded, bench.train)
    for (layer, operator), by_rank in bench.cells.items():
        rungs: dict[str, Cell] = {"zero": Skip(), "mean, unweighted": plain[layer, operator][0], "mean": by_rank[0]}
        rungs |= {"optimal constant": constants[layer, operator], "noise, constant": noise(by_rank[0], layer)}
        rungs |= {f"rank {rank}": cell for rank, cell in by_rank.items() if rank}
        rungs |= {"rank 8, unweighted": plain[layer, operator][8], "noise, rank 8": noise(by_rank[8], layer)}
        for name, cell in rungs.items():
            bench.add(name, operator, (layer,), partial(full.at, [layer], **{operator: cell}))


def together(bench: Bench) -> None:
    """Operators of several layers at once: those whose skipping alone moves the answers least."""
    loaded, train, full = bench.loaded, bench.train, Plan.full(bench.objective.geometry)

    def of_each(layers: Sequence[int], operator: str, chosen: Callable[[int], Cell]) -> Plan:
        plan = full
        for layer in layers:
            plan = plan.at([layer], **{operator: chosen(layer)})
        return plan

    for operator, count in product(OPERATORS, COUNTS):
        scores = calibrate(loaded, train, measure=MEASURES[operator], progress=False)
        layers = tuple(layer for layer in scores.lowest(count + 1) if layer < len(full.layers) - 1)[:count]
        zero = full.at(layers, **SKIPS[operator])

        def fitted(rank: int, ridge: float = RIDGE, zero: Plan = zero) -> Plan:
            return bench.fitter.refit(zero, rank=rank, ridge=ridge)

        def fixed(layer: int, operator: str = operator) -> Cell:
            return bench.constants[layer, operator]

        def once(layer: int, operator: str = operator) -> Cell:
            return bench.cells[layer, operator][8]  # type: ignore[index]

        make: dict[str, Callable[[], Plan]] = {"zero": partial(full.at, layers, **SKIPS[operator])}
        make |= {
            f"rank {rank}" if rank else "mean": partial(fitted, rank) for rank in (RANKS if count == FEW else MORE)
        }
        make["noise, rank 8"] = partial(noisy, partial(fitted, 8))
        if count == FEW:
            make["optimal constant, each fitted alone"] = partial(of_each, layers, operator, fixed)
            make["rank 8, each fitted alone"] = partial(of_each, layers, operator, once)
            make["noise, constant"] = partial(noisy, partial(fitted, 0))
            make |= {f"rank 8, ridge {ridge:g}": partial(fitted, 8, ridge) for ridge in RIDGES}
        else:
            few = [layer for layer in scores.lowest(FEW + 1) if layer in layers]  # without the last one
            others = [layer for layer in layers if layer not in few]
            mixed = full.at(few, **{operator: Top(0)}).at(others, **SKIPS[operator])  # Top(0) is a skip that stays
            for rank in MORE[1:]:
                make[f"zero in {FEW}, rank {rank} in {len(others)}"] = partial(bench.fitter.refit, mixed, rank=rank)
        for name, plan in make.items():
            bench.add(name, operator, layers, plan, answers=True)


def of_alone(results: Results) -> str:
    """Each operator alone: over layers, the distance as a share of zero's."""
    tables = []
    for operator in OPERATORS:
        mine = [r for r in results.rungs if r.operator == operator and len(r.layers) == 1]
        zero = {r.layers: r.distance for r in mine if r.name == "zero"}
        rows = []
        for name in dict.fromkeys(r.name for r in mine):
            shares = [r.distance / zero[r.layers] for r in mine if r.name == name]
            distances = [r.distance for r in mine if r.name == name]
            worse = sum(share > 1 for share in shares)
            numbers = (geometric_mean(shares), min(shares), max(shares))
            rows.append([name, f"{fmean(distances):.4f}", *(f"{n:.2f}" for n in numbers), f"{worse} of {len(shares)}"])
        heads = ["in its place", "KL, nats", "share of zero's", "best layer", "worst layer", "layers made worse"]
        tables.append(f"### {operator}\n\n{markdown_table(heads, rows)}")
    return "\n\n".join(tables)


def of_together(results: Results) -> str:
    """Several layers at once."""
    tables = []
    joint = [r for r in results.rungs if len(r.layers) > 1]
    for operator, layers in dict.fromkeys((r.operator, r.layers) for r in joint):
        mine = [r for r in joint if (r.operator, r.layers) == (operator, layers)]
        rows = [
            [r.name, f"{r.distance:.4f}", _percent(r.fidelity), _percent(r.retention), _percent(r.flops)] for r in mine
        ]
        heads = ["in its place", "KL, nats", "same answers, %", "retention, %", "FLOPs, %"]
        where = ", ".join(map(str, layers))
        tables.append(f"### {operator} of layers {where}\n\n{markdown_table(heads, rows)}")
    return "\n\n".join(tables)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def document(results: Results) -> str:
    parts = [
        f"`{results.model}`, all ten tasks; fitted on {results.fitted_on} questions, tested on {results.tested_on} "
        f"others. {results.processor}.",
        "## Several layers at once",
        of_together(results),
    ]
    if any(len(rung.layers) == 1 for rung in results.rungs):
        parts += ["## One operator of one layer", of_alone(results)]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--fit", type=int, default=40, help="samples to fit on")
    parser.add_argument("--test", type=int, default=60, help="samples to test on")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "runs" / "cells.json")
    parser.add_argument("--write", action="store_true", help="only write the page, of what was measured before")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        results = Results.model_validate_json(chosen.out.read_text())
    else:
        bench = Bench(chosen.out, chosen.model, chosen.fit, chosen.test)
        together(bench)
        alone(bench)
        results = bench.results
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    files.write_text(PAGE, spliced(before, BEGIN, END, wrapped(document(results))))


if __name__ == "__main__":
    main()
