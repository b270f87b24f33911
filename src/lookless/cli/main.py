"""The command line. Results go to standard output, progress to standard error.

Bad input is one sentence and exit code 2.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from typer.core import TyperGroup

from ..errors import LooklessError, PlanError, first_line, is_out_of_memory
from ..version import __version__

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..bench.traffic_client import Traffic
    from ..geometry import Geometry
    from ..methods import Method
    from ..plan import Plan

app = typer.Typer(
    help="Make multimodal language models look less, at the right depth: measure which decoder layers' visual work "
    "changes nothing, plan to skip it, apply the plan, and see what it costs and saves.\n\n"
    "Begin with `lookless demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
#: Words that are no option of a command are read by the command: a method's knobs.
OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}


class _Pipe(Console):
    """A console that leaves a closed pipe to :func:`_telling`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


out, err = _Pipe(), _Pipe(stderr=True)
Command = TypeVar("Command", bound=Callable[..., None])

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="`reference`, `reference-qwen3-vl`, a local folder, or a hub id.")
]
Data = Annotated[
    str,
    typer.Option(
        help="`reference:TASK`, `reference` for all tasks, or a JSONL file with image (or images), question, answer "
        "and perhaps task on each line, paths relative to the file."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]


@contextmanager
def _telling() -> Iterator[None]:
    """One sentence on standard error and exit code 2 for what the library raises on purpose."""
    try:
        yield
    except LooklessError as error:
        typer.echo(f"lookless: {error}", err=True)
        raise typer.Exit(2) from None
    except BrokenPipeError:  # whoever read it has read enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except KeyboardInterrupt:
        typer.echo("lookless: interrupted.", err=True)
        raise typer.Exit(130) from None
    except OSError as problem:  # a full disk, a folder that may not be written
        typer.echo(f"lookless: {first_line(problem)}.", err=True)
        raise typer.Exit(2) from None
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        typer.echo(f"lookless: there is not enough memory ({first_line(problem)}): ask for less at once.", err=True)
        raise typer.Exit(2) from None


def _told(command: Command) -> Command:
    """``command``, whose refusals are told as :func:`_telling` does."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        with _telling():
            command(*args, **kwargs)

    return run  # type: ignore[return-value]


def _print_whole(table: Table) -> None:
    """Print ``table`` with nothing cut: where it is too wide for a terminal, or for the 80 columns that a pipe is taken
    to have, its lines are longer. A column that may not be wrapped keeps its lines, the others their words."""
    free = out.options.update_width(10_000)
    for column in table.columns:
        sizes = [Measurement.get(out, free, cell) for cell in (column.header, *column.cells)]
        column.min_width = max(size.maximum if column.no_wrap else size.minimum for size in sizes)
    least = Measurement.get(out, free, table).minimum
    if least > out.width:
        table.width = least
    out.print(table, crop=False)


def _print_json(record: BaseModel | dict[str, Any]) -> None:
    data = record if isinstance(record, dict) else record.model_dump(mode="json")
    typer.echo(json.dumps(data, indent=2))


def _writable(path: Path, *, folder: bool) -> Path:
    """As :func:`lookless.files.check_out`."""
    from ..files import check_out

    return check_out(path, folder=folder)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """In place of :func:`warnings.showwarning`: what happened in one line, and not where in our code."""
    typer.echo(f"lookless: {category.__name__}: {message}", err=True)


@app.callback()
def _main(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    ctx.with_resource(warnings.catch_warnings())
    warnings.showwarning = _warn


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
    from .. import demo as demonstration

    _writable(out_dir, folder=True)
    with err.status("starting") as status:
        result = demonstration.run_demo(out_dir, say=status.update if err.is_terminal else err.print)
    if as_json:
        _print_json(result)
        return
    _print_whole(demonstration.demo_table(result))
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
    samples: Annotated[
        int, typer.Option(help="How many samples to measure on; of a file, drawn at random from each task.", min=1)
    ] = 20,
    seed: Annotated[int | None, typer.Option(help="Of the draw from a file: 0. Scores and plans keep it.")] = None,
    position: Annotated[
        str, typer.Option(help="Read the distribution at the `last` prompt token, or over the model's own `answer`.")
    ] = "last",
    measure: Annotated[
        str, typer.Option(help="What to change in a layer; a wrong name lists them.")
    ] = "visual_information_gain",
    lowest: Annotated[
        int | None,
        typer.Option(
            "--screen",
            metavar="N",
            help="Only tell the N lowest layers from the others, several times faster: estimate all, and measure those "
            "in doubt.",
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Measure how much each layer matters to the answer: by default its visual attention (visual information gain).

    Example: lookless calibrate reference --data reference:chart --out scores.json

    For a plan that skips 7 layers: lookless calibrate reference --data reference:chart --screen 7 --out scores.json
    """
    from .. import report
    from ..calibration.gradients import DIAGNOSTICS, measured
    from ..calibration.screening import check_screened, screen
    from ..calibration.sweep import MEASURES
    from ..data import SeenWarning, load_data
    from ..loading import load_model

    _writable(out_path, folder=False)
    if position not in ("last", "answer"):
        raise LooklessError(f"position {position!r} is not one of last, answer.")
    names = [*MEASURES, *DIAGNOSTICS]
    if measure not in names:  # before the model is loaded
        raise LooklessError(f"no measure is called {measure!r}; choose one of {', '.join(names)}.")
    if lowest is not None:
        check_screened(measure)
    chosen = load_data(data, split="calibration", limit=samples, seed=seed)
    loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    if lowest is None:
        scores = measured(loaded, chosen, measure, position=position)  # type: ignore[arg-type]
    else:
        scores = screen(loaded, chosen, {measure: lowest}, position=position)[measure]  # type: ignore[arg-type]
    scores.save(out_path)
    if chosen.drawn_from == len(chosen):
        warnings.warn(
            f"all {len(chosen)} lines of {data} were calibrated on, so none is left to test on: give fewer --samples.",
            SeenWarning,
            stacklevel=2,
        )
    if as_json:
        _print_json(scores)
        return
    _print_whole(report.scores_table(scores))
    from ..methods import METHODS

    next_step = next((m.name for m in METHODS.values() if m.measures == (measure,)), None)
    then = f"; next: lookless plan {next_step} --scores {out_path} --out PLAN_DIR" if next_step else ""
    if measure == "visual_information_gain":
        then = f"; next: lookless plan v-skip --scores {out_path} --layers {lowest or 'N'} --out PLAN_DIR"
    out.print(f"saved to {out_path}{then}", soft_wrap=True)


class _Methods(TyperGroup):
    """`lookless plan`: a command for every method there is, made from its signature when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        from ..methods import all_methods

        with _telling():
            return [*super().list_commands(ctx), *all_methods()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from ..methods import find

        with _telling():
            return super().get_command(ctx, cmd_name) or _method_command(find(cmd_name))


plans = typer.Typer(
    cls=_Methods,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make a plan by a published method. Knobs left out are the paper's own, at the same relative depth.",
)
app.add_typer(plans, name="plan")

PlanOut = Annotated[Path, typer.Option("--out", help="Folder for the plan.")]


@plans.command("preset")
@_told
def plan_preset(
    name: Annotated[str, typer.Argument(help="Such as operator-skipping/Qwen3-VL-8B/20; a wrong name lists them.")],
    out_dir: PlanOut,
    as_json: Json = False,
) -> None:
    """A ready plan: the layers that authors published for their model.

    Example: lookless plan preset shortv/LLaVA-1.5-7B --out my-plan
    """
    from ..methods import preset

    _writable(out_dir, folder=True)
    plan = preset(name)
    plan.save_pretrained(out_dir)
    _show(plan, as_json)


def _method_command(method: Method) -> Any:
    """`lookless plan METHOD`: scores if it needs some, a geometry if not, and an option for each knob."""

    @_told
    def make(
        ctx: typer.Context,
        out_dir: Path,
        scores: list[Path] | None = None,
        geometry: str | None = None,
        any_measure: bool = False,
        as_json: bool = False,
        **words: str | None,
    ) -> None:
        from ..configs import geometry_named
        from ..scores import Scores

        _writable(out_dir, folder=True)
        knobs = _knobs(method, {k: v for k, v in words.items() if v is not None}, ctx.args)
        given = [Scores.load(path) for path in scores or ()]
        if geometry is None and not given:
            what = f"--scores FILE, of {', '.join(method.measures)}" if method.measures else "--geometry"
            raise PlanError(f"{method.name} needs {what}.")
        shape = given[0].geometry if geometry is None else geometry_named(geometry)
        if any_measure:
            given = method.taken_as_its_own(given)
        plan = method.build(shape, given, **knobs)
        plan.save_pretrained(out_dir)
        _show(plan, as_json)
        if not as_json:
            out.print(method.setting(shape, **knobs), soft_wrap=True)

    file = "What `lookless calibrate` wrote; may be given more than once."
    other = "Take scores of other measures too, in the order given: a variant of your own, and the plan says so."
    model = "A preset such as LLaVA-1.5-7B, `reference`, or a model's folder."
    options: dict[str, Any] = {"ctx": typer.Context, "out_dir": PlanOut}
    if method.measures:
        options["scores"] = Annotated[list[Path] | None, typer.Option("--scores", metavar="FILE", help=file)]
        options["any_measure"] = Annotated[bool, typer.Option("--any-measure", help=other)]
    options["geometry"] = Annotated[str | None, typer.Option(metavar="NAME", help=model)]
    for knob in method.knobs.values():
        option = typer.Option(f"--{knob.name.replace('_', '-')}", metavar=knob.form, help=_paper_setting(method, knob))
        options[knob.name] = Annotated[str | None, option]
    options["as_json"] = Json
    empty = inspect.Parameter.empty
    defaults = {"ctx": empty, "out_dir": empty, "any_measure": False, "as_json": False}
    kind = inspect.Parameter.KEYWORD_ONLY
    make.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(n, kind, default=defaults.get(n), annotation=a) for n, a in options.items()]
    )
    make.__annotations__ = options
    del make.__wrapped__  # type: ignore[attr-defined]
    needs = "".join(f" --scores {need}.json" for need in method.measures) or " --geometry LLaVA-1.5-7B"
    for knob in method.knobs.values():
        if knob.is_required and knob.name in method.example_arguments:
            needs += f" --{knob.name} {knob.typed(method.example_arguments[knob.name])}"
    told = (method.make.__doc__ or "").strip().split("\n\n")[0]
    one = typer.Typer(add_completion=False, rich_markup_mode="rich")
    example = f"Example: lookless plan {method.name}{needs} --out my-plan"
    one.command(method.name, help=f"{told} arXiv {method.paper}.\n\n{example}", short_help=told, context_settings=OPEN)(
        make
    )
    return typer.main.get_command(one)


def _paper_setting(method: Method, knob: Any) -> str:
    from ..methods.knobs import formatted

    if knob.is_required and knob.name not in method.paper_arguments:
        return "Found by search."
    value = formatted(method.paper_arguments.get(knob.name, knob.default))
    if knob.scaling == "tokens":
        return "Left out: of the prompts that the scores were measured on."
    whose = "Left out" if knob.name in method.ours else "The paper's"
    return f"{whose}: {value}, of {method.paper_layers} layers." if knob.scaling else f"{whose}: {value}."


def _knobs(method: Method, words: dict[str, str], rest: list[str]) -> dict[str, Any]:
    """What was typed for a method's knobs: options that are known, and ``rest``, which may name others."""
    typed, names = dict(words), iter(rest)
    for word in names:
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise PlanError(f"{word!r} belongs to no option of {method.name}; its knobs are {method.forms}.")
        typed[name[2:].replace("-", "_")] = value if equals else next(names, "")
    unknown = [name for name in typed if name not in method.knobs]
    if unknown:
        option = unknown[0].replace("_", "-")
        raise PlanError(f"{method.name} has no knob --{option}; its knobs are {method.forms}.")
    try:
        return {name: method.knobs[name].parsed(text) for name, text in typed.items()}
    except PlanError as problem:
        raise PlanError(f"{method.name}: {problem} Its knobs are {method.forms}.") from None


@app.command("methods")
@_told
def list_methods(as_json: Json = False) -> None:
    """The published methods there are: what each needs, and whether a cached prefix stays right under it.

    Example: lookless methods --json
    """
    from .. import report
    from ..methods import all_methods

    methods = all_methods()
    if as_json:
        _print_json({m.name: report.method_record(m) for m in methods.values()})
    else:
        _print_whole(report.methods_table(methods))


@app.command()
@_told
def show(
    plan_dir: Annotated[str, typer.Argument(metavar="PLAN_DIR", help="A plan's folder, JSON file, or hub id.")],
    as_json: Json = False,
) -> None:
    """Print a plan: what visual tokens do in each layer, and where the plan came from.

    Example: lookless show lookless-demo/chart/plan
    """
    from ..plan import Plan

    _show(Plan.from_pretrained(plan_dir), as_json)


def _show(plan: Plan, as_json: bool) -> None:
    from .. import report

    if as_json:
        _print_json(plan)
    else:
        _print_whole(report.plan_table(plan))


@app.command("eval")
@_told
def evaluate(
    model: Model,
    data: Data,
    plan_dir: Annotated[str | None, typer.Option("--plan", help="Compare this plan with the dense model.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many samples: of a file, the first.", min=1)] = None,
    include_seen: Annotated[
        bool,
        typer.Option(
            "--include-seen", help="Also lines that the plan was calibrated on, which are left out otherwise."
        ),
    ] = False,
    batch: Annotated[int, typer.Option(help="Prompts answered at once.", min=1)] = 25,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 16,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Accuracy by exact match; with a plan also the accuracy retained and the agreement with the dense model.

    A plan is tested on what it was not calibrated on: of a file that both were given, on the lines that were not drawn.

    Example: lookless eval reference --data reference:chart --plan lookless-demo/chart/plan
    """
    from .. import report
    from ..data import SeenWarning, load_data
    from ..evaluation import evaluate as measure
    from ..loading import load_model
    from ..plan import Plan
    from ..runtime.families import geometry_of

    plan = None if plan_dir is None else Plan.from_pretrained(plan_dir)
    seen = () if plan is None or include_seen else plan.provenance.sample_hashes or ()
    chosen = load_data(data, split="test", limit=limit, without=seen)
    if chosen.left_out:
        warnings.warn(
            f"{chosen.left_out} lines of {data} are left out, because the plan was calibrated on them (--include-seen "
            f"takes them too).",
            SeenWarning,
            stacklevel=2,
        )
    loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    if plan is not None:  # before the dense pass, which may take an hour
        plan.check(geometry_of(loaded.model))
    result = measure(loaded, chosen, plan, batch=batch, max_new_tokens=max_new_tokens)
    if as_json:
        _print_json(result)
    else:
        _print_whole(report.evaluation_table([result]))


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
    from ..data import Sample, load_image
    from ..loading import load_model
    from ..plan import Plan
    from ..runtime.patching import applied

    plan = None if plan_dir is None else Plan.from_pretrained(plan_dir)
    sample = Sample(tuple(load_image(path) for path in image or ()), prompt, "")
    with err.status(f"loading {model}"):
        loaded = load_model(model, dtype=dtype, device=device, revision=revision)
    with err.status("answering"), applied(loaded.model, plan):
        [answer] = loaded.answer([sample], max_new_tokens=max_new_tokens)
    if as_json:
        _print_json({"prompt": prompt, "answer": answer, "plan": plan_dir})
    else:
        typer.echo(answer)


@app.command()
@_told
def table(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="By default the shipped ones.")
    ] = None,
    out_path: Annotated[
        Path, typer.Option("--out", help="The document, Markdown; what else stands in it stays.")
    ] = Path("results.md"),
    work: Annotated[
        Path, typer.Option(help="Folder for scores and outcomes; a table that was cut off goes on from it.")
    ] = Path("lookless-table"),
    budget: Annotated[
        list[float] | None, typer.Option(help="Share of FLOPs at which all are compared: 0.6.", min=0.01, max=1)
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--method", help="Only this method; may be repeated.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Tasks, as for eval; by default the shipped six.")] = None,
    questions: Annotated[int, typer.Option(help="Questions of each task.", min=2)] = 60,
    samples: Annotated[int, typer.Option(help="Calibration samples of each task.", min=1)] = 20,
    machine: Annotated[str, typer.Option(help="What it ran on, a sentence for the document.")] = "",
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Run every method at its paper's relative depth and at one budget, and write what each keeps and costs.

    Over an hour on two cores for both shipped models. Example: lookless table reference --method v-skip --method fastv
    """
    from .. import figures, files, reference
    from ..comparison import document as results
    from ..comparison.run import check_budgets, run_table
    from ..loading import load_model
    from ..methods import all_methods

    check_budgets(budget or [])
    figure = out_path.parent / "images" / f"{out_path.stem}.png"
    for path in (out_path, figure):
        _writable(path, folder=False)
    folders = {model: work / model.replace("/", "-") for model in models or reference.NAMES}
    for folder in folders.values():
        _writable(folder, folder=True)
    known = all_methods()
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise PlanError(f"no method is called {unknown[0]!r}; methods are {', '.join(known)}.")
    chosen = {name: method for name, method in known.items() if name in (only or known)}
    outcomes = [
        run_table(
            load_model(model, dtype=dtype, device=device),
            chosen,
            folder,
            tasks=data or [f"reference:{task}" for task in reference.TASKS],
            budgets=budget or [0.6],
            questions=questions,
            samples=samples,
            machine=machine,
        )
        for model, folder in folders.items()
    ]
    figures.save_figure(results.retention_figure(outcomes), figure)
    before = out_path.read_text(encoding="utf-8") if out_path.is_file() else ""
    files.write_text(out_path, results.document(before, outcomes, known, f"images/{figure.name}"))
    out.print(f"written: {out_path} and {figure}; outcomes, question by question, are in {work}", soft_wrap=True)


TEXT = 66
#: What is more is a slip, and would fail in torch's own words.
MOST_TOKENS, MOST_PROMPTS = 10_000_000, 100_000
#: Options of `lookless bench` that are for one engine alone.
ENGINES = {
    "transformers": ("batch", "device", "data"),
    "vllm": ("concurrency", "requests", "answer", "image_side", "vllm"),
}


@app.command()
@_told
def bench(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="`reference`, a folder, or a hub id.")] = None,
    engine: Annotated[
        str, typer.Option(help="`transformers`, in this process, or `vllm`: two servers and a client of many requests.")
    ] = "transformers",
    geometry: Annotated[
        str | None,
        typer.Option(
            help="Instead of a model: real layer shapes with random weights, of LLaVA-1.5-7B, ..., a folder with a "
            "config.json, or a hub id."
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(help="Of the geometry, for machines with less memory; the last of them counts as last.", min=2),
    ] = None,
    plan_dirs: Annotated[list[str] | None, typer.Option("--plan", help="A plan to time; may be repeated.")] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="A method at its paper's relative depth; may be repeated.")
    ] = None,
    visual: Annotated[
        list[int] | None,
        typer.Option(
            help="Visual tokens of a prompt, with --geometry: 576; repeated, a sweep.", min=1, max=MOST_TOKENS
        ),
    ] = None,
    text: Annotated[
        int | None,
        typer.Option(help="Text tokens of a prompt, half of them before the image: 66.", min=2, max=MOST_TOKENS),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A MODEL's prompts: a JSONL file, as for eval, of which three lengths are timed."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Prompts at once: 1; repeated, a sweep.", min=1, max=MOST_PROMPTS)
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--repeats", "--rounds", help="In each, everything is timed once: 9, with vLLM 3.", min=2),
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(help="With vLLM: requests at a time: 1, 4 and 16; may be repeated.", min=1)
    ] = None,
    requests: Annotated[int, typer.Option(help="With vLLM: requests of a round, at each concurrency.", min=1)] = 32,
    answer: Annotated[int, typer.Option(help="With vLLM: tokens of an answer.", min=2)] = 16,
    image_side: Annotated[
        int | None, typer.Option(help="With vLLM: pixels along a random image, if not what suits the model.", min=1)
    ] = None,
    vllm: Annotated[
        str, typer.Option(metavar="OPTIONS", help="With vLLM: its own, for both servers: '--max-model-len 2048'.")
    ] = "",
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for bench.json, bench.md and bench.png; with vLLM traffic.json and .md."),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Time the stock model and plans in turn in one process, against each other and against the least they can cost.

    Example: lookless bench --geometry LLaVA-1.5-7B --layers 4 --method v-skip --method shortv

    On prompts of yours: lookless bench reference --data mine.jsonl --method v-skip

    Under traffic: lookless bench reference --engine vllm --plan my-plan --concurrency 1 --concurrency 16
    """
    from ..bench import prefill as benchmark
    from ..bench import prefill_report as timings
    from ..bench import prefill_results, subjects
    from ..configs import shape_named
    from ..methods import find
    from ..plan import Plan

    if out_dir is not None:
        _writable(out_dir, folder=True)
    if (model is None) == (geometry is None):
        raise LooklessError("name either a MODEL or a --geometry to time.")
    if model is not None and visual:
        raise LooklessError("--visual is for a --geometry: a model's own images say how many visual tokens there are.")
    if model is not None and layers is not None:
        raise LooklessError("--layers is for a --geometry: a model is timed whole.")
    if model is not None and text is not None and engine == "transformers":
        raise LooklessError("--text is for a --geometry: a model's own questions say how much text there is.")
    if geometry is not None and data is not None:
        raise LooklessError("--data is for a MODEL: a geometry has no processor, so its prompts are random.")
    _check_engine(ctx, engine)
    if engine == "vllm":
        from ..bench.traffic_client import Traffic

        levels = tuple(sorted({*(concurrency or Traffic.concurrency)}))
        _bench_vllm(
            Traffic(levels, requests, rounds or Traffic.rounds, text or TEXT, answer, image_side),
            model=model,
            geometry=geometry,
            layers=layers,
            visual=visual or [576],
            plans=plan_dirs or [],
            methods=methods or [],
            dtype=dtype,
            options=vllm,
            out_dir=out_dir,
            as_json=as_json,
        )
        return
    plans = {path: Plan.from_pretrained(path) for path in plan_dirs or ()}
    named = {name: find(name) for name in methods or ("v-skip", "shortv", "vtw", "fastv")}
    whole = None
    if geometry is not None:
        shape = shape_named(geometry)
        cut = shape.cut(layers).geometry
        for plan in plans.values():  # before the model is made
            plan.check(cut)
        plans |= {name: method.sample(cut) for name, method in named.items()}
        if cut != shape.geometry:
            known = {name: method.sample(shape.geometry) for name, method in named.items()}
            whole = benchmark.Whole(shape.geometry, known)
        lengths = sorted({*(visual or [576])})
        subject = subjects.of_geometry(
            geometry, layers=layers, dtype=dtype, device=device, visual=lengths, text=text or TEXT
        )
        plans = {name: plan.model_copy(update={"geometry": subject.geometry}) for name, plan in plans.items()}
    else:
        assert model is not None
        subject = subjects.of_model(model, dtype=dtype, device=device, data=data)
        plans |= {name: method.sample(subject.geometry) for name, method in named.items()}
    timed = []
    for prompts in sorted({*(batch or [1])}):
        for inputs in subject.prompts(prompts):
            told = {"name": subject.name, "data": subject.data, "whole": whole}
            timed.append(benchmark.bench(subject.model, inputs, plans, **told, repeats=rounds or 9))
            if not as_json:
                for table in timings.bench_tables(timed[-1]):
                    _print_whole(table)
    sweep = prefill_results.Sweep.of(sorted(timed, key=lambda report: (report.visual, report.batch)))
    if out_dir is not None:
        timings.save(sweep, out_dir)
    if as_json:
        _print_json(sweep)
        return
    if sweep.break_even:
        _print_whole(timings.break_even_table(sweep))
    if out_dir is not None:
        out.print(f"saved to {out_dir}: bench.json, bench.md, bench.png", soft_wrap=True)


def _check_engine(ctx: typer.Context, engine: str) -> None:
    """Raises: LooklessError: there is no such engine, or an option is given that is for another."""
    if engine not in ENGINES:
        raise LooklessError(f"engine {engine!r} is not one of {', '.join(ENGINES)}.")
    for other, names in ENGINES.items():
        for name in names:
            source = ctx.get_parameter_source(name)
            if other != engine and source is not None and source.name == "COMMANDLINE":
                raise LooklessError(f"--{name.replace('_', '-')} is for --engine {other}, and this is {engine}.")


def _bench_vllm(
    traffic: Traffic,
    *,
    model: str | None,
    geometry: str | None,
    layers: int | None,
    visual: list[int],
    plans: list[str],
    methods: list[str],
    dtype: str,
    options: str,
    out_dir: Path | None,
    as_json: bool,
) -> None:
    """`lookless bench --engine vllm`."""
    import shlex
    import tempfile

    from ..bench import traffic as measuring
    from ..bench import traffic_client
    from ..bench import traffic_report as throughput
    from ..methods import find
    from ..serving.launch import check_installed

    named = len(plans) + len(methods)
    if named != 1:
        raise LooklessError(f"{named} plans are named, and one is served beside stock: give one --plan or --method.")
    if len(visual) > 1:
        raise LooklessError(f"{len(visual)} lengths are named: --engine vllm serves one, so give --visual once.")
    try:
        words = shlex.split(options)
    except ValueError as problem:
        raise LooklessError(f"--vllm {options!r} cannot be split into words: {problem}.") from None
    check_installed()
    with tempfile.TemporaryDirectory(prefix="lookless-") as work:
        folder = Path(work)
        if geometry is not None:
            served = traffic_client.of_geometry(geometry, folder / "model", layers=layers, visual=visual[0])
        else:
            served = traffic_client.of_model(str(model), folder / "model")
        for name in methods:
            find(name).sample(served.geometry).save_pretrained(folder / "plan")
        logs = Path(tempfile.mkdtemp(prefix="lookless-bench-")) if out_dir is None else out_dir
        with err.status("starting") as status:
            report = measuring.compare(
                served,
                *((plans[0], plans[0]) if plans else (str(folder / "plan"), methods[0])),
                traffic,
                dtype=dtype,
                options=words,
                folder=logs,
                say=status.update if err.is_terminal else err.print,
            )
    if out_dir is not None:
        throughput.save(report, out_dir)
    if as_json:
        _print_json(report)
        return
    _print_whole(throughput.traffic_table(report))
    if out_dir is not None:
        out.print(f"saved to {out_dir}: traffic.json, traffic.md, and the logs of both servers", soft_wrap=True)


@app.command(context_settings=OPEN)
@_told
def serve(
    ctx: typer.Context,
    model: Model,
    plan_dir: Annotated[str, typer.Option("--plan", help="A plan's folder, JSON file, or hub id.")],
) -> None:
    """Serve a model under a plan with vLLM, behind the OpenAI API; every other option is vLLM's own.

    Example: lookless serve llava-hf/llava-1.5-7b-hf --plan my-plan --port 8000 --max-model-len 4096
    """
    from ..serving.launch import command

    words = command(model, plan_dir, ctx.args)
    os.execv(words[0], words)


@app.command(context_settings=OPEN)
@_told
def flops(
    ctx: typer.Context,
    geometry: Annotated[
        str, typer.Option(help="A preset such as LLaVA-1.5-7B, `reference`, or a folder; a wrong name lists them.")
    ],
    visual: Annotated[float, typer.Option(help="Visual tokens of the prompt.", min=0, max=MOST_TOKENS)],
    text: Annotated[float, typer.Option(help="Text tokens of the prompt.", min=0, max=MOST_TOKENS)],
    plan_dir: Annotated[str | None, typer.Option("--plan", help="Price this plan.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Price a method instead of a plan; its knobs are options, such as --layers 19.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Price a prefill from its formula, no weights needed (decoder only, 2 FLOPs per multiply-add).

    Both as papers count, and as it runs, without work that nobody reads.

    Example: lookless flops --geometry LLaVA-1.5-7B --visual 576 --text 66.6 --method v-skip --layers 19
    """
    from ..configs import geometry_named
    from ..flops import prefill
    from ..methods import find
    from ..plan import Plan

    chosen = geometry_named(geometry)
    if plan_dir is not None and method is not None:
        raise PlanError("give either --plan or --method, not both.")
    plan = None if plan_dir is None else Plan.from_pretrained(plan_dir)
    if method is not None:
        plan = _by_count(find(method), ctx.args, chosen)
    elif ctx.args:
        raise PlanError(f"{ctx.args[0]} is no option of lookless flops; for a knob, name its --method.")
    costs = {"dense": prefill(chosen, visual=visual, text=text)}
    alone = Plan.full(chosen).live()
    for name, row in ((method or str(plan_dir), plan), ("as it runs", plan and plan.as_run), ("liveness alone", alone)):
        if row is not None:
            costs[name] = prefill(chosen, visual=visual, text=text, plan=row)
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
        caption="visual only: projections, FFN and mutual attention of visual tokens\n"
        "dense and the plan count work that nobody reads, as papers do; what runs is without it, under any plan",
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
    _print_whole(table)


def _by_count(method: Method, words: list[str], geometry: Geometry) -> Plan:
    """A plan that costs what ``method`` costs; which layers it chooses does not matter to the price."""
    if not method.is_priced_by_counts:
        raise PlanError(
            f"what {method.name} costs depends on scores: make a plan by `lookless plan {method.name}`, and price that "
            f"with --plan."
        )
    return method.build(geometry, method.uniform_scores(geometry), **_knobs(method, {}, words))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
