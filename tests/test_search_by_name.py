"""`lookless search --method`: each search against its Python form, what it leaves, resumes and refuses."""

from __future__ import annotations

import json

import pytest

from helpers.cli import fails
from helpers.loaded import samples_of, tiny_loaded
from helpers.models import LAYERS, tiny_llava
from lookless import Plan, Scores, Skip, calibrate, methods
from lookless.cli import search as command
from lookless.errors import PlanError, PlanMismatchError
from lookless.optimize.begin import start, visit
from lookless.optimize.folder import Run, Target
from lookless.optimize.searches import SEARCHES, search_by_name
from lookless.optimize.split import Task
from lookless.search import (
    DepthChoice,
    Front,
    GreedyOrder,
    Objective,
    Repaired,
    by_flops,
    dop_depths,
    gsop_order,
    redundancylens_order,
    repair,
)
from lookless.search.additive import Additive
from lookless.search.operators import OperatorChoice
from lookless.search.recorded import Recorded

MODEL = tiny_llava()
#: Of each task the parts: to calibrate, to search, to select, to certify.
TASKS = (
    Task("a", "a", *map(samples_of, ("one image", "image first", "image last", "batch alike"))),
    Task("b", "b", *map(samples_of, ("two images", "two images touching", "padded left", "padded right"))),
)
SEARCHED = [task.tuning for task in TASKS]
BUDGET = 0.6


def begun(out, begin=visit, budget=BUDGET, **settings):
    target = Target(kind="flops", value=budget)
    run = begin(tiny_loaded(MODEL), TASKS, out, target, progress=False, proposals=3, **settings)
    run.save(position="last")  # the tiny model answers nothing
    return run


@pytest.fixture(scope="module")
def objective():
    return Objective(tiny_loaded(MODEL), SEARCHED, position="last", progress=False)


def within(objective, plan, budget=BUDGET):
    return by_flops(objective.geometry, objective.visual, objective.text).share(plan.layers) <= budget + 1e-9


def checked(found, place, objective):
    """What holds of every search."""
    assert within(objective, found.plan)
    assert Plan.from_pretrained(found.folder) == found.plan
    assert found.folder == place / "plan"
    assert found.distance == pytest.approx(objective(found.plan))
    assert {one for part in SEARCHED for one in part.hashes} <= set(found.plan.provenance.sample_hashes)
    certified = {one for task in TASKS for one in task.certification.hashes}
    assert certified.isdisjoint(found.plan.provenance.sample_hashes)
    assert found.evaluations > 0
    assert json.loads(json.dumps(found.record))["method"] == found.method
    return found.plan.layers


def test_gsop_and_what_it_resumes(tmp_path, objective):
    found = search_by_name(begun(tmp_path), "gsop")
    place = tmp_path / "searches" / "gsop"
    order = GreedyOrder.load(place / "order.json")
    whole = gsop_order(objective, stride=0.0, progress=False)
    assert order.taken == whole.taken[: len(order.taken)]
    assert len(order.taken) < 3 * LAYERS  # no further than the budget
    assert checked(found, place, objective) == whole.within(BUDGET, visual=objective.visual, text=objective.text).layers
    again = begun(tmp_path)
    assert search_by_name(again, "gsop").plan == found.plan
    assert again.tuning.evaluations <= 1  # the plan found
    milder = search_by_name(begun(tmp_path, budget=0.8), "gsop")
    assert milder.plan.layers == whole.within(0.8, visual=objective.visual, text=objective.text).layers


