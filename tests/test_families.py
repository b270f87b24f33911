"""What families do besides the cells that every one is tested with: mixtures of experts, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlavaConfig, Mistral3Config

from helpers.alike import ALIKE
from helpers.compare import TOLERANCE, far, text_of
from helpers.families import FAMILIES, SPECIAL, model_of
from helpers.gemma import GEMMA
from helpers.lfm2 import LFM2
from helpers.models import LAYERS
from helpers.plans import DECODE, FULL, PLANS, SKIPPED, STATIC
from helpers.slow_reference import slow_logits
from lookless import Geometry, Neurons, Plan, Skip, apply
from lookless.bench.lower_bound import lower_bound_of
from lookless.calibration.replay import one_row
from lookless.calibration.sweep import INTERVENTIONS
from lookless.errors import ModelError, PlanMismatchError
from lookless.flops import prefill
from lookless.ranks import RANKS
from lookless.runtime.families import FAMILIES as SUPPORTED
from lookless.runtime.families import family_of, geometry_of, locate
from lookless.runtime.prompts import prompts_of
from lookless.search import Menu

#: family -> the plans of tests/helpers/plans.py that its layers cannot run; all run on any other
REFUSED = {"qwen3_vl_moe": {"neurons"}}
#: by what they ask of a layer with a gated delta rule: a window, a sink, keys to rank by, keys to decode with
REFUSED["qwen3_5"] = {
    *("window", "sink", "decode", "decode, asked by few", "filter", "recycle by both"),
    *(f"top by {r}" for r in ("last_query_attention", "text_raters", "value_aware", "key_norm")),
    *(f"{c} by {r}" for c in ("keep", "top") for r in RANKS if RANKS[r].reads == "this" and RANKS[r].heads),
}
REFUSED["qwen3_5_moe"] = {*REFUSED["qwen3_5"], "neurons", "keep, then window"}


@pytest.mark.parametrize("name", FAMILIES)
def test_which_plans_a_family_cannot_run(name):
    geometry, refused = geometry_of(model_of(name)), set()
    for plan, rows in {**PLANS, **DECODE}.items():
        try:
            rows.check(geometry)
        except PlanMismatchError:
            refused.add(plan)
    assert refused == REFUSED.get(name, set())


# mixtures of experts

MOE = "qwen3_vl_moe"


def test_neurons_of_experts_are_refused_by_name():
    model = FAMILIES[MOE].build()
    with apply(model, FULL.at([1], ffn=Neurons(0.5))):  # the one layer with a plain FFN
        pass
    reason = r"layer 3 of qwen3_vl_moe cannot run ffn=0\.5 of neurons, and its FFN is a mixture of experts"
    with pytest.raises(PlanMismatchError, match=reason):
        apply(model, FULL.at([1, 3], ffn=Neurons(0.5)))
    assert "forward" not in model.model.language_model.layers[0].__dict__


@torch.no_grad()
def test_router_logits_are_refused_under_a_plan():
    family, model = FAMILIES[MOE], FAMILIES[MOE].build()
    arguments = family.batch("one image")
    stock = model(**arguments, output_router_logits=True)
    assert len(stock.router_logits) == LAYERS - 1
    with apply(model, STATIC["skip"]):
        with pytest.raises(ModelError, match=r"output_router_logits=True asks .* or on the stock model"):
            model(**arguments, output_router_logits=True)
        model.config.text_config.output_router_logits = True
        for call in (model, model.model):
            with pytest.raises(ModelError, match="output_router_logits=True"):
                call(**arguments)


@pytest.mark.parametrize("kind", ["eager", "batched_mm", "grouped_mm"])
@torch.no_grad()
def test_every_implementation_of_experts(kind):
    family, model = FAMILIES[MOE], FAMILIES[MOE].build()
    model.set_experts_implementation(kind)
    for plan in ("skip", "top", "keep"):
        for batch in ("one image", "padded left"):
            arguments = family.batch(batch)
            text = text_of(family, arguments)
            slow = slow_logits(model, PLANS[plan], arguments, family.visual_ids)[text]
            with apply(model, PLANS[plan]):
                assert far(model(**arguments).logits[text], slow) < TOLERANCE, (plan, batch)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("plan", ["skip", "keep, then skip", "top", "sink"])
@torch.no_grad()
def test_the_formula_of_experts_is_pytorchs_own_count(plan):
    family, model = FAMILIES[MOE], FAMILIES[MOE].build()
    model.set_experts_implementation("eager")
    counter = FlopCounterMode(display=False)
    with apply(model, STATIC[plan]), sdpa_kernel(SDPBackend.MATH), counter:
        model(**family.batch("one image"), logits_to_keep=1)
    counts, decoder = counter.get_flop_counts(), f"{type(model).__name__}.model.language_model"
    counted = sum(counts[decoder].values()) - sum(counts.get(f"{decoder}.rotary_emb", {}).values())
    # START and END are text, one on each side of the 12 visual tokens
    told = prefill(geometry_of(model), visual=12, text=14, before=6, plan=STATIC[plan], kept=1)
    assert counted == told.total


@pytest.mark.usefixtures("apart")
@torch.no_grad()
def test_the_lower_bound_reads_the_experts_that_are_picked(monkeypatch):
    family, model = FAMILIES[MOE], FAMILIES[MOE].build()
    located = locate(model)
    for plan in (None, FULL.at([0, 1, 2], ffn=Skip())):
        prompts = prompts_of(located, family.batch("one image"))
        run = lower_bound_of(located, prompts, plan)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        told = prefill(located.geometry, visual=12, text=14, before=6, plan=(plan or FULL).as_run)
        assert counter.get_total_flops() == told.total


def test_what_a_mixture_reads():
    geometry = Geometry.preset("Qwen3-VL-30B-A3B")
    full = Plan.full(geometry)
    assert prefill(geometry, visual=900, text=100).experts == pytest.approx(48 * 128)
    skipped = full.at(range(48), ffn=Skip())
    assert prefill(geometry, visual=900, text=10, plan=skipped).experts == pytest.approx(48 * 60.87, rel=1e-3)
    assert prefill(Geometry.preset("LLaVA-1.5-7B"), visual=900, text=10).experts == 0
    few, many = (prefill(geometry, visual=900, text=100, plan=plan).total for plan in (skipped, full))
    assert few < 0.75 * many


def test_the_geometry_of_a_mixture():
    geometry = geometry_of(model_of(MOE))
    assert geometry.experts_of(1) is None
    assert [geometry.ffn_width(layer) for layer in range(3)] == [96, 96, 96]  # two of 48, and a plain one of 96
    assert geometry.like == (0, 1, 0, 0, 0)
    assert Geometry.model_validate(geometry.model_dump(mode="json")) == geometry
    plain = Geometry.preset("LLaVA-1.5-7B")
    assert set(plain.model_dump()) == {
        "model_type", "layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim",
    }  # fmt: skip


def test_a_search_proposes_what_layers_can_run():
    geometry = geometry_of(model_of(MOE))
    standard = Menu.standard(LAYERS, 12)
    menu = standard.within(geometry)
    assert [row.ffn.neurons is None for row in menu.rows] == [True] * len(menu.rows)
    assert set(standard.rows) - set(menu.rows) == set(menu.special[1])  # that layer has an FFN
    assert list(menu.special) == [1]
    for layer in range(LAYERS):
        for row in menu.at(layer):
            Plan.full(LAYERS).at([layer], **dict(row)).check(geometry)
    with pytest.raises(PlanMismatchError, match=r"layer 0 of qwen3_vl_moe cannot run ffn=0\.2 of neurons"):
        one_row(geometry, 0, INTERVENTIONS["neuron_effect"].cells)


# families over a decoder that another has as well


@pytest.mark.parametrize("name", ALIKE)
@torch.no_grad()
def test_a_family_over_a_known_decoder(name):
    """Each kind of batch, generation over a cache and a second turn: text, visual tokens and layers are found."""
    family, model = ALIKE[name], ALIKE[name].build()
    located = locate(model)
    others = [module for module in located.inner.children() if module is not located.decoder]
    assert located.tower is max(others, key=lambda module: sum(p.numel() for p in module.parameters()))
    for plan in ("mixed", "keep by value_aware", "decode"):
        rows = {**SKIPPED, **PLANS, **DECODE}[plan]
        for kind in family.kinds:
            arguments = family.batch(kind)
            text = text_of(family, arguments)
            slow = slow_logits(model, rows, arguments, family.visual_ids)[text]
            with apply(model, rows):
                assert far(model(**arguments).logits[text], slow) < TOLERANCE, (plan, kind)
        if plan != "decode":
            assert far(model(**arguments).logits[text], slow) > 10 * TOLERANCE
        first, turn, whole = family.turns(model, 4, "wide", 5)
        cache = DynamicCache(config=model.config.get_text_config())
        with apply(model, rows):
            model(**first, past_key_values=cache)
            fast = model(**turn, past_key_values=cache).logits[:, -5:]
        ends = [first["input_ids"].shape[1], whole["input_ids"].shape[1]]
        assert far(fast, slow_logits(model, rows, whole, family.visual_ids, ends)[:, -5:]) < TOLERANCE, plan
    arguments = family.batch("one image")
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SPECIAL}
    with apply(model, PLANS["skip"]):
        assert torch.equal(*(model.generate(**arguments, **options, use_cache=cached) for cached in (True, False)))


def test_every_supported_family_is_tested():
    every = (*FAMILIES.values(), *GEMMA.values(), LFM2)
    tested = {family.build().config.model_type for family in every} | {*ALIKE}
    assert tested == {*SUPPORTED}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Mistral3Config(text_config={"model_type": "ministral3"}), "grows with their position"),
        (LlavaConfig(text_config={"model_type": "gemma"}), "supported decoders are llama"),
        (SimpleNamespace(model_type="gemma3n"), "residual streams"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_is_not_supported_is_refused_with_the_reason(config, reason):
    with pytest.raises(ModelError, match=rf"not supported.*{reason}"):
        family_of(config)
