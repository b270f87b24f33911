"""A plan per request: where prompts go, what they are answered under, and sets that are refused."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from helpers.cli import fails, run
from helpers.families import FAMILIES
from helpers.models import tiny_llava
from lookless import Plan, PlanError, PlanMismatchError, Samples, Skip, apply, evaluate, load_data
from lookless.data import SeenWarning
from lookless.evaluation import normal
from lookless.routing import PlanSet, Router, evaluate_routed
from lookless.routing.centroids import SHRINKAGE, Belief, Centroids, Nearest, held_out
from lookless.routing.embeddings import Reader
from lookless.routing.planset import NUMBERS, _hash
from lookless.sets import SET_FILE_NAME

FULL = Plan.full(12)
FIRM = {"chart": FULL.at(range(9), attention=Skip()), "text": FULL.at([0, 1, 2], ffn=Skip())}
PLANS = {**FIRM, "counting": FULL.at([4, 5], attention=Skip(), ffn=Skip())}
FALLBACK = FULL.at([11], attention=Skip())
PROMPTS = 16


def prompts(task: str, split: str = "calibration", count: int = PROMPTS) -> Samples:
    return load_data(f"reference:{task}", split=split, limit=count)


def fit(loaded, count: int = PROMPTS, **settings) -> PlanSet:
    tasks = {name: (prompts(name, count=count), plan) for name, plan in PLANS.items()}
    return PlanSet.fit(loaded, tasks, FALLBACK, progress=False, **settings)


@pytest.fixture(scope="module")
def planset(reference) -> PlanSet:
    return fit(reference, 50)


@pytest.fixture(scope="module")
def router(planset, reference) -> Router:
    return Router(planset, reference)


@pytest.fixture
def saved(planset, tmp_path):
    planset.save_pretrained(tmp_path / "set")
    return tmp_path / "set"


def mixed(count: int, *tasks: str) -> Samples:
    """Held-out questions of ``tasks`` in turn."""
    each = [prompts(task, "test", count).items for task in tasks]
    return Samples("mixed", tuple(sample for turn in zip(*each, strict=True) for sample in turn))


def test_prompts_go_to_their_task_and_those_of_no_task_fall_back(router):
    known = router.route_samples(mixed(12, *PLANS).items)
    names = [*PLANS] * 12
    assert sum(route.name == name for route, name in zip(known, names, strict=True)) >= 33
    assert {route.name for route in known} - {"fallback"} == {*PLANS}
    assert all(route.nearest == name for route, name in zip(known, names, strict=True))
    unknown = router.route_samples(mixed(8, "listing", "relation", "existence").items)
    assert [route.name for route in unknown].count("fallback") >= 23
    assert all((route.name == "fallback") == (route.confidence < 0.05) for route in (*known, *unknown))
    assert all(router.plan(route) == PLANS.get(route.name, FALLBACK) for route in (*known, *unknown))


def test_answers_are_those_under_the_plan_of_each_prompt(router, reference):
    """In the order of the questions, one by one, with the plan applied by hand."""
    samples = mixed(2, "chart", "relation", "counting", "text").items
    together = router.answer(samples, batch=3, max_new_tokens=8)
    by_hand = []
    for sample in samples:
        with apply(reference.model, router.plan_for(reference.inputs([sample]))):
            by_hand += reference.answer([sample], max_new_tokens=8)
    assert together == by_hand
    for plan in (None, *FIRM.values()):  # or the order would not show
        with apply(reference.model, plan or FULL):
            assert reference.answer(samples, max_new_tokens=8) != together


def test_padding_moves_no_route(router, reference):
    samples = mixed(3, "chart", "listing", "counting").items
    lengths = {len(reference.inputs([sample])["input_ids"][0]) for sample in samples}
    assert len(lengths) > 1
    assert router.route(reference.inputs(samples)) == router.route_samples(samples)


def test_a_batch_runs_under_one_plan(router, reference):
    samples = mixed(1, "chart", "text", "listing").items
    with pytest.raises(PlanError, match=r"take different plans \(chart, fallback, text\)"):
        router.plan_for(reference.inputs(samples))
    assert router.plan_for(reference.inputs(samples[1:2])) == PLANS["text"]
    ids = reference.inputs(samples[:1])["input_ids"]
    [no_text] = router.route({"input_ids": ids[:, ids[0] == router.loaded.model.config.image_token_id]})
    assert (no_text.name, no_text.confidence, no_text.nearest) == ("fallback", 0.0, None)


def test_evaluation_of_a_set(planset, router, reference):
    samples = mixed(2, *PLANS)
    found = evaluate_routed(reference, samples, planset, batch=4, progress=False)
    routes = router.route_samples(samples.items)
    assert found.routes == tuple(route.name for route in routes)
    assert found.counts == {name: found.routes.count(name) for name in (*PLANS, "fallback")}
    assert [answer.plan for answer in found.answers] == router.answer(samples.items, routes=routes)
    dense = evaluate(reference, samples, progress=False)
    assert [answer.dense for answer in found.answers] == [answer.dense for answer in dense.answers]
    right = np.mean([normal(answer.plan) == normal(answer.expected) for answer in found.answers])
    assert found.accuracy_plan.value == pytest.approx(right)
    assert (found.seen, found.samples) == (0, len(samples))
    with pytest.warns(SeenWarning, match="calibrated on 2 of these 2"):
        evaluate_routed(reference, prompts("chart", count=2), planset, progress=False)


def test_saved_and_read_again(planset, reference, saved):
    again = PlanSet.from_pretrained(saved)
    assert (again.manifest, again.plans, again.fallback) == (planset.manifest, PLANS, FALLBACK)
    samples = mixed(2, "chart", "listing", "text").items
    assert Router(again, reference).route_samples(samples) == Router(planset, reference).route_samples(samples)
    before = {path.name: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    again.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before
    (saved / "plans" / "old").mkdir()
    with pytest.raises(PlanError, match="has 'old', which is not of this set"):
        again.save_pretrained(saved)


def test_other_models_and_tokenizers_are_refused(planset, reference):
    """A copy in another precision is the same model."""
    assert Router(planset, replace(reference, model=copy.deepcopy(reference.model).bfloat16()))
    other = copy.deepcopy(reference.model)
    with torch.no_grad():
        other.get_input_embeddings().weight[7, 0] += 0.1
    for model in (other, tiny_llava()):
        with pytest.raises(PlanMismatchError, match="input embeddings are not those of mine: fit one on this model"):
            Router(planset, replace(reference, model=model, name="mine"))
    vocabulary = {**reference.processor.tokenizer.get_vocab(), "extra": 10_000}
    processor = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: vocabulary))
    with pytest.raises(PlanMismatchError, match="another tokenizer"):
        Router(planset, replace(reference, processor=processor))


def edited(saved, **changes) -> None:
    path = saved / SET_FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def task_named(name: str) -> dict:
    seen = {"data": "x", "data_hash": "0", "sample_hashes": [], "right": 0, "wrong": 0, "fell_back": 0}
    return {"name": name, **seen}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": 99}, "upgrade lookless"),
        ({"run": "rm -rf"}, "unknown key 'run'"),
        ({"doubt": 2}, "doubt: input should be less than 1"),
        ({"tasks": []}, "tasks: "),
        ({"tasks": [task_named("../../chart")]}, "tasks.0.name: "),
        ({"tasks": [task_named("a/b")]}, "tasks.0.name: "),
        ({"tasks": [task_named("a\n")]}, "tasks.0.name: "),
        ({"tasks": [task_named("chart"), task_named("Chart")]}, "the name 'chart' is taken"),
        ({"tasks": [task_named("fallback")]}, "the name 'fallback' is taken"),
        ({"tasks": [task_named("poems")]}, "no plan at"),
        ({"tasks": [task_named("chart")]}, "holds no router of 1 tasks"),
        ({"numbers": "0"}, "is not the file that planset.json was written with"),
    ],
)
def test_manifests_that_are_refused(saved, changes, said):
    edited(saved, **changes)
    with pytest.raises(PlanError, match=said):
        PlanSet.from_pretrained(saved)


class Runs:
    """Shows that a file is executed when it is read."""

    def __reduce__(self):
        return pytest.fail, ("executed",)


def numbers_without(name: str, content: bytes) -> bytes:
    return save({key: value for key, value in load(content).items() if key != name})


def numbers_with(content: bytes, **changes) -> bytes:
    return save({**load(content), **changes})


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: pickle.dumps(Runs()),
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: numbers_without("mean", content),
        lambda content: numbers_without("torn", content),
        lambda content: numbers_with(content, more=np.zeros(1)),
        lambda content: numbers_with(content, centres=np.full((3, 3), np.nan)),
        lambda content: numbers_with(content, floor=np.zeros(1)),
        lambda content: numbers_with(content, torn=np.zeros(0)),
        lambda content: numbers_with(content, basis=np.zeros(4)),
        lambda content: numbers_with(content, mean=load(content)["mean"].astype(np.float32)),
    ],
)
def test_numbers_that_are_refused(saved, broken):
    """Even where the manifest names their hash."""
    content = broken((saved / NUMBERS).read_bytes())
    (saved / NUMBERS).write_bytes(content)
    edited(saved, numbers=_hash(content))
    with pytest.raises(PlanError, match="holds no router of 3 tasks: fit the set anew"):
        PlanSet.from_pretrained(saved)


def test_missing_parts_are_refused(saved, tmp_path):
    (saved / NUMBERS).unlink()
    with pytest.raises(PlanError, match="cannot be read"):
        PlanSet.from_pretrained(saved)
    with pytest.raises(PlanError, match="no manifest at"):
        PlanSet.from_pretrained(tmp_path)
    with pytest.raises(PlanError, match=r"holds a plan set.* one of chart, counting, fallback, text"):
        Plan.from_pretrained(saved)


def test_fits_that_are_refused(reference):
    for tasks, said in (
        ({}, "there is no task"),
        ({"chart": (prompts("chart", count=3), FULL)}, "chart has 3 prompts and the router needs 5"),
        ({"chart": (prompts("chart"), FULL)}, "16 prompts together, and to say of one in 20 .* takes 40"),
        ({"chart": (prompts("chart"), Plan.full(3))}, "the plan has 3 layers and the model has 12"),
    ):
        with pytest.raises(PlanError, match=said):
            PlanSet.fit(reference, tasks, progress=False)
    with pytest.raises(PlanError, match="doubt is 1 and should be between 0 and 1"):
        fit(reference, doubt=1)
    with pytest.raises(PlanError, match="fallback' is taken"):
        PlanSet.fit(reference, {"fallback": (prompts("text", count=40), FULL)}, progress=False)


def test_tasks_that_cannot_be_told_apart_fall_back(reference):
    """Unless their plans are equal, and then there is nothing to tell apart."""
    three = {"chart": prompts("chart"), "bars": prompts("chart"), "text": prompts("text")}
    questions = prompts("chart", "test", 6).items
    differ = PlanSet.fit(reference, {n: (s, PLANS.get(n, FULL)) for n, s in three.items()}, FALLBACK, progress=False)
    routes = Router(differ, reference).route_samples(questions)
    assert {route.name for route in routes} == {"fallback"}
    assert differ.manifest.tasks[0].right + differ.manifest.tasks[0].wrong == 0
    alike = {n: (s, PLANS["text" if n == "text" else "chart"]) for n, s in three.items()}
    router = Router(PlanSet.fit(reference, alike, FALLBACK, progress=False), reference)
    plans = [router.plan(route) for route in router.route_samples(questions)]
    assert plans == [PLANS["chart"]] * len(questions)


def test_distances_are_mahalanobis_distances():
    """By the whole covariance, inverted; a feature that never varies has no part in it."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(3), 30)
    vectors = rng.normal(size=(90, 6)) @ rng.normal(size=(6, 6)) + 3 * rng.normal(size=(3, 6))[groups]
    standard = (vectors - vectors.mean(0)) / vectors.std(0)
    centres = np.stack([standard[groups == group].mean(0) for group in range(3)])
    within = np.cov((standard - centres[groups]).T, bias=True)
    shrunk = (1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / 6 * np.eye(6)
    fitted = Centroids.fit(np.c_[vectors, np.full(90, 5.0)], groups)
    for vector in rng.normal(size=(5, 6)) * 4:
        offsets = (vector - vectors.mean(0)) / vectors.std(0) - centres
        wanted = np.sqrt(np.einsum("gi,ij,gj->g", offsets, np.linalg.inv(shrunk), offsets))
        np.testing.assert_allclose(fitted.distances(np.append(vector, 5.0)), wanted, rtol=1e-9)
    left_out = np.flatnonzero(groups < 2)
    two = Centroids.fit(vectors[left_out], groups[left_out])
    nearest = two.nearest(vectors[60], np.arange(2))
    assert nearest.ratio == pytest.approx(nearest.distance / max(two.distances(vectors[60])), abs=1e-5)


def test_few_vectors_in_many_directions():
    """More features than vectors: directions that were not seen count as the widest of noise."""
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(2), 10)
    vectors = rng.normal(size=(20, 50)) + 4 * groups[:, None]
    fitted = Centroids.fit(vectors, groups)
    whole = (vectors[0] - vectors.mean(0)) / vectors.std(0)
    within = np.concatenate([whole - (vectors[groups == g].mean(0) - vectors.mean(0)) / vectors.std(0) for g in (0,)])
    assert fitted.distances(vectors[0])[0] <= np.sqrt(within @ within / fitted.floor[0]) + 1e-9
    assert fitted.nearest(vectors[0], np.arange(2)).group == 0
    assert fitted.nearest(vectors[0], np.zeros(2)).ratio == 0.0  # no group of another kind
    assert [one.group for one in held_out(vectors, groups, np.arange(2))] == [*groups]


