"""`lookless table`: compare methods with each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import PlanError
from .common import Device, Dtype, ScoredDataOptions, app, one_sentence, out, spread
from .outputs import edited_file, run_folder

if TYPE_CHECKING:
    from ..comparison.results import Results
    from ..methods import Method
    from ..plan import Plan

Models = Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Default: the shipped models.")]
OutPath = Annotated[
    Path, typer.Option("--out", help="Markdown file to write; text outside the generated block is kept.")
]
Work = Annotated[Path, typer.Option(help="Working folder; an interrupted run resumes from it.")]
Budget = Annotated[
    list[float] | None,
    typer.Option(help="Share of FLOPs at which methods are compared (default 0.6); repeatable.", min=0.01, max=1),
]
Time = Annotated[
    list[float] | None,
    typer.Option(
        "--time",
        help="Share of the stock prefill's measured milliseconds, at a batch of 8, at which methods are compared; "
        "repeatable.",
        min=0.01,
        max=1,
    ),
]
Steps = Annotated[
    Literal["all", "answers", "times"],
    typer.Option(
        "--step",
        help="`answers` times nothing and `times` answers nothing, so that the latter can run while nothing else does. "
        "Rows of --time need times, answers, and times again.",
    ),
]
Only = Annotated[list[str] | None, typer.Option("--method", help="Only this method, beside the controls; repeatable.")]
Plans = Annotated[
    list[str] | None,
    typer.Option("--plan", help="A plan of yours as one more row; repeatable. Of several models it is for its own."),
]
Tasks = Annotated[list[str] | None, typer.Option(help="Tasks, as for eval (default: what a shipped model knows).")]


@app.command()
@one_sentence
@spread
def table(
    options: ScoredDataOptions,
    models: Models = None,
    out_path: OutPath = Path("results.md"),
    work: Work = Path("lookless-table"),
    budget: Budget = None,
    time: Time = None,
    only: Only = None,
    plan_dirs: Plans = None,
    data: Tasks = None,
    questions: Annotated[int, typer.Option(help="Questions of each task.", min=2)] = 60,
    samples: Annotated[int, typer.Option(help="Calibration samples of each task.", min=1)] = 20,
    machine: Annotated[str, typer.Option(help="A sentence on the machine, for the document.")] = "",
    step: Steps = "all",
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Run every method at its paper's setting and at equal prices, and write tables of retention and cost.

    Two controls are in every table: tokens dropped at random, and the stock model on a smaller image.

    Over an hour on two cores for both shipped models. Example: lookless table reference --method v-skip --method fastv
    """
    from .. import reference
    from ..comparison.run import run_table
    from ..comparison.settings import settings_of
    from ..loading import load_model

    settings_of(budget or [], time or [])
    figure = edited_file(out_path.parent / "images" / f"{out_path.stem}.png")
    edited_file(out_path)
    names = models or reference.NAMES
    plans = _plans([*names], plan_dirs or ())
    folders = {model: run_folder(work / model.replace("/", "-")) for model in dict.fromkeys(names)}
    settings: dict[str, Any] = {
        "budgets": budget or [0.6],
        "times": time or [],
        "questions": questions,
        "samples": samples,
        "machine": machine,
        "step": step,
        "reading": options.reading,
    }
    chosen = _chosen(only)
    results = [
        run_table(
            load_model(model, dtype=dtype, device=device),
            chosen,
            folder,
            tasks=data or [f"reference:{task}" for task in reference.tasks_of(model)],
            plans=plans[model],
            **settings,
        )
        for model, folder in folders.items()
    ]
    given = {name: plan for some in plans.values() for name, plan in some.items()}
    _write(out_path, figure, results, given)
    out.print(f"written: {out_path} and {figure}; outcomes, question by question, are in {work}", soft_wrap=True)


def _chosen(only: list[str] | None) -> dict[str, Method]:
    """All methods, or those named and random tokens. Raises: PlanError: there is none of that name."""
    from ..comparison.columns import RANDOM
    from ..methods import all_methods

    known = all_methods()
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise PlanError(f"no method is called {unknown[0]!r}; methods are {', '.join(known)}.")
    return {name: method for name, method in known.items() if not only or name in (*only, RANDOM)}


def _plans(models: Sequence[str], folders: Sequence[str]) -> dict[str, dict[str, Plan]]:
    """Of each model the plans that are for it, by name.

    Raises:
        PlanError: one cannot be read, or is for none of the models.
    """
    from ..configs import geometry_named
    from ..plan import Plan

    plans = {name: Plan.from_pretrained(name) for name in folders}
    geometries = {model: geometry_named(model) for model in models if plans}
    for plan in plans.values():
        if plan.geometry is not None and plan.geometry not in geometries.values():
            plan.check(geometries[models[0]])
    return {
        model: {name: p for name, p in plans.items() if p.geometry in (None, geometries[model])} for model in models
    }


def _write(path: Path, figure: Path, results: list[Results], plans: dict[str, Plan]) -> None:
    """The document and its figure."""
    from .. import figures, files
    from ..comparison.document import document, results_figure
    from ..methods import all_methods

    figures.save_figure(results_figure(results), figure)
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    files.write_text(path, document(before, results, all_methods(), f"images/{figure.name}", plans))
