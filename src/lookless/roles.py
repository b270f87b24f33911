"""What each layer is for, as far as the answer can see: the three labels of operator skipping.

"Attend, Transform, or Silence" (arXiv 2606.31903) labels a layer by what three interventions cost: visual attention
skipped, visual FFN skipped, both. The paper prints no formula; this is the plain reading of its text.
"""

from __future__ import annotations

from typing import Literal

from .errors import ScoresError
from .scores import Scores

Role = Literal["attention", "ffn", "silent"]


def operator_roles(attention: Scores, ffn: Scores, both: Scores, *, tau: float = 0.003) -> tuple[Role, ...]:
    """Each layer's role: ``silent`` where no intervention costs more than ``tau``, else the operator that costs more.

    Args:
        attention: the risk of skipping visual attention (``visual_information_gain`` of ``lookless.calibrate``).
        ffn: the risk of skipping the visual FFN (``ffn_effect``).
        both: the risk of skipping both (``freeze_effect``).
        tau: in the scores' unit, nats; by default VTW's threshold for LLaVA-1.5-7B (arXiv 2405.05803).

    Raises:
        ScoresError: the three are not of one model, one set of samples, one position and one unit.
    """
    for other in (ffn, both):
        for what in ("geometry", "data_hash", "position", "unit"):
            mine, theirs = getattr(attention, what), getattr(other, what)
            if mine != theirs:
                raise ScoresError(
                    f"{attention.name} and {other.name} differ in {what} ({mine} and {theirs}): roles compare risks "
                    f"measured alike."
                )
    rows = zip(attention.mean, ffn.mean, both.mean, strict=True)
    return tuple("silent" if max(a, f, af) <= tau else "attention" if a > f else "ffn" for a, f, af in rows)
