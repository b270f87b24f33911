"""FLOPs: the papers' printed figures, and PyTorch's own count of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.models import LAYERS, VISUAL, batch, prompt, tiny_llava
from helpers.plans import STATIC, random_plans
from lookless import PRESETS, Geometry, Plan, Skip, apply, methods, trace
from lookless.errors import GeometryError, PlanError
from lookless.flops import layer, prefill
from lookless.runtime.families import geometry_of

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


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        (66, ("8.5313", "7.6817", "4.7210", "4.694", "4.934")),
        (66.6, ("8.5395", "7.6898", "4.7291", "4.702", "4.9420")),
        (67, ("8.5449", "7.6952", "4.7345", "4.708", "4.947")),
    ],
)
def test_which_text_length_the_papers_mean(text, printed):
    """Only 66.6 gives 8.54, 7.69 and 4.94 at once (2606.08511, Table 2); 4.94 is VTW with 17 layers in full, not 16."""
    plans = (None, v_skip(19), short_v(19), methods.vtw(SEVEN, after=15), methods.vtw(SEVEN, after=16))
    for plan, figure in zip(plans, printed, strict=True):
        told = prefill(SEVEN, visual=V, text=text, plan=plan).total_tflops
        assert f"{told:.{len(figure.split('.')[1])}f}" == figure


def test_seventeen_full_layers_then_text_only():
    """VTW's row by hand: 17 layers in full, 15 without a visual token."""
    n = V + T
    full = layer(SEVEN, query=n, key=n, ffn=n)
    text_only = layer(SEVEN, query=T, key=T, ffn=T)
    assert f"{(17 * full + 15 * text_only) / 1e12:.2f}" == "4.94"


@pytest.mark.parametrize(
    ("layers", "printed"),
    [
        (4, ("8.361", "7.916", "7.737")),
        (8, ("8.182", "7.293", "6.935")),
        (16, ("7.824", "6.046", "5.331")),
        (19, ("7.690", "5.579", "4.729")),
        (24, ("7.466", "4.800", "3.726")),
        (28, ("7.287", "4.176", "2.924")),
        (32, ("7.108", "3.553", "2.122")),
    ],
)
def test_attention_ffn_or_both_in_so_many_layers(layers, printed):
    """An FFN saves 3.5 times what attention saves, so equal counts are not equal budgets."""
    for name, figure in zip(("v-skip", "ffn-skip", "shortv"), printed, strict=True):
        method = methods.METHODS[name]
        plan = method.build(SEVEN, method.uniform_scores(SEVEN), layers=layers)
        assert f"{prefill(SEVEN, visual=V, text=T, plan=plan).total_tflops:.3f}" == figure


def kept(plan, geometry=SEVEN, visual=V, text=T):
    dense = prefill(geometry, visual=visual, text=text).total
    return 100 * prefill(geometry, visual=visual, text=text, plan=plan).total / dense


def test_fastv_and_v_skip():
    """2606.08511 prints 61.66 % for FastV and 56.73 % with V-Skip.

    61.66 is five full layers and not FastV's three. With V-Skip's 19 all behind them 56.98 is kept; with one of the 19
    in the first layer, as its mask for MME has, 56.71.
    """
    assert [f"{kept(methods.fastv(SEVEN, layer=k)):.2f}" for k in (2, 3, 4, 5)] == ["57.40", "58.82", "60.24", "61.66"]
    behind, one_early = ((range(13, 32)), (0, *range(14, 32)))
    five = methods.fastv(SEVEN, layer=5)
    assert f"{kept(five | Plan.full(SEVEN).at(behind, attention=Skip())):.2f}" == "56.98"
    assert f"{kept(five | Plan.full(SEVEN).at(one_early, attention=Skip())):.2f}" == "56.71"


def next_tflops(plan=None):
    """LLaVA-NeXT at the one length whose dense prefill is 30.74 TFLOPs."""
    return prefill(NEXT, visual=2180.85 - T, text=T, plan=plan).total_tflops


def seven_tflops(plan=None):
    return prefill(SEVEN, visual=V, text=T, plan=plan).total_tflops


def visipruners_saving():
    """By the paper's averages: 15 layers without visual attention, then 10 tokens to layer 23.9; multiply-adds."""
    dense = prefill(SEVEN, visual=576, text=0).visual
    shallow = 15 * layer(SEVEN, query=576, key=576, ffn=576, pairs=0)
    deep = 8.9 * layer(SEVEN, query=10, key=10, ffn=10)
    return 100 * (1 - (shallow + deep) / dense)


