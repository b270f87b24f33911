"""The command that tests a promise: certify."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import LooklessError
from .common import (
    Device,
    Dtype,
    Json,
    Revision,
    ScoredDataOptions,
    app,
    asked_of,
    one_sentence,
    out,
    print_json,
    print_whole,
    spread,
)
from .outputs import Overwrite, new_file

if TYPE_CHECKING:
    from rich.table import Table

    from ..certification import Certificate, Tried
    from ..data import Reading, Samples
    from ..loading import Loaded
    from ..optimize.folder import Run
    from ..plan import Plan
    from ..unfinished import Unfinished

#: Exit code of a promise that was tested, and could not be given.
NOTHING_CERTIFIED = 1

Plans = Annotated[
    list[str] | None, typer.Option("--plan", help="A plan's folder, JSON file, or hub id; repeat, mild plans first.")
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(help="`reference:TASK` or a JSONL file that had no say in choosing the plans; repeat for each task."),
]
Retention = Annotated[
    float | None,
    typer.Option(
        help="The promise: the share of the dense model's right answers that stay right (with --loss changed: of all "
        "its answers that stay the same), on every task. Without it, the largest that can be promised of one plan."
    ),
]


@app.command()
@one_sentence
@spread
def certify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model as for eval, or the folder of a run of `lookless optimize`.")
    ],
    options: ScoredDataOptions,
    plan_dirs: Plans = None,
    data: Tasks = None,
    retention: Retention = None,
    confidence: Annotated[
        float | None, typer.Option(help="That the promise holds for every certified plan (default 0.95, or the run's).")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="lost (default, or the run's), or changed, which needs no right answers.")
    ] = None,
    pooled: Annotated[bool, typer.Option("--pooled", help="Test all tasks as one mixture, not each.")] = False,
    limit: Annotated[int | None, typer.Option(help="Questions of each task at most (reference: 100).", min=1)] = None,
    out_path: Annotated[Path | None, typer.Option("--out", help="JSON file for the certificate.")] = None,
    batch: Annotated[int, typer.Option(help="Batch size.", min=1)] = 25,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 32,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Test plans from mild to aggressive, up to the first that cannot be certified to keep its promise.

    Exit code 1: no plan was certified. Questions that a plan was calibrated on are left out, and of those that share an
    image one is taken. Choose plans and retention before, on other questions.

    Example: lookless certify reference --plan mild --plan bold --data reference:chart --limit 400 --retention 0.98
    """
    from ..certification import bound, loss_named
    from ..certification import certify as test
    from ..loading import load_model
    from ..optimize.folder import Run
    from ..plan import Plan
    from ..unfinished import Unfinished

    if loss is not None:
        loss_named(loss)
    reading = options.reading
    if out_path is not None:
        new_file(out_path, overwrite)
    kept = None if out_path is None else Unfinished.beside(out_path)
    if (Path(model) / "run.json").is_file():
        _only_a_run(plan_dirs, data)
        if str(reading):
            raise LooklessError(f"a run of optimize has answers that are read and scored: leave out {reading}.")
        run = Run.load(model)
        if retention is None and run.target.kind == "retention":
            retention = run.target.value
        points, length = _points(Path(model), run)
        if retention is None:  # it was made for a budget, and chose a plan by it
            points = points[run.chosen : run.chosen + 1] if run.chosen is not None else []
            length = len(points)
        chain = iter(points)
        confidence, loss = run.confidence if confidence is None else confidence, loss or run.loss
        _check_promise(retention, length)
    else:
        _check(plan_dirs, data)
        length = len(plan_dirs or ())
        _check_promise(retention, length)
        plans = {name: Plan.from_pretrained(name) for name in plan_dirs or ()}
        tasks = [_questions(name, list(plans.values()), limit, reading) for name in data or ()]
        loaded = load_model(model, dtype=dtype, device=device, revision=revision)
        tasks = [asked_of(loaded, samples, reading) for samples in tasks]
        chain = _tried(loaded, plans, tasks, kept, batch=batch, max_new_tokens=max_new_tokens)
    how: dict[str, Any] = {
        "confidence": 0.95 if confidence is None else confidence,
        "loss": loss or "lost",
        "pooled": pooled,
    }
    if retention is None:
        found = bound(next(chain), **how)
    else:
        found = test(chain, level=_level(retention), length=length, **how)
    if out_path is not None:
        found.save(out_path)
    if kept is not None:
        kept.remove()
    _report(found, as_json)


def _only_a_run(plan_dirs: list[str] | None, data: list[str] | None) -> None:
    if plan_dirs or data:
        raise LooklessError("a run of optimize has its own plans and answers: leave out --plan and --data.")


