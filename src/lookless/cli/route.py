"""`lookless route`: a plan for each task, and the router between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..errors import PlanError
from .common import (
    DataOptions,
    Device,
    Dtype,
    Json,
    Model,
    Revision,
    app,
    asked_of,
    one_sentence,
    out,
    print_json,
    print_whole,
    spread,
)
from .outputs import PLAN_FILES, Overwrite, new_files

if TYPE_CHECKING:
    from ..routing import PlanSet


@app.command()
@one_sentence
@spread
def route(
    model: Model,
    plans: Annotated[list[str], typer.Option("--plan", metavar="TASK=PLAN_DIR", help="A task's plan; repeatable.")],
    data: Annotated[
        list[str],
        typer.Option(metavar="TASK=DATA", help="Prompts of the task, as for calibrate; one for each --plan."),
    ],
    options: DataOptions,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the plan set.")],
    fallback: Annotated[
        str | None,
        typer.Option(help="The plan of prompts that belong to no task (default: the full plan, which skips nothing)."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Prompts of each task to learn from.", min=1)] = 50,
    doubt: Annotated[
        float, typer.Option(help="The share of prompts of these tasks that may fall back, between 0 and 1.")
    ] = 0.05,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Give each prompt the plan of its task: learn from prompts which task they belong to, by the model's embeddings.

    Example: lookless route reference --plan chart=my-plan --data chart=reference:chart --out my-set
    """
    from ..loading import load_model
    from ..plan import Plan
    from ..routing import PlanSet

    new_files(out_dir, PLAN_FILES, overwrite)
    folders, sources = _pairs(plans, "--plan"), _pairs(data, "--data")
    if unpaired := sorted(folders.keys() ^ sources.keys()):
        raise PlanError(f"{unpaired[0]!r} has {'no --data' if unpaired[0] in folders else 'no --plan'}: give both.")
    made = {name: Plan.from_pretrained(folder) for name, folder in folders.items()}
    last = None if fallback is None else Plan.from_pretrained(fallback)
    reading = options.reading
    given = {name: reading.load(sources[name], split="calibration", limit=samples) for name in made}
    loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    tasks = {name: (asked_of(loaded, given[name], reading), plan) for name, plan in made.items()}
    planset = PlanSet.fit(loaded, tasks, last, doubt=doubt)
    planset.save_pretrained(out_dir)
    if as_json:
        print_json(_record(planset))
    else:
        print_whole(_table(planset))
        out.print(f"saved to {out_dir}; next: lookless eval {model} --plan {out_dir} --data DATA", soft_wrap=True)


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """Raises: PlanError: a word is not NAME=VALUE, or a name comes twice."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise PlanError(f"{option} {word!r} is not TASK=..., as in {option} chart=my-chart.")
        if name in found:
            raise PlanError(f"{option} names {name!r} twice ({found[name]} and {value}): give each task once.")
        found[name] = value
    return found


def _record(planset: PlanSet) -> dict[str, Any]:
    tasks = planset.manifest.tasks
    return {task.name: task.model_dump(mode="json", include={"data", "right", "wrong", "fell_back"}) for task in tasks}


def _table(planset: PlanSet) -> Table:
    table = Table(title="where prompts went that were held out of the fit", caption="other plan: equal plans are one")
    for head in ("task", "its plan", "fell back", "other plan"):
        table.add_column(head, justify="left" if head == "task" else "right")
    for task in planset.manifest.tasks:
        table.add_row(task.name, *map(str, (task.right, task.fell_back, task.wrong)))
    return table
