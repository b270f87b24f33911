"""lookless: look less, at the right depth.

Multimodal language models spend most of a prompt on visual tokens, and in many decoder layers those tokens' attention,
feed-forward network, or both change nothing that the answer can see. lookless measures where, writes it down as a plan,
makes the model do less work, and says what that costs and saves::

    import lookless

    loaded = lookless.load_model("reference")
    scores = lookless.calibrate(loaded, lookless.load_data("reference:chart", split="calibration", limit=20))
    plan = lookless.v_skip(scores, layers=7)
    with lookless.apply(loaded.model, plan):
        ...

Importing this package patches nothing and imports no torch; what needs torch is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import flops, methods
from .cells import Filter, Full, Keep, Neurons, Sink, Skip, Top, Window
from .errors import LooklessError
from .geometry import PRESETS, Geometry
from .layer_plan import LayerPlan
from .methods import v_skip
from .plan import Plan
from .scores import Scores
from .version import __version__

if TYPE_CHECKING:
    from .bench.timing import time_prefill
    from .calibration.gradients import diagnose
    from .calibration.screening import screen
    from .calibration.sweep import calibrate, sweep
    from .data import Sample, Samples, load_data
    from .evaluation import Evaluation, evaluate
    from .loading import Loaded, load_model
    from .runtime.patching import Applied, apply
    from .runtime.tracing import Trace, trace
    from .search.depthwise import dop
    from .search.greedy import GreedyOrder, Step, greedy_order, gsop_order, redundancylens_order
    from .search.interactions import repair
    from .search.objective import Objective, joint_distance

# name -> module; no module is called like what it holds, or importing the one would hide the other
_LATER = {
    "Applied": "runtime.patching",
    "Evaluation": "evaluation",
    "Loaded": "loading",
    "Objective": "search.objective",
    "Step": "search.greedy",
    "GreedyOrder": "search.greedy",
    "Sample": "data",
    "Samples": "data",
    "Trace": "runtime.tracing",
    "apply": "runtime.patching",
    "calibrate": "calibration.sweep",
    "diagnose": "calibration.gradients",
    "dop": "search.depthwise",
    "evaluate": "evaluation",
    "greedy_order": "search.greedy",
    "gsop_order": "search.greedy",
    "joint_distance": "search.objective",
    "load_data": "data",
    "load_model": "loading",
    "redundancylens_order": "search.greedy",
    "repair": "search.interactions",
    "screen": "calibration.screening",
    "sweep": "calibration.sweep",
    "time_prefill": "bench.timing",
    "trace": "runtime.tracing",
}

__all__ = [
    "PRESETS",
    "Applied",
    "Evaluation",
    "Filter",
    "Full",
    "Geometry",
    "GreedyOrder",
    "Keep",
    "LayerPlan",
    "Loaded",
    "LooklessError",
    "Neurons",
    "Objective",
    "Plan",
    "Sample",
    "Samples",
    "Scores",
    "Sink",
    "Skip",
    "Step",
    "Top",
    "Trace",
    "Window",
    "__version__",
    "apply",
    "calibrate",
    "diagnose",
    "dop",
    "evaluate",
    "flops",
    "greedy_order",
    "gsop_order",
    "joint_distance",
    "load_data",
    "load_model",
    "methods",
    "redundancylens_order",
    "repair",
    "screen",
    "sweep",
    "time_prefill",
    "trace",
    "v_skip",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'lookless' has no attribute {name!r}")
    return getattr(import_module(f".{_LATER[name]}", __name__), name)
