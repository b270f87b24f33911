"""A plan per request: one model, several plans, and which of them a prompt takes.

Layers that one task can do without another needs, so a plan for each keeps more answers than one plan for all. Which
task a prompt belongs to is read from the model's own input embeddings of its text, before the prefill; a prompt that
resembles none of them takes the plan to fall back to::

    from lookless.routing import PlanSet, Router

    planset = PlanSet.fit(loaded, {"chart": (chart, chart_plan), "text": (text, text_plan)}, fallback=universal)
    router = Router(planset, loaded)
    with lookless.apply(loaded.model, router.plan_for(inputs)):
        loaded.model.generate(**inputs)

V-Skip's abstract promises that requests take the sparsity path of their task (arXiv 2606.08511); the paper does not say
how, and no code of it is public. Everything here is ours.

The public names are listed in ``__init__.pyi``; each is imported when it is first used.
"""

from __future__ import annotations

from ..lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
