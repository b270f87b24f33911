"""`lookless optimize`: from a model, data and one wish to a plan that is certified to fulfil it; `lookless search`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import LooklessError
from .common import Device, Dtype, Json, Model, Revision, app, err, one_sentence, print_json, writable

if TYPE_CHECKING:
    from ..optimize.folder import Target
    from ..optimize.run import Optimization
    from ..optimize.split import Sizes

Data = Annotated[
    list[str],
    typer.Option(help="`reference:TASK`, `reference` for all tasks, or a JSONL file as for eval; repeatable."),
]
OutDir = Annotated[Path, typer.Option("--out", metavar="RUN_DIR", help="Folder of the run; one that is there goes on.")]
Flops = Annotated[
    float | None,
    typer.Option(help="The least loss at this share of the stock prefill's FLOPs, such as 0.66.", min=0.01, max=0.99),
]
Latency = Annotated[
    float | None,
    typer.Option(help="The least loss at this share of its time on this machine, such as 0.7.", min=0.01, max=0.99),
]
Retention = Annotated[
    float | None,
    typer.Option(
        help="The cheapest plan that is certified to keep this share of right answers, such as 0.99.",
        min=0.5,
        max=0.9999,
    ),
]
Confidence = Annotated[float, typer.Option(help="How sure the certificate has to be.", min=0.5, max=0.9999)]
Samples = Annotated[
    int | None, typer.Option(help="Calibration samples of each task (default 8, shared by the tasks).", min=1)
]
Tuning = Annotated[
    int | None, typer.Option(help="Samples of each task to search plans on (default 32, shared by the tasks).", min=1)
]
Selection = Annotated[
    int | None, typer.Option(help="Samples of each task to compare the best on (default 128, shared).", min=1)
]
By = Annotated[
    str, typer.Option(help="With --retention: what to save, `time` on this machine or `flops`.", metavar="time|flops")
]
Certification = Annotated[
    int | None,
    typer.Option(help="Questions of each task to certify on (default: by the target; 300 for 0.99 at least).", min=2),
]
Engine = Annotated[str, typer.Option(help="transformers, or vllm: only plans that vLLM can serve.")]
Loss = Annotated[
    str | None,
    typer.Option(help="What is certified: right answers `lost` (default), or answers `changed`, for data without any."),
]
Seed = Annotated[int, typer.Option(help="Of the draw from a file, and of the search.")]
Proposals = Annotated[
    int | None, typer.Option(help="Plans tried at each budget by the joint search (default: by the target).", min=0)
]
Batch = Annotated[int, typer.Option(help="Questions answered together.", min=1)]
Timed = Annotated[int, typer.Option("--timed", help="Prompts in each call that is timed.", min=1)]


@app.command()
@one_sentence
def optimize(
    model: Model,
    data: Data,
    out_dir: OutDir,
    flops: Flops = None,
    latency: Latency = None,
    retention: Retention = None,
    by: By = "time",
    confidence: Confidence = 0.95,
    samples: Samples = None,
    tuning: Tuning = None,
    selection: Selection = None,
    certification: Certification = None,
    loss: Loss = None,
    engine: Engine = "transformers",
    seed: Seed = 0,
    proposals: Proposals = None,
    batch: Batch = 25,
    timed: Timed = 1,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """As fast as it can be, and no more lost than you allow, on your data: search, certify, and write the plan.

    Example: lookless optimize reference --data reference:chart --retention 0.99 --out my-run
    """
    from ..optimize.whole import complete
    from ..pages.measuring import write_whole_page

    target = _target(flops, latency, retention, by)
    sizes = (samples, tuning, selection, certification)
    run = _start(
        model, data, out_dir, target, sizes, (device, dtype, revision), confidence, loss, engine, seed,
        batch=batch, timed=timed, proposals=proposals,
    )  # fmt: skip
    result = complete(run)
    write_whole_page(out_dir, run.loaded, batch=batch, log=run.log)
    if as_json:
        print_json(result.run)
        return
    for line in (*result.run.lines, "", result.command):
        typer.echo(line)


@app.command()
@one_sentence
def search(
    model: Model,
    data: Data,
    out_dir: OutDir,
    flops: Flops = None,
    latency: Latency = None,
    samples: Samples = None,
    tuning: Tuning = None,
    engine: Engine = "transformers",
    seed: Seed = 0,
    proposals: Proposals = None,
    timed: Timed = 1,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """The search of `optimize` alone: plans at every price, and the best within a budget. Nothing is certified.

    Example: lookless search reference --data reference:chart --flops 0.5 --out my-run
    """
    target = _target(flops, latency, None, "time")
    run = _start(
        model, data, out_dir, target, (samples, tuning, 1, 2), (device, dtype, revision), 0.95, None, engine, seed,
        timed=timed, proposals=proposals,
    )  # fmt: skip
    front = run.search()
    best = front.within(target.value, target.price)
    if best is None:
        raise LooklessError(f"no plan was found within {target.value:.0%}: the milder ones are in {run.folder.front}.")
    run.named(best.plan).save_pretrained(run.folder.plan)
    if as_json:
        print_json(front)
        return
    for gain in front.gains:
        if gain.budget == target.value:
            what = f"{gain.step:>9}: risk {gain.risk:.4f}, {gain.distance:.4f} nats, found by {gain.found_by}"
            typer.echo(f"{what}; {gain.evaluations} plans run")
    typer.echo(str(best.plan))
    typer.echo(f"It keeps {best.kept:.1%} of the FLOPs; the plan and the front are in {out_dir}.")


def _target(flops: float | None, latency: float | None, retention: float | None, by: str) -> Target:
    from ..optimize.folder import Target

    given = {"flops": flops, "latency": latency, "retention": retention}
    wanted = {kind: value for kind, value in given.items() if value is not None}
    if len(wanted) != 1:
        said = " and ".join(f"--{kind}" for kind in wanted) or "none of them"
        raise LooklessError(f"give one of --flops, --latency and --retention; {said} was given.")
    if by not in ("time", "flops"):
        raise LooklessError(f"by {by!r} is not one of time, flops.")
    [(kind, value)] = wanted.items()
    return Target(kind=kind, value=value, by="time" if by == "time" else "kept")  # type: ignore[arg-type]


def _start(
    model: str,
    data: list[str],
    out_dir: Path,
    target: Target,
    sizes: tuple[int | None, ...],
    where: tuple[str, str, str | None],
    confidence: float,
    loss: str | None,
    engine: str,
    seed: int,
    **settings: Any,
) -> Optimization:
    """Read the data and the model, and begin the run or go on with it."""
    from .. import reference
    from ..loading import load_model
    from ..optimize.run import start
    from ..optimize.split import split

    _check(engine, loss)
    writable(out_dir, folder=True)
    tasks = sum(len(reference.tasks_of(model)) if one == "reference" else 1 for one in data)
    parts = split(model, data, _sizes(sizes, tasks, target, confidence), seed=seed)
    device, dtype, revision = where
    loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    settings |= {"loss": loss, "engine": engine, "seed": seed, "confidence": confidence}
    return start(loaded, parts, out_dir, target, log=lambda what: err.print(what, highlight=False), **settings)


def _check(engine: str, loss: str | None) -> None:
    if engine not in ("transformers", "vllm"):
        raise LooklessError(f"engine {engine!r} is not one of transformers, vllm.")
    if loss not in (None, "lost", "changed"):
        raise LooklessError(f"loss {loss!r} is not one of lost, changed.")


def _sizes(given: tuple[int | None, ...], tasks: int, target: Target, confidence: float) -> Sizes:
    """Those given, and for the others enough: of a retention, what certifies it if one answer in a while is lost."""
    from ..certification.bounds import exact_least
    from ..optimize.split import Sizes

    wanted = 200
    if target.kind == "retention":
        wanted = math.ceil(1.6 * (exact_least(1 - target.value, confidence)))
    usual = (max(3, math.ceil(8 / tasks)), max(6, math.ceil(32 / tasks)), max(12, math.ceil(128 / tasks)), wanted)
    return Sizes(*(size or default for size, default in zip(given, usual, strict=True)))
