"""Searches against brute force on a tiny model; what is kept, what is not run twice, and what resumes."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch

from helpers.loaded import loaded_of, made, samples_of, tiny_loaded
from helpers.models import BATCHES, LAYERS, tiny_llava
from lookless import (
    Filter,
    Keep,
    LayerPlan,
    Neurons,
    Plan,
    Sink,
    Skip,
    Top,
    Window,
    apply,
    calibrate,
    data,
    load_data,
    methods,
)
from lookless.calibration.distances import kl
from lookless.errors import DataError, ModelError, PlanError, PlanMismatchError
from lookless.search.depthwise import DepthChoice, dop_depths
from lookless.search.greedy import GreedyOrder, Step, greedy_order, gsop_order, redundancylens_order
from lookless.search.interactions import ACTIONS, Repaired, repair
from lookless.search.objective import Objective, joint_distance

NAMES = ("one image", "two images", "image first")
SAMPLES = samples_of(*NAMES)
ATTENTION, FFN = LayerPlan(attention=Skip()), LayerPlan(ffn=Skip())
MODEL = tiny_llava()


@pytest.fixture
def objective():
    return Objective(tiny_loaded(MODEL), SAMPLES, progress=False)


#: A divergence of float32 log-probabilities, in nats: the difference of numbers of order one, however small it is.
ROUNDING = 1e-6


def naive(plan):
    """Distance of each sample by whole runs under the plan."""
    distances = []
    for name in NAMES:
        with torch.no_grad():
            full = MODEL(**BATCHES[name]()).logits[:, -1]
            with apply(MODEL, plan):
                planned = MODEL(**BATCHES[name]()).logits[:, -1]
        distances.append(float(kl(*(torch.log_softmax(t.float(), -1) for t in (full, planned)))))
    return distances


PLANS = {
    "first and last": Plan.full(LAYERS).at([0], attention=Skip()).at([3], ffn=Skip()),
    "deep": Plan.full(LAYERS).at([3, 4], attention=Skip(), ffn=Skip()),
    "every column": Plan.full(LAYERS)
    .at([1], attention=Window(3), visible=Sink())
    .at([2], ffn=Neurons(0.3), keep=Keep(0.5, rank="last_query_attention"))
    .at([3], attention=Top(0.3, rank="diversity"), visible=Skip()),
    "from the embeddings": Plan.full(LAYERS).at([2], keep=Keep(0.4, rank="text_raters", recycle=0.5)),
    "filter": Plan.full(LAYERS).at([2, 3, 4], keep=Filter(cosine=1.0, norm=0.5)),
    "withdrawn": Plan.full(LAYERS).at([2], keep=Keep(0)),
    "by the tower": Plan.full(LAYERS).at([0], keep=Keep(0.4, rank="tower_attention")).at([3], ffn=Skip()),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_objective_is_whole_runs(objective, name):
    assert objective.per_sample(PLANS[name]) == pytest.approx(naive(PLANS[name]), rel=1e-3, abs=ROUNDING)
    assert max(objective.per_sample(PLANS[name])) > 100 * ROUNDING


def test_one_layer_is_what_calibrate_says(objective):
    scores = calibrate(tiny_loaded(MODEL), SAMPLES, progress=False)
    for layer in range(LAYERS):
        plan = Plan.full(LAYERS).at([layer], attention=Skip())
        assert objective.per_sample(plan) == pytest.approx([row[layer] for row in scores.per_sample], abs=ROUNDING)
    assert joint_distance(tiny_loaded(MODEL), SAMPLES, plan, progress=False) == objective(plan)


def test_nothing_is_run_twice(objective):
    full = Plan.full(LAYERS)
    assert objective(full) == 0.0
    assert objective(full.at([LAYERS - 1], attention=Skip(), ffn=Skip())) == 0.0  # nobody reads it
    assert objective.evaluations == 0
    plan = full.at([1], attention=Skip())
    objective(plan)
    objective(plan.made_by(method="another"))
    objective.per_sample(plan.at([LAYERS - 1], ffn=Skip()))
    assert objective.evaluations == 1
    objective(plan.at([2], ffn=Skip()))
    assert objective.evaluations == 2


def test_prompts_are_counted_without_the_answer(reference):
    samples = load_data("reference:chart", split="calibration", limit=2)
    last, answer = (Objective(reference, samples, position=p, progress=False) for p in ("last", "answer"))
    assert (last.visual, last.text) == (answer.visual, answer.text)
    inputs = [reference.inputs([s]) for s in samples]
    assert last.visual + last.text == sum(i["input_ids"].shape[1] for i in inputs) / 2
    plan = Plan.full(last.geometry).at([0, 1], attention=Skip())
    assert last.kept(plan) < 1
    assert last(plan) != answer(plan)


def test_refusals(objective):
    with pytest.raises(DataError, match="none of the 1 samples"):
        Objective(tiny_loaded(MODEL), data.Samples("words", (data.Sample((), "hello", ""),)), progress=False)
    with pytest.raises(PlanMismatchError):
        objective(Plan.full(LAYERS + 1).at([0], attention=Skip()))
    other = Objective(loaded_of(*made("internvl-qwen2")), samples_of("one"), progress=False)
    with pytest.raises(ModelError, match="tower_attention needs one score"):
        other(Plan.full(other.geometry).at([0], keep=Keep(0.5, rank="tower_attention")))


# greedy orders

STEPS = [Step(layer=layer, cells=cells) for layer, cells in product((0, 2, 3), (ATTENTION, FFN))]


def test_greedy_is_the_greedy_of_whole_runs(objective):
    order = greedy_order(objective, STEPS, progress=False)
    plan, left, expected = Plan.full(LAYERS), list(STEPS), []
    while left:
        best = min(left, key=lambda move: sum(naive(move.on(plan))))
        plan, left = best.on(plan), [move for move in left if move != best]
        expected.append(best)
    assert [order.candidates[i] for i in order.taken] == expected
    assert order.plan().layers == plan.layers
    for steps, distance in enumerate(order.distances, start=1):
        assert distance == pytest.approx(sum(naive(order.plan(steps))) / 3, rel=1e-3, abs=ROUNDING)
    assert min(np.diff(order.distances, prepend=0)) > 100 * ROUNDING  # one step's distance is not another's
    assert order.evaluations == objective.evaluations <= len(STEPS) * (len(STEPS) + 1) / 2
    assert "layer 3: attention skip" in str(order)


def test_greedy_against_the_best_of_all_subsets(objective):
    order = greedy_order(objective, STEPS, progress=False)
    for steps, distance in enumerate(order.distances, start=1):
        every = []
        for some in combinations(STEPS, steps):
            plan = Plan.full(LAYERS)
            for move in some:
                plan = move.on(plan)
            every.append(objective(plan))
        assert distance >= min(every)
        assert distance <= sorted(every)[len(every) // 3]  # not the best, but among the better
        if steps in (1, len(STEPS)):
            assert distance == min(every)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stride", [None, 0.0, 0.05])
def test_an_interrupted_order_goes_on(tmp_path, stride):
    path = tmp_path / "order.json"
    whole = greedy_order(Objective(tiny_loaded(MODEL), SAMPLES, progress=False), STEPS, stride=stride, progress=False)
    taken = 0
    while taken < len(STEPS):
        objective = Objective(tiny_loaded(MODEL), SAMPLES, progress=False)  # another process: nothing is remembered
        stop_at, run = 9, objective.per_sample

        def stopping(plan, run=run, objective=objective, stop_at=stop_at):
            if objective.evaluations >= stop_at:
                raise StoppedError
            return run(plan)

        objective.per_sample = stopping
        try:
            greedy_order(objective, STEPS, stride=stride, path=path, progress=False)
        except StoppedError:
            assert len(GreedyOrder.load(path).taken) > taken  # it gets on
        taken = len(GreedyOrder.load(path).taken)
    order = GreedyOrder.load(path)
    assert (order.taken, order.distances) == (whole.taken, whole.distances)
    again = greedy_order(Objective(tiny_loaded(MODEL), SAMPLES, progress=False), STEPS, stride=stride, path=path)
    assert again == order  # nothing to do


def test_another_order_is_not_continued(objective, tmp_path):
    path = tmp_path / "order.json"
    short = greedy_order(objective, STEPS, steps=2, path=path, progress=False)
    assert len(short.taken) == 2
    for options in ({"penalty": 2.0}, {"stride": 0.1}, {"start": Plan.full(objective.geometry).at([1], ffn=Skip())}):
        with pytest.raises(PlanError, match="of other candidates, knobs, model or samples"):
            greedy_order(objective, STEPS, path=path, progress=False, **options)
    longer = greedy_order(objective, STEPS, steps=3, path=path, progress=False)
    assert longer.taken[:2] == short.taken
    path.write_text(path.read_text().replace('"taken"', '"took"'))
    with pytest.raises(PlanError, match="unknown key 'took'"):
        greedy_order(objective, STEPS, path=path, progress=False)


def test_a_stride_saves_evaluations():
    orders = {}
    for stride in (None, 0.0, 10.0):
        objective = Objective(tiny_loaded(MODEL), SAMPLES, progress=False)
        orders[stride] = gsop_order(objective, stride=stride, progress=False)
        assert sorted(orders[stride].taken) == list(range(3 * LAYERS))
    assert orders[10.0].evaluations < orders[0.0].evaluations <= orders[None].evaluations  # dead work is known
    assert orders[10.0].evaluations <= 2 * 3 * LAYERS
    assert orders[None].distances[-1] == orders[10.0].distances[-1]


def test_gsop(objective):
    order = gsop_order(objective, progress=False)
    made = [str(order.candidates[i]) for i in order.taken]
    assert set(made[:2]) == {"layer 4: attention skip", "layer 4: ffn skip"}  # dead work goes first, for nothing
    assert order.distances[:2] == (0.0, 0.0)
    last_read = max(made.index(f"layer {layer}: visible skip") for layer in range(LAYERS))
    assert order.distances[last_read:] == (order.distances[-1],) * (len(made) - last_read)  # nobody reads the rest
    limited = gsop_order(objective, limit=order.distances[5], progress=False)
    assert max(limited.distances) <= order.distances[5]
    assert len(limited.taken) >= 6
    plan = order.plan(6)
    assert plan.provenance.method == "gsop"
    assert plan.provenance.knobs["steps"] == 6
    assert plan.provenance.data_hash == SAMPLES.hash


def test_an_order_serves_every_budget(objective, tmp_path):
    order = gsop_order(objective, stride=0.5, progress=False)
    order = GreedyOrder.load(order.save(tmp_path / "gsop.json"))
    for kept in (1.0, 0.8, 0.5):
        plan = order.within(kept, visual=objective.visual, text=objective.text)
        steps = plan.provenance.knobs["steps"]
        assert objective.kept(plan) <= kept
        assert steps == 0 or objective.kept(order.plan(steps - 1)) > kept
    old = order.model_dump_json().replace('"candidates"', '"moves"').replace('"schema_version":2', '"schema_version":1')
    (tmp_path / "old.json").write_text(old)
    with pytest.raises(PlanError, match=r"old.json is not a valid greedyorder: it is an order of schema 1"):
        GreedyOrder.load(tmp_path / "old.json")
    with pytest.raises(PlanError, match=r"all 15 steps keep"):
        order.within(0.01, visual=objective.visual, text=objective.text)
    with pytest.raises(PlanError, match="16 steps were requested"):
        order.plan(16)


def test_redundancylens(objective):
    attention = redundancylens_order(objective, "attention", preranked=2, window=2, progress=False)
    ffn = redundancylens_order(objective, "ffn", preranked=2, ratio=0.1, progress=False)
    for order in (attention, ffn):
        layers = [order.candidates[i].layer for i in order.taken]
        assert layers[:2] == [4, 3]
        assert sorted(layers) == list(range(LAYERS))
        assert order.distances[0] == 0.0
    joined = attention.plan(3) | ffn.plan(2)
    assert objective(joined) > 0
    assert joined.layers[4] == LayerPlan(attention=Window(2), ffn=Neurons(0.1, probe=0.1))
    with pytest.raises(PlanError, match="6 layers were to be ranked first"):
        redundancylens_order(objective, "ffn", preranked=6)


def test_the_penalty_weighs_losses(objective):
    """With samples that lose and others that win by the same move, a large penalty chooses another."""
    a, b = Step(layer=0, cells=ATTENTION), Step(layer=0, cells=FFN)
    table = {"start": (1.0, 1.0), "a": (0.2, 1.5), "b": (0.9, 1.0)}  # a: -0.8 and +0.5; b: -0.1 and nothing
    full = Plan.full(objective.geometry)
    known = {full.layers: table["start"], a.on(full).layers: table["a"], b.on(full).layers: table["b"]}
    objective.per_sample = lambda plan: known[plan.layers]
    for penalty, first in ((1.0, 0), (2.0, 1)):
        order = greedy_order(objective, [a, b], penalty=penalty, steps=1, progress=False)
        assert order.taken == (first,)


# DOP


def depthwise(geometry, attention, ffn, ratio):
    return methods.dop(geometry, attention=attention, ffn=ffn, keep=ratio, rank="diversity")


def test_dop_sums_three_distances(objective):
    g = objective.geometry
    choice = dop_depths(objective, kept=0.6, ratios=(1.0, 0.5), brute=100, progress=False)
    a, f, r = choice.attention_depth, choice.ffn_depth, choice.ratio
    parts = [(a, LAYERS, 1.0), (LAYERS, f, 1.0), (LAYERS, LAYERS, r)]
    assert choice.additive == pytest.approx(sum(objective(depthwise(g, *p)) for p in parts))
    assert choice.joint == objective(choice.plan)
    assert choice.kept == pytest.approx(objective.kept(choice.plan))
    grid = [depthwise(g, *p) for p in product(range(LAYERS + 1), range(LAYERS + 1), (1.0, 0.5))]
    within = [plan for plan in grid if objective.kept(plan) <= 0.6]
    assert choice.plan.layers in [plan.layers for plan in within]
    assert choice.best == min(map(objective, within))
    assert choice.regret >= 0
    assert choice.plan.provenance.method == "dop"


def test_dop_is_linear_in_its_numbers(objective):
    choice = dop_depths(objective, kept=0.6, ratios=(1.0, 0.5), progress=False)
    # of each depth the full one is free and the last layer dead; then one ratio, and the joint check
    assert choice.evaluations <= 2 * (LAYERS - 1) + 1 + 1
    assert choice.best is None
    assert choice.regret is None


def test_dop_between_measured_depths(objective, tmp_path):
    coarse = dop_depths(objective, kept=0.7, every=2, progress=False)
    assert coarse.kept <= 0.7
    assert DepthChoice.load(coarse.save(tmp_path / "dop.json")) == coarse
    fine = dop_depths(objective, kept=1.0, progress=False)
    assert fine.additive == 0.0
    assert objective(fine.plan) == 0.0
    assert fine.kept < 1.0  # of free plans the cheapest
    with pytest.raises(PlanError, match="keep 1"):
        dop_depths(objective, kept=0.01, progress=False)
    with pytest.raises(PlanError, match="every 0 layers"):
        dop_depths(objective, kept=0.5, every=0)


# repair


def test_repair_finds_what_additive_scores_miss(objective, tmp_path):
    scores = calibrate(tiny_loaded(MODEL), SAMPLES, progress=False)
    worst = sorted(range(LAYERS), key=scores.mean.__getitem__)[-2:]
    plan = Plan.full(objective.geometry).at(worst, attention=Skip()).made_by(method="worst", knobs={"layers": 2})
    fixed = repair(objective, plan, sweeps=4, progress=False)
    assert fixed.before == objective(plan)
    assert fixed.after == objective(fixed.plan) < fixed.before
    assert fixed.kept <= objective.kept(plan) + 1e-9
    assert set(worst) <= set(fixed.changed)
    assert fixed.provenance.method == "worst, repaired"
    assert (fixed.plan.provenance.method, fixed.plan.provenance.knobs["layers"]) == ("worst", 2)
    assert Repaired.load(fixed.save(tmp_path / "repaired.json")) == fixed
    again = repair(objective, fixed.plan, progress=False)
    assert (again.changed, again.after) == ((), fixed.after)  # nothing is left to swap


def test_repair_against_brute_force(objective):
    g = objective.geometry
    start = Plan.full(g).at([0, 1], attention=Skip(), ffn=Skip())
    budget = objective.kept(start)
    fixed = repair(objective, start, sweeps=3, progress=False)
    every = []
    for rows in product(ACTIONS, repeat=3):  # of the first three layers; deeper is cheaper in distance, so no bound
        plan = Plan.full(g)
        for layer, row in enumerate(rows):
            plan = plan.at([layer], attention=row.attention, ffn=row.ffn)
        if objective.kept(plan) <= budget + 1e-9:
            every.append(objective(plan))
    assert fixed.after <= min(every)


def test_repair_keeps_to_its_budget(objective):
    plan = Plan.full(objective.geometry).at([0], ffn=Skip())
    with pytest.raises(PlanError, match=r"more than the 50\.0% it may"):
        repair(objective, plan, kept=0.5, progress=False)
    free = repair(objective, plan, kept=1.0, progress=False)
    assert free.after == 0.0  # with room to spare, the change is undone
