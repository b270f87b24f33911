"""`lookless optimize`: from a model, data and one wish to a plan that is certified to fulfil it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LooklessError
from .common import Json, ScoredDataOptions, app, one_sentence, print_json, spread
from .runs import MACHINE, RunOptions

if TYPE_CHECKING:
    from ..optimize.folder import Target

Retention = Annotated[
    float | None,
    typer.Option(
        help="The cheapest plan that is certified to keep this share of right answers, such as 0.99.",
        min=0.5,
        max=0.9999,
    ),
]
By = Annotated[
    str, typer.Option(help="With --retention: what to save, `time` on this machine or `flops`.", metavar="time|flops")
]
Confidence = Annotated[float, typer.Option(help="How sure the certificate has to be.", min=0.5, max=0.9999)]
Loss = Annotated[
    str | None,
    typer.Option(help="What is certified: right answers `lost` (default), or answers `changed`, for data without any."),
]
Batch = Annotated[int, typer.Option(help="Questions answered together.", min=1, rich_help_panel=MACHINE)]


@app.command()
@one_sentence
@spread
def optimize(
    options: RunOptions,
    data_options: ScoredDataOptions,
    retention: Retention = None,
    by: By = "time",
    confidence: Confidence = 0.95,
    loss: Loss = None,
    batch: Batch = 25,
    as_json: Json = False,
) -> None:
    """As fast as it can be, and no more lost than you allow, on your data: search, certify, and write the plan.

    Example: lookless optimize reference --data reference:chart --retention 0.99 --out my-run
    """
    from ..optimize.begin import start
    from ..optimize.whole import complete
    from ..pages.measuring import write_whole_page

    target = _target({"flops": options.flops, "latency": options.latency, "retention": retention}, by)
    if loss not in (None, "lost", "changed"):
        raise LooklessError(f"loss {loss!r} is not one of lost, changed.")
    run = options.begin(start, target, reading=data_options.reading, confidence=confidence, loss=loss, batch=batch)
    result = complete(run)
    write_whole_page(options.out_dir, run.loaded, batch=batch, log=run.log)
    if as_json:
        print_json(result.run)
        return
    for line in (*result.run.lines, "", result.command):
        typer.echo(line)


def _target(given: dict[str, float | None], by: str) -> Target:
    """The one wish of those ``given``, by kind."""
    from ..optimize.folder import Target

    wanted = {kind: value for kind, value in given.items() if value is not None}
    if len(wanted) != 1:
        said = " and ".join(f"--{kind}" for kind in wanted) or "none of them"
        raise LooklessError(f"give one of --flops, --latency and --retention; {said} was given.")
    if by not in ("time", "flops"):
        raise LooklessError(f"by {by!r} is not one of time, flops.")
    [(kind, value)] = wanted.items()
    return Target(kind=kind, value=value, by="time" if by == "time" else "kept")  # type: ignore[arg-type]
