"""The joint search: its knapsack, its prices, its steps against brute force, and what it resumes."""

from __future__ import annotations

import math
import random
from itertools import product
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import spearmanr

from helpers.loaded import samples_of, tiny_loaded
from helpers.models import LAYERS, tiny_llava
from helpers.plans import PLANS, random_plans
from lookless import Geometry, Keep, LayerPlan, Neurons, Plan, Skip, Window, methods
from lookless.bench.latency import TERMS, LatencyTable, _mixed, _uniform, fit_terms, layer_terms
from lookless.errors import PlanError
from lookless.search.additive import blend, frame_prices, measure_additive, risk_of
from lookless.search.archive import Archive, Race
from lookless.search.front import Candidate, Front, pareto, ranked
from lookless.search.joint import joint_search
from lookless.search.knapsack import knapsack, lower_bound
from lookless.search.menu import ROWS, Menu, framed
from lookless.search.objective import Effect, Objective, effects_of, share_kept
from lookless.search.price import by_flops
from lookless.search.surrogate import Surrogate

TASKS = (samples_of("one image", "image first"), samples_of("two images"))
MODEL = tiny_llava()
BUDGETS = (0.85, 0.7, 0.55)
SMALL = Menu(LAYERS, shares=(0.5, 0.25), ranks=("diversity", "random"), prune_at=(0, 2))


@pytest.fixture(scope="module")
def objective():
    return Objective(tiny_loaded(MODEL), TASKS, position="last", progress=False)


@pytest.fixture(scope="module")
def additive(objective):
    return measure_additive(objective, SMALL, progress=False)


def pricing(objective):
    return by_flops(objective.geometry, objective.visual, objective.text)


def search(objective, additive, **settings):
    known = {"kept": pricing(objective), "tasks": ("a", "b"), "budgets": BUDGETS, "proposals": 12, "progress": False}
    return joint_search(objective, SMALL, additive, **{**known, **settings})


@pytest.mark.parametrize("seed", range(12))
def test_knapsack_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, size=5)
    risks = [list(rng.exponential(size=n)) for n in counts]
    prices = [list(rng.uniform(0.1, 1, size=n)) for n in counts]
    budget = float(rng.uniform(0.5, 4))
    best = None
    for choice in product(*map(range, counts)):
        price = sum(p[i] for p, i in zip(prices, choice, strict=True))
        risk = sum(r[i] for r, i in zip(risks, choice, strict=True))
        if price <= budget and (best is None or risk < best):
            best = risk
    found = knapsack(risks, prices, budget)
    if best is None:
        assert found is None
        return
    assert sum(r[i] for r, i in zip(risks, found, strict=True)) == pytest.approx(best, abs=1e-6)
    width = max(counts)
    table = [
        np.array([[*row, *[more] * (width - len(row))] for row in t]) for t, more in ((risks, np.inf), (prices, 0.1))
    ]
    assert lower_bound(*table, budget) <= best + 1e-9


def test_prices_are_a_sum_over_layers():
    """For every cell and rank, and for random plans, as the formula prices what runs."""
    geometry = Geometry.preset("LLaVA-1.5-7B").model_copy(update={"layers": LAYERS})
    prices = by_flops(geometry, 576.0, 66.0)
    few = Plan.full(LAYERS).at([1], ffn=Neurons(0.5))
    halves = [few.at([0], keep=Keep(0.5, rank="random")), few.at([0], keep=Keep(count=288, rank="random"))]
    for plan in (*PLANS.values(), *random_plans(60, static=True), *halves, Plan.full(LAYERS)):
        exact = share_kept(plan.as_run, geometry, 576.0, 66.0)
        assert prices.share(plan.layers) == pytest.approx(exact, rel=1e-9), str(plan)


def test_prices_in_a_frame_are_those_of_the_plan():
    geometry = Geometry.preset("LLaVA-1.5-7B").model_copy(update={"layers": LAYERS})
    prices, rng = by_flops(geometry, 576.0, 66.0), random.Random(0)
    rows = [SMALL.at(layer)[:3] + SMALL.at(layer)[4:5] for layer in range(LAYERS)]  # those whose keys are read
    for frame in ((), ((1, Keep(0.5, rank="diversity")),), ((0, Keep(0.25, rank="random")), (4, Keep(0)))):
        table = frame_prices(rows, frame, prices)
        chosen = [rng.randrange(len(choices)) for choices in rows]
        plan = framed([choices[i] for choices, i in zip(rows, chosen, strict=True)], frame)
        assert prices.share(plan) == pytest.approx(sum(p[i] for p, i in zip(table, chosen, strict=True)))


