"""`lookless lmms`: data as tasks of lmms-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Data, ScoredDataOptions, app, one_sentence, out, spread
from .outputs import Overwrite, new_files


@app.command()
@one_sentence
@spread
def lmms(
    data: Data,
    options: ScoredDataOptions,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the tasks, for lmms-eval's --include_path.")],
    limit: Annotated[int | None, typer.Option(help="Number of samples at most; from a file, the first.", min=1)] = None,
    plan_dir: Annotated[
        str | None,
        typer.Option("--plan", help="Leave out lines that this plan was calibrated on, as `lookless eval` does."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 32,
    overwrite: Overwrite = False,
) -> None:
    """Write data as tasks of lmms-eval, which then asks what `lookless eval` asks.

    Example: lookless lmms --data reference:chart --out my-tasks
    """
    from ..answers import scored_by
    from ..data import warn_of_skipped
    from ..lmms.export import parts, task_name, write_task
    from ..plan import Plan

    new_files(out_dir, [f"{task_name(name)}.yaml" for _, name in parts(data)], overwrite)
    seen = () if plan_dir is None else Plan.from_pretrained(plan_dir).provenance.sample_hashes or ()
    reading = options.reading
    chosen = [(scored_by(reading.load(where, limit=limit, without=seen)), name) for where, name in parts(data)]
    for samples, _ in chosen:
        warn_of_skipped(samples.bad)
    tag = "lookless_reference" if data == "reference" else None
    names = [write_task(s, out_dir, name, tag=tag, max_new_tokens=max_new_tokens) for s, name in chosen]
    asked = sum(len(samples) for samples, _ in chosen)
    out.print(
        f"{asked} questions in {len(names)} task{'s' if len(names) > 1 else ''}; next, where lmms-eval is installed: "
        f"lmms-eval --model lookless_CLASS --model_args pretrained=MODEL,plan=PLAN_DIR --include_path {out_dir} "
        f"--tasks {tag or names[0]} --log_samples --output_path RUN_DIR",
        soft_wrap=True,
    )
