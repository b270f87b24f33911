"""Every method on one model and all its tasks: at its paper's setting, and at common prices.

Papers report a method on their own models, tasks and baselines, and seldom at one price. Here all run on one runtime,
and are priced as the papers count, by what runs, and by the clock. Every result is written at once, so an interrupted
run resumes; a method that fails is reported, and the others continue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Literal

from .. import files
from ..data import AS_IS, Reading
from ..errors import LooklessError, PlanError, first_line
from ..evaluation import Answer, evaluate, normal
from ..geometry import Geometry
from ..loading import Loaded
from ..methods import Method
from ..metrics import DEFAULT
from ..plan import Plan
from ..progress import track
from ..runtime.families import geometry_of
from ..version import installed
from .contestants import LIVENESS, Contestant, contestants_of
from .entry import Entry
from .results import SCHEMA_VERSION, Outcome, Results, row_key
from .settings import PAPER, Setting, settings_of
from .timing import choose_rungs, entry_at, time_rows
from .workspace import Workspace

NEAR = 0.03  #: a plan whose share of FLOPs is this near the budget meets it
NEAR_TIME = 0.05  #: the same of time, which is not measured as exactly
Step = Literal["all", "answers", "times"]


def run_table(
    loaded: Loaded,
    methods: Mapping[str, Method],
    folder: Path,
    *,
    tasks: Sequence[str],
    budgets: Sequence[float] = (0.6,),
    times: Sequence[float] = (),
    questions: int = 60,
    samples: int = 20,
    batch: int = 20,
    machine: str = "",
    step: Step = "all",
    plans: Mapping[str, Plan] | None = None,
    reading: Reading = AS_IS,
) -> Results:
    """Every method, and down-sampling, at its paper's setting, at each budget of FLOPs and at each of time.

    Args:
        loaded: the model, without a plan on it.
        methods: by name.
        folder: stores finished results; a rerun resumes from it.
        tasks: names of data, each with splits ``calibration`` and ``test``.
        budgets: shares of the stock prefill's FLOPs that run.
        times: shares of the stock prefill's milliseconds, at a batch of 8.
        questions, samples: of each task, to answer and to calibrate on.
        batch: questions answered at a time.
        machine: a description, for the document.
        step: ``answers`` times nothing, and ``times`` answers nothing, so that the latter can run while the machine is
            otherwise idle. Rows at an equal time need ``times``, ``answers`` and ``times`` again.
        plans: more rows, by name: as they are beside the papers' settings, and at the prices that they are near.
        reading: how the data are read and scored, where they do not say it themselves.

    Raises:
        PlanError: a budget or a time is not between 0 and 1; the folder holds results of other questions, samples or
            plans, another model or other versions; a plan is called like a method.
        PlanMismatchError: a plan is for another model.
        ModelError: the stock model gives logits that are not finite; the message names the question.
    """
    settings, plans = settings_of(budgets, times), plans or {}
    _check_plans(plans, contestants_of(methods), geometry_of(loaded.model))
    seen = {prompt for plan in plans.values() for prompt in plan.provenance.sample_hashes or ()}
    work = Workspace(
        loaded, tasks, folder, questions=questions, samples=samples, batch=batch, seen=seen, reading=reading
    )
    path = folder / "results.json"
    results = _resumed(path, work, questions, machine, {name: plan.hash for name, plan in plans.items()})
    contestants = contestants_of(methods, plans)
    compared = [who for who in contestants.values() if who is not LIVENESS]
    if step != "answers":
        results = choose_rungs(results, work, compared, settings)
        files.write_text(path, files.dump(results))
    if step != "times":
        rows = [(LIVENESS, PAPER), *((who, setting) for setting in settings for who in compared)]
        for who, setting in track(rows, f"methods on {loaded.name}", True):
            if _is_open(results, who, setting):
                results = _with(results, work, who, setting)
                files.write_text(path, files.dump(results))
    if step != "answers":
        results = time_rows(results, work, contestants)
        files.write_text(path, files.dump(results))
    return results


def _is_open(results: Results, who: Contestant, setting: Setting) -> bool:
    """Whether a row is to be answered, and can be."""
    key = row_key(who.name, setting)
    known = setting.kind != "time" or key in results.rungs
    return known and key not in results.missed and not results.of(who.name, setting)


def _check_plans(plans: Mapping[str, Plan], others: Mapping[str, Contestant], geometry: Geometry) -> None:
    """Raises: PlanError: one has another row's name, or one that a row cannot have, or is for another model."""
    for name, plan in plans.items():
        if name in others:
            raise PlanError(f"a plan called {name} would be taken for the method: give it another path, as ./{name}.")
        if set(name) & set(",|\n"):
            raise PlanError(f"a row cannot be called {name!r}: move the plan to a path without commas and bars.")
        plan.check(geometry)