NEXT = Geometry.preset("LLaVA-NeXT-7B")
PRINTED = {
    "LLaVA-1.5-7B, dense, TFLOPs": seven_tflops,
    "LLaVA-1.5-7B, V-Skip N = 19, TFLOPs": lambda: seven_tflops(v_skip(19)),
    "LLaVA-1.5-7B, ShortV N = 19, TFLOPs": lambda: seven_tflops(short_v(19)),
    "LLaVA-1.5-7B, VTW K = 16, TFLOPs": lambda: seven_tflops(methods.vtw(SEVEN, after=16)),
    "LLaVA-NeXT-7B, dense, TFLOPs": next_tflops,
    "LLaVA-NeXT-7B, V-Skip N = 19, TFLOPs": lambda: next_tflops(Plan.full(NEXT).at(range(19), attention=Skip())),
    "LLaVA-NeXT-7B, ShortV N = 19, TFLOPs": lambda: next_tflops(
        Plan.full(NEXT).at(range(19), attention=Skip(), ffn=Skip())
    ),
    "LLaVA-NeXT-7B, VTW K = 16, TFLOPs": lambda: next_tflops(methods.vtw(NEXT, after=16)),
    "LLaVA-1.5-7B, FastV K = 3, kept, %": lambda: kept(methods.fastv(SEVEN, layer=3)),
    "the same with five full layers, %": lambda: kept(methods.fastv(SEVEN, layer=5)),
    "FastV and V-Skip N = 19, kept, %": lambda: kept(
        methods.fastv(SEVEN, layer=5) | Plan.full(SEVEN).at(range(13, 32), attention=Skip())
    ),
    "the same, one of the 19 in the first layer, %": lambda: kept(
        methods.fastv(SEVEN, layer=5) | Plan.full(SEVEN).at((0, *range(14, 32)), attention=Skip())
    ),
    "LLaVA-1.5-7B, N = 19, kept, %": lambda: kept(short_v(19)),
    "Qwen3-VL-8B, saved, %": lambda: (
        100 - kept(methods.preset("operator-skipping/Qwen3-VL-8B/20"), PRESETS["Qwen3-VL-8B"], 700, 70)
    ),
    "InternVL2-8B, kept, %": lambda: kept(
        methods.redundancylens(range(32), range(32)), PRESETS["InternVL2-8B"], 1792, 73
    ),
    "LLaVA-1.5-7B, dense, visual tokens alone, TMACs": lambda: prefill(SEVEN, visual=576, text=0).visual_tflops / 2,
    "LLaVA-1.5-13B, dense, visual tokens alone, TMACs": lambda: (
        prefill(PRESETS["LLaVA-1.5-13B"], visual=576, text=0).visual_tflops / 2
    ),
    "LLaVA-1.5-7B, saved of these, %": visipruners_saving,
}


def test_the_document_of_printed_figures():
    """docs/flops.md says for every figure what the formula gives, and by how much that differs."""
    page = (Path(__file__).parents[1] / "docs" / "flops.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    for _, figure, printed, formula, difference in rows[2:]:
        digits = len(printed.partition(".")[2])
        assert formula == f"{PRINTED[figure]():.{digits}f}", figure
        off = round(float(formula) - float(printed), digits)
        assert difference == (f"{off:+.{digits}f}" if off else f"{0:.{digits}f}"), figure
    assert {row[1] for row in rows[2:]} == {*PRINTED}
    off = [
        abs(float(formula) / float(printed) - 1)
        for _, figure, printed, formula, _ in rows[2:]
        if not figure.startswith("the same")
    ]
    close = [sum(low <= each < high for each in off) for low, high in ((0, 1e-9), (1e-9, 0.005), (0.005, 0.05))]
    assert (len(off), close) == (16, [7, 5, 4]), "as the README says"


def test_redundancylens_figures():
    """2501.19036 reports 71 to 72 % on InternVL2-8B: 16 layers of 32, 73 text tokens."""
    g = Geometry.preset("InternVL2-8B")
    order = range(32)
    plan = methods.redundancylens(order, order)
    for visual, percent in ((1792, "70.8"), (3328, "69.3")):
        assert f"{kept(plan, g, visual, 73):.1f}" == percent


def test_operator_skippings_figure():
    """2606.31903 prints 33.7 % off Qwen3-VL-8B, most likely its preset 20.

    Its runtime freezes the text before the image too where both operators are skipped; ours leaves that text alone
    unless the plan says so, and the same prompt saves less.
    """
    g = Geometry.preset("Qwen3-VL-8B")
    plan = methods.preset("operator-skipping/Qwen3-VL-8B/20")
    as_theirs = plan.at(plan.frozen, before=Skip())
    for visual, before, behind in ((500, 15, 36), (700, 15, 55), (1000, 15, 86)):
        n, text = visual + before + behind, before + behind
        full = layer(g, query=n, key=n, ffn=n)
        no_attention = layer(g, query=text, key=n, ffn=n)
        frozen = layer(g, query=behind, key=n, ffn=behind)
        theirs = 100 * (1 - (16 * full + 8 * no_attention + 12 * frozen) / (36 * full))
        assert f"{theirs:.1f}" == "33.7"
        assert f"{100 - kept(plan, g, visual, text):.1f}" in {"32.9", "33.1", "33.2", "33.3"}
        lengths = {"visual": visual, "text": text, "before": before}
        ours = prefill(g, **lengths, plan=as_theirs).total / prefill(g, **lengths).total
        assert f"{100 * (1 - ours):.1f}" == "33.7"
    for visual, text in ((500, 37), (700, 55), (1000, 87)):
        assert f"{100 - kept(plan, g, visual, text):.1f}" == "33.7"


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
    **STATIC,
}


