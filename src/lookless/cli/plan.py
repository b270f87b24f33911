"""Plans, before any model is loaded: make one, show it, list the methods."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import PlanError
from .common import OPEN, Json, app, one_sentence, out, print_json, print_whole, reporting
from .outputs import PLAN_FILES, Overwrite, edited_file, new_files

if TYPE_CHECKING:
    from ..geometry import Geometry
    from ..methods import Method
    from ..methods.knobs import Knob
    from ..plan import Plan
    from ..scores import Scores

OUT = "Folder for the plan."


class _Methods(TyperGroup):
    """`lookless plan`: one command per method, made when it is looked up."""

    def list_commands(self, ctx: Any) -> list[str]:
        from ..methods import all_methods

        with reporting():
            return [*super().list_commands(ctx), *all_methods()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from ..methods import find

        with reporting():
            return super().get_command(ctx, cmd_name) or _method_command(find(cmd_name))


plans = typer.Typer(
    cls=_Methods,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make a plan by a published method. Arguments you omit take the paper's value, scaled to this model's depth.",
)
app.add_typer(plans, name="plan")


@plans.command("preset")
@one_sentence
def plan_preset(
    name: Annotated[str, typer.Argument(help="Such as operator-skipping/Qwen3-VL-8B/20; a wrong name lists all.")],
    out_dir: Annotated[Path, typer.Option("--out", help=OUT)],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """A ready plan: the layers that the authors published for their model.

    Example: lookless plan preset shortv/LLaVA-1.5-7B --out my-plan
    """
    from ..methods import preset

    new_files(out_dir, PLAN_FILES, overwrite)
    plan = preset(name)
    plan.save_pretrained(out_dir)
    _show(plan, as_json)


@plans.command("join")
@one_sentence
def plan_join(
    plan_dirs: Annotated[
        list[str], typer.Argument(metavar="PLAN_DIR PLAN_DIR ...", help="Plans' folders, JSON files, or hub ids.")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help=OUT)],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Several plans at once: every cell that one of them sets. No two may set the same cell.

    Example: lookless plan join my-plan ffn-plan --out both
    """
    from ..plan import Plan

    new_files(out_dir, PLAN_FILES, overwrite)
    if len(plan_dirs) < 2:
        raise PlanError(f"{plan_dirs[0]} is one plan, and joining takes two or more: name another.")
    plan = functools.reduce(operator.or_, map(Plan.from_pretrained, plan_dirs))
    plan.save_pretrained(out_dir)
    _show(plan, as_json)


def _method_command(method: Method) -> Any:
    """`lookless plan METHOD`. typer reads a command's options off its signature, so the signature is built here."""

    def make(ctx: typer.Context, **options: Any) -> None:
        with reporting():
            _make(method, ctx.args, **options)

    parameters = [Parameter("ctx", Parameter.KEYWORD_ONLY, annotation=typer.Context), *_options(method)]
    make.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    make.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    idea = (method.make.__doc__ or "").strip().split("\n\n")[0]
    help_text = f"{idea} arXiv {method.paper}.\n\nExample: {_example(method)}"
    group = typer.Typer(add_completion=False, rich_markup_mode="rich")
    group.command(method.name, help=help_text, short_help=idea, context_settings=OPEN)(make)
    return typer.main.get_command(group)


def _options(method: Method) -> Iterator[Parameter]:
    """Of its command: scores if it needs some, a geometry, and each knob as text."""
    yield _option("out_dir", Path, "--out", help=OUT)
    if method.measures:
        found = "From `lookless calibrate`; repeatable."
        other = "Also accept scores of other measures, in the order given; the plan records it."
        yield _option("scores", list[Path] | None, "--scores", None, metavar="FILE", help=found)
        yield _option("any_measure", bool, "--any-measure", False, help=other)
    model = "A preset such as LLaVA-1.5-7B, `reference`, or a model's folder."
    yield _option("geometry", str | None, "--geometry", None, metavar="NAME", help=model)
    for name, knob in method.knobs.items():
        option = f"--{name.replace('_', '-')}"
        yield _option(name, str | None, option, None, metavar=knob.form, help=_knob_help(method, knob))
    yield Parameter("overwrite", Parameter.KEYWORD_ONLY, default=False, annotation=Overwrite)
    yield Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=Json)


