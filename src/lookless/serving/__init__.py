"""A plan inside vLLM: visual tokens skip attention or FFN in the layers where the plan says so, under any of its APIs.

    vllm serve MODEL --additional-config '{"lookless": {"plan": "PLAN_DIR"}}'
    lookless serve MODEL --plan PLAN_DIR

Positions, slots and block tables do not change, and keys and values of every token are cached, so prefix caching,
chunked prefill and continuous batching work as before. What visual rows skip are queries, attention, output projections
and FFNs.

``register`` is vLLM's entry point (group ``vllm.general_plugins``), called in each of its processes. Without a plan it
costs nothing.

Inside the engine:

* :mod:`lookless.serving.hooks` wraps the functions of vLLM where a plan is checked and put on a model;
* :mod:`lookless.serving.settings` reads which plan is wanted and refuses what would run wrong;
* :mod:`lookless.serving.steps` orders the flat batch of one step, text first, and finds its runs (needs no engine);
* :mod:`lookless.serving.metadata` writes what attention is told of a step in that order;
* :mod:`lookless.serving.affine` is what a fitted cell adds to visual rows;
* :mod:`lookless.serving.layers` is a decoder layer on slices of these rows;
* :mod:`lookless.serving.projections` loads the projection of queries apart from that of keys and values;
* :mod:`lookless.serving.decoder` puts the plan on a model that vLLM has built and not yet loaded;
* :mod:`lookless.serving.compiled` makes a graph of such steps;
* :mod:`lookless.serving.counters` counts rows and steps, and reports them on ``/metrics``.

Outside it:

* :mod:`lookless.serving.launch` writes the command line of vLLM's server;
* :mod:`lookless.serving.shipped` converts a shipped model to what vLLM loads.
"""

from __future__ import annotations


def register() -> None:
    """Called by vLLM in each of its processes, more than once in some."""
    from .hooks import install

    install()