def test_confidence_is_the_share_of_held_out_vectors_that_are_as_far():
    held = [Nearest(0, float(distance), distance / 100) for distance in range(1, 100)]
    belief = Belief.of(held, np.zeros(99, dtype=bool), 0.05)
    assert belief.confidence(Nearest(0, 0.0, 0.0)) == 1.0
    assert belief.confidence(Nearest(0, 90.0, 0.1)) == pytest.approx(2 * 11 / 100)
    assert belief.confidence(Nearest(0, 1.0, 0.9)) == pytest.approx(2 * 11 / 100)
    assert belief.confidence(Nearest(0, 1000.0, 0.0)) == pytest.approx(2 / 100)
    wrong = np.array([one.ratio > 0.6 for one in held])
    torn = Belief.of(held, wrong, 0.05).torn
    assert 0.6 < torn < 0.66  # of those up to it 5 in 100 may be wrong
    assert Belief.of(held, wrong, 0.05).confidence(Nearest(0, 1.0, 0.7)) == 0.0


def test_size_of_images_is_part_of_a_prompt():
    family = FAMILIES["qwen2_5_vl"]
    reader = Reader(family.build())
    small, large = (reader.vectors(family.arguments((4, kind, 3)))[0] for kind in ("image", "wide"))
    assert small[-1] != large[-1]
    visual = int(np.isin(family.arguments((4, "wide", 3))["input_ids"][0], family.visual_ids).sum())
    assert large[-1] == pytest.approx(np.log1p(visual))


