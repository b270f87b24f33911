"""Questions with their answers under each method: Figures 8, 11 and 12 of arXiv 2606.08511.

Shown are those on which the methods differ most, from all tasks in turn; the table counts all flips.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from ..comparison.entry import Entry
from ..data import Sample
from ..figures import INK, panels_of
from .answers import Outcomes
from .claims import counted
from .definition import Experiment
from .lab import Lab
from .report import Found, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8
WRONG = "#b3322f"
METHODS = {"V-Skip": "v-skip", "ShortV": "shortv", "VTW": "vtw"}
Case = tuple[Sample, dict[str, str], dict[str, bool]]


def run(lab: Lab) -> Found:
    cases = {task: _cases(lab, task) for task in lab.tasks}
    ranked = {task: sorted(each, key=lambda case: -_differs(case)) for task, each in cases.items()}
    turns = [ranked[task][i] for i in range(SHOWN) for task in lab.tasks if i < len(ranked[task])]
    shown = [case for case in turns if _differs(case)][:SHOWN] or turns[:SHOWN]
    flips = {name: [_flips(each, name) for each in cases.values()] for name in METHODS}
    table = Table(
        title="Questions that a method loses (right before, wrong now) and wins",
        heads=("method", *(f"{lab.short[task]}: lost, won" for task in lab.tasks)),
        rows=tuple((name, *(f"{lost}, {won}" for lost, won in each)) for name, each in flips.items()),
    )
    lost = {name: sum(one[0] for one in each) for name, each in flips.items()}
    findings = (
        counted(
            "Figures 8, 11, 12",
            "V-Skip answers right where ShortV and VTW do not (chosen cases; here: it loses the fewest questions)",
            ", ".join(f"{name} loses {count}" for name, count in lost.items()) + ".",
            lost["V-Skip"] <= min(lost.values()) if any(lost.values()) else None,
        ),
    )
    return Found((table,), findings, _figure(shown))


def _cases(lab: Lab, task: str) -> list[Case]:
    """Each question with all answers, and which are right."""
    test, dense = lab.work.test[task], lab.dense(task)
    answers = {
        "dense": dense,
        **{name: [*lab.words(name, task, Entry(lab.plan(method, task)))] for name, method in METHODS.items()},
    }
    outcomes: Outcomes = tuple(lab.answers(name, task, lab.plan(method, task)) for name, method in METHODS.items())
    right = {"dense": outcomes[0].dense, **{o.method: o.right for o in outcomes}}
    return [
        (sample, {n: each[i] for n, each in answers.items()}, {n: each[i] == 1 for n, each in right.items()})
        for i, sample in enumerate(test)
    ]


def _differs(case: Case) -> int:
    """How many answers are unlike the dense model's."""
    _, answers, _ = case
    return sum(answer != answers["dense"] for answer in answers.values())


def _flips(cases: list[Case], name: str) -> tuple[int, int]:
    lost = sum(right["dense"] and not right[name] for _, _, right in cases)
    return lost, sum(right[name] and not right["dense"] for _, _, right in cases)


def _figure(cases: list[Case]) -> Figure:
    figure, panels = panels_of(len(cases), height=3.6, columns=min(4, len(cases)))
    for axes, (sample, answers, right) in zip(panels, cases, strict=True):
        if sample.images:
            axes.imshow(sample.opened()[0], interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title("\n".join(textwrap.wrap(sample.question, 30)[:3]), fontsize=9, color=INK)
        axes.text(
            0, -0.04, f"expected: {_cut(sample.answer)}", transform=axes.transAxes, fontsize=8.5, va="top", color=INK
        )
        for line, (name, answer) in enumerate(answers.items(), 1):
            colour = INK if right[name] else WRONG
            said = f"{name}: {_cut(answer)}"
            axes.text(0, -0.04 - 0.085 * line, said, transform=axes.transAxes, fontsize=8.5, va="top", color=colour)
        axes.set_xlabel("\n" * 6, fontsize=8.5)
    figure.suptitle("Questions with the answers of each method (red: wrong)", fontsize=11)
    return figure


def _cut(text: str) -> str:
    return textwrap.shorten(text, 34, placeholder="…") or "(nothing)"


EXPERIMENT = Experiment(run, "2606.08511", "questions and answers, method by method", "Figures 8, 11, 12")