def _resumed(path: Path, work: Workspace, questions: int, machine: str, plans: dict[str, str]) -> Results:
    """The results at ``path``, or none yet; ``plans`` are the hashes of those given now, by name.

    Raises:
        PlanError: they are of another model, of other samples or plans, or made with other versions.
    """
    fresh = Results(
        model=work.loaded.name,
        geometry=work.geometry,
        questions=questions,
        samples=work.samples,
        machine=machine,
        hashes={task: (work.calibration[task].hash, work.test[task].hash) for task in work.tasks},
        plans=plans,
        metrics={task: work.test[task].metric for task in work.tasks},
        versions=installed(),
    )
    if not path.exists():
        return fresh
    results = files.load(path, Results, PlanError, SCHEMA_VERSION)
    same = ("model", "geometry", "questions", "samples")
    if any(getattr(results, name) != getattr(fresh, name) for name in same):
        raise PlanError(
            f"{path} holds results of {results.model} with {results.questions} questions and {results.samples} "
            f"calibration samples, not of {fresh.model} with {questions} and {fresh.samples}: give another folder."
        )
    for what, known, now in (
        ("other samples of", results.hashes, fresh.hashes),
        ("another metric for", results.metrics or dict.fromkeys(fresh.metrics, DEFAULT), fresh.metrics),
        ("another plan at", results.plans, fresh.plans),
        ("another version of", results.versions, fresh.versions),
    ):
        changed = next((name for name in now if known.get(name, now[name]) != now[name]), None)
        if changed is not None:
            raise PlanError(f"{path} holds results of {what} {changed} than there is now: give another folder.")
    newer = {"machine": machine or results.machine, "metrics": fresh.metrics, "plans": {**results.plans, **plans}}
    return results.model_copy(update=newer)


def _with(results: Results, work: Workspace, who: Contestant, setting: Setting) -> Results:
    """``results`` with those of one row.

    Raises:
        ModelError: the stock model's logits are not finite.
    """
    key = row_key(who.name, setting)
    for task in work.tasks:  # what the stock model cannot do is no method's fault
        work.dense(task)
    outcomes, notes = [], dict(results.notes)
    try:
        _check_time(results, who, setting)
        for draw, task in product(range(who.draws), work.tasks):
            entry = entry_at(results, work, who, setting, task, draw)
            _check_budget(work.kept(entry), who, setting)
            outcomes.append(_outcome(work, who, setting, task, draw, entry))
            if said := who.notes(work, entry):
                notes[key] = "; ".join(said)
    except LooklessError as problem:
        return results.having("missed", key, str(problem))
    except Exception as problem:  # one method, perhaps another package's, must not end the others' hour
        return results.having("missed", key, f"failed ({type(problem).__name__}: {first_line(problem)})")
    return results.model_copy(update={"outcomes": (*results.outcomes, *outcomes), "notes": notes})


def _check_budget(kept: float, who: Contestant, setting: Setting) -> None:
    """Raises: PlanError: a plan for a share of FLOPs is not near it."""
    if setting.kind == "flops" and not who.is_control and abs(kept - setting.share) > NEAR:
        raise PlanError(f"its nearest plan keeps {kept:.0%}")


def _check_time(results: Results, who: Contestant, setting: Setting) -> None:
    """Raises: PlanError: the plan nearest to a share of time is not near it."""
    if setting.kind == "time" and not who.is_control:
        time = results.rungs[row_key(who.name, setting)].time
        if abs(time - setting.share) > NEAR_TIME:
            raise PlanError(f"its nearest plan takes {time:.0%}")


def _outcome(work: Workspace, who: Contestant, setting: Setting, task: str, draw: int, entry: Entry) -> Outcome:
    dense = work.dense(task)
    with entry.images(work.loaded) as loaded:
        found = evaluate(loaded, work.test[task], entry.plan, batch=work.batch, dense=dense, progress=False)
    return Outcome(
        method=who.name,
        setting=setting.key,
        task=task,
        draw=draw,
        kept=work.kept(entry),
        kept_papers=work.kept_papers(entry),
        kept_live=work.kept(entry) * work.stock / work.lean,
        **per_question(found.answers),
    )


def per_question(answers: Sequence[Answer]) -> dict[str, tuple[float, ...]]:
    """Of answers under a plan: what each scores, what the dense model's scores, and whether the two agree."""
    return {
        "right": tuple(answer.plan_score or 0.0 for answer in answers),
        "dense": tuple(answer.dense_score for answer in answers),
        "same": tuple(float(normal(answer.plan or "") == normal(answer.dense)) for answer in answers),
    }