def test_commands(tmp_path, image):
    FULL.at([0, 1], attention=Skip()).save_pretrained(tmp_path / "chart")
    FULL.at([2], ffn=Skip()).save_pretrained(tmp_path / "text")
    pairs = [
        word for n in ("chart", "text") for word in ("--plan", f"{n}={tmp_path / n}", "--data", f"{n}=reference:{n}")
    ]
    fitted = run("route", "reference", *pairs, "--samples", 20, "--out", tmp_path / "set", "--json")
    assert fitted.exit_code == 0, fitted.output
    assert {*json.loads(fitted.stdout)} == {"chart", "text"}
    tested = run("eval", "reference", "--data", "reference:chart", "--limit", 4, "--plan", tmp_path / "set", "--json")
    assert json.loads(tested.stdout)["counts"] == {"chart": 4, "text": 0, "fallback": 0}
    asked = ("generate", "reference", "--plan", tmp_path / "set", "--image", image, "--json", "--prompt")
    assert json.loads(run(*asked, "which bar is the tallest?").stdout)["route"] == "chart"
    assert json.loads(run(*asked, "dance, dance, otherwise we are lost").stdout)["route"] == "fallback"
    one = "holds a plan set, which gives each prompt a plan of its own, and one plan is wanted here"
    assert one in fails("serve", "reference", "--plan", tmp_path / "set")
    assert one in fails("show", tmp_path / "set")
    command = ("route", "reference", "--out", tmp_path / "other")
    assert "'chart' has no --data: give both" in fails(*command, *pairs[:2], "--data", "text=reference:text")
    assert "is not TASK=..." in fails(*command, *pairs[2:], "--plan", "chart")
    assert "names 'chart' twice" in fails(*command, *pairs, *pairs[:2])
