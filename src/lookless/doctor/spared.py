"""What a plan spares, and whether it is in force."""

from __future__ import annotations

from typing import Any, cast

import torch

from ..flops import prefill
from ..layer_plan import spans
from ..loading import Loaded
from ..plan import Plan
from ..runtime.engagement import check_rows, is_countable, predicted
from ..runtime.patching import apply
from ..runtime.readers import reader_of
from ..runtime.tracing import OPERATORS, Trace, trace
from .comparison import last_logits
from .prompt import Prompt
from .sections import Section


@torch.no_grad()
def spared(loaded: Loaded, prompt: Prompt, plan: Plan) -> Section:
    """The rows that ran, beside those that the plan leaves and those of the stock model."""
    made = plan.provenance
    facts = {
        "plan": f"{made.method or 'made by hand'}, {plan.hash}",
        "calibrated on": f"{made.samples} samples of {made.data}" if made.data else "unknown",
        "model of the plan": _model(plan, loaded),
        "prefix cache": "stays valid" if plan.is_prefix_cache_safe else "depends on the question",
    }
    for column in plan.columns:
        layers = [i for i, row in enumerate(plan.layers) if not getattr(row, column).is_full]
        facts[f"layers with {column}"] = " ".join(spans(layers)) or "none"
    prompts, model = prompt.prompts, cast(Any, loaded.model)
    is_answer_alone = prompts.end_in_text and not plan.is_full
    run = plan.as_run if is_answer_alone else plan
    if is_answer_alone and reader_of(prompt.located) is None:
        prompts.read_only(1)
    with apply(model, plan), trace(model) as counted:
        logits = last_logits(model, prompt)
    facts |= _rows(prompt, run, counted)
    verdict = "right" if bool(logits.isfinite().all()) else "wrong"
    if verdict == "wrong":
        facts["logits"] = "not finite (NaN or infinite)"
    return Section("Your plan", facts, verdict)  # type: ignore[arg-type]


def _model(plan: Plan, loaded: Loaded) -> str:
    """Which model the plan was calibrated on, beside this one."""
    made = plan.provenance
    known = f"{made.model or 'unknown'}{f' at {made.revision}' if made.revision else ''}"
    if plan.geometry is None:
        return f"{known}; the plan names no architecture, so it fits any of {len(plan.layers)} layers"
    is_other = (made.model, made.revision) != (loaded.name, loaded.revision)
    return f"{known}; of this architecture{', and calibrated under another name' if is_other else ''}"


def _rows(prompt: Prompt, run: Plan, counted: Trace) -> dict[str, str]:
    """Raises: ModelError: other rows ran than the plan leaves."""
    whole = (prompt.visual + prompt.text) * len(run.layers)
    ran = {operator: sum(row[operator] for row in counted.layers) for operator in OPERATORS}
    facts = {f"{name} rows": f"{count} of {whole} ran ({count / whole:.1%})" for name, count in ran.items()}
    if not run.is_static:
        return facts | {"in force": "each prompt decides how many rows are left, so they were not compared"}
    if not is_countable(run, prompt.prompts):
        return facts | {"in force": "stock transformers leaves rows out of its last layers, so they were not compared"}
    works = run.works(kept=prompt.prompts.kept is not None)
    check_rows(run, predicted(run, works, prompt.located, prompt.prompts), counted)
    geometry = prompt.located.geometry
    stock = prefill(geometry, visual=prompt.visual, text=prompt.text)
    read = None if prompt.prompts.kept is None else len(prompt.prompts.kept[0])
    kept = prefill(geometry, visual=prompt.visual, text=prompt.text, plan=run, kept=read).total / stock.total
    return facts | {
        "in force": "the rows that ran are those that the plan leaves",
        "FLOPs of the prefill": f"{kept:.1%}",
    }
