"""Plans before any model: make one, show it, list methods, count FLOPs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from ..errors import PlanError
from .common import (
    MOST_TOKENS,
    OPEN,
    Json,
    app,
    one_sentence,
    out,
    print_json,
    print_whole,
    reporting,
    writable,
)

if TYPE_CHECKING:
    from ..geometry import Geometry
    from ..methods import Method
    from ..plan import Plan


class _Methods(TyperGroup):
    """`lookless plan`: a command for every method there is, made from its signature when it is asked for."""

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
    help="Make a plan by a published method. Knobs left out are the paper's own, at the same relative depth.",
)
app.add_typer(plans, name="plan")
PlanOut = Annotated[Path, typer.Option("--out", help="Folder for the plan.")]


@plans.command("preset")
@one_sentence
def plan_preset(
    name: Annotated[str, typer.Argument(help="Such as operator-skipping/Qwen3-VL-8B/20; a wrong name lists them.")],
    out_dir: PlanOut,
    as_json: Json = False,
) -> None:
    """A ready plan: the layers that authors published for their model.

    Example: lookless plan preset shortv/LLaVA-1.5-7B --out my-plan
    """
    from ..methods import preset

    writable(out_dir, folder=True)
    plan = preset(name)
    plan.save_pretrained(out_dir)
    _show(plan, as_json)


def _method_command(method: Method) -> Any:
    """`lookless plan METHOD`: scores if it needs some, a geometry if not, and an option for each knob."""

    @one_sentence
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

        writable(out_dir, folder=True)
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
        raise PlanError(f"{method.name}: {problem} Its knobs are {method.forms}.") from problem


@app.command("methods")
@one_sentence
def list_methods(as_json: Json = False) -> None:
    """The published methods there are: what each needs, and whether a cached prefix stays right under it.

    Example: lookless methods --json
    """
    from .. import report
    from ..methods import all_methods

    methods = all_methods()
    if as_json:
        print_json({m.name: report.method_record(m) for m in methods.values()})
    else:
        print_whole(report.methods_table(methods))


@app.command()
@one_sentence
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
        print_json(plan)
    else:
        print_whole(report.plan_table(plan))


@app.command(context_settings=OPEN)
@one_sentence
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
        print_json(
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
    print_whole(table)


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