def test_redundancylens(tmp_path, objective):
    found = search_by_name(begun(tmp_path, budget=0.75), "redundancylens")
    count, window = (found.plan.provenance.knobs[name] for name in ("attention_layers", "window"))
    expected, fewer = (
        redundancylens_order(objective, "attention", preranked=LAYERS // 2, window=window, progress=False).plan(steps)
        | redundancylens_order(objective, "ffn", preranked=LAYERS // 2, progress=False).plan(steps)
        for steps in (count, count - 1)
    )
    assert found.plan.layers == expected.layers
    assert within(objective, expected, 0.75)
    assert not within(objective, fewer, 0.75)
    assert Plan.from_pretrained(tmp_path / "searches" / "redundancylens" / "plan") == found.plan
    with pytest.raises(PlanError, match=r"RedundancyLens keeps .* if it changes all 5 layers"):
        search_by_name(begun(tmp_path, budget=0.2), "redundancylens")


def test_dop_and_what_it_resumes(tmp_path, objective):
    found = search_by_name(begun(tmp_path), "dop")
    place = tmp_path / "searches" / "dop"
    assert checked(found, place, objective) == dop_depths(objective, kept=BUDGET, progress=False).plan.layers
    assert DepthChoice.load(place / "result.json").plan.layers == found.plan.layers
    again = begun(tmp_path)
    assert search_by_name(again, "dop").plan == found.plan
    assert again.tuning.evaluations == 0
    served = search_by_name(begun(tmp_path / "served", engine="vllm"), "dop")
    assert all(row.keep.is_full for row in served.plan.layers)


def test_operator_skipping_and_its_repair(tmp_path, objective):
    run = begun(tmp_path)
    found = search_by_name(run, "operator-skipping", tau=0.0)
    place = tmp_path / "searches"
    for measure, scores in run.scores().items():
        apart = [calibrate(tiny_loaded(MODEL), task.calibration, measure=measure, progress=False) for task in TASKS]
        assert scores.per_sample == tuple(pytest.approx(row, abs=1e-6) for one in apart for row in one.per_sample)
    expected = methods.operator_skipping(
        *run.scores().values(), save=1 - BUDGET, visual=objective.visual, text=objective.text
    )
    assert checked(found, place / "operator-skipping", objective) == expected.layers
    choice = OperatorChoice.load(place / "operator-skipping" / "result.json")
    assert choice.labels == methods.labels(*run.scores().values(), tau=0.0)
    assert choice.labels.count("silent") == 1  # the last layer, which nobody reads
    assert "silent: 4" in str(choice)
    fixed = search_by_name(begun(tmp_path), "repair", plan=found.plan)
    result = Repaired.load(place / "repair" / "result.json")
    assert checked(fixed, place / "repair", objective) == repair(objective, found.plan, kept=BUDGET).plan.layers
    assert result.after <= result.before == pytest.approx(found.distance)
    assert set(found.plan.provenance.sample_hashes) <= set(fixed.plan.provenance.sample_hashes)
    with pytest.raises(PlanMismatchError):
        search_by_name(begun(tmp_path), "repair", plan=Plan.full(LAYERS + 1))


def test_joint_leaves_a_run_what_it_is(tmp_path, objective, monkeypatch):
    monkeypatch.setattr("lookless.bench.latency.CHECKED", 1)
    monkeypatch.setattr("lookless.search.seeds.STEPS", 3)
    before = begun(tmp_path, start, budget=0.9)
    before.save(lines=("the result",), chosen=2)
    (tmp_path / "plan").mkdir()
    found = search_by_name(begun(tmp_path), "joint")
    checked(found, tmp_path / "searches" / "joint", objective)
    assert found.plan.layers == Front.load(tmp_path / "front.json").within(BUDGET).plan.layers
    assert found.time is not None
    after = Run.load(tmp_path)
    assert (after.target, after.lines, after.chosen) == (before.run.target, ("the result",), 2)
    assert {"calibrate", "search"} <= after.seconds.keys()
    assert not list((tmp_path / "plan").iterdir())


class StoppedError(Exception):
    pass


def test_calibration_that_is_killed_goes_on(tmp_path, monkeypatch):
    """Stopped after every 20 plans, it ends with the same numbers, and has run none twice."""
    whole = begun(tmp_path / "whole")
    expected = whole.additive()
    monkeypatch.setattr("lookless.search.recorded.SAVE_S", -1.0)
    run_one, evaluations = Recorded.effects, []

    def stopping(self, plan, among=None):
        if self.evaluations >= 20:
            evaluations.append(self.evaluations)
            raise StoppedError
        return run_one(self, plan, among)

    monkeypatch.setattr(Recorded, "effects", stopping)
    while not (tmp_path / "cut" / "additive.json").exists():
        try:
            begun(tmp_path / "cut").additive()
        except StoppedError:
            assert (tmp_path / "cut" / "effects.json").exists()
    found = Additive.load(tmp_path / "cut" / "additive.json")
    assert len(evaluations) == expected.evaluations // 20 > 2
    assert found.model_copy(update={"seconds": expected.seconds}) == expected
    scores = sorted((tmp_path / "whole" / "scores").iterdir())
    assert len(scores) == 6
    for path in scores:
        assert (tmp_path / "cut" / "scores" / path.name).read_bytes() == path.read_bytes()
        assert Scores.load(path).geometry == whole.geometry
    assert not (tmp_path / "cut" / "effects.json").exists()


def test_a_record_of_other_samples_is_refused(tmp_path):
    path = tmp_path / "effects.json"
    one = Recorded(tiny_loaded(MODEL), SEARCHED, path, progress=False)
    plan = Plan.full(LAYERS).at([1], attention=Skip())
    effects = one.effects(plan)
    one.effects(Plan.full(LAYERS).at([2], attention=Skip()), [0])  # not on all samples, so not kept
    one.save()
    again = Recorded(tiny_loaded(MODEL), SEARCHED, path, progress=False)
    assert again.effects(plan) == effects
    assert again.evaluations == 0
    assert again.earlier > 0
    again.effects(Plan.full(LAYERS).at([2], attention=Skip()), [0])
    assert again.evaluations == 1
    with pytest.raises(PlanError, match="of another model or of other samples"):
        Recorded(tiny_loaded(MODEL), SEARCHED[:1], path, progress=False)


def test_refusals(tmp_path):
    """Before a model is loaded."""
    begin = ("search", "reference", "--data", "reference:chart", "--out", tmp_path / "run")
    assert "method 'x' is not one of joint, gsop" in fails(*begin, "--flops", 0.5, "--method", "x")
    assert "none of them was given" in fails(*begin)
    assert "--flops and --latency was given" in fails(*begin, "--flops", 0.5, "--latency", 0.5)
    assert "--latency is for --method joint, and this is gsop" in fails(*begin, "--latency", 0.5, "--method", "gsop")
    assert "--tau is for --method operator-skipping" in fails(*begin, "--flops", 0.5, "--tau", 0.1)
    assert "--proposals is for --method joint" in fails(*begin, "--flops", 0.5, "--method", "dop", "--proposals", 1)
    assert "repair begins with a plan" in fails(*begin, "--flops", 0.5, "--method", "repair")
    assert "no plan at nowhere" in fails(*begin, "--flops", 0.5, "--method", "repair", "--plan", "nowhere")
    served = ("--engine", "vllm", "--method", "gsop")
    assert "vLLM cannot serve what gsop finds" in fails(*begin, "--flops", 0.5, *served)
    assert not (tmp_path / "run").exists()
    assert "|".join(SEARCHES) == command.METHODS
