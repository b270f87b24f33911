"""`lookless refit`: better cells than zero in a plan that skips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import PlanError
from .common import (
    Data,
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

RANK = 8


@app.command()
@one_sentence
@spread
def refit(
    model: Model,
    plan_dir: Annotated[str, typer.Option("--plan", help="The plan that skips: a folder, JSON file, or hub id.")],
    data: Data,
    options: DataOptions,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the fitted plan and its numbers.")],
    cell: Annotated[
        Literal["mean", "linear"],
        typer.Option(help="What takes the operators' place: a constant, which costs nothing, or a map of low rank."),
    ] = "linear",
    rank: Annotated[int | None, typer.Option(help=f"Of the maps (default {RANK}).", min=1)] = None,
    samples: Annotated[
        int, typer.Option(help="Number of samples; from a file, drawn at random from each task.", min=1)
    ] = 40,
    seed: Annotated[int | None, typer.Option(help="Seed of that draw (default 0).")] = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Fit what a plan skips: a constant or a map of low rank takes the place of each operator on visual tokens.

    Example: lookless refit reference --plan my-plan --data reference:chart --out my-fitted-plan
    """
    from .. import terminal
    from ..calibration.affine import Fitter
    from ..loading import load_model
    from ..plan import Plan
    from ..runtime.families import geometry_of

    if cell == "mean" and rank is not None:
        raise PlanError(f"--cell mean is a constant and has no rank, and --rank is {rank}: leave one of them out.")
    new_files(out_dir, PLAN_FILES, overwrite)
    plan = Plan.from_pretrained(plan_dir)
    reading = options.reading
    chosen = reading.load(data, split="calibration", limit=samples, seed=seed)
    loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    chosen = asked_of(loaded, chosen, reading)
    plan.check(geometry_of(loaded.model))
    fitted = Fitter(loaded, chosen).refit(plan, rank=0 if cell == "mean" else rank or RANK)
    fitted.save_pretrained(out_dir)
    if as_json:
        print_json(fitted)
        return
    print_whole(terminal.plan_table(fitted))
    same = f"{data} {reading}".strip()
    out.print(f"saved to {out_dir}; next: lookless eval {model} --data {same} --plan {out_dir}", soft_wrap=True)
