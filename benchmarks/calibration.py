"""What calibration costs and whether it chooses the same layers: the papers' passes, the sweep, screening.

``python benchmarks/calibration.py``: both reference models, all tasks, both operators; writes docs/calibration.md.
About ten minutes on one core. Results are stored in benchmarks/runs, and a rerun resumes from them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median

import torch
from pydantic import BaseModel, ConfigDict
from torch.utils.flop_counter import FlopCounterMode

from lookless import Loaded, Samples, Scores, apply, files, load_data, load_model
from lookless.calibration.distances import kl
from lookless.calibration.gradients import frozen_parameters, update_gradients
from lookless.calibration.replay import one_row, record_activations, visual_prompts
from lookless.calibration.screening import screen
from lookless.calibration.sweep import INTERVENTIONS, sweep
from lookless.machine import processor
from lookless.markdown import spliced, wrapped
from lookless.methods import METHODS
from lookless.reference import NAMES, TASKS
from lookless.runtime.families import locate

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "calibration.md"
BEGIN = "<!-- what follows is written by benchmarks/calibration.py -->"
END = "<!-- end of what benchmarks/calibration.py writes -->"
OPERATORS = {"visual_information_gain": "attention", "ffn_effect": "FFN"}
PAPERS = (8, 16, 19, 24)  # of 32 layers: V-Skip's sweep over N; 19 is its setting
SETTING = 19


class Round(BaseModel):
    """One model on one task.

    Attributes:
        exact: by operator, the sweep's scores, ``[samples][layers]``; ``other`` of as many other samples.
        difference: the largest between a score of the sweep and of the papers' procedure, in nats.
        papers, swept: seconds by operator; ``dense`` the one full pass of each sample, in each of ``papers``.
        chosen: by "operators N", the layers that screening chose; ``seconds`` and ``passes`` per sample likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    task: str
    samples: int
    exact: dict[str, Scores]
    other: dict[str, Scores]
    difference: float
    dense: float
    papers: dict[str, float]
    swept: dict[str, float]
    chosen: dict[str, dict[str, tuple[int, ...]]]
    seconds: dict[str, float]
    passes: dict[str, float]


def counts(layers: int) -> list[int]:
    knob = METHODS["v-skip"].knobs["layers"]
    return [knob.scaled(count, layers, 32) for count in PAPERS]


def setting(layers: int) -> int:
    return int(METHODS["v-skip"].knobs["layers"].scaled(SETTING, layers, 32))


def by_the_papers(loaded: Loaded, samples: Samples) -> tuple[float, dict[str, float], dict[str, list[float]]]:
    """One sample: a full pass, and for each operator one in which each layer in turn skips it; seconds, and scores."""
    model, located = loaded.model, locate(loaded.model)
    inputs = loaded.inputs(list(samples))

    @torch.no_grad()
    def answer() -> torch.Tensor:
        return torch.log_softmax(model(**inputs, logits_to_keep=1, use_cache=False).logits[0].float(), -1)

    at = time.perf_counter()
    full = answer()
    dense, seconds, scores = time.perf_counter() - at, {}, {}
    for name in OPERATORS:
        at = time.perf_counter()
        scores[name] = []
        for layer in range(len(located.layers)):
            with apply(model, one_row(located.geometry, layer, INTERVENTIONS[name].cells)):
                scores[name].append(float(kl(full, answer()).mean()))
        seconds[name] = dense + time.perf_counter() - at
    return dense, seconds, scores


def one_by_one(samples: Samples) -> Iterator[Samples]:
    return (Samples(samples.name, (sample,)) for sample in samples)


def swept(loaded: Loaded, samples: Samples, name: str) -> Scores:
    return sweep(loaded, samples, INTERVENTIONS[name].cells, name=name, progress=False)


def joined(parts: list[Scores]) -> Scores:
    return parts[0].model_copy(update={"per_sample": tuple(part.per_sample[0] for part in parts)})


