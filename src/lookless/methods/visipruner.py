"""VisiPruner: text attends to no visual tokens early, to a few in the middle, and to none in the end.

arXiv 2510.17205 (EMNLP 2025), Sec. 4, with the thresholds of its code. Shallow: the first layer only needs somewhere
to put its attention (:class:`lookless.cells.Sink`) and its visual tokens need not attend; in layers 1 to 6 text does
not read the image. Middle and deep: :class:`lookless.cells.Filter`. Which layer filters and which withdraws is
decided prompt by prompt, so the plan is not static and the trace counts what it costs.

Departures. The code sets weights to zero *after* softmax, so what text reads loses mass; here visual keys are not
there before it. It masks layers 1 to 5 where the paper says the second to the seventh. It leaves shallow keys in the
cache for the answer, the paper says they are out; here they are out. The filter begins at the input of the second
layer after the shallow ones: it reads what text took in the layer before, and no earlier layer lets text take
anything. The 53.9 % fewer FLOPs the paper prints are multiply-adds of visual tokens alone.
"""

from __future__ import annotations

from ..cells import Filter, Sink, Skip
from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Layer, method
from .published import LLAVA_7B


@method
def visipruner(
    model: Geometry | int,
    *,
    shallow: Layer = 6,
    cosine: float = 0.995,
    norm: float = 0.2,
    exit_cosine: float = 0.999,
    patience: int = 2,
) -> Plan:
    """Keep text from reading the image early, filter visual tokens by what text reads of them, withdraw them when idle.

    Raises:
        PlanError: fewer than two layers are left after ``shallow``.
    """
    plan = Plan.full(model)
    total = len(plan.layers)
    if not 0 <= shallow < total - 2:
        raise PlanError(f"shallow is {shallow} of {total} layers, and two layers are needed after it.")
    filtering = Filter(cosine=cosine, norm=norm, exit_cosine=exit_cosine, patience=patience)
    return (
        plan.at([0], visible=Sink(), attention=Skip())
        .at(range(1, shallow + 1), visible=Skip())
        .at(range(shallow + 2, total), keep=filtering)
    )


METHOD = Method(
    visipruner,
    "2510.17205",
    "VisiPruner",
    published=LLAVA_7B,
)
