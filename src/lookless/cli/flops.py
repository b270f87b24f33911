"""The price of a prefill, from a geometry and a plan alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..errors import PlanError
from .common import MOST_TOKENS, OPEN, Json, app, one_sentence, print_json, print_whole
from .plan import parsed_knobs

if TYPE_CHECKING:
    from ..flops import Prefill
    from ..geometry import Geometry
    from ..plan import Plan


@app.command(context_settings=OPEN)
@one_sentence
def flops(
    ctx: typer.Context,
    geometry: Annotated[
        str, typer.Option(help="A preset such as LLaVA-1.5-7B, `reference`, or a folder; a wrong name lists all.")
    ],
    visual: Annotated[float, typer.Option(help="Visual tokens of the prompt.", min=0, max=MOST_TOKENS)],
    text: Annotated[float, typer.Option(help="Text tokens of the prompt.", min=0, max=MOST_TOKENS)],
    plan_dirs: Annotated[list[str] | None, typer.Option("--plan", help="Count this plan; repeatable.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Count a method instead of a plan; its knobs are options, such as --layers 19.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the FLOPs of a prefill by formula; no weights needed (decoder only, 2 FLOPs per multiply-add).

    Twice: as papers count, and as it runs, where dead work is skipped.

    Example: lookless flops --geometry LLaVA-1.5-7B --visual 576 --text 66.6 --method v-skip --layers 19
    """
    from ..configs import geometry_named

    chosen = geometry_named(geometry)
    costs = _costs(chosen, visual, text, _plans(chosen, plan_dirs or (), method, ctx.args))
    if as_json:
        print_json({"geometry": geometry, "visual": visual, "text": text, **_record(costs)})
    else:
        print_whole(_table(f"{geometry}, {visual:g} visual and {text:g} text tokens", costs))


def _plans(geometry: Geometry, folders: Sequence[str], method: str | None, words: list[str]) -> dict[str, Plan]:
    """By name. Raises: PlanError: plans and a method are given, or words that are no option of a method."""
    from ..plan import Plan

    if folders and method is not None:
        raise PlanError("give either --plan or --method, not both.")
    if method is not None:
        return {method: _by_count(geometry, method, words)}
    if words:
        raise PlanError(f"{words[0]} is no option of lookless flops; for a knob, name its --method.")
    return {folder: Plan.from_pretrained(folder) for folder in folders}


def _by_count(geometry: Geometry, name: str, words: list[str]) -> Plan:
    """A plan that costs what the method costs; which layers it chooses does not change the price.

    Raises:
        PlanError: the price depends on scores.
    """
    from ..methods import find

    method = find(name)
    if not method.is_priced_by_counts:
        raise PlanError(
            f"what {method.name} costs depends on scores: make a plan by `lookless plan {method.name}`, and price that "
            f"with --plan."
        )
    return method.build(geometry, method.uniform_scores(geometry), **parsed_knobs(method, {}, words))


def _costs(geometry: Geometry, visual: float, text: float, plans: Mapping[str, Plan]) -> dict[str, Prefill]:
    """Of the stock model, of each plan as papers count and as it runs where one row's logits are kept, and of the model
    without dead work alone: that of visual tokens, and all of it."""
    from ..flops import prefill
    from ..plan import Plan

    kept, full = min(1, text), Plan.full(geometry)
    rows: dict[str, tuple[Plan, float | None]] = {"dense": (full, None)}
    for name, plan in plans.items():
        rows |= {name: (plan, None), "as it runs" if len(plans) == 1 else f"{name}, as it runs": (plan, kept)}
    rows |= {"liveness of visual tokens alone": (full.live(), None), "liveness alone": (full.live(), kept)}
    return {
        name: prefill(geometry, visual=visual, text=text, plan=plan, kept=rows_kept)
        for name, (plan, rows_kept) in rows.items()
    }


def _record(costs: dict[str, Prefill]) -> dict[str, Any]:
    dense = costs["dense"]
    return {
        name: {
            "total_tflops": cost.total_tflops,
            "visual_tflops": cost.visual_tflops,
            "total_kept": _share(cost.total, dense.total),
            "visual_kept": _share(cost.visual, dense.visual),
            **({"experts_read": cost.experts} if dense.experts else {}),
        }
        for name, cost in costs.items()
    }


def _table(title: str, costs: dict[str, Prefill]) -> Table:
    table = Table(
        title=title,
        caption="visual only: projections, FFN and mutual attention of visual tokens\n"
        "the dense model and the plan are counted with dead work, as papers do;\n"
        "what runs is without it, and returns the logits of one row, as in generate",
    )
    reads = ("experts read",) if costs["dense"].experts else ()
    for head in ("", "prefill TFLOPs", "kept", "visual only TFLOPs", "kept", *reads):
        table.add_column(head, justify="left" if not head else "right")
    for name, record in _record(costs).items():
        shares = ("-" if record[f"{of}_kept"] is None else f"{record[f'{of}_kept']:.1%}" for of in ("total", "visual"))
        total, visual = shares
        read = [f"{record['experts_read']:,.0f}"] if reads else []
        table.add_row(name, f"{record['total_tflops']:.2f}", total, f"{record['visual_tflops']:.2f}", visual, *read)
    return table


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