def _option(name: str, kind: Any, option: str, default: Any = Parameter.empty, **settings: Any) -> Parameter:
    annotation = Annotated[kind, typer.Option(option, **settings)]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _example(method: Method) -> str:
    """A command that runs, given the scores."""
    words = [f"--scores {measure}.json" for measure in method.measures] or ["--geometry LLaVA-1.5-7B"]
    for name, value in method.example_arguments.items():
        knob = method.knobs[name]
        if knob.is_required:
            words.append(f"--{name} {knob.typed(value)}")
    return f"lookless plan {method.name} {' '.join(words)} --out my-plan"


def _knob_help(method: Method, knob: Knob) -> str:
    """Its value where it is not given, and whose that is."""
    from ..methods.knobs import formatted

    if knob.is_required and knob.name not in method.paper_arguments:
        return "Found by search; required."
    if knob.scaling == "tokens":
        return "Default: as in the prompts that the scores were measured on."
    value = formatted(method.paper_arguments.get(knob.name, knob.default))
    whose = "Default" if knob.name in method.ours else "The paper's"
    return f"{whose}: {value}, of {method.paper_layers} layers." if knob.scaling else f"{whose}: {value}."


def _make(
    method: Method,
    rest: list[str],
    *,
    out_dir: Path,
    geometry: str | None,
    overwrite: bool,
    as_json: bool,
    scores: Sequence[Path] | None = None,
    any_measure: bool = False,
    **typed: str | None,
) -> None:
    """Make, save and print the plan; ``typed`` and ``rest`` are its knobs."""
    from ..scores import Scores

    new_files(out_dir, PLAN_FILES, overwrite)
    knobs = parsed_knobs(method, {name: text for name, text in typed.items() if text is not None}, rest)
    given = [Scores.load(path) for path in scores or ()]
    shape = _geometry(method, geometry, given)
    plan = method.build(shape, method.taken_as_its_own(given) if any_measure else given, **knobs)
    plan.save_pretrained(out_dir)
    _show(plan, as_json)
    if not as_json:
        out.print(method.setting(shape, **knobs), soft_wrap=True)


def _geometry(method: Method, name: str | None, scores: Sequence[Scores]) -> Geometry:
    """Of ``name``, else of the scores. Raises: PlanError: there is neither."""
    from ..configs import geometry_named

    if name is not None:
        return geometry_named(name)
    if not scores:
        what = f"--scores FILE, of {', '.join(method.measures)}" if method.measures else "--geometry"
        raise PlanError(f"{method.name} needs {what}.")
    return scores[0].geometry


def parsed_knobs(method: Method, typed: dict[str, str], rest: list[str]) -> dict[str, Any]:
    """The knobs of ``method`` from options that are known, ``typed``, and from ``rest``, which may hold others.

    Raises:
        PlanError: there is no such knob, or the text is no value for it.
    """
    texts, words = dict(typed), iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise PlanError(f"{word!r} belongs to no option of {method.name}; its knobs are {method.forms}.")
        texts[name[2:].replace("-", "_")] = value if equals else next(words, "")
    unknown = [name for name in texts if name not in method.knobs]
    if unknown:
        option = unknown[0].replace("_", "-")
        raise PlanError(f"{method.name} has no knob --{option}; its knobs are {method.forms}.")
    try:
        return {name: method.knobs[name].parsed(text) for name, text in texts.items()}
    except PlanError as problem:
        raise PlanError(f"{method.name}: {problem} Its knobs are {method.forms}.") from problem


@app.command("methods")
@one_sentence
def list_methods(
    out_path: Annotated[
        Path | None, typer.Option("--out", help="Also write a Markdown file; text outside the table is kept.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the published methods: what each needs, and whether the prefix cache remains valid.

    Example: lookless methods --json
    """
    from .. import files, terminal
    from ..methods import all_methods

    methods = all_methods()
    if out_path is not None:
        edited_file(out_path)
        before = out_path.read_text(encoding="utf-8") if out_path.is_file() else ""
        files.write_text(out_path, terminal.methods_document(before, methods))
    if as_json:
        print_json({m.name: terminal.method_record(m) for m in methods.values()})
    else:
        print_whole(terminal.methods_table(methods))


@app.command()
@one_sentence
def show(
    plan_dir: Annotated[str, typer.Argument(metavar="PLAN_DIR", help="A plan's folder, JSON file, or hub id.")],
    as_json: Json = False,
) -> None:
    """Print a plan: what visual tokens do in each layer, and how the plan was made.

    Example: lookless show lookless-demo/chart/plan
    """
    from ..plan import Plan

    _show(Plan.from_pretrained(plan_dir), as_json)


def _show(plan: Plan, as_json: bool) -> None:
    from .. import terminal

    if as_json:
        print_json(plan)
    else:
        print_whole(terminal.plan_table(plan))
