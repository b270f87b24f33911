"""Every method on one model: outcomes are evaluations, a table goes on where it stopped, and the document is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lookless import Plan, apply, evaluate, load_data, trace
from lookless.errors import PlanError
from lookless.evaluation import paired_difference
from lookless.flops import prefill
from lookless.methods import METHODS
from lookless.models import geometry_of
from lookless.report import save_figure
from lookless.results import BEGIN, END, document, retention_figure
from lookless.table import NEAR, STRENGTH, Bench, accuracy, retention, run_table

TASKS = ["reference:chart", "reference:counting"]
CHOSEN = {name: METHODS[name] for name in ("fastv", "random-tokens", "v-skip", "visipruner", "vtw-search")}


@pytest.fixture(scope="module")
def table(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    options = {"tasks": TASKS, "questions": 6, "samples": 2, "batch": 6}
    return run_table(reference, CHOSEN, folder, **options), folder, options


def test_outcomes_are_evaluations(table, reference):
    results, _, _ = table
    plan = METHODS["fastv"].at_paper(results.geometry)
    for outcome, task in zip(results.of("fastv", "paper"), TASKS, strict=True):
        e = evaluate(reference, load_data(task, split="test", limit=6), plan, batch=6, progress=False)
        assert np.mean(outcome.right) == pytest.approx(e.accuracy_plan.value)
        assert np.mean(outcome.dense) == pytest.approx(e.accuracy_dense.value)
        assert np.mean(outcome.same) == pytest.approx(e.fidelity.value)
    both = results.of("fastv", "paper")
    assert accuracy(both).value == pytest.approx(np.mean([np.mean(o.right) for o in both]))
    assert retention(both).value == pytest.approx(
        np.mean([np.mean(o.right) for o in both]) / np.mean([np.mean(o.dense) for o in both])
    )


def test_prices_are_of_what_runs(table, reference):
    results, folder, _ = table
    bench = Bench(reference, TASKS, folder, questions=6, samples=2, batch=6)
    for name in ("fastv", "v-skip"):
        scores = {need: bench.scores(TASKS[0], need) for need in METHODS[name].measures}
        plan = METHODS[name].at_paper(results.geometry, scores)
        dense = prefill(results.geometry, visual=144, text=bench.text).total
        expected = prefill(results.geometry, visual=144, text=bench.text, plan=plan.live()).total / dense
        assert results.of(name, "paper")[0].kept == pytest.approx(expected)
    assert bench.kept(Plan.full(results.geometry)) == 1.0


def test_a_filter_is_priced_by_its_trace(table, reference):
    """The one plan whose rows are not known beforehand; of a static plan the trace gives the formula's price."""
    results, folder, _ = table
    bench = Bench(reference, TASKS[:1], folder, questions=6, samples=2, batch=6)
    plan = METHODS["fastv"].at_paper(results.geometry)
    dense = prefill(results.geometry, visual=144, text=bench.text).total
    assert bench._traced(plan) / dense == pytest.approx(bench.kept(plan), abs=0.01)
    assert 0.1 < results.of("visipruner", "paper")[0].kept < 0.9


def test_a_plan_is_made_once(table, reference, monkeypatch):
    """A search is one for all tasks; what is calibrated is made for each; what filters is traced once."""
    _, folder, _ = table
    bench = Bench(reference, TASKS, folder, questions=6, samples=2, batch=6)
    made = []
    monkeypatch.setattr(Bench, "_made", lambda _, method, task, setting: made.append((method.name, task)) or object())
    for name, times in (("dop", 1), ("gsop", 1), ("v-skip-universal", 1), ("v-skip", 2)):
        made.clear()
        plans = [bench.plan(METHODS[name], task, "paper") for task in TASKS * 2]
        assert len(made) == times == len({*map(id, plans)})
    assert bench.plan(METHODS["v-skip"], TASKS[0], "0.6") is not plans[0]
    traced = []
    monkeypatch.setattr(Bench, "_traced", lambda _, plan: traced.append(plan) or 1.0)
    filters = METHODS["visipruner"].sample(bench.geometry)
    assert bench.kept(filters) == bench.kept(filters)
    assert len(traced) == 1


def test_budgets_are_met_or_told(table):
    results, _, _ = table
    for name in ("fastv", "random-tokens"):
        assert all(abs(o.kept - 0.6) < NEAR for o in results.of(name, "0.6"))
    assert "comes no nearer than" in results.missed["v-skip, 0.6"]
    assert "not one amount to turn" in results.missed["visipruner, 0.6"]
    assert {*STRENGTH} <= {*METHODS}


def test_a_table_goes_on_where_it_stopped(table, reference, monkeypatch):
    results, folder, options = table
    path = folder / "results.json"
    whole = json.loads(path.read_text())
    cut = {**whole, "outcomes": [o for o in whole["outcomes"] if o["method"] != "random-tokens"]}
    assert {*whole["times"]} == {f"{o['method']}, {o['setting']}" for o in whole["outcomes"]}
    cut["times"] = {}
    path.write_text(json.dumps(cut))
    ran = []
    monkeypatch.setattr("lookless.table.evaluate", lambda *a, **k: ran.append(1) or evaluate(*a, **k))
    again = run_table(reference, CHOSEN, folder, **options)
    assert len(ran) == 2 * (1 + len(TASKS))  # two settings on two tasks, and the dense answers of each task once
    assert sorted(o.model_dump_json() for o in again.outcomes) == sorted(o.model_dump_json() for o in results.outcomes)
    assert {*again.times} == {*results.times}
    with pytest.raises(PlanError, match="6 questions and 2 calibration samples, not of reference with 7"):
        run_table(reference, CHOSEN, folder, **{**options, "questions": 7})


def test_the_document_keeps_what_others_wrote(table, tmp_path):
    results, _, _ = table
    text = document("# Mine\n\nwords\n", [results], METHODS, "images/x.png")
    assert text.startswith("# Mine\n\nwords\n\n" + BEGIN)
    assert "the control" in text
    for name in ("fastv", "random-tokens", "v-skip", "visipruner"):
        assert f"| {name} |" in text
    assert "* v-skip (60% of the FLOPs): comes no nearer" in text
    edited = text.replace("words", "other words") + "\nafterwards\n"
    again = document(edited, [results], METHODS, "images/x.png")
    assert again == edited
    assert again.count(BEGIN) == again.count(END) == 1
    save_figure(retention_figure([results, results]), tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 10_000


def test_points_above_random_are_paired():
    mine, theirs = np.array([1.0, 1.0, 0.0, 1.0] * 20), np.array([1.0, 0.0, 0.0, 1.0] * 20)
    e = paired_difference(mine, theirs)
    assert e.value == 0.25
    assert 0.1 < e.low < 0.25 < e.high < 0.4  # the shared zeros and ones cancel


def test_what_was_traced_was_applied(reference):
    """The trace that prices a filter hangs on the projections; under a plan that withdraws, it sees text rows alone."""
    plan = METHODS["vtw"].at_paper(geometry_of(reference.model))
    item = load_data("reference:chart", split="test", limit=1).items
    with apply(reference.model, plan), trace(reference.model) as counted:
        reference.model(**reference.inputs(item))
    assert counted.layers[-1]["key"] < 40 < counted.layers[0]["key"]
