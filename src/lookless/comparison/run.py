"""Every method on one model and all its tasks: at its paper's setting, and at a common budget.

Papers report a method on their own models, tasks and baselines, and seldom at one price. Here all run on one runtime,
and are priced both as the papers count and by what runs. Every result is written at once, so an interrupted run
resumes; a method that fails is reported, and the others continue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median

from .. import files
from ..bench.timing import time_prefill
from ..errors import LooklessError, PlanError, first_line
from ..evaluation import evaluate, normal
from ..geometry import Geometry
from ..loading import Loaded
from ..methods import Method
from ..plan import Plan
from ..progress import track
from .results import PAPER, SCHEMA_VERSION, Outcome, Results
from .workspace import Workspace

NEAR = 0.03  #: a plan whose share of FLOPs is this near the budget meets it
DRAWS = 5  #: of a method with random choices


def liveness(model: Geometry | int) -> Plan:
    """Skip dead work, whose result nothing reads, and nothing else: every plan here skips it, too."""
    return Plan.full(model).live()


#: Not a paper's method, but a row for comparison: savings that every plan has.
LIVENESS = Method(liveness, "", "Liveness alone")


def run_table(
    loaded: Loaded,
    methods: Mapping[str, Method],
    folder: Path,
    *,
    tasks: Sequence[str],
    budgets: Sequence[float] = (0.6,),
    questions: int = 60,
    samples: int = 20,
    batch: int = 20,
    machine: str = "",
) -> Results:
    """Every method at its paper's setting and at each budget.

    Args:
        loaded: the model, without a plan on it.
        methods: by name.
        folder: stores finished results; a rerun resumes from it.
        tasks: names of data, each with splits ``calibration`` and ``test``.
        budgets: shares of the stock prefill's FLOPs that run.
        questions, samples: of each task, to answer and to calibrate on.
        batch: questions answered at a time.
        machine: a description, for the document.

    Raises:
        PlanError: a budget is not between 0 and 1; the folder holds results of other questions, samples or another
            model, or of an older lookless.
    """
    check_budgets(budgets)
    work = Workspace(loaded, tasks, folder, questions=questions, samples=samples, batch=batch)
    path = folder / "results.json"
    results = _resumed(path, work, questions, machine)
    settings = (PAPER, *(f"{budget:g}" for budget in budgets))
    todo = [(LIVENESS, PAPER), *((method, setting) for setting in settings for method in methods.values())]
    for method, setting in track(todo, f"methods on {loaded.name}", True):
        if not results.of(method.name, setting) and f"{method.name}, {setting}" not in results.missed:
            results = _with(results, work, method, setting)
            files.write_text(path, files.dump(results))
    if any(f"{o.method}, {o.setting}" not in results.times for o in results.outcomes):
        results = _timed(results, work, {LIVENESS.name: LIVENESS, **methods})
        files.write_text(path, files.dump(results))
    return results


def _resumed(path: Path, work: Workspace, questions: int, machine: str) -> Results:
    """The results at ``path``, or none yet.

    Raises:
        PlanError: they are of another model, or of other samples.
    """
    fresh = Results(
        model=work.loaded.name,
        geometry=work.geometry,
        questions=questions,
        samples=work.samples,
        machine=machine,
        hashes={task: (work.calibration[task].hash, work.test[task].hash) for task in work.tasks},
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
    changed = [task for task, hashes in fresh.hashes.items() if results.hashes.get(task, hashes) != hashes]
    if changed:
        raise PlanError(
            f"{path} holds results of other samples of {changed[0]} than there are now: give another folder."
        )
    return results


def check_budgets(budgets: Sequence[float]) -> None:
    """Raises: PlanError: a budget is not a share between 0 and 1."""
    for budget in budgets:
        if not 0 < budget < 1:
            raise PlanError(f"a budget of {budget:g} is no share of the FLOPs to keep: give more than 0, less than 1.")


def _timed(results: Results, work: Workspace, methods: Mapping[str, Method]) -> Results:
    """``results`` with the prefill time of every plan on the first task, timed in turn in every round."""
    keys = list(dict.fromkeys((o.method, o.setting) for o in results.outcomes if o.method in methods))
    plans = [work.plan(methods[name], work.tasks[0], setting) for name, setting in keys]
    inputs = work.loaded.inputs(work.test[work.tasks[0]].items[:8])
    dense, *planned = time_prefill(work.loaded, inputs, [None, *plans], repeats=7)
    times = {
        f"{name}, {setting}": median(mine / theirs for mine, theirs in zip(t.values_ms, dense.values_ms, strict=True))
        for (name, setting), t in zip(keys, planned, strict=True)
    }
    return results.model_copy(update={"times": times, "dense_ms": dense.median_ms})


def _with(results: Results, work: Workspace, method: Method, setting: str) -> Results:
    """``results`` with those of one method at one setting."""
    key = f"{method.name}, {setting}"
    outcomes, notes = [], dict(results.notes)
    draws = DRAWS if "seed" in method.knobs else 1
    try:
        for draw, task in product(range(draws), work.tasks):
            plan = work.plan(method, task, setting, draw)
            kept = work.kept(plan)
            if setting != PAPER and abs(kept - float(setting)) > NEAR:
                raise PlanError(f"its nearest plan keeps {kept:.0%}")
            outcomes.append(_outcome(work, method, setting, task, draw, plan))
            if plan.layers in work.withdrew:
                notes[key] = work.withdrew[plan.layers]
    except LooklessError as problem:
        return results.model_copy(update={"missed": {**results.missed, key: str(problem)}})
    except Exception as problem:  # one method, perhaps another package's, must not end the others' hour
        what = f"failed ({type(problem).__name__}: {first_line(problem)})"
        return results.model_copy(update={"missed": {**results.missed, key: what}})
    return results.model_copy(update={"outcomes": (*results.outcomes, *outcomes), "notes": notes})


def _outcome(work: Workspace, method: Method, setting: str, task: str, draw: int, plan: Plan) -> Outcome:
    dense = work.dense(task)
    answers = evaluate(work.loaded, work.test[task], plan, batch=work.batch, dense=dense, progress=False).answers
    expected = [normal(answer.expected) for answer in answers]
    planned = [normal(answer.plan or "") for answer in answers]
    return Outcome(
        method=method.name,
        setting=setting,
        task=task,
        draw=draw,
        kept=work.kept(plan),
        kept_papers=work.kept_papers(plan),
        kept_live=work.kept(plan) * work.stock / work.lean,
        right=tuple(p == e for p, e in zip(planned, expected, strict=True)),
        dense=tuple(normal(d) == e for d, e in zip(dense, expected, strict=True)),
        same=tuple(p == normal(d) for p, d in zip(planned, dense, strict=True)),
    )
