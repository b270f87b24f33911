"""LFM2-VL: layers with a short convolution, and a decoder whose parts have names of their own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from helpers.chunks import in_calls
from helpers.compare import TOLERANCE, far, text_logits, text_of
from helpers.family import SPECIAL
from helpers.lfm2 import LFM2
from helpers.loaded import ONE, loaded_of
from helpers.models import LAYERS
from helpers.plans import DECODE, FULL, PLANS, RANKED, SKIPPED, STATIC, mean
from helpers.slow_reference import slow_logits
from lookless import Keep, ModelError, Neurons, Sink, Skip, Top, Window, apply, trace
from lookless.bench.dummy_model import make_dummy_model
from lookless.bench.lower_bound import lower_bound_of
from lookless.calibration.sweep import INTERVENTIONS, sweep
from lookless.configs import shape_named
from lookless.errors import PlanMismatchError
from lookless.flops import layer, prefill
from lookless.geometry import Geometry
from lookless.ranks import RANKS
from lookless.runtime.families import geometry_of, locate
from lookless.runtime.prompts import prompts_of

SKIP = FULL.at([0, 2, 4], attention=Skip())
BLIND = FULL.at([0, 2], visible=Skip())
#: by what they ask of a layer with a state: a window, a sink, keys to rank by, keys to decode with
REFUSED = {
    *("window", "sink", "decode", "decode, asked by few", "filter", "recycle by both"),
    *(f"top by {r}" for r in ("last_query_attention", "text_raters", "value_aware", "key_norm")),
    *(f"{c} by {r}" for c in ("keep", "top") for r in RANKS if RANKS[r].reads == "this" and RANKS[r].heads),
}
CELLS = {
    **SKIPPED,
    **{name: plan for name, plan in {**STATIC, **RANKED}.items() if name not in REFUSED},
    "all convolutions": SKIP,
    "blind": BLIND,
    "blind, and asks": FULL.at([0, 2], visible=Skip(), attention=Skip()),
    "a few ask": FULL.at([0, 2], attention=Top(0.4, rank="random")),
    "in attention": FULL.at([1], attention=Window(4)).at([3], visible=Sink(), decode=Skip()),
    "neurons": FULL.at([0, 1], ffn=Neurons(0.5)),
    "fitted": FULL.at([0], attention=mean()).at([2, 3], ffn=mean(1)),
}


@pytest.fixture(scope="module")
def model():
    return LFM2.build()


@pytest.mark.parametrize("cells", CELLS)
@torch.no_grad()
def test_every_cell(model, cells):
    plan = CELLS[cells]
    for kind in LFM2.kinds:
        arguments = LFM2.batch(kind)
        text = text_of(LFM2, arguments)
        slow = slow_logits(model, plan, arguments, LFM2.visual_ids)[text]
        with apply(model, plan):
            assert far(text_logits(model, arguments, text), slow) < TOLERANCE, kind
            assert far(model(**arguments).logits[text], slow) < TOLERANCE, kind
    assert far(model(**arguments).logits[text], slow) > 10 * TOLERANCE, "it does something"


@pytest.mark.parametrize("cells", ["all convolutions", "blind", "mixed", "a few ask"])
@torch.no_grad()
def test_turns_and_chunks(model, cells):
    """A chunk may be all image, end in one, or be shorter than the convolution."""
    plan = CELLS[cells]
    first, turn, whole = LFM2.turns(model, 1, "wide", 5)
    cache = DynamicCache(config=model.config.get_text_config())
    with apply(model, plan):
        model(**first, past_key_values=cache)
        fast = model(**turn, past_key_values=cache).logits[:, -5:]
    ends = [first["input_ids"].shape[1], whole["input_ids"].shape[1]]
    assert far(fast, slow_logits(model, plan, whole, LFM2.visual_ids, ends)[:, -5:]) < TOLERANCE
    arguments = LFM2.arguments((3, "image", 2, "wide", 4))
    n, text = arguments["input_ids"].shape[1], text_of(LFM2, arguments)
    for sizes in ((2, 6, 8, 1, n - 17), (7, n - 7), (15, n - 15), (n - 1, 1)):
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        slow = slow_logits(model, plan, arguments, LFM2.visual_ids, ends)[text]
        if cells != "a few ask":  # which go over a call's visual tokens
            assert far(in_calls(model, plan, arguments, sizes)[text], slow) < TOLERANCE, sizes


@torch.no_grad()
def test_states_and_answers(model):
    """Rows that do not read write all the same; and each prompt of a batch is answered as alone."""
    caches = [DynamicCache(config=model.config.get_text_config()) for _ in range(2)]
    arguments = LFM2.batch("padded left")
    model(**arguments, past_key_values=caches[0])
    with apply(model, SKIP):
        model(**arguments, past_key_values=caches[1])
    torch.testing.assert_close(*(cache.layers[0].conv_states[0] for cache in caches))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "suppress_tokens": SPECIAL}
    for plan in (SKIP, BLIND, FULL.at([2], keep=Keep(0.4, rank="diversity"))):
        with apply(model, plan):
            both = model.generate(**LFM2.arguments((5, "image", 9), (2, "wide", 4)), **options)[:, -6:]
            assert torch.equal(both[0], model.generate(**LFM2.arguments((5, "image", 9)), **options)[0, -6:])
            assert torch.equal(
                *(model.generate(**LFM2.batch("one image"), **options, use_cache=cached) for cached in (True, False))
            )
        with apply(model, plan), pytest.raises(ModelError, match="no place for one"):
            model(**arguments, past_key_values=DynamicCache())


@torch.no_grad()
def test_a_bias_makes_padding_matter():
    """Stock convolves what the bias makes of a padding row, so that a padded prompt has another answer."""
    model, plan = LFM2.build(bias=True), SKIP
    alone, padded = LFM2.batch("one image"), LFM2.batch("padded left")
    text = text_of(LFM2, alone)
    with apply(model, plan):
        slow = slow_logits(model, plan, alone, LFM2.visual_ids)[text]
        assert far(model(**alone).logits[text], slow) < TOLERANCE
        with pytest.raises(ModelError, match="convolution with a bias"):
            model(**padded)


@torch.no_grad()
def test_only_rows_that_are_read_are_convolved(model):
    """Two visual rows before each run of text, and the last three of a prompt for the next call."""
    arguments = LFM2.batch("one image")  # 5 words, 12 visual tokens, 7 words
    with apply(model, SKIP), trace(model) as counted:
        model(**arguments)
    assert counted.layers[0] == {"query": 12, "key": 14, "ffn": 24}
    assert counted.layers[1] == {"query": 24, "key": 24, "ffn": 24}
    with apply(model, BLIND), trace(model) as counted:
        model(**arguments)
    assert counted.layers[0]["query"] == 24, "visual rows read text and visual rows before them"


@pytest.mark.parametrize("by", ["gradients", "hooked"])
def test_a_projection_that_may_not_be_taken_apart(by):
    model, arguments = LFM2.build(), LFM2.batch("padded left")
    text = text_of(LFM2, arguments)
    if by == "hooked":
        for each in (0, 2, 4):
            model.model.language_model.layers[each].conv.in_proj.register_forward_hook(lambda _, __, out: out * 1)
    with apply(model, SKIP), torch.set_grad_enabled(by == "gradients"):
        fast = model(**arguments).logits[text]
    slow = slow_logits(model, SKIP, arguments, LFM2.visual_ids)[text]
    assert far(fast.detach(), slow) < TOLERANCE


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("attention", Window(4), "whose short convolution keeps one state .*: use Skip, Top"),
        ("visible", Sink(), "whose short convolution .*: use Skip"),
        ("decode", Skip(), "written by all tokens"),
        ("ffn", Top(0.5, rank="instruction_attention"), "reads keys of layer 2, whose short convolution"),
    ],
)
def test_what_it_cannot_run(model, column, cell, reason):
    with pytest.raises(PlanMismatchError, match=rf"layer 2 of lfm2_vl cannot run .*{reason}"):
        apply(model, FULL.at([2], **{column: cell}))


def test_which_plans_it_cannot_run(model):
    refused = set()
    for name, plan in {**PLANS, **DECODE}.items():
        try:
            plan.check(geometry_of(model))
        except PlanMismatchError:
            refused.add(name)
    assert refused == REFUSED


@pytest.mark.parametrize("measure", ["visual_information_gain", "ffn_effect", "neuron_effect"])
@torch.no_grad()
def test_measures(model, measure):
    """By replay of each layer, as of runs of the whole model."""
    arguments, intervention = LFM2.batch("one image"), INTERVENTIONS[measure]
    cells, distance = intervention.cells, intervention.distance
    scores = sweep(loaded_of(model, arguments), ONE, cells, name=measure, distance=distance, progress=False)
    stock = model(**arguments).logits[0, -1].float()
    for index, score in enumerate(scores.mean):
        plan = FULL.at([index], **dict(cells))
        changed = slow_logits(model, plan, arguments, LFM2.visual_ids)[0, -1].float()
        assert score == pytest.approx(distance(stock, changed).item(), rel=2e-3, abs=2e-6)


def test_a_decoder_of_such_a_shape_can_be_timed(model, tmp_path):
    """Of its configuration alone, as the bench does it."""
    model.config.save_pretrained(tmp_path)
    shape = shape_named(str(tmp_path))
    assert shape.geometry == geometry_of(model)
    made = make_dummy_model(shape, dtype=torch.float32)
    assert made.geometry == shape.geometry.model_copy(update={"model_type": "llava"})
    with apply(made.model, SKIP), trace(made.model) as counted:
        made.model(**made.inputs(visual=9, before=3, after=4, batch=1))
    assert [(row["query"], row["key"]) for row in counted.layers] == [(7, 9), (16, 16)] * 2 + [(7, 9)]


# prices


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("plan", [SKIP, STATIC["skip"], STATIC["top"]])
@torch.no_grad()
def test_what_plans_save_is_pytorchs_own_count(model, plan):
    arguments, least = LFM2.batch("one image"), FULL.at(range(LAYERS), attention=Skip(), ffn=Skip())

    def counted(one):
        counter = FlopCounterMode(display=False)
        with apply(model, one), sdpa_kernel(SDPBackend.MATH), counter:
            model(**arguments, logits_to_keep=1)
        counts, decoder = counter.get_flop_counts(), f"{type(model).__name__}.model.language_model"
        total = sum(counts[decoder].values()) - sum(counts.get(f"{decoder}.rotary_emb", {}).values())
        return total - sum(n for op, n in counts[decoder].items() if "convolution" in str(op))

    told = [prefill(geometry_of(model), visual=12, text=12, before=5, plan=one, kept=1).total for one in (plan, least)]
    assert counted(plan) - counted(least) == told[0] - told[1]


@torch.no_grad()
def test_the_lower_bound_has_every_projection(model):
    located = locate(model)
    for plan in (None, SKIP):
        run = lower_bound_of(located, prompts_of(located, LFM2.batch("one image")), plan)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        told = prefill(located.geometry, visual=12, text=12, before=5, plan=(plan or FULL).as_run)
        assert counter.get_total_flops() == told.total


def test_a_layer_by_hand(model):
    geometry = geometry_of(model)
    assert (geometry.intermediate, geometry.convolution.layers) == (96, (0, 2, 4))
    square = 2 * 64 * 64
    full = layer(geometry, 0, query=100, key=100, ffn=0)
    assert full == 100 * 4 * square
    assert layer(geometry, 0, query=10, key=100, ffn=0) == (2 * 12 + 2 * 10) * square
    assert layer(geometry, 1, query=10, key=10, ffn=0) == (2 * 10 + 10) * square + 4 * 10 * 10 * 64
    assert geometry.like == (0, 1, 0, 1, 0)
    assert Geometry.model_validate(geometry.model_dump(mode="json")) == geometry
    assert geometry.only(0).convolution.layers == (0,)
