"""Tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .cells import Skip
from .markdown import spliced
from .metrics import DEFAULT, metric_named
from .plan import Plan
from .scores import Scores

if TYPE_CHECKING:
    from .evaluation import Evaluation
    from .methods import Method


BAR = "█"


def plan_table(plan: Plan) -> Table:
    """One row per layer."""
    made = plan.provenance
    source = ", ".join(f"{k} {v}" for k, v in sorted(made.knobs.items()))
    about = [made.method or "hand-made", source, f"model {made.model}" if made.model else ""]
    if made.data:
        about.append(f"calibrated on {made.samples} samples of {made.data}")
    safe = f"{'safe' if plan.is_prefix_cache_safe else 'not safe'} under prefix caching"
    table = Table(title="what visual tokens do in each layer", caption="; ".join(a for a in about if a) + "\n" + safe)
    for column in ("layer", *plan.columns):
        table.add_column(column, justify="right" if column == "layer" else "left")
    for i, row in enumerate(plan.layers):
        shown = (getattr(row, column) for column in plan.columns)
        cells = (f"[yellow]{c}[/]" if c == Skip() else str(c) for c in shown)
        table.add_row(str(i), *cells)
    return table


def method_record(method: Method) -> dict[str, Any]:
    """A method's paper, idea, needs and arguments."""
    return {
        "paper": method.paper,
        "title": method.title,
        "idea": method.idea,
        "needs": list(method.needs),
        "prefix_cache_safe": method.is_prefix_cache_safe,
        "knobs": {knob.name: knob.form for knob in method.knobs.values()},
    }


def methods_table(methods: Mapping[str, Method]) -> Table:
    """One row per method."""
    table = Table(
        title="published methods",
        caption="cached prefix: whether keys and values of image and prefix serve another question",
    )
    table.add_column("method", no_wrap=True)
    table.add_column("arXiv", no_wrap=True)
    table.add_column("needs")
    table.add_column("cached\nprefix")
    table.add_column("idea")
    for name, method in methods.items():
        record = method_record(method)
        safe = "safe" if record["prefix_cache_safe"] else "[yellow]no[/]"
        table.add_row(name, method.paper, "\n".join(n.replace("_", " ") for n in method.needs), safe, record["idea"])
    return table


BEGIN, END = "<!-- what follows is written by `lookless methods` -->", "<!-- end of `lookless methods` -->"


def methods_document(before: str, methods: Mapping[str, Method]) -> str:
    """``before``, a Markdown file, with the table of methods between its marks, or at its end."""
    lines = ["| method | arXiv | needs | cached prefix | idea |", "|---|---|---|---|---|"]
    for name, method in methods.items():
        paper = f"[{method.paper}](https://arxiv.org/abs/{method.paper})"
        needs = ", ".join(f"`{need}`" for need in method.needs) or "-"
        safe = "safe" if method.is_prefix_cache_safe else "no"
        lines.append(f"| `{name}` | {paper} | {needs} | {safe} | {method.idea} |")
    return spliced(before, BEGIN, END, "\n".join(lines))


def scores_table(scores: Scores) -> Table:
    """Mean, spread and a bar per layer; methods act on the lowest. For screened scores also the share of each mean that
    was measured; the rest of it is estimated."""
    table = Table(
        title=f"{scores.name.replace('_', ' ')} ({scores.unit}), {scores.samples} samples of {scores.data}",
        caption="bars are on a logarithmic scale; a layer without a bar changes nothing the answer can see",
    )
    table.add_column("layer", justify="right")
    table.add_column("mean", justify="right")
    table.add_column("± over samples", justify="right")
    if scores.measured is not None:
        table.add_column("measured", justify="right")
    table.add_column("")
    mean, spread = scores.mean, scores.spread
    top = max(mean)
    for layer, (m, s) in enumerate(zip(mean, spread, strict=True)):
        decades = 5.0  # from the largest down
        share = 0.0 if m <= 0 else max(0.0, 1 + math.log10(m / top) / decades)
        known = [] if scores.measured is None else [f"{scores.measured_share[layer]:.0%}"]
        table.add_row(str(layer), f"{m:.1e}", f"{s:.1e}", *known, BAR * round(24 * share))
    return table


def evaluation_table(evaluations: Sequence[Evaluation]) -> Table:
    """One row per data set, behind one for each of its tasks, if it has several; below, their mean retention."""
    seen = sum(e.seen or 0 for e in evaluations)
    caption = (
        f"intervals: 95 %, by resampling questions{f'; the plan was calibrated on {seen} of them' if seen else ''}"
    )
    names = dict.fromkeys(e.metric for e in evaluations)
    table = Table(title=f"answers kept{'' if [*names] == [DEFAULT] else ', by ' + ', '.join(names)}", caption=caption)
    for column in ("data", "questions", *_figures(names), "retention", "fidelity"):
        table.add_column(column, justify="left" if column == "data" else "right")
    for e in evaluations:
        unit = metric_named(e.metric).unit
        for part in e.tasks:
            cells = ["-" if one is None else unit.said(one.value) for one in (part.accuracy_dense, part.accuracy_plan)]
            kept = "-" if part.retention is None else f"{part.retention.value:.1%}"
            table.add_row(f"  {part.task}", str(part.samples), *cells, kept, "")
        shares = ("-" if one is None else str(one) for one in (e.retention, e.fidelity))
        shown = ["-" if one is None else one.said(unit) for one in (e.accuracy_dense, e.accuracy_plan)]
        table.add_row(e.data, str(e.samples), *shown, *shares)
        if e.retention_of_tasks is not None:
            table.add_row("  mean of tasks", str(len(e.tasks)), "", "", str(e.retention_of_tasks), "")
    return table


def _figures(metrics: Iterable[str]) -> tuple[str, str]:
    """Heads of the columns of figures."""
    names = {metric_named(name).unit.name for name in metrics}
    what = names.pop() if len(names) == 1 else "figure"
    return f"dense {what}", f"plan {what}"
