"""RedundancyLens: visual tokens attend to near ones only, and use a fifth of the neurons.

arXiv 2501.19036 (ACL 2025 Findings). Two reductions, each in its own layers. Hollow attention: a visual token attends
to all text before it and to visual tokens at most 255 positions back (R_A = 256). Probe-activated dynamic FFN: a few
visual tokens are run in full, and all others use the 20 % of channels that those excite most. Layers are ranked for
attention and for the FFN apart, by a greedy search over about 2350 samples that ranks the last layers from the end.

An order comes here from one-layer scores (``window_effect``, ``neuron_effect``), which cost a sweep and know no
interaction, or from a search, as a sequence of all layers. Probes are a tenth of the tokens, evenly spaced: the paper
says that they are few and random, an independent re-implementation takes these. How many layers the authors reduce is
not published; 16 of 32 for both gives their 71 to 72 % of InternVL2-8B's FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from ..cells import Neurons, Window
from ..errors import PlanError
from ..plan import Plan
from ..scores import Scores
from .definition import Method
from .knobs import Count, method
from .selection import first, ranking

PAPER_WINDOW = 256


@method
def redundancylens(
    attention: Annotated[Scores | Sequence[int], "window_effect"],
    ffn: Annotated[Scores | Sequence[int], "neuron_effect"],
    *,
    attention_layers: Count = 16,
    ffn_layers: Count = 16,
    window: int = PAPER_WINDOW,
    neurons: float = 0.2,
    probe: float = 0.1,
) -> Plan:
    """Let visual tokens attend in a window, and use a part of the neurons, in the layers where that matters least.

    Raises:
        PlanError: an order does not name each layer once, or there are not that many layers.
    """
    scored = next((given for given in (attention, ffn) if isinstance(given, Scores)), None)
    whole = Plan.full(scored.geometry if scored else max(1, len(ffn)))  # type: ignore[arg-type]
    total = len(whole.layers)
    near = first(_order(attention, total), attention_layers, total, "reduce attention in")
    few = first(_order(ffn, total), ffn_layers, total, "reduce the FFN in")
    return whole.at(near, attention=Window(window)).at(few, ffn=Neurons(neurons, probe=probe))


def window_at(visual: int) -> int:
    """The paper's window for a prompt of ``visual`` visual tokens, at the same share of them: 256 at the 1792 that its
    printed FLOPs fit. A window wider than the prompt is none."""
    return max(1, round(PAPER_WINDOW * min(1, visual / 1792)))


def _order(given: Scores | Sequence[int], layers: int) -> tuple[int, ...]:
    order = ranking(given) if isinstance(given, Scores) else tuple(given)
    if sorted(order) != list(range(layers)):
        raise PlanError(f"an order names each of the {layers} layers once, and this one is {order}.")
    return order


METHOD = Method(
    redundancylens,
    "2501.19036",
    "RedundancyLens",
    ours=("attention_layers", "ffn_layers", "probe"),
    strength=lambda layers, strength: dict.fromkeys(("attention_layers", "ffn_layers"), round(strength * layers)),
    prompt_arguments=lambda visual, text: {"window": window_at(visual)},
)
