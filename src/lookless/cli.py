"""The command line. Results go to standard output, progress to standard error.

Bad input is one sentence and exit code 2.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from .errors import LooklessError, PlanError
from .version import __version__

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .plan import Plan

app = typer.Typer(
    help="Make multimodal language models look less, at the right depth: measure which decoder layers' visual work "
    "changes nothing, plan to skip it, apply the plan, and see what it costs and saves.\n\n"
    "Begin with `lookless demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
plans = typer.Typer(help="Make a plan from scores.", no_args_is_help=True)
app.add_typer(plans, name="plan")

out, err = Console(), Console(stderr=True)
Command = TypeVar("Command", bound=Callable[..., None])

Model = Annotated[str, typer.Argument(metavar="MODEL", help="`reference`, a local folder, or a hub id.")]
Data = Annotated[
    str,
    typer.Option(
        help="`reference:TASK`, `reference` for all tasks, or a JSONL file with image (or images), question and answer "
        "on each line, paths relative to the file."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]


def _told(command: Command) -> Command:
    """One sentence on standard error and exit code 2 for what the library raises on purpose."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except LooklessError as error:
            typer.echo(f"lookless: {error}", err=True)
            raise typer.Exit(2) from None
        except (BrokenPipeError, KeyboardInterrupt):
            raise typer.Exit(130) from None
        except OSError as problem:  # a full disk, a folder that may not be written
            typer.echo(f"lookless: {problem}", err=True)
            raise typer.Exit(2) from None

    return run  # type: ignore[return-value]


def _print_json(record: BaseModel | dict[str, Any]) -> None:
    data = record if isinstance(record, dict) else record.model_dump(mode="json")
    typer.echo(json.dumps(data, indent=2))


def _writable(path: Path, *, folder: bool) -> Path:
    """``path``, if the result can be written there: found out before the work, not after it."""
    if folder and path.exists() and not path.is_dir():
        raise LooklessError(f"{path} is a file and the result is a folder: choose another name.")
    if not folder and path.is_dir():
        raise LooklessError(f"{path} is a folder and the result is a file: choose another name.")
    target = path if folder else path.parent
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise LooklessError(f"{target} cannot be made for the result: {problem.strerror}.") from None
    return path


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
@_told
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for plans, scores, figures and demo.json.")] = Path(
        "lookless-demo"
    ),
    as_json: Json = False,
) -> None:
    """All of it on the shipped reference model: calibrate, plan, apply and measure, for six tasks. About two minutes.

    Example: lookless demo --out my-first-look
    """
    from . import demo as demonstration

    _writable(out_dir, folder=True)
    with err.status("starting") as status:
        result = demonstration.run_demo(out_dir, say=status.update if err.is_terminal else err.print)
    if as_json:
        _print_json(result)
        return
    out.print(demonstration.demo_table(result))
    out.print(
        f"[bold]{out_dir}[/]: visual_information_gain.png shows which layers are saturated, TASK/examples.png what was "
        f"asked and answered; plans, scores and answers are beside them. Next: lookless show {out_dir}/chart/plan",
        soft_wrap=True,
    )


