"""GLM-4V and PaddleOCR-VL: norms behind operators, gate and up in one matrix, neighbours turned, prices, chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.alike import ALIKE
from helpers.chunks import in_calls
from helpers.compare import TOLERANCE, far, needs, text_logits, text_of
from helpers.glm import VIDEOS
from helpers.loaded import ONE, loaded_of
from helpers.models import LAYERS, TEXT
from helpers.plans import BY_RANK, DECODE, FULL, SKIPPED, STATIC
from helpers.slow_reference import slow_logits
from lookless import Neurons, Plan, Skip, apply, trace
from lookless.bench.dummy_model import make_dummy_model
from lookless.bench.lower_bound import lower_bound_of
from lookless.calibration.affine import Fitter
from lookless.calibration.gradients import diagnose
from lookless.calibration.sweep import INTERVENTIONS, sweep
from lookless.configs import shape_named
from lookless.errors import ModelError, PlanMismatchError
from lookless.flops import prefill
from lookless.runtime.families import geometry_of, locate
from lookless.runtime.prompts import prompts_of

NEW = ("glm4v", "glm4v_moe", "glm_ocr", "paddleocr_vl")


@pytest.mark.parametrize("plan", {**STATIC, **BY_RANK, **DECODE})
@torch.no_grad()
def test_every_cell_with_norms_behind(plan):
    family, model, rows = ALIKE["glm4v"], ALIKE["glm4v"].build(), {**STATIC, **BY_RANK, **DECODE}[plan]
    for kind in ("one image", "two images", "padded left"):
        arguments = family.batch(kind)
        text = text_of(family, arguments)
        slow = slow_logits(model, rows, arguments, family.visual_ids)[text]
        with apply(model, rows):
            assert far(text_logits(model, arguments, text), slow) < TOLERANCE, kind


@pytest.mark.parametrize("name", NEW)
@torch.no_grad()
def test_one_prompt_in_calls_of_any_length(name):
    family, model = ALIKE[name], ALIKE[name].build()
    arguments = family.arguments((3, "image", 2, "wide", 4))
    n, text = arguments["input_ids"].shape[1], text_of(family, arguments)
    for plan in ("mixed", "freeze"):
        slow = slow_logits(model, SKIPPED[plan], arguments, family.visual_ids)[text]
        for sizes in ((2, 6, 10, 1, n - 19), (7, n - 7)):
            assert far(in_calls(model, SKIPPED[plan], arguments, sizes)[text], slow) < TOLERANCE, (plan, sizes)


@torch.no_grad()
def test_the_frames_of_a_video_have_the_images_id():
    family, model = replace(ALIKE["glm4v"], visuals=VIDEOS), ALIKE["glm4v"].build()
    for prompts in ([(4, "image", 6)], [(2, "image", 3), (5, "image", 2, "image", 1)]):
        arguments = family.arguments(*prompts)
        arguments["mm_token_type_ids"] *= 2
        text = text_of(family, arguments)
        slow = slow_logits(model, STATIC["skip"], arguments, family.visual_ids)[text]
        with apply(model, STATIC["skip"]), trace(model) as counted:
            assert far(model(**arguments).logits[text], slow) < TOLERANCE
        assert counted.layers[1]["ffn"] == int(text.sum())


# prices


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("plan", ["full", "skip", "top", "neurons"])
@pytest.mark.parametrize("name", NEW)
@torch.no_grad()
def test_the_price_is_pytorchs_own_count_and_the_lower_bounds(name, plan):
    family, model, rows = ALIKE[name], ALIKE[name].build(), {"full": FULL, **STATIC}[plan]
    needs(model, rows)
    if name.endswith("moe"):
        model.set_experts_implementation("eager")
    located, arguments = locate(model), family.batch("one image")
    kept = None if rows.is_full else 1
    told = prefill(geometry_of(model), visual=12, text=14, before=6, plan=rows, kept=kept).total
    with apply(model, rows), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**arguments, logits_to_keep=1)
    counts, decoder = counter.get_flop_counts(), f"{type(model).__name__}.model.language_model"
    counted = sum(counts[decoder].values()) - sum(counts.get(f"{decoder}.rotary_emb", {}).values())
    if plan != "full":  # nothing is replaced, and every row scored with all keys
        assert counted == told
    prompts = prompts_of(located, arguments)
    if kept:
        prompts.read_only(kept)
    run = lower_bound_of(located, prompts, rows)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() == pytest.approx(told, rel=0.01 if plan == "top" else 0)


@pytest.mark.parametrize("name", NEW)
def test_a_decoder_of_such_a_shape_can_be_timed(name, tmp_path):
    """Of its configuration alone, as the bench does it."""
    model = ALIKE[name].build()
    model.config.save_pretrained(tmp_path)
    shape = shape_named(str(tmp_path))
    assert shape.geometry == geometry_of(model)
    made = make_dummy_model(shape, dtype=torch.float32)
    assert made.geometry == shape.geometry.model_copy(update={"model_type": "llava"})
    inputs = made.inputs(visual=9, before=3, after=4, batch=1)
    with apply(made.model, SKIPPED["mixed"]), trace(made.model) as counted:
        made.model(**inputs)
    assert [row["query"] for row in counted.layers] == [7, 7, 16, 16, 16]


def test_neurons_of_weighed_experts_are_refused_by_name():
    model = ALIKE["glm4v_moe"].build()
    with apply(model, FULL.at([0], ffn=Neurons(0.5))):  # the one layer with a plain FFN
        pass
    with pytest.raises(PlanMismatchError, match=r"layer 1 of glm4v_moe cannot run ffn=0\.5 of neurons"):
        apply(model, FULL.at([1], ffn=Neurons(0.5)))


def test_the_geometry_of_weighed_experts():
    geometry = geometry_of(ALIKE["glm4v_moe"].build())
    assert geometry.experts.dense == (0,)
    assert (geometry.experts.count, geometry.experts.used, geometry.experts.shared) == (8, 2, 48)
    assert [geometry.ffn_width(layer) for layer in (0, 1)] == [96, 3 * 48]
    assert type(geometry).model_validate(geometry.model_dump(mode="json")) == geometry


# calibration


@pytest.mark.parametrize("measure", ["visual_information_gain", "ffn_effect", "neuron_effect"])
@torch.no_grad()
def test_measures_with_norms_behind(measure):
    family, model = ALIKE["glm4v"], ALIKE["glm4v"].build()
    arguments, intervention = family.batch("one image"), INTERVENTIONS[measure]
    cells, distance = intervention.cells, intervention.distance
    scores = sweep(loaded_of(model, arguments), ONE, cells, name=measure, distance=distance, progress=False)
    stock = model(**arguments).logits[0, -1].float()
    for layer, score in enumerate(scores.mean):
        plan = Plan.full(LAYERS).at([layer], **dict(cells))
        changed = slow_logits(model, plan, arguments, family.visual_ids)[0, -1].float()
        assert score == pytest.approx(distance(stock, changed).item(), rel=2e-3, abs=2e-6)


def test_influence_is_that_of_what_is_added():
    """The update behind its norm: scaled a little there, the answer's log-probability moves as the gradient says."""
    model, arguments = ALIKE["glm4v"].build(), ALIKE["glm4v"].batch("one image")
    scores, located = diagnose(loaded_of(model, arguments), ONE, progress=False), locate(model)
    visual = prompts_of(located, arguments).visual[0]

    @torch.no_grad()
    def said(module, by):
        hook = module.register_forward_hook(lambda _, __, out: torch.where(visual[:, None], by * out, out))
        logits = model(**arguments).logits[0, -1].double()
        hook.remove()
        return torch.log_softmax(logits, -1)

    layer = located.layers[1]
    for operator, norm in (("attention", layer.post_self_attn_layernorm), ("ffn", layer.post_mlp_layernorm)):
        answer = int(said(norm, 1).argmax())
        slope = float(said(norm, 1.01)[answer] - said(norm, 0.99)[answer]) / 0.02
        assert scores[f"{operator}_influence"].per_sample[0][1] == pytest.approx(abs(slope), rel=0.02)


@torch.no_grad()
def test_maps_of_what_is_added_give_the_full_model_back():
    family, model = ALIKE["glm4v"], ALIKE["glm4v"].build()
    arguments = family.batch("two images")
    text, plan = text_of(family, arguments), FULL.at([1, 3], attention=Skip()).at([0, 1], ffn=Skip())
    fitter = Fitter(loaded_of(model, arguments), ONE, position="last", progress=False)
    fitted = fitter.refit(plan, rank=TEXT["hidden_size"], ridge=0)
    wanted = model(**arguments).logits[text]
    with apply(model, fitted):
        assert far(model(**arguments).logits[text], wanted) < 5e-3
    with apply(model, plan):
        assert far(model(**arguments).logits[text], wanted) > 0.1


def test_a_part_that_is_missing_is_named():
    for path, name in (("", "post_mlp_layernorm"), ("mlp", "gate_up_proj")):
        model = ALIKE["glm4v"].build()
        delattr(model.model.language_model.layers[1].get_submodule(path), name)
        with pytest.raises(ModelError, match=r"has no .*, which a plan needs"):
            apply(model, SKIPPED["mixed"])