def test_additive_choice_against_brute_force(objective, additive):
    """Over all rows of all layers and all frames: no plan within the budget has a smaller sum."""
    prices, full = pricing(objective), Plan.full(objective.geometry)
    for budget in BUDGETS:
        plan, total = additive.plan(budget, prices, full)
        assert prices.share(plan.layers) <= budget + 1e-9
        best = min(
            (
                (risk + sum(r[i] for r, i in zip(additive.risks, choice, strict=True)))
                for frame, risk in additive._frames()
                for table in [frame_prices(additive.rows, frame, prices)]
                for choice in _choices(table, additive.risks, budget)
            ),
        )
        assert total == pytest.approx(best, abs=1e-6)


def _choices(prices, risks, budget):
    """All choices within the budget, but for rows that are dearer and riskier than another of the same layer."""
    kept = [
        [i for i, mine in enumerate(pairs) if not any(o[0] <= mine[0] and o[1] <= mine[1] for o in pairs[:i])]
        for pairs in (list(zip(p, r, strict=True)) for p, r in zip(prices, risks, strict=True))
    ]
    return [c for c in product(*kept) if sum(p[i] for p, i in zip(prices, c, strict=True)) <= budget + 1e-9]


def test_no_step_makes_it_worse_and_no_method_is_better(objective, additive):
    front = search(objective, additive)
    for budget in BUDGETS:
        steps = {gain.step: gain.risk for gain in front.gains if gain.budget == budget}
        assert steps["joint"] <= steps["methods"] <= steps["additive"]
        best, prices = front.within(budget), pricing(objective)
        assert best.kept <= budget + 1e-9
        contained = [methods.vtw(objective.geometry, after=after) for after in range(LAYERS - 1)]
        contained += [methods.divprune(objective.geometry, keep=share) for share in (0.1, 0.3, 0.5)]
        for plan in contained:
            if prices.share(plan.layers) <= budget and prices.share(plan.layers) > budget - 0.05:
                assert best.risk <= risk_of(objective, plan) + 1e-9
    risks = [front.within(budget).risk for budget in sorted(BUDGETS)]
    assert risks == sorted(risks, reverse=True)


def test_what_a_candidate_says_is_what_the_objective_measures(objective, additive):
    front = search(objective, additive)
    assert len(front.candidates) > 5
    fresh = Objective(tiny_loaded(MODEL), TASKS, position="last", progress=False)
    for one in front.pareto():
        assert one.risk == pytest.approx(risk_of(fresh, one.plan), abs=1e-6)
        assert one.distance == pytest.approx(fresh(one.plan), abs=1e-6)
        assert one.kept == pytest.approx(share_kept(one.plan.as_run, fresh.geometry, fresh.visual, fresh.text))
        assert set(one.by_task) == {"a", "b"}
    prices = [one.kept for one in front.pareto()]
    assert prices == sorted(prices, reverse=True)


def test_given_up_plans_are_worse_than_what_was_known(objective):
    """On fewer samples than a race takes, a plan is given up only where all samples say so too."""
    archive = Archive(objective, ("a", "b"), SMALL, pricing(objective))
    bar = archive.add(Plan.full(objective.geometry).at([0, 1, 2], attention=Skip(), ffn=Skip()), "bar")
    outcomes = set()
    for plan in [p for p in random_plans(40, static=True) if p.is_static]:
        plan = plan.model_copy(update={"geometry": objective.geometry})
        kept, whole = archive.add(plan, "x", against=bar), risk_of(objective, plan)
        assert (kept is None) <= (whole > bar.risk)
        assert kept is None or kept.risk == pytest.approx(whole)
        outcomes.add(kept is None)
    assert outcomes == {True, False}


def effects(risks):
    return [Effect(0.0, risk, False) for risk in risks]


