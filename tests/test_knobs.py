"""Knobs and scores of a method: read from text, checked, refused in one sentence."""

from __future__ import annotations

from functools import partial

import pytest

from helpers.scores import SEVEN, risks, scored
from lookless import methods
from lookless.errors import PlanError
from lookless.methods import METHODS
from lookless.methods.knobs import knobs_of


@pytest.mark.parametrize(
    ("attempt", "complaint"),
    [
        (lambda: methods.v_skip(scored(1, 2), layers=3), "v-skip: asked to skip 3 layers and the model has 2."),
        (lambda: methods.shortv(scored(1, 2, name="layer_contribution"), layers=-1), "shortv: asked to skip -1 layers"),
        (lambda: methods.v_skip_universal(layers=1), "there are no scores"),
        (lambda: methods.v_skip_universal(scored(1), layers=1, by="max"), "by is 'max' and should be one of mean"),
        (lambda: methods.v_skip_universal(scored(1), scored(1, 2), layers=1), "calibrate both on one model"),
        (lambda: methods.fastv(SEVEN, keep=1.5), "fastv: ratio: input should be less than or equal to 1, found '1.5'"),
        (lambda: methods.fastv(SEVEN, layer=0), "fastv: layer 0 ranks by last_query_attention"),
        (lambda: methods.fastv(SEVEN, layer=32), "fastv: layer 32 is not in a plan of 32 layers"),
        (lambda: methods.vtw(12, after=11), "a layer is needed after it: the model's are 0 to 11"),
        (
            lambda: methods.vtw_search(scored(1, 2, name="withdrawal"), start=2),
            "start is layer 2 and the model's are 0 to 1",
        ),
        (lambda: methods.vtw_search(scored(1, 2, name="withdrawal"), eta=-1), "eta is -1"),
        (lambda: methods.pyramiddrop(12, layers=(3, 2), keep=(0.5, 0.2)), "give rising layers"),
        (lambda: methods.pyramiddrop(12, layers=(2, 3), keep=(0.2, 0.5)), "let them fall"),
        (lambda: methods.pyramiddrop(12, layers=(2, 3), keep=(0.5,)), "give one a layer"),
        (lambda: methods.sparsevlm(12, budget=100), "no counts are published for budget 100 in version 1"),
        (lambda: methods.st3(12, stride=0), "stride is 0"),
        (lambda: methods.redundancylens([0, 0], [0, 1]), "names each of the 2 layers once"),
        (lambda: methods.redundancylens([0, 1], [0, 1]), "asked to reduce attention in 16 layers"),
        (lambda: methods.visipruner(12, shallow=10), "two layers are needed after it"),
        (lambda: methods.dop(12, attention=13, ffn=2), "attention ends at layer 13"),
        (lambda: methods.dop(12, attention=3, ffn=2, keep=0.5, rank="charm"), "there is no rank 'charm'"),
        (lambda: methods.gsop(12, order=(("keep", 1),)), "the order names 'keep'"),
        (lambda: methods.gsop(12, order=(("ffn", 1), ("ffn", 1))), "names an operation twice"),
        (lambda: methods.gsop(12, order=()), "the order names no operation"),
        (lambda: methods.gsop(12, order=(("ffn", 1),), steps=2), "steps is 2 and the order has 1"),
        (lambda: methods.gsop(12, order=(("ffn", 1),), steps=-1), "steps is -1 and the order has 1"),
        (lambda: methods.halfv(12, layers=(3,)), "give two rising layers"),
        (lambda: methods.halfv_llava(12, freeze=13), "freeze is 13"),
        (lambda: methods.dash(12, layer=12), "layer is 12 and the model's are 0 to 11"),
        (lambda: methods.vica(12, layers=(12,)), "layer 12 is not in a plan of 12"),
        (lambda: methods.operator_skipping(*risks((1,), (1,), (1,)), save=0.9), "freezing every layer saves"),
        (lambda: METHODS["fastv"].build(SEVEN, depth=3), "fastv has no knob 'depth'; its knobs are --layer INT"),
        (lambda: METHODS["v-skip"].build(SEVEN), "needs scores of visual_information_gain and was given none"),
        (lambda: METHODS["vtw-search"].build(SEVEN, {"x": scored(1)}), "needs scores of withdrawal and was given x"),
        (lambda: METHODS["v-skip"].build(SEVEN, [scored(1, 2)]), "2 layers and the model has 32"),
        (lambda: METHODS["gsop"].build(SEVEN), "gsop needs order, which is found by search"),
        (lambda: methods.find("look"), "no method 'look'; choose one of alvts, dash"),
    ],
)
def test_refusals_are_one_sentence(attempt, complaint):
    with pytest.raises(PlanError) as caught:
        attempt()
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_knobs_are_typed_as_text():
    knobs = {**knobs_of(methods.pyramiddrop), **knobs_of(methods.gsop), **knobs_of(methods.fastv)}
    assert knobs["layers"].parsed("3, 6,9") == (3, 6, 9)
    assert knobs["keep"].parsed(".5") == 0.5
    assert knobs["order"].parsed("ffn:11,visible:2") == (("ffn", 11), ("visible", 2))
    assert knobs["steps"].parsed("3") == 3
    for method in METHODS.values():
        for name, value in {
            k.name: k.default for k in method.knobs.values()
        }.items() | method.example_arguments.items():
            if isinstance(value, int | float | tuple):
                assert method.knobs[name].parsed(method.knobs[name].typed(value)) == value
    for knob, text in (
        ("layers", "a"),
        ("order", "ffn"),
        ("layer", "2.5"),
        ("steps", ""),
        ("keep", "nan"),
        ("keep", "inf"),
    ):
        with pytest.raises(PlanError, match=rf"{knob} is '{text}' and should be"):
            knobs[knob].parsed(text)


@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if m.measures])
def test_scores_of_another_measure_have_to_say_so(name):
    """Given to the function or through the table; in one sentence with what is needed and what was given."""
    method = METHODS[name]
    knobs = {
        k: v for k, v in method.build(SEVEN, method.uniform_scores(SEVEN)).provenance.knobs.items() if k in method.knobs
    }
    for place, measure in enumerate(method.measures):
        given = list(method.uniform_scores(SEVEN).values())
        given[place] = given[place].model_copy(update={"name": "charm"})
        for attempt in (partial(method.make, *given, **knobs), partial(method.build, SEVEN, given)):
            with pytest.raises(PlanError) as caught:
                attempt()
            told = str(caught.value)
            assert told.startswith(f"{name}: scores of {measure} are needed and charm was given: ")
            assert f"--measure {measure}`" in told
        given[place] = given[place].use_as(measure)
        made = method.build(SEVEN, given)
        assert made == method.make(*given, **knobs)
        assert made.layers == method.build(SEVEN, method.uniform_scores(SEVEN)).layers
        assert f"charm as {measure}" in made.provenance.knobs["scores"]
    assert method.build(SEVEN, list(reversed(method.uniform_scores(SEVEN).values()))).layers == made.layers, (
        "in any order"
    )


def test_labels_are_of_three_measures():
    with pytest.raises(PlanError, match="scores of ffn_effect are needed and visual_information_gain was given"):
        methods.labels(scored(1, 2), scored(1, 2), scored(1, 2), tau=0.1)
