"""Settings that are printed for one model, which no rule of depth gives, and the numbers that several methods share.

V-Skip (arXiv 2606.08511) skips 19 of 32 layers on LLaVA 7B, 24 of 40 on 13B, and 7 of 28 on Qwen2.5-VL-7B. Its Tables 1
and 3 compare with ShortV at the same counts and with VTW at K = 16, 20 and 7. That K is the last layer that sees the
image, as the 4.94 TFLOPs it prints for LLaVA-1.5-7B say; VTW's own 15 (arXiv 2405.05803, its code) is the first that
does not. FastV's own K is 2 (arXiv 2403.06764); V-Skip has 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A method's knobs as printed for one model.

    Attributes:
        model: its name among :data:`lookless.PRESETS`.
        knobs: those that are printed; None if the method's defaults are what its paper has for this model.
        by: whose comparison has them so; by default the method's own paper.
    """

    model: str
    knobs: Mapping[str, Any] | None = None
    by: str = "the paper"

    @property
    def name(self) -> str:
        return f"{self.by}'s setting for {self.model}"


def each(knob: str, values: Mapping[str, int | float], by: str = "the paper", **more: int) -> tuple[Setting, ...]:
    """One setting a model: ``knob`` as ``values`` have it, and ``more``."""
    return tuple(Setting(model, {knob: value, **more}, by) for model, value in values.items())


_LLAVA, _QWEN = ("LLaVA-1.5-7B", "LLaVA-NeXT-7B", "LLaVA-1.5-13B", "LLaVA-NeXT-13B"), "Qwen2.5-VL-7B"
#: layers that V-Skip skips, and its K for VTW
V_SKIP_LAYERS = dict(zip((*_LLAVA, _QWEN), (19, 19, 24, 24, 7), strict=True))
V_SKIP_K = dict(zip((*_LLAVA, _QWEN), (16, 16, 20, 20, 7), strict=True))
#: ShortV prints the same counts for LLaVA, and has no Qwen
SHORTV = (
    *each("layers", {model: V_SKIP_LAYERS[model] for model in _LLAVA}),
    *each("layers", {_QWEN: V_SKIP_LAYERS[_QWEN]}, "V-Skip"),
)
#: the defaults are what the method's own paper has for LLaVA-1.5-7B
LLAVA_7B = (Setting("LLaVA-1.5-7B"),)