def test_the_weights_of_a_race_are_the_derivative_of_the_risk():
    tasks = [[0.1, 0.3], [0.5, 0.2, 0.9], [0.4]]
    race = Race.against(blend([fmean(task) for task in tasks]), [effects(task) for task in tasks])
    flat = [(i, j) for i, task in enumerate(tasks) for j in range(len(task))]
    for weight, (i, j) in zip(race.weights, flat, strict=True):
        moved = [list(task) for task in tasks]
        moved[i][j] += 1e-6
        assert weight == pytest.approx((blend([fmean(task) for task in moved]) - race.risk) / 1e-6, rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_race_ends_early_where_a_plan_is_worse_and_not_where_it_is_better(seed):
    rng = np.random.default_rng(seed)
    old = rng.uniform(0.2, 0.6, (4, 30))
    race = Race.against(blend(list(old.mean(axis=1))), [effects(task) for task in old])

    def ends(new):
        """After how many samples, in the order of an archive: one of each task in turn."""
        order = [4 * j + i for j in range(30) for i in range(4)]
        run: dict[int, Effect] = {}
        for index in order:
            run[index % 4 * 30 + index // 4] = Effect(0.0, float(new[index % 4, index // 4]), False)
            if race.is_lost(run):
                return len(run)
        return None

    assert ends(old) is None
    assert ends(old - 0.05 + rng.normal(0, 0.02, old.shape)) is None
    assert ends(old + 0.2 + rng.normal(0, 0.1, old.shape)) < 20


def test_what_is_guessed_orders_plans_that_were_not_run():
    """Where the logarithm of the risk is a sum over layers and of the tokens alive, which the model has to find."""
    geometry = Geometry.preset("LLaVA-1.5-7B").model_copy(update={"layers": 8})
    menu, prices = Menu.standard(8, 144.0), by_flops(geometry, 144.0, 30.0)
    rng, harm = random.Random(0), np.random.default_rng(0).exponential(1.0, (8, len(ROWS)))

    def drawn():
        rows = [rng.choice(ROWS) for _ in range(8)]
        return framed(rows, ((rng.randrange(8), Keep(rng.choice((0.25, 0.5, 0.75)), rank="random")),))

    def risk(rows):
        bare = framed(rows, ())
        lost = sum(harm[i, ROWS.index(row)] for i, row in enumerate(bare)) - sum(prices.alive(rows)) / 144
        return math.exp(lost / 4 - 3)

    surrogate = Surrogate(menu, prices)
    assert surrogate.guess([drawn()], 0.5) is None
    for _ in range(150):
        rows = drawn()
        surrogate.learn(rows, risk(rows))
    others = [drawn() for _ in range(60)]
    assert spearmanr(surrogate.guess(others, 0.6), [risk(rows) for rows in others]).statistic > 0.9


def test_a_search_resumes_where_it_ended(objective, additive, tmp_path):
    path = tmp_path / "front.json"
    whole = search(objective, additive, path=path)
    cut = whole.model_copy(update={"gains": tuple(g for g in whole.gains if g.budget == BUDGETS[0])})
    cut.save(path)
    again = search(objective, additive, path=path)
    assert {(g.step, g.budget) for g in again.gains} == {(g.step, g.budget) for g in whole.gains}
    assert again.within(BUDGETS[-1]).risk <= whole.within(BUDGETS[-1]).risk + 1e-9
    assert Front.load(path) == again
    evaluations = objective.evaluations
    assert search(objective, additive, path=path).gains == again.gains
    assert objective.evaluations == evaluations
    other = Objective(tiny_loaded(MODEL), samples_of("padded left"), progress=False)
    with pytest.raises(PlanError, match="another model or other samples"):
        search(other, additive, path=path, tasks=("a",))


def test_a_killed_search_counts_as_one_that_was_not(additive, tmp_path, monkeypatch):
    """From every front that is written, in a process that remembers nothing else; also in the midst of a step."""
    fronts, save = [], Front.save
    monkeypatch.setattr(Front, "save", lambda front, path: fronts.append(front) or save(front, path))
    monkeypatch.setattr("lookless.search.archive.SAVE_S", -1.0)
    path, budgets = tmp_path / "front.json", BUDGETS[:2]

    def fresh():
        return Objective(tiny_loaded(MODEL), TASKS, position="last", progress=False)

    def what(front):
        return front.model_copy(update={"seconds": 0.0})

    whole = search(fresh(), additive, path=path, budgets=budgets)
    assert whole.evaluations == sum(gain.evaluations for gain in whole.gains) > 10
    for front in fronts[:: len(fronts) // 8]:
        save(front, path)
        assert what(search(fresh(), additive, path=path, budgets=budgets)) == what(whole)


def test_effects_sample_by_sample_are_the_objectives(objective):
    plans = [p.model_copy(update={"geometry": objective.geometry}) for p in random_plans(4, static=True)]
    found = effects_of(tiny_loaded(MODEL), TASKS[0], [*plans, Plan.full(objective.geometry)], position="last")
    for plan, mine in zip(plans, found, strict=False):
        expected = objective.effects(plan, objective.tasks[0])
        assert [e.changed for e in mine] == [e.changed for e in expected]
        assert [e.risk for e in mine] == pytest.approx([e.risk for e in expected], abs=1e-6)
    assert all(effect == (0.0, 0.0, False) for effect in found[-1])


def test_latency_of_synthetic_times():
    """Times that are a sum of known terms are fitted, and predicted for plans that were not fitted."""
    geometry = Geometry.preset("LLaVA-1.5-7B").model_copy(update={"layers": 8})
    menu, rng = Menu.standard(8, 144.0), np.random.default_rng(0)
    true = dict(zip(TERMS, rng.uniform(0.05, 1, len(TERMS)), strict=True))
    blank = {
        "model": "m", "geometry": geometry, "visual": 144.0, "text": 30.0, "batch": 1, "dtype": "", "device": "",
        "machine": "", "threads": 1, "fitted": (), "checked": (),
    }  # fmt: skip
    stock = 8 * sum(true[name] * x for name, x in layer_terms(LayerPlan(), geometry, 144.0, 30.0).items())
    real = LatencyTable(**blank, stock_ms=stock, terms=true)
    fitted = _uniform(geometry, menu)
    shares = {name: real.share(plan) for name, plan in fitted.items()}
    found = LatencyTable(**blank, stock_ms=stock, terms=fit_terms(fitted, shares, geometry, 144.0, 30.0, stock))
    for name, plan in {**fitted, **_mixed(geometry, menu, random.Random(1))}.items():
        assert found.share(plan) == pytest.approx(real.share(plan), rel=0.02), name
    full = Plan.full(geometry)
    assert found.share(full) == 1
    ranked, random_ones = (full.at([2], keep=Keep(0.5, rank=rank)) for rank in ("diversity", "random"))
    assert real.share(ranked) - real.share(random_ones) == pytest.approx(true["ranked"] * 0.144 / stock)


@pytest.mark.parametrize("seed", range(5))
def test_the_front_against_brute_force(seed):
    """From dear to cheap, the plans that none other beats in price or risk and equals in the other."""
    rng = random.Random(seed)
    known = {"plan": Plan.full(2), "distance": 0.0, "by_task": {"a": 0.0}, "fidelity": 1.0, "found_by": ""}
    points = [(rng.randint(1, 9) / 10, rng.randint(0, 12) / 12) for _ in range(40)]
    best = {one for one in points if not any(p != one and p[0] <= one[0] and p[1] <= one[1] for p in points)}
    made = [Candidate(kept=kept, risk=risk, **known) for kept, risk in points]
    assert [(one.kept, one.risk) for one in pareto(made, "kept")] == sorted(best, reverse=True)
    assert pareto(made, "time") == ()  # no time is known
    dear = ranked(made, 0.8, "kept", above=0.3)
    assert {(one.kept, one.risk) for one in dear} == {(o.kept, o.risk) for o in made if 0.3 < o.kept <= 0.8}
    assert [(one.risk, one.kept) for one in dear] == sorted((one.risk, one.kept) for one in dear)


def test_menu_of_an_engine_holds_what_it_serves():
    from lookless.serving.settings import check_plan

    menu = Menu.served(6)
    for row in menu.rows:
        check_plan(Plan(layers=(row,) * 6))
    assert list(menu.prunings()) == []
    assert list(menu.withdrawals()) == [()]
    kinds = {type(cell) for row in Menu.standard(6, 144.0).rows for _, cell in row}
    assert {Skip, Window, Neurons} <= kinds
