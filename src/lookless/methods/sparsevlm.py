"""SparseVLM: text decides which visual tokens stay, and the dropped are recycled.

arXiv 2410.04417 (ICML 2025). Raters are the text tokens that look most like the image; visual
tokens are ranked by the attention raters pay them; Sec. 3.4: of the dropped, the best 30 % are clustered into a tenth
as many and stay. The paper sets how many to drop by the rank of the attention matrix; the released code reads it from a
table of counts, one for each budget of 192, 128 or 64 tokens (of 576, averaged over layers), which is used here as
shares. ``version=2`` is SparseVLM+: its own counts, and nothing recycled.

The code prunes after layers 2, 6 and 15, so from layers 3, 7 and 16 on. Counted so, the table's 192 averages 206
tokens; counted from layers 2, 6 and 15 it averages 192. The code decides for us. It appends merged tokens at the
image's end and renumbers positions; here they are at their cluster's centre. SparseVLM+ also corrects for the rotary
decay and picks heads; the rank here does neither.
"""

from __future__ import annotations

from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Stages, method
from .published import LLAVA_7B
from .stages import keep_in_stages

#: (version, budget) -> tokens kept of 576 in each stage; as released
COUNTS = {
    (1, 192): (300, 200, 110),
    (1, 128): (303, 110, 36),
    (1, 64): (66, 30, 17),
    (2, 192): (300, 200, 118),
    (2, 128): (238, 108, 60),
    (2, 64): (66, 34, 20),
}


@method
def sparsevlm(model: Geometry | int, *, budget: int = 192, layers: Stages = (3, 7, 16), version: int = 1) -> Plan:
    """Keep the visual tokens that image-like text attends to, and merge some of the others."""
    if (version, budget) not in COUNTS:
        known = ", ".join(f"{b} (version {v})" for v, b in COUNTS)
        raise PlanError(f"no counts are published for budget {budget} in version {version}; there are {known}.")
    keep = tuple(count / 576 for count in COUNTS[version, budget])
    return keep_in_stages(model, layers, keep, "text_raters", recycle=0.3 if version == 1 else 0.0)


METHOD = Method(
    sparsevlm,
    "2410.04417",
    "SparseVLM",
    published=LLAVA_7B,
)