def run_round(loaded: Loaded, task: str, count: int) -> Round:
    """Papers' passes and sweeps in turn, sample by sample, then screening of all samples."""
    twice = load_data(f"reference:{task}", split="calibration", limit=2 * count)
    samples, others = (Samples(twice.name, twice.items[a:b]) for a, b in ((0, count), (count, 2 * count)))
    dense, difference = 0.0, 0.0
    papers, ours = dict.fromkeys(OPERATORS, 0.0), dict.fromkeys(OPERATORS, 0.0)
    parts: dict[str, list[Scores]] = {name: [] for name in OPERATORS}
    for one in one_by_one(samples):
        spent, seconds, scores = by_the_papers(loaded, one)
        dense += spent
        for name in OPERATORS:
            parts[name].append(swept(loaded, one, name))
            papers[name] += seconds[name]
            ours[name] += parts[name][-1].seconds or 0.0
            pairs = zip(scores[name], parts[name][-1].per_sample[0], strict=True)
            difference = max(difference, *(abs(a - b) for a, b in pairs))
    asked = {f"{name} {setting(depth(loaded))}": (name,) for name in OPERATORS}
    asked |= {f"both {n}": tuple(OPERATORS) for n in counts(depth(loaded))}
    chosen, spent_on, passes = {}, {}, {}
    for what, names in asked.items():
        n = int(what.split()[1])
        at = time.perf_counter()
        found = screen(loaded, samples, dict.fromkeys(names, n), progress=False)
        spent_on[what] = time.perf_counter() - at
        chosen[what] = {name: scores.lowest(n) for name, scores in found.items()}
        passes[what] = 2 + sum((s.passes or 0) - 2 for s in found.values())  # one forward and one backward for all
    return Round(
        model=loaded.name,
        task=task,
        samples=count,
        exact={name: joined(p) for name, p in parts.items()},
        other={name: swept(loaded, others, name) for name in OPERATORS},
        difference=difference,
        dense=dense,
        papers=papers,
        swept=ours,
        chosen=chosen,
        seconds=spent_on,
        passes=passes,
    )


def depth(loaded: Loaded) -> int:
    return len(locate(loaded.model).layers)


def backward_flops(loaded: Loaded) -> float:
    """FLOPs of the decoder's backward pass to activations alone, by those of its forward pass."""
    located = locate(loaded.model)
    samples = load_data("reference:chart", split="calibration", limit=1)
    prompt = next(iter(visual_prompts(loaded, samples, "", "last", False)))
    begun: list[int] = []
    with (
        FlopCounterMode(display=False) as counter,
        frozen_parameters(loaded.model),
        record_activations(located) as recorded,
        torch.enable_grad(),
    ):
        hook = located.layers[0].register_forward_pre_hook(lambda *_: begun.append(counter.get_total_flops()))
        last = located.inner(**prompt.inputs, use_cache=False).last_hidden_state
        hook.remove()
        forward = counter.get_total_flops()
        update_gradients(last[0, prompt.read].sum(), recorded)
    return (counter.get_total_flops() - forward) / (forward - begun[0])


