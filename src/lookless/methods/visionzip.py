"""VisionZip: visual tokens that the vision tower attends to, chosen before the first decoder layer.

arXiv 2412.04467 (CVPR 2025). The dominant tokens are those the tower's class token attends to most (or all
patches do, where it has none), in the layer whose features are used. Of 576 tokens, 54 dominant and 10 contextual ones
make the paper's budget of 64.

Only the dominant part is expressible. The contextual tokens, where all the others are merged by the similarity of the
tower's keys, are not made; ``Keep(recycle=...)`` merges too, but in the decoder, by density and only a share.
"""

from __future__ import annotations

from ..cells import Keep
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import method
from .published import LLAVA_7B
from .strength import fewer_tokens


@method
def visionzip(model: Geometry | int, *, keep: float = 54 / 576) -> Plan:
    """Keep the visual tokens the vision tower attended to most, before the first layer."""
    return Plan.full(model).at([0], keep=Keep(keep, rank="tower_attention"))


METHOD = Method(
    visionzip,
    "2412.04467",
    "VisionZip",
    published=LLAVA_7B,
    strength=fewer_tokens,
)
