"""FLOPs: the papers' printed figures, and PyTorch's own count of a tiny model."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lookless import PRESETS, Geometry, Plan, Skip, apply
from lookless.errors import GeometryError, PlanError
from lookless.flops import layer, prefill
from lookless.models import geometry_of
from test_cells import STATIC
from tiny import LAYERS, VISUAL, batch, prompt, tiny_llava

SEVEN = Geometry.preset("LLaVA-1.5-7B")
V, T = 576, 66.6  # methods' tables of LLaVA-1.5 fit a mean of 66.6 text tokens


def v_skip(n):
    return Plan.full(SEVEN).at(range(n), attention=Skip())


def short_v(n):
    return Plan.full(SEVEN).at(range(n), attention=Skip(), ffn=Skip())


@pytest.mark.parametrize(
    ("plan", "printed"),
    [
        (None, "8.54"),  # 2606.08511, Table 2: dense
        (v_skip(19), "7.69"),  # V-Skip, N = 19
        (short_v(19), "4.73"),  # ShortV, N = 19
        (v_skip(32), "7.11"),
        (short_v(32), "2.12"),
        (Plan.full(SEVEN).at(range(19), ffn=Skip()), "5.58"),  # FFN-Skip, N = 19
    ],
)
def test_the_papers_figures(plan, printed):
    assert f"{prefill(SEVEN, visual=V, text=T, plan=plan).total_tflops:.2f}" == printed


def test_seventeen_full_layers_then_text_only():
    """VTW's row: 17 layers in full, 15 without a visual token."""
    n = V + T
    full = layer(SEVEN, query=n, key=n, ffn=n)
    text_only = layer(SEVEN, query=T, key=T, ffn=T)
    assert f"{(17 * full + 15 * text_only) / 1e12:.2f}" == "4.94"


def test_visual_only_is_visipruners_count():
    """2510.17205, Appendix M, in multiply-adds of visual tokens: 3.82 (7B) and 7.44 (13B)."""
    for name, printed in (("LLaVA-1.5-7B", "3.82"), ("LLaVA-1.5-13B", "7.44")):
        assert f"{prefill(Geometry.preset(name), visual=576, text=0).visual_tflops / 2:.2f}" == printed


def test_grouped_queries_are_priced_by_their_own_width():
    """4nd^2 + 4n d dk in place of 8nd^2: Qwen2.5-VL has 4 of 28 key and value heads."""
    g = Geometry.preset("Qwen2.5-VL-7B")
    n, d, dk, m = 100, 3584, 512, 18944
    by_hand = 28 * (4 * n * d * d + 4 * n * d * dk + 4 * n * n * d + 6 * n * d * m)
    assert prefill(g, visual=60, text=40).total == by_hand


def test_small_saving_on_qwen():
    """N = 7 on Qwen2.5-VL saves 2.9 % at 600 visual tokens and 4.3 % at 2500."""
    g = Geometry.preset("Qwen2.5-VL-7B")
    plan = Plan.full(g).at(range(7), attention=Skip())
    for visual, percent in ((600, "2.9"), (2500, "4.3")):
        dense = prefill(g, visual=visual, text=T).total
        assert f"{100 * (1 - prefill(g, visual=visual, text=T, plan=plan).total / dense):.1f}" == percent


COUNTED = {
    "dense": Plan.full(LAYERS),
    "attention": Plan.full(LAYERS).at([0, 2, 3], attention=Skip()),
    "ffn": Plan.full(LAYERS).at([1, 4], ffn=Skip()),
    "mixed": Plan.full(LAYERS).at([0, 1], attention=Skip()).at([1, 3], ffn=Skip()),
    # A window over tokens that were kept here and there is priced as if they stood together.
    **{name: plan for name, plan in STATIC.items() if name != "keep, then window"},
}


@pytest.mark.parametrize("variant", ["clip-llama", "clip-llama-mha", "siglip-qwen2"])
@pytest.mark.parametrize("plan", COUNTED.values(), ids=COUNTED)
@torch.no_grad()
def test_formula_is_pytorchs_own_count(variant, plan):
    """Every matrix product of the decoder, counted where it runs. The math kernel is the one that is countable."""
    model = tiny_llava(variant)
    before, after = 5, 7
    arguments = batch(prompt(before, "image", after))
    # apply() keeps its hooks on the model around the decoder, so the decoder can be counted by itself.
    with apply(model, plan), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**arguments)
    counts = counter.get_flop_counts()
    decoder = sum(counts["LlavaForConditionalGeneration.model.language_model"].values())
    expected = prefill(
        geometry_of(model),
        visual=VISUAL,
        text=before + after,
        before=before,
        plan=plan if plan.is_full else plan.live(),
    )
    assert decoder == expected.total


def test_before_changes_skipped_layers_only():
    assert prefill(SEVEN, visual=V, text=60, before=35).total == prefill(SEVEN, visual=V, text=60).total
    cut = prefill(SEVEN, visual=V, text=60, before=35, plan=v_skip(1)).total
    assert prefill(SEVEN, visual=V, text=60, plan=v_skip(1)).total - cut == 4 * 35 * (V + 60 - 35) * 4096


def test_refusals():
    with pytest.raises(PlanError, match="negative"):
        prefill(SEVEN, visual=-1, text=3)
    with pytest.raises(PlanError, match="before 9"):
        prefill(SEVEN, visual=1, text=3, before=9)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name):
    g = Geometry.preset(name.upper())
    assert g.query_width == g.hidden  # true of all the papers' models
    assert g.heads % g.kv_heads == 0


def test_geometry_from_configs():
    assert Geometry.from_config(tiny_llava().config).kv_heads == 2
    flat = {"model_type": "qwen2_vl", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    flat |= {"intermediate_size": 16, "num_key_value_heads": 1}
    assert Geometry.from_config(flat).head_dim == 4
    with pytest.raises(GeometryError, match="of x has no num_attention_heads"):
        Geometry.from_config({"model_type": "x"})
    with pytest.raises(GeometryError, match="mixture-of-experts"):
        Geometry.from_config({**flat, "num_experts": 8})
    with pytest.raises(GeometryError, match=r"choose one of LLaVA-1\.5-7B"):
        Geometry.preset("llava")
    assert Geometry.from_config(flat).fingerprint != Geometry.from_config({**flat, "hidden_size": 16}).fingerprint