def _check(plan_dirs: list[str] | None, data: list[str] | None) -> None:
    """Before anything is loaded."""
    if not plan_dirs or not data:
        raise LooklessError(f"{'--data' if plan_dirs else '--plan'} is missing: give one or more.")
    for what, names in (("--plan", plan_dirs), ("--data", data)):
        if len(set(names)) < len(names):
            raise LooklessError(f"{what} is given twice as {max(names, key=names.count)}: give each once.")


def _check_promise(retention: float | None, plans: int) -> None:
    if retention is None and plans != 1:
        raise LooklessError(
            f"--retention is missing: the largest that can be promised is found for one plan, and there are {plans}."
        )
    if retention is not None:
        _level(retention)


def _level(retention: float) -> float:
    """The loss that a retention allows."""
    if not 0 < retention < 1:
        raise LooklessError(f"a retention of {retention} is not between 0 and 1: 0.99 keeps 99 %.")
    return round(1 - retention, 12)


def _questions(data: str, plans: list[Plan], limit: int | None, reading: Reading) -> Samples:
    """Those of ``data`` that no plan was calibrated on, one for each image."""
    from ..answers import scored_by
    from ..certification import one_by_one, one_per_image
    from ..data import SeenWarning

    seen = {one for plan in plans for one in plan.provenance.sample_hashes or ()}
    chosen = reading.load(data, limit=limit, without=seen)
    if chosen.left_out:
        message = f"{chosen.left_out} lines of {data} are left out, because a plan was calibrated on them."
        warnings.warn(message, SeenWarning, stacklevel=2)
    apart = one_per_image(scored_by(chosen, one_by_one(chosen.metric, data)))
    if len(apart) < len(chosen):
        warnings.warn(
            f"{len(chosen) - len(apart)} of {len(chosen)} questions of {data} are left out, because they share an "
            f"image with another: the test is of independent questions.",
            stacklevel=2,
        )
    return apart


def _tried(
    loaded: Loaded, plans: dict[str, Plan], tasks: list[Samples], kept: Unfinished | None, **settings: Any
) -> Iterator[Tried]:
    """The answers under each plan, when they are wanted; the dense model's are of the first. Those of a run that was
    killed are in ``kept``."""
    from ..certification import Tried
    from ..evaluation import evaluate
    from ..runtime.families import geometry_of

    for plan in plans.values():
        plan.check(geometry_of(loaded.model))
    dense: list[list[str] | None] = [None] * len(tasks)
    for number, (name, plan) in enumerate(plans.items()):
        places = [None if kept is None else kept.below(f"{task}-{number}") for task in range(len(tasks))]
        found = [
            evaluate(loaded, samples, plan, dense=known, kept=place, **settings)
            for samples, known, place in zip(tasks, dense, places, strict=True)
        ]
        dense = [[answer.dense for answer in one.answers] for one in found]
        yield Tried(name, found)


def _points(folder: Path, run: Run) -> tuple[list[Tried], int]:
    """The plans of a run of optimize that it has answers of, from the first on, and the length of its chain."""
    from ..certification import Tried
    from ..optimize.folder import Chain, Folder

    tried: list[Tried] = []
    points = Chain.load(folder).points
    for index, candidate in enumerate(points):
        found = Folder(folder).evaluations(index, run.tasks)
        if len(found) < len(run.tasks):
            break
        if any(one.plan_hash != candidate.plan.hash for one in found.values()):
            raise LooklessError(f"{folder / 'points' / str(index)} has the answers of another plan than the chain's.")
        tried.append(Tried(f"point {index}", list(found.values())))
    return tried, len(points)


def _report(found: Certificate, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        print_whole(_table(found))
        out.print(str(found), soft_wrap=True, highlight=False)
    if found.chosen is None:
        raise typer.Exit(NOTHING_CERTIFIED)


def _table(found: Certificate) -> Table:
    """One row for each plan and task."""
    from rich.table import Table

    table = Table("plan", "task", "questions", "count", found.loss, "at most", "p-value", "verdict")
    for plan in found.tests:
        for index, task in enumerate(plan.tasks):
            table.add_row(
                plan.plan if index == 0 else "",
                task.task,
                str(task.samples),
                str(task.n),
                str(task.bad),
                f"{task.upper:.2%}",
                f"{task.p_value:.2g}",
                "certified" if task.passed else "failed" if task.needed is None else f"needs about {task.needed}",
            )
    if found.untested:
        table.add_row(f"{found.untested} more", "", "", "", "", "", "", "not tested")
    return table
