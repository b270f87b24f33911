"""Ready plans: the layers that authors published for their models, by name.

``preset("operator-skipping/Qwen3-VL-8B/20")``. Which layers is a finding on one model, so each plan is bound to that
model's geometry. Sources: ShortV (arXiv 2504.00502), its README's replaced layers; operator skipping (arXiv
2606.31903), its released policy files, whose ``attention_only``, ``ffn_only`` and ``freeze`` are the three columns
below; HalfV (arXiv 2604.16462) and ViCA (arXiv 2602.07574), their released code. And VTW and FastV as their own papers
have them (``vtw/LLaVA-1.5-7B``) and as V-Skip (arXiv 2606.08511) compares with them (``vtw/LLaVA-1.5-7B/v-skip``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..cells import Skip
from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .fastv import METHOD as FASTV
from .halfv import halfv
from .halfv_llava import halfv_llava
from .published import Setting
from .vica import vica
from .vtw import METHOD as VTW

#: model -> layers frozen, in the order they were chosen
SHORTV = {
    "LLaVA-1.5-7B": "31 29 30 28 0 26 27 25 24 22 23 21 2 3 20 18 17 12 19",
    "LLaVA-1.5-13B": "39 32 28 36 27 37 29 30 1 38 25 31 2 26 23 34 0 33 35 22 24 21 20 17",
    "LLaVA-NeXT-7B": "31 29 30 28 26 27 22 24 21 23 25 20 19 17 18 15 12 0 2",
    "LLaVA-NeXT-13B": "39 32 29 36 27 30 37 23 25 31 26 2 28 22 33 35 34 24 38 21 20 18 1 17",
}

#: model/budget -> layers that only attend; that only transform; that do neither. "rest" is what is left of the first 24
OPERATOR_SKIPPING = {
    "LLaVA-1.5-7B/12": ("2", "0 21 23", "24-31"),
    "LLaVA-1.5-7B/16": ("2", "0 3 17 20-23", "24-31"),
    "LLaVA-1.5-7B/20": ("", "0 3-5 16-23", "24-31"),
    "LLaVA-1.5-7B/32": ("2 10", "rest", "24-31"),
    "LLaVA-NeXT-7B/20": ("2", "12 14-23", "24-31"),
    "Qwen2.5-VL-7B/8": ("", "26", "20-25 27"),
    "Qwen2.5-VL-7B/16": ("11 15 16", "3 4 17-19 26", "20-25 27"),
    "Qwen2.5-VL-7B/28": ("0 6 10 11 15 16", "1-5 7-9 12-14 17-19 26", "20-25 27"),
    "Qwen3-VL-8B/12": ("", "", "24-35"),
    "Qwen3-VL-8B/16": ("", "4 20 22 23", "24-35"),
    "Qwen3-VL-8B/20": ("", "2 4 17 18 20-23", "24-35"),
    "Qwen3-VL-8B/24": ("14 15 19", "2 4 5 17 18 20-23", "24-35"),
    "Qwen3-VL-8B/28": ("6 14 15 19", "2 4 5 7 9 10 17 18 20-23", "24-35"),
    "Qwen3-VL-8B/36": ("6 11 14 15 19", "rest", "24-35"),
}


def _layers(text: str) -> list[int]:
    """``"0 3-5"`` as [0, 3, 4, 5]."""
    ranges = (part.partition("-") for part in text.split())
    return [layer for low, _, high in ranges for layer in range(int(low), int(high or low) + 1)]


def _shortv(model: str) -> Plan:
    frozen = _layers(SHORTV[model])
    return Plan.full(Geometry.preset(model)).at(frozen, attention=Skip(), ffn=Skip())


def _operator_skipping(name: str) -> Plan:
    attend, transform, neither = OPERATOR_SKIPPING[name]
    attending = _layers(attend)
    transforming = sorted(set(range(24)) - set(attending)) if transform == "rest" else _layers(transform)
    return (
        Plan.full(Geometry.preset(name.split("/")[0]))
        .at(attending, ffn=Skip())
        .at(transforming, attention=Skip())
        .at(_layers(neither), attention=Skip(), ffn=Skip())
    )


def _compared(method: Method, setting: Setting) -> Plan:
    return method.build(Geometry.preset(setting.model), **(setting.knobs or {}))


#: name -> what makes its plan
READY: dict[str, Callable[[], Plan]] = {
    **{f"shortv/{model}": partial(_shortv, model) for model in SHORTV},
    **{f"operator-skipping/{name}": partial(_operator_skipping, name) for name in OPERATOR_SKIPPING},
    "halfv/Qwen2.5-VL-7B": lambda: halfv(Geometry.preset("Qwen2.5-VL-7B")),
    "halfv/LLaVA-1.5-7B": lambda: halfv_llava(Geometry.preset("LLaVA-1.5-7B")),
    **{
        f"{method.name}/{setting.model}" + ("" if setting.by == "the paper" else f"/{setting.by.lower()}"): partial(
            _compared, method, setting
        )
        for method in (VTW, FASTV)
        for setting in method.published
    },
    "vica/LLaVA-1.5-7B": lambda: vica(Geometry.preset("LLaVA-1.5-7B")),
}


def preset(name: str) -> Plan:
    """A published plan, by name in any case.

    Raises:
        PlanError: no such name; the message lists them.
    """
    by_name = {key.lower(): key for key in READY}
    if name.lower() not in by_name:
        raise PlanError(f"no ready plan is called {name!r}; there are {', '.join(READY)}.")
    key = by_name[name.lower()]
    return READY[key]().made_by(method=f"preset {key}")
