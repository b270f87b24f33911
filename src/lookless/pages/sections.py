"""The sections of a page, prepared for its template: markup, words and rows; None where the files are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from ..certification.certificate import Certificate, PlanTest
from ..evaluation import Estimate, Evaluation
from ..metrics import metric_named
from ..plan import Plan
from ..scores import Scores
from . import maps, plots
from .material import Material, Point
from .words import milliseconds, percent, short

#: Names of measures in words; others are their own name.
MEASURES = {
    "visual_information_gain": "visual attention skipped",
    "ffn_effect": "visual FFN skipped",
    "freeze_effect": "both skipped",
    "layer_contribution": "both skipped (reverse KL)",
    "reading_effect": "text does not read the image",
    "withdrawal": "image withdrawn from here on",
}
#: Operator, its update size, and its effect: measured, or else estimated by gradients.
EFFECTS = (
    ("attention", "attention_update_size", ("visual_information_gain", "attention_influence")),
    ("FFN", "ffn_update_size", ("ffn_effect", "ffn_influence")),
)


class Mark(NamedTuple):
    """One entry of a legend: a class of the style sheet and a name."""

    class_: str
    name: str


@dataclass(frozen=True)
class Panels:
    """Figures with one legend."""

    figures: tuple[Markup, ...]
    legend: tuple[Mark, ...] = ()
    title: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanView:
    """The plan that is served."""

    map: Markup
    legend: tuple[Mark, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class TaskRow:
    """One task under one plan, in words.

    Attributes:
        figures: of the dense model and under the plan, by the evaluation's metric.
    """

    task: str
    questions: str
    figures: str
    retention: Estimate | None
    fidelity: Estimate | None
    distance: str


@dataclass(frozen=True)
class PointView:
    """One place of the slider.

    Attributes:
        said: the whole in a few words, for the slider itself.
    """

    name: str
    said: str
    facts: tuple[tuple[str, str], ...]
    map: Markup
    rows: tuple[TaskRow, ...]


@dataclass(frozen=True)
class FrontView:
    """The front with its slider; ``start`` is the place where it begins."""

    panels: Panels
    points: tuple[PointView, ...]
    budget: Panels
    start: int
    evaluated: bool


@dataclass(frozen=True)
class TestRow:
    """One task under one plan, as the certificate tested it."""

    task: str
    n: int
    bad: int
    loss: str
    upper: str
    p_value: str
    verdict: str
    passed: bool


@dataclass(frozen=True)
class CertificateView:
    """The certificate in words, and the tests of each plan by its name; ``bad`` names a loss."""

    words: tuple[str, ...]
    plans: tuple[tuple[str, tuple[TestRow, ...]], ...]
    bad: str
    passed: bool


def plan_view(material: Material) -> PlanView | None:
    plan = material.plan
    if plan is None:
        return None
    columns = maps.columns_of([plan])
    rows = [(str(i), *(str(getattr(row, c)) for c in columns)) for i, row in enumerate(plan.layers)]
    return PlanView(
        map=maps.plan_map(plan, columns, "What visual tokens do in each layer"),
        legend=_shades([plan]),
        heads=("layer", *(maps.OPERATORS[column] for column in columns)),
        rows=tuple(rows),
        words=tuple(maps.in_words(plan)),
    )


def _shades(plans: Sequence[Plan]) -> tuple[Mark, ...]:
    return tuple(Mark(f"box {name}", maps.SHADES[name]) for name in maps.shades_of(plans))


def front_view(material: Material) -> FrontView | None:
    points = material.points
    if not points:
        return None
    tasks = [task for task in material.tasks if any(task in point.candidate.by_task for point in points)]
    plans = [point.plan for point in points]
    columns = maps.columns_of(plans)
    timed = all(point.candidate.time is not None for point in points)
    what = _graded(points)
    figures = [plots.risk_panel(points, material.candidates, by_time) for by_time in ((False, True)[: 1 + timed])]
    if what:
        figures += [plots.answers_panel(points, tasks, by_time, what) for by_time in ((False, True)[: 1 + timed])]
    legend = tuple(Mark(f"key {plots.ink(i)}", task) for i, task in enumerate(tasks)) if what else ()
    certified = _certified(material)
    views = [_point_view(material, point, columns, certified[i]) for i, point in enumerate(points)]
    start = material.chosen if material.chosen is not None else len(points) // 2
    return FrontView(
        panels=Panels(tuple(figures), legend),
        points=tuple(views),
        budget=Panels(tuple(maps.budget_map(points, column) for column in columns), _shades(plans)),
        start=start,
        evaluated=bool(what),
    )


def _graded(points: Sequence[Point]) -> str | None:
    """What the answers of evaluated points are graded by: retention where there are labels, else fidelity."""
    found = [evaluation for point in points for evaluation in point.evaluations.values()]
    if not found:
        return None
    return "retention" if all(evaluation.retention is not None for evaluation in found) else "fidelity"


def _certified(material: Material) -> list[str]:
    """What the certificate says of each point, in words; empty where it does not name it."""
    certificate = material.certificate
    if certificate is None:
        return [""] * len(material.points)
    verdicts = {test.plan_hash: test.verdict for test in certificate.tests}
    said = [verdicts.get(point.plan.hash, "") for point in material.points]
    last = max((i for i, words in enumerate(said) if words), default=-1)
    after = "not tested" if certificate.untested else ""
    return [words or (after if i > last else "") for i, words in enumerate(said)]


def _point_view(material: Material, point: Point, columns: Sequence[str], certified: str) -> PointView:
    candidate = point.candidate
    facts = [("FLOPs kept", percent(candidate.kept))]
    if candidate.time is not None:
        facts.append(("prefill time kept", percent(candidate.time)))
    took = milliseconds(material, point.plan, candidate.time)
    facts += [("prefill of a prompt", took)] if took else []
    facts.append(("risk, tuning samples", short(candidate.risk)))
    if candidate.checked is not None:
        facts.append(("same answer, selection samples", percent(candidate.checked)))
    facts += [("certificate", certified)] if certified else []
    facts.append(("found by", candidate.found_by))
    rows = tuple(
        _task_row(task, candidate.by_task[task], point.evaluations.get(task))
        for task in material.tasks
        if task in candidate.by_task
    )
    known = dict(facts)
    told = ("FLOPs kept", "prefill time kept", "certificate")
    said = ", ".join(f"{name} {known[name]}" for name in told if name in known)
    return PointView(
        name=point.name,
        said=f"{point.name}: {said}",
        facts=tuple(facts),
        map=maps.plan_map(point.plan, columns, f"The plan at {percent(candidate.kept)} of the FLOPs"),
        rows=rows,
    )


def _task_row(task: str, distance: float, evaluation: Evaluation | None) -> TaskRow:
    if evaluation is None or evaluation.accuracy_plan is None:
        return TaskRow(task, "-", "-", None, None, short(distance))
    unit = metric_named(evaluation.metric).unit
    dense, plan = (unit.said(one.value, digits=0) for one in (evaluation.accuracy_dense, evaluation.accuracy_plan))
    return TaskRow(
        task=task,
        questions=str(evaluation.samples),
        figures=f"{unit.name} {dense} → {plan}",
        retention=evaluation.retention,
        fidelity=evaluation.fidelity,
        distance=short(distance),
    )


def certificate_view(material: Material) -> CertificateView | None:
    certificate = material.certificate
    if certificate is None:
        return None
    return CertificateView(
        words=_certificate_words(certificate),
        plans=tuple((test.plan, _test_rows(test)) for test in certificate.tests),
        bad=certificate.loss,
        passed=bool(certificate.certified),
    )


def _certificate_words(certificate: Certificate) -> tuple[str, ...]:
    """The promise, what it rests on, and what failed."""
    means = (
        f"A promise on questions not yet seen: they are drawn as the tested ones were, and with "
        f"{certificate.confidence:.0%} confidence the promise holds for every plan that passed."
    )
    order = (
        f"Plans were tested from mild to aggressive on questions that chose nothing, and the test ended at the first "
        f"that failed: {certificate.untested} more were not tested."
        if certificate.failed is not None
        else "All plans were tested, from mild to aggressive, on questions that chose nothing, and all passed."
    )
    own = () if certificate.asked else ("No level was asked for: this is the plan's own upper bound.",)
    pooled = ("The tasks were tested as one, so the promise is on their mixture alone.",) if certificate.pooled else ()
    return (str(certificate), means, order, *own, *pooled)


def _test_rows(test: PlanTest) -> tuple[TestRow, ...]:
    return tuple(
        TestRow(
            task=task.task,
            n=task.n,
            bad=task.bad,
            loss=f"{task.loss:.2%}",
            upper=f"{task.upper:.2%}",
            p_value=short(task.p_value),
            verdict=_verdict(task.passed, task.needed),
            passed=task.passed,
        )
        for task in test.tasks
    )


def _verdict(passed: bool, needed: int | None) -> str:
    if passed:
        return "passed"
    return "loses too much" if needed is None else f"not enough data: about {needed} questions would do"


def profile_views(material: Material) -> tuple[Panels, ...]:
    """Scores by layer, one group for those that can share an axis: measured effects on the answer first."""
    groups = dict.fromkeys(_axis(scores) for scores in material.all_scores)
    return tuple(_profile(material, group) for group in sorted(groups, key=lambda g: (not g.measured, *g)))


class _Group(NamedTuple):
    """What can share an axis: effects or estimates of one unit, where distributions were read at one place."""

    measured: bool
    unit: str
    position: str


def _axis(scores: Scores) -> _Group:
    return _Group(scores.name in MEASURES, scores.unit, scores.position)


def _profile(material: Material, group: _Group) -> Panels:
    by_task = {
        task: {name: scores for name, scores in measures.items() if _axis(scores) == group}
        for task, measures in material.scores.items()
    }
    names = sorted({name for measures in by_task.values() for name in measures}, key=_place)
    inks = {name: plots.ink(i) for i, name in enumerate(names)}
    figures = [
        plots.profile(task, {name: measures[name] for name in names if name in measures}, inks, material.plan)
        for task, measures in by_task.items()
        if measures
    ]
    legend = tuple(Mark(f"key {inks[name]}", MEASURES.get(name, name.replace("_", " "))) for name in names)
    where = "at the last token of the prompt" if group.position == "last" else "over the tokens of the model's answer"
    return Panels(tuple(figures), legend, f"In {group.unit}, {where}")


def _place(name: str) -> tuple[int, str]:
    """Measures with a name in words first, in their order."""
    known = [*MEASURES]
    return (known.index(name) if name in known else len(known), name)


def silence_view(material: Material) -> Panels | None:
    """Update size against effect, for tasks that have both scores of an operator."""
    found = {task: _pairs(measures) for task, measures in material.scores.items()}
    found = {task: pairs for task, pairs in found.items() if pairs}
    if not found:
        return None
    operators = [operator for operator, *_ in next(iter(found.values()))]
    legend = tuple(Mark(f"key {plots.ink(i)}", operator) for i, operator in enumerate(operators))
    silent = [words for task, pairs in found.items() if (words := _silent(task, pairs))]
    return Panels(
        tuple(plots.silence(task, pairs) for task, pairs in found.items()),
        legend,
        notes=tuple(silent),
    )


def _pairs(measures: Mapping[str, Scores]) -> list[tuple[str, Scores, Scores]]:
    pairs = []
    for operator, size, effects in EFFECTS:
        effect = next((measures[name] for name in effects if name in measures), None)
        if size in measures and effect is not None:
            pairs.append((operator, measures[size], effect))
    return pairs


def _silent(task: str, pairs: Sequence[tuple[str, Scores, Scores]]) -> str:
    """The layers that move visual tokens more than most and change the answer by under a hundredth of the most."""
    parts = []
    for operator, size, effect in pairs:
        median, most = sorted(size.mean)[len(size.mean) // 2], max(effect.mean)
        rows = enumerate(zip(size.mean, effect.mean, strict=True))
        layers = [str(i) for i, (moved, felt) in rows if moved >= median and felt < 0.01 * most]
        parts += [f"{operator} of layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}"] if layers else []
    return f"{task}: {'; '.join(parts)}." if parts else ""


def attention_view(material: Material) -> Panels | None:
    if material.attention is None:
        return None
    known = material.attention.profiles
    profiles = {task: known[task] for task in dict.fromkeys((*material.tasks, *known)) if task in known}
    inks = {task: plots.ink(i) for i, task in enumerate(profiles)}
    samples = sum(profile.samples for profile in profiles.values())
    return Panels(
        (plots.mass_panel(profiles, inks), plots.similarity_panel(profiles, inks)),
        tuple(Mark(f"key {inks[task]}", task) for task in profiles),
        notes=(f"Mean over {samples} samples.",),
    )
