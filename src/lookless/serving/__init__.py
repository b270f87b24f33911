"""A plan inside vLLM: visual tokens are not queried and not transformed where the plan says so, behind any of its APIs.

    vllm serve MODEL --additional-config '{"lookless": {"plan": "PLAN_DIR"}}'
    lookless serve MODEL --plan PLAN_DIR

Positions, slots and block tables stay as they are, and keys and values of every token are cached, so prefix caching,
chunked prefill and continuous batching go on as before. What is spared are queries, attention, output projections and
FFNs of visual rows.

``register`` is vLLM's entry point (group ``vllm.general_plugins``), called in every one of its processes. It costs
nothing where no plan is named.

* :mod:`lookless.serving.settings` reads what is asked for and refuses what would run wrong;
* :mod:`lookless.serving.steps` finds, in the flat batch of one step, the text rows and who may read whom (no engine);
* :mod:`lookless.serving.layers` puts the plan on a model that vLLM has built and not yet loaded;
* :mod:`lookless.serving.counters` tells what was spared, on ``/metrics``.
"""

from __future__ import annotations


def register() -> None:
    """Called by vLLM in each of its processes, more than once in some."""
    from .hooks import install

    install()