def counted_in_decoder(counter: FlopCounterMode) -> int:
    """But for the angles of the rotary embedding, which some releases of transformers multiply as matrices."""
    counts, decoder = counter.get_flop_counts(), "LlavaForConditionalGeneration.model.language_model"
    return sum(counts[decoder].values()) - sum(counts.get(f"{decoder}.rotary_emb", {}).values())


@pytest.mark.usefixtures("apart")
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
        model(**arguments, logits_to_keep=1)
    decoder = counted_in_decoder(counter)
    expected = prefill(
        geometry_of(model),
        visual=VISUAL,
        text=before + after,
        before=before,
        plan=plan,
        kept=1,
    )
    assert decoder == expected.total


@pytest.mark.usefixtures("apart")
@torch.no_grad()
def test_formula_and_rows_are_what_is_counted_of_random_plans():
    model = tiny_llava("clip-llama")
    for number, plan in enumerate(random_plans(60, seed=3, static=True)):
        before, after = (0, 3, 9)[number % 3], (1, 7)[number % 2]
        arguments = batch(prompt(before, "image", after))
        counter = FlopCounterMode(display=False)
        with apply(model, plan), trace(model) as traced, sdpa_kernel(SDPBackend.MATH), counter:
            model(**arguments, logits_to_keep=1)
        counted = counted_in_decoder(counter)
        expected = prefill(geometry_of(model), visual=VISUAL, text=before + after, before=before, plan=plan, kept=1)
        assert counted == expected.total, f"plan {number}\n{plan}"
        assert tuple(traced.layers) == plan.rows(VISUAL, before + after, kept=1, before=before), (
            f"plan {number}\n{plan}"
        )


def test_what_liveness_alone_keeps():
    """As docs/flops.md says; of text in the last layer one row is left, whose keys are all there."""
    live = Plan.full(SEVEN).live()
    for visual, text, of_images, of_all in ((V, 66.6, "97.7", "97.4"), (64, 578, "99.7", "97.4")):
        dense = prefill(SEVEN, visual=visual, text=text).total
        costs = [prefill(SEVEN, visual=visual, text=text, plan=live, kept=kept).total for kept in (None, 1)]
        assert [f"{100 * cost / dense:.1f}" for cost in costs] == [of_images, of_all]
        spared = (text - 1) * (4 * 4096**2 + 4 * (visual + text) * 4096 + 6 * 4096 * 11008)
        assert costs[0] - costs[1] == pytest.approx(spared)
    assert prefill(SEVEN, visual=V, text=60, plan=Plan.full(SEVEN), kept=1) == prefill(SEVEN, visual=V, text=60)
    with pytest.raises(PlanError, match="kept 4"):
        prefill(SEVEN, visual=1, text=3, kept=4)


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
    assert g.query_width() == g.hidden or g.experts or g.sliding  # true of all the papers' models
    assert g.heads % g.kv_heads == 0


def test_geometry_from_configs():
    assert Geometry.from_config(tiny_llava().config).kv_heads == 2
    flat = {"model_type": "qwen2_vl", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    flat |= {"intermediate_size": 16, "num_key_value_heads": 1}
    assert Geometry.from_config(flat).head_dim == 4
    with pytest.raises(GeometryError, match="of x has no num_attention_heads"):
        Geometry.from_config({"model_type": "x"})
    with pytest.raises(GeometryError, match="of qwen2_vl has no num_experts_per_tok"):
        Geometry.from_config({**flat, "num_experts": 8})
    mixed = Geometry.from_config({**flat, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 4})
    assert (mixed.experts.count, mixed.ffn_width(0), mixed.intermediate) == (8, 8, 4)
    with pytest.raises(GeometryError, match=r"choose one of LLaVA-1\.5-7B"):
        Geometry.preset("llava")
    assert Geometry.from_config(flat).fingerprint != Geometry.from_config({**flat, "hidden_size": 16}).fingerprint
