"""`lookless doctor`: does a plan run right on this machine and this model?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import LooklessError
from .common import Device, Dtype, Json, Model, Revision, app, err, one_sentence, print_json

PlanDir = Annotated[str | None, typer.Option("--plan", help="A plan's folder, JSON file, or hub id.")]
Image = Annotated[Path | None, typer.Option(help="An image to ask about (default: a shipped chart).")]


@app.command()
@one_sentence
def doctor(
    model: Model,
    plan_dir: PlanDir = None,
    image: Image = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Examine the machine, the model and a plan: versions, weights, whether the fast path computes what a slow one
    does, and what the plan spares. The result is a page of Markdown that can be pasted into an issue.

    Exit code 2 if anything is wrong.

    Example: lookless doctor reference --plan my-plan --image photo.png
    """
    from ..doctor.examination import examine
    from ..doctor.sections import page, record, wrong

    with err.status(f"examining {model}"):
        found = examine(model, plan_dir, image, dtype=dtype, device=device, revision=revision)
    if as_json:
        print_json(record(found))
    else:
        typer.echo(page(found), nl=False)
    if wrong(found):
        raise LooklessError(f"{' and '.join(wrong(found))}: wrong, as the page says.")
