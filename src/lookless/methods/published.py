"""Settings that are printed for one model, which no rule of depth gives.

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


def _each(knob: str, values: Mapping[str, int | float], by: str = "the paper", **more: int) -> tuple[Setting, ...]:
    return tuple(Setting(model, {knob: value, **more}, by) for model, value in values.items())


_LLAVA, _QWEN = ("LLaVA-1.5-7B", "LLaVA-NeXT-7B", "LLaVA-1.5-13B", "LLaVA-NeXT-13B"), "Qwen2.5-VL-7B"
_N = dict(zip((*_LLAVA, _QWEN), (19, 19, 24, 24, 7), strict=True))
_K = dict(zip((*_LLAVA, _QWEN), (16, 16, 20, 20, 7), strict=True))
_SHORTV = (*_each("layers", {model: _N[model] for model in _LLAVA}), *_each("layers", {_QWEN: _N[_QWEN]}, "V-Skip"))
_OWN = (Setting("LLaVA-1.5-7B"),)

#: method -> its settings; of several for one model the first is taken
PUBLISHED: dict[str, tuple[Setting, ...]] = {
    **dict.fromkeys(("v-skip", "v-skip-universal"), _each("layers", _N)),
    **dict.fromkeys(("ffn-skip", "logit-cosine", "random-layers"), _each("layers", _N, "V-Skip")),
    **dict.fromkeys(("shortv", "state-cosine"), _SHORTV),
    "operator-skipping": (Setting("Qwen3-VL-8B", {"save": 0.337}),),
    "vtw": (*_OWN, *_each("after", _K, "V-Skip")),
    "vtw-search": _each("eta", {"LLaVA-1.5-7B": 0.003, "LLaVA-1.5-13B": 0.0005, "LLaVA-NeXT-7B": 0.0001}, start=5),
    "fastv": (*_OWN, *_each("layer", {"LLaVA-1.5-7B": 3}, "V-Skip")),
    **dict.fromkeys(("pyramiddrop", "sparsevlm", "visionzip", "divprune", "visipruner", "halfv-llava", "vica"), _OWN),
    "v2drop": (Setting("Qwen2-VL-7B"),),
    "halfv": (Setting("Qwen2.5-VL-7B"),),
}