def jaccard(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    return len({*a} & {*b}) / len({*a} | {*b})


def speed_table(rounds: list[Round]) -> list[str]:
    layers = rounds[0].exact["ffn_effect"].geometry.layers
    n = setting(layers)
    half = 1 + (layers + 1) / 2  # one full pass, and from each layer on
    lines = [
        "| | passes per sample | fewer passes | seconds per sample | speed-up in seconds (lowest to highest) |",
        "|---|---:|---:|---:|---:|",
    ]

    def row(what: str, passes: float, of: float, times: list[float], papers: list[float]) -> str:
        ratios = [p / t for p, t in zip(papers, times, strict=True)]
        each = fmean(t / r.samples for t, r in zip(times, rounds, strict=True))
        return (
            f"| {what} | {passes:.2f} | {of / passes:.1f} | {each:.3f} | {median(ratios):.1f} "
            f"({min(ratios):.1f} to {max(ratios):.1f}) |"
        )

    for name, operator in OPERATORS.items():
        papers = [r.papers[name] for r in rounds]
        lines.append(row(f"{operator}: papers", layers + 1, layers + 1, papers, papers))
        lines.append(row(f"{operator}: sweep", half, layers + 1, [r.swept[name] for r in rounds], papers))
        what = f"{name} {n}"
        passes = fmean(r.passes[what] for r in rounds)
        lines.append(row(f"{operator}: screen, N = {n}", passes, layers + 1, [r.seconds[what] for r in rounds], papers))
    papers = [sum(r.papers.values()) - r.dense for r in rounds]
    lines.append(row("both: papers", 2 * layers + 1, 2 * layers + 1, papers, papers))
    lines.append(row("both: two sweeps", 2 * half, 2 * layers + 1, [sum(r.swept.values()) for r in rounds], papers))
    for n in counts(layers):
        what = f"both {n}"
        passes, times = fmean(r.passes[what] for r in rounds), [r.seconds[what] for r in rounds]
        lines.append(row(f"both: screen, N = {n}", passes, 2 * layers + 1, times, papers))
    return lines


def choice_table(rounds: list[Round]) -> list[str]:
    ns = counts(rounds[0].exact["ffn_effect"].geometry.layers)
    lines = [
        "| task | operator | " + " | ".join(f"N = {n}" for n in ns) + " |",
        "|---|---|" + "---:|" * len(ns),
    ]
    for r in rounds:
        for name, operator in OPERATORS.items():
            cells = []
            for n in ns:
                exact = r.exact[name].lowest(n)
                here = jaccard(exact, r.chosen[f"both {n}"][name])
                cells.append(f"{here:.2f} ({jaccard(exact, r.other[name].lowest(n)):.2f})")
            lines.append(f"| {r.task} | {operator} | " + " | ".join(cells) + " |")
    means = [fmean(_all(rounds, n)) for n in ns]
    others = [fmean(_all(rounds, n, others=True)) for n in ns]
    cells = [f"**{m:.2f}** ({o:.2f})" for m, o in zip(means, others, strict=True)]
    return [*lines, "| mean | | " + " | ".join(cells) + " |"]


def _all(rounds: list[Round], n: int, *, others: bool = False) -> list[float]:
    return [
        jaccard(r.exact[name].lowest(n), r.other[name].lowest(n) if others else r.chosen[f"both {n}"][name])
        for r in rounds
        for name in OPERATORS
    ]


def missed(rounds: list[Round]) -> list[str]:
    """Where screening chose another layer than the exact scores, and how much apart the two are."""
    lines = []
    for r in rounds:
        for name, operator in OPERATORS.items():
            for n in counts(r.exact[name].geometry.layers):
                exact, mine = {*r.exact[name].lowest(n)}, {*r.chosen[f"both {n}"][name]}
                for lost, got in zip(sorted(exact - mine), sorted(mine - exact), strict=True):
                    mean, error = r.exact[name].mean, r.exact[name].error
                    lines.append(
                        f"* {r.task}, {operator}, N = {n}: layer {got} ({mean[got]:.1e} ± {error[got]:.0e} nats) "
                        f"instead of layer {lost} ({mean[lost]:.1e} ± {error[lost]:.0e})"
                    )
    return lines or ["* none"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs")
    parser.add_argument("--samples", type=int, default=16)
    arguments = parser.parse_args()
    count, machine = arguments.samples, f"{processor()}, {torch.get_num_threads()} threads, float32"
    lines = [f"{machine}, {count} samples per task, logits read at the last token of the prompt.", ""]
    for name in NAMES:
        loaded = load_model(name)
        rounds = []
        for task in TASKS:
            path = arguments.runs / f"calibration-{name}-{task}-{count}.json"
            if not path.exists():
                files.write_text(path, files.dump(run_round(loaded, task, count)))
                print(path, flush=True)
            rounds.append(Round.model_validate_json(path.read_text()))
        lines += [
            f"## {name}",
            "",
            *speed_table(rounds),
            "",
            f"A backward pass has {backward_flops(loaded):.2f} times the FLOPs of a forward one and is counted as one. "
            f"Scores of the papers' passes and of the sweep differ by at most {max(r.difference for r in rounds):.0e} "
            f"nats.",
            "",
            "Jaccard index of the layers chosen by screening and by exact scores. In brackets: of exact scores on "
            "these and on other samples of the task.",
            "",
            *choice_table(rounds),
            "",
            "Every case in which another layer was chosen, with exact means and standard errors:",
            "",
            *missed(rounds),
            "",
        ]
    before = PAGE.read_text() if PAGE.exists() else ""
    files.write_text(PAGE, spliced(before, BEGIN, END, wrapped("\n".join(lines))))


if __name__ == "__main__":
    main()