@app.command()
@_told
def calibrate(
    model: Model,
    data: Data,
    out_path: Annotated[Path, typer.Option("--out", help="The scores, a JSON file.")],
    samples: Annotated[int, typer.Option(help="How many samples to measure on.", min=1)] = 20,
    position: Annotated[
        str, typer.Option(help="Read the distribution at the `last` prompt token, or over the model's own `answer`.")
    ] = "last",
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Measure how much each layer's visual attention matters to the answer (visual information gain).

    Example: lookless calibrate reference --data reference:chart --out scores.json
    """
    from . import report
    from .calibration import calibrate as measure
    from .data import load_data
    from .loading import load_model

    if position not in ("last", "answer"):
        raise LooklessError(f"position {position!r} is not one of last, answer.")
    _writable(out_path, folder=False)
    chosen = load_data(data, split="calibration", limit=samples)
    scores = measure(
        load_model(model, dtype=dtype, device=device, revision=revision),
        chosen,
        position=position,  # type: ignore[arg-type]
    )
    scores.save(out_path)
    if as_json:
        _print_json(scores)
        return
    out.print(report.scores_table(scores))
    out.print(
        f"saved to {out_path}; next: lookless plan v-skip --scores {out_path} --layers N --out PLAN_DIR", soft_wrap=True
    )


@plans.command("v-skip")
@_told
def plan_v_skip(
    scores_path: Annotated[Path, typer.Option("--scores", help="What `lookless calibrate` wrote.")],
    layers: Annotated[int, typer.Option(help="How many layers to skip visual attention in.", min=0)],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the plan.")],
    as_json: Json = False,
) -> None:
    """Skip visual attention in the layers where it matters least (arXiv 2606.08511).

    Example: lookless plan v-skip --scores scores.json --layers 7 --out my-plan
    """
    from .methods import v_skip
    from .scores import Scores

    _writable(out_dir, folder=True)
    plan = v_skip(Scores.load(scores_path), layers=layers)
    plan.save_pretrained(out_dir)
    _show(plan, as_json)


@app.command()
@_told
def show(
    plan_dir: Annotated[str, typer.Argument(metavar="PLAN_DIR", help="A plan's folder, JSON file, or hub id.")],
    as_json: Json = False,
) -> None:
    """Print a plan: what visual tokens do in each layer, and where the plan came from.

    Example: lookless show lookless-demo/chart/plan
    """
    from .plan import Plan

    _show(Plan.from_pretrained(plan_dir), as_json)


def _show(plan: Plan, as_json: bool) -> None:
    from . import report

    if as_json:
        _print_json(plan)
    else:
        out.print(report.plan_table(plan))


@app.command("eval")
@_told
def evaluate(
    model: Model,
    data: Data,
    plan_dir: Annotated[str | None, typer.Option("--plan", help="Compare this plan with the dense model.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many samples.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Prompts answered at once.", min=1)] = 25,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 16,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Accuracy by exact match; with a plan also the accuracy retained and the agreement with the dense model.

    Example: lookless eval reference --data reference:chart --plan lookless-demo/chart/plan
    """
    from . import report
    from .data import load_data
    from .evaluation import evaluate as measure
    from .loading import load_model
    from .models import geometry_of
    from .plan import Plan

    plan = None if plan_dir is None else Plan.from_pretrained(plan_dir)
    chosen = load_data(data, split="test", limit=limit)
    loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    if plan is not None:  # before the dense pass, which may take an hour
        plan.check(geometry_of(loaded.model))
    result = measure(loaded, chosen, plan, batch=batch, max_new_tokens=max_new_tokens)
    if as_json:
        _print_json(result)
    else:
        out.print(report.evaluation_table([result]))


@app.command()
@_told
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="The question.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image; may be given more than once.")] = None,
    plan_dir: Annotated[str | None, typer.Option("--plan", help="Answer under this plan.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 64,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Answer one question about an image.

    Example: lookless generate reference --image photo.png --prompt "what colour is the star?"
    """
    from contextlib import nullcontext

    from .data import Sample, load_image
    from .loading import load_model
    from .plan import Plan
    from .runtime import apply

    plan = None if plan_dir is None else Plan.from_pretrained(plan_dir)
    sample = Sample(tuple(load_image(path) for path in image or ()), prompt, "")
    with err.status(f"loading {model}"):
        loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    with err.status("answering"), nullcontext() if plan is None else apply(loaded.model, plan):
        [answer] = loaded.answer([sample], max_new_tokens=max_new_tokens)
    if as_json:
        _print_json({"prompt": prompt, "answer": answer, "plan": plan_dir})
    else:
        typer.echo(answer)


@app.command()
@_told
def flops(
    geometry: Annotated[str, typer.Option(help="A preset such as LLaVA-1.5-7B; a wrong name lists them.")],
    visual: Annotated[float, typer.Option(help="Visual tokens of the prompt.", min=0)],
    text: Annotated[float, typer.Option(help="Text tokens of the prompt.", min=0)],
    plan_dir: Annotated[str | None, typer.Option("--plan", help="Price this plan.")] = None,
    method: Annotated[str | None, typer.Option(help="Price a method instead of a plan: v-skip.")] = None,
    layers: Annotated[int | None, typer.Option(help="With --method: in how many layers.", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Price a prefill from its formula, no weights needed (decoder only, 2 FLOPs per multiply-add).

    Example: lookless flops --geometry LLaVA-1.5-7B --visual 576 --text 66.6 --method v-skip --layers 19
    """
    from rich.table import Table

    from .flops import prefill
    from .geometry import Geometry
    from .plan import Plan

    chosen = Geometry.preset(geometry)
    if plan_dir is not None and method is not None:
        raise PlanError("give either --plan or --method, not both.")
    plan = None if plan_dir is None else Plan.from_pretrained(plan_dir)
    if method is not None:
        plan = _by_count(method, layers, chosen)
    elif layers is not None:
        raise PlanError("--layers says how many layers a --method skips: name the method, v-skip.")
    costs = {"dense": prefill(chosen, visual=visual, text=text)}
    if plan is not None:
        costs[method or str(plan_dir)] = prefill(chosen, visual=visual, text=text, plan=plan)
    dense = costs["dense"]
    if as_json:
        _print_json(
            {
                "geometry": geometry,
                "visual": visual,
                "text": text,
                **{
                    name: {
                        "total_tflops": cost.total_tflops,
                        "visual_tflops": cost.visual_tflops,
                        "total_kept": _share(cost.total, dense.total),
                        "visual_kept": _share(cost.visual, dense.visual),
                    }
                    for name, cost in costs.items()
                },
            }
        )
        return
    table = Table(
        title=f"{geometry}, {visual:g} visual and {text:g} text tokens",
        caption="visual only: projections, FFN and mutual attention of visual tokens",
    )
    for head in ("", "prefill TFLOPs", "kept", "visual only TFLOPs", "kept"):
        table.add_column(head, justify="left" if not head else "right")
    for name, cost in costs.items():
        total_kept, visual_kept = _share(cost.total, dense.total), _share(cost.visual, dense.visual)
        table.add_row(
            name,
            f"{cost.total_tflops:.2f}",
            "-" if total_kept is None else f"{total_kept:.1%}",
            f"{cost.visual_tflops:.2f}",
            "-" if visual_kept is None else f"{visual_kept:.1%}",
        )
    out.print(table)


def _by_count(method: str, layers: int | None, geometry: Any) -> Plan:
    """A plan that costs what ``method`` costs; which layers it skips does not matter to the price."""
    from .cells import Skip
    from .plan import Plan

    if method != "v-skip":
        raise PlanError(f"no method {method!r} can be priced; choose v-skip.")
    if layers is None:
        raise PlanError("--method v-skip needs --layers N.")
    if layers > geometry.layers:
        raise PlanError(f"{method} was asked to skip {layers} layers and the model has {geometry.layers}.")
    return Plan.full(geometry).at(range(layers), attention=Skip())


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
