"""`lookless doctor`: right where all is right, and wrong, by name, where anything is not."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from helpers.cli import run
from helpers.families import FAMILIES, model_of
from helpers.gemma import GEMMA
from helpers.lfm2 import LFM2
from helpers.models import LAYERS
from helpers.plans import linear, mean
from helpers.slow_reference import slow_logits as whole_maps
from lookless import Filter, Keep, Plan, Sink, Skip, load_model
from lookless.doctor.comparison import trial
from lookless.doctor.prompt import Prompt
from lookless.doctor.slow import left_out, slow_logits
from lookless.doctor.spared import spared
from lookless.doctor.support import refused_cells, refused_ranks
from lookless.plan import FILE_NAME
from lookless.runtime.families import geometry_of, locate
from lookless.runtime.layer import run_layer
from lookless.runtime.prompts import prompts_of

FULL = Plan.full(LAYERS)


def sections(*arguments) -> dict[str, dict]:
    done = run("doctor", *arguments, "--json")
    found = json.loads(done.stdout)
    assert found["is_right"] == (done.exit_code == 0) == all(s["verdict"] != "wrong" for s in found["sections"])
    return {section["title"]: section for section in found["sections"]}


def test_a_page_for_an_issue(image, plan):
    done = run("doctor", "reference", "--plan", plan, "--image", image)
    assert done.exit_code == 0, done.output
    for heading in ("Environment", "Model: right", "Weights: right", "Fast path = slow reference: right"):
        assert f"### {heading}\n" in done.stdout
    assert "| in force | the rows that ran are those that the plan leaves |" in done.stdout
    assert "| layers with attention | 5 8 11 |" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {3}, "a table of two columns"


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "qwen3_5"])
@torch.no_grad()
def test_the_slow_path_is_the_tests_own(name):
    """By hooks on the stock model, as by whole attention maps."""
    family, model = FAMILIES[name], model_of(name)
    located, arguments = locate(model), family.batch("one image")
    layers = len(located.layers)
    plan = Plan.full(layers)
    plans = [trial(located.geometry), plan.at([0, 2], attention=Skip()).at([1], ffn=Skip())]
    plans.append(plan.at([1], attention=mean(), ffn=linear(2)).at([2], attention=linear(3), ffn=mean(1)))
    if located.geometry.delta is None:
        plans += [plan.at([1], visible=Skip()), plan.at([2], keep=Keep(0)).at([1], visible=Skip(), attention=Skip())]
    for one in plans:
        assert not left_out(one, located)
        slow = whole_maps(model, one, arguments, family.visual_ids)[0, -1]
        mine = slow_logits(model, located, one, arguments)
        assert (mine - slow).abs().max() < 1e-4 * slow.abs().max(), str(one)
        assert (mine - model(**arguments).logits[0, -1]).abs().max() > 1e-3 * slow.abs().max(), str(one)


def test_what_hooks_cannot_do_is_said(reference, tmp_path):
    located = locate(model_of("llava"))
    plan = FULL.at([2], keep=Keep(0.5, rank="diversity")).at([1], visible=Sink()).at([0], decode=Skip())
    assert left_out(plan, located) == ["visible of layer 1 (sink)", "keep of layer 2 (0.5 by diversity)"]
    Plan.full(geometry_of(reference.model)).at([3], keep=Filter()).save_pretrained(tmp_path)
    found = sections("reference", "--plan", tmp_path)
    assert "not compared: keep of layer 3" in found["Fast path = slow reference"]["facts"]["your plan"]
    assert "each prompt decides" in found["Your plan"]["facts"]["in force"]


def test_what_a_family_is_refused():
    refused = refused_cells(locate(model_of("qwen3_5")).geometry)
    assert any("sink" in one and "gated delta rule" in one for one in refused)
    assert any("tower_attention" in one for one in refused_ranks(locate(model_of("llava_next"))))
    assert not refused_cells(locate(model_of("llava")).geometry) + refused_ranks(locate(model_of("llava")))


def test_a_model_that_cannot_be_loaded_still_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mllama"}')
    found = sections(tmp_path)
    assert found["Environment"]["facts"]["torch"]
    assert "are not supported" in found["Model"]["facts"]["refused"]
    assert run("doctor", tmp_path).stderr == "lookless: Model: wrong, as the page says.\n"


def test_a_plan_that_does_not_fit(tmp_path):
    FULL.save_pretrained(tmp_path)
    found = sections("reference", "--plan", tmp_path)
    assert f"{LAYERS} layers and the model has 12" in found["Your plan"]["facts"]["refused"]
    assert found["Fast path = slow reference"]["verdict"] == "right"
    (tmp_path / FILE_NAME).write_text("{")
    assert "cannot be read as a plan" in sections("reference", "--plan", tmp_path)["Your plan"]["facts"]["refused"]


def test_a_fast_path_that_is_wrong_is_found(monkeypatch):
    """The FFN's last rows are the layer's input: a runtime that forgets to add them."""

    def forgetful(layer, work, prompts, x, **arguments):
        out, record = run_layer(layer, work, prompts, x, **arguments)
        return torch.where(torch.arange(x.shape[1])[:, None] == x.shape[1] - 1, x, out), record

    monkeypatch.setattr("lookless.runtime.forward.run_layer", forgetful)
    found = sections("reference")
    assert found["Fast path = slow reference"]["verdict"] == "wrong"
    assert found["Weights"]["verdict"] == "right"


def test_weights_that_are_no_numbers_are_named(monkeypatch):
    broken = load_model("reference")
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(float("nan"))
    monkeypatch.setattr("lookless.doctor.examination.load_model", lambda *_, **__: broken)
    found = sections("reference")
    assert "lm_head.weight" in found["Weights"]["facts"]["not finite"]
    assert found["Weights"]["verdict"] == "wrong"


@pytest.mark.parametrize(
    ("family", "layer", "told"),
    [
        (LFM2, 0, "the rows that ran are those that the plan leaves"),  # a short convolution makes some rows more
        (GEMMA["gemma4"], 1, "stock transformers leaves rows out of its last layers, so they were not compared"),
    ],
    ids=["lfm2_vl", "gemma4"],
)
def test_rows_that_the_plan_does_not_say_are_not_held_against_it(family, layer, told):
    model, arguments = family.build(), family.batch("one image")
    located = locate(model)
    prompt = Prompt(located, arguments, prompts_of(located, arguments, 1), "drawn")
    plan = Plan.full(located.geometry).at([layer], attention=Skip(), ffn=Skip())
    found = spared(SimpleNamespace(model=model, name="tiny", revision=None), prompt, plan)
    assert (found.facts["in force"], found.verdict) == (told, "right")
