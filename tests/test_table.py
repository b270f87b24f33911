"""Every method on one model: outcomes are evaluations, a table goes on where it stopped, and the document is kept."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from lookless import Plan, Window, apply, evaluate, load_data, trace
from lookless.comparison.contestants import DRAWS, Published, Searched
from lookless.comparison.document import BEGIN, END, document, results_figure
from lookless.comparison.entry import Entry
from lookless.comparison.run import NEAR, run_table
from lookless.comparison.settings import PAPER, Setting
from lookless.comparison.statistics import accuracy, retention
from lookless.comparison.workspace import Workspace
from lookless.errors import PlanError
from lookless.evaluation import paired_difference
from lookless.figures import save_figure
from lookless.flops import prefill
from lookless.methods import METHODS, Method
from lookless.methods.strength import fewer_tokens
from lookless.runtime.families import geometry_of

TASKS = ["reference:chart", "reference:counting"]
SIXTY = Setting("flops", 0.6)
CONTROLS = ("random-tokens", "down-sampling")
CHOSEN = {
    name: METHODS[name]
    for name in (
        *("fastv", "random-tokens", "random-layers", "v-skip", "visipruner", "vtw-search"),
        *("operator-skipping", "redundancylens"),
    )
}


@pytest.fixture(scope="module")
def table(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    options = {"tasks": TASKS, "questions": 6, "samples": 2, "batch": 6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lookless.comparison.timing.shares", untimed)
        return run_table(reference, CHOSEN, folder, **options), folder, options


def untimed(work, entries, batch, **_):
    """In place of minutes of timing."""
    return [1.0] * len(entries), 9.0


def test_outcomes_are_evaluations(table, reference):
    results, _, _ = table
    plan = METHODS["fastv"].build(results.geometry)
    for outcome, task in zip(results.of("fastv", PAPER), TASKS, strict=True):
        e = evaluate(reference, load_data(task, split="test", limit=6), plan, batch=6, progress=False)
        assert np.mean(outcome.right) == pytest.approx(e.accuracy_plan.value)
        assert np.mean(outcome.dense) == pytest.approx(e.accuracy_dense.value)
        assert np.mean(outcome.same) == pytest.approx(e.fidelity.value)
    both = results.of("fastv", PAPER)
    assert accuracy(both).value == pytest.approx(np.mean([np.mean(o.right) for o in both]))
    assert retention(both).value == pytest.approx(
        np.mean([np.mean(o.right) for o in both]) / np.mean([np.mean(o.dense) for o in both])
    )


def test_prices_are_of_what_runs(table, reference):
    results, folder, _ = table
    bench = Workspace(reference, TASKS, folder, questions=6, samples=2, batch=6)
    for name in ("fastv", "v-skip"):
        scores = {need: bench.scores(TASKS[0], need) for need in METHODS[name].measures}
        plan = METHODS[name].build(results.geometry, scores)
        dense = prefill(results.geometry, visual=144, text=bench.text).total
        expected = prefill(results.geometry, visual=144, text=bench.text, plan=plan.live()).total / dense
        outcome = results.of(name, PAPER)[0]
        assert outcome.kept == pytest.approx(expected)
        papers = prefill(results.geometry, visual=144, text=bench.text, plan=plan).total / dense
        assert outcome.kept_papers == pytest.approx(papers)
        assert papers > expected + 0.01  # what nobody reads is counted
        alone = Plan.full(results.geometry).live()
        lean = prefill(results.geometry, visual=144, text=bench.text, plan=alone).total / dense
        assert outcome.kept_live == pytest.approx(expected / lean)
    assert bench.kept(Entry(Plan.full(results.geometry))) == 1.0


def test_liveness_is_a_row_of_its_own(table):
    """What every plan gets for free: all of papers' count, all of itself, and not all of stock's."""
    results, _, _ = table
    for outcome in results.of("liveness", PAPER):
        assert outcome.kept_papers == outcome.kept_live == 1
        assert 0.9 < outcome.kept < 0.95  # one layer's visual attention and FFN of twelve
        assert all(outcome.same)
    assert not results.of("liveness", SIXTY)
    assert "liveness, paper" in results.times


def test_random_layers_are_drawn_several_times(table):
    results, _, _ = table
    drawn = results.of("random-layers", PAPER)
    assert sorted({o.draw for o in drawn}) == [*range(DRAWS)]
    assert len(drawn) == DRAWS * len(TASKS)
    assert len({o.kept for o in drawn}) > 1, "other layers: some draws skip the last, whose work is dead anyway"
    retained = [retention([o for o in drawn if o.draw == draw]).value for draw in range(DRAWS)]
    assert retention(drawn).value == pytest.approx(np.mean(retained))
    [row] = [line for line in document("", [results], METHODS, "x.png").splitlines() if line.startswith("| random-l")]
    assert f"({DRAWS} draws: {100 * min(retained):.1f} to {100 * max(retained):.1f})" in row


def test_knobs_in_tokens_are_for_the_prompts_at_hand(table, reference):
    """A window of 256 binds nowhere among 144 visual tokens, and a share of FLOPs is of these prompts."""
    _, folder, _ = table
    bench = Workspace(reference, TASKS, folder, questions=6, samples=2, batch=6)
    plan = Published(METHODS["redundancylens"]).at_paper(bench, TASKS[0]).plan
    results, *_ = table
    assert results.notes["redundancylens, paper"] == "window is 21 and not 256, as there are 144 visual tokens"
    assert results.notes["down-sampling, paper"] == "64 visual tokens of 144"
    sizes = {row.attention.size for row in plan.layers if isinstance(row.attention, Window)}
    assert sizes == {round(256 * bench.visual / 1792)} == {21}
    assert max(bench.scores(TASKS[0], "window_effect").mean) > 1e-7  # of 256 places: rounding, 1e-8
    knobs = Published(METHODS["operator-skipping"]).at_paper(bench, TASKS[0]).plan.provenance.knobs
    assert (knobs["visual"], knobs["text"]) == (bench.visual, bench.text)


def test_what_a_filter_did_is_told(table):
    results, _, _ = table
    assert re.fullmatch(
        r"the image was withdrawn before the last layer in \d+ of \d+ prompts", results.notes["visipruner, paper"]
    )
    assert "* visipruner (the paper's setting): the image was" in document("", [results], METHODS, "x.png")


def test_one_method_does_not_end_the_others(reference, tmp_path):
    """Neither one that no strength makes, nor one that fails with another library's error."""

    def never(model, *, keep: float = 0.5):
        """Refuse."""
        raise PlanError("not on this model")

    def broken(model):
        """Fail."""
        raise ZeroDivisionError("of a stranger\nwith more lines")

    chosen = {
        "never": Method(never, "0", "", strength=fewer_tokens),
        "broken": Method(broken, "0", ""),
        "random-tokens": METHODS["random-tokens"],
    }
    results = run_table(reference, chosen, tmp_path, tasks=TASKS[:1], questions=2, samples=1, batch=2)
    assert results.missed["never, 0.6"] == "no strength gives a plan for this model: not on this model"
    assert results.missed["broken, paper"] == "failed (ZeroDivisionError: of a stranger)"
    assert results.of("random-tokens", SIXTY)
    text = document("", [results], METHODS, "x.png")
    assert "the control" in text


@pytest.mark.parametrize("budget", [float("nan"), -0.5, 0.0, 1.0, float("inf")])
def test_a_budget_is_a_share(reference, tmp_path, budget):
    with pytest.raises(PlanError, match=r"a budget of \S+ is no share of the FLOPs"):
        run_table(reference, CHOSEN, tmp_path, tasks=TASKS, budgets=[0.6, budget])


def test_a_filter_is_priced_by_its_trace(table, reference):
    """The one plan whose rows are not known beforehand; of a static plan the trace gives the formula's price."""
    results, folder, _ = table
    bench = Workspace(reference, TASKS[:1], folder, questions=6, samples=2, batch=6)
    plan = METHODS["fastv"].build(results.geometry)
    dense = prefill(results.geometry, visual=144, text=bench.text).total
    assert bench._traced(plan) / dense == pytest.approx(bench.kept(Entry(plan)), abs=0.01)
    assert 0.1 < results.of("visipruner", PAPER)[0].kept < 0.9


def test_a_search_is_made_once(table, reference, monkeypatch):
    """One for all tasks, kept in the folder for the samples it was made on; and what filters is traced once."""
    _, folder, _ = table
    bench = Workspace(reference, TASKS, folder, questions=6, samples=2, batch=6)
    made = []

    def search(work, kept):
        made.append(kept)
        return Plan.full(work.geometry).made_by(sample_hashes=work.searched_on.hashes)

    searched = Searched(METHODS["dop"], search)
    for task in TASKS * 2:
        assert searched.at_paper(bench, task) == searched.at(bench, task, 0.77)
    assert made == [METHODS["dop"].paper_kept]
    bench.searched_on = load_data(TASKS[0], split="calibration", limit=1)
    searched.at_paper(bench, TASKS[0])
    assert len(made) == 2, "of other samples"
    traced = []
    monkeypatch.setattr(Workspace, "_traced", lambda _, plan: traced.append(plan) or 1.0)
    filters = Entry(METHODS["visipruner"].sample(bench.geometry))
    assert bench.kept(filters) == bench.kept(filters)
    assert len(traced) == 1


def test_budgets_are_met_or_told(table):
    results, _, _ = table
    for name in ("fastv", "random-tokens"):
        assert all(abs(o.kept - 0.6) < NEAR for o in results.of(name, SIXTY))
    assert "its nearest plan keeps" in results.missed["v-skip, 0.6"]
    assert "not one amount" in results.missed["visipruner, 0.6"]


def test_a_table_goes_on_where_it_stopped(table, reference, monkeypatch):
    results, folder, options = table
    path = folder / "results.json"
    whole = json.loads(path.read_text())
    cut = {**whole, "outcomes": [o for o in whole["outcomes"] if o["method"] != "random-tokens"]}
    assert {*whole["times"]} == {f"{o['method']}, {o['setting']}" for o in whole["outcomes"]}
    cut["times"] = {}
    path.write_text(json.dumps(cut))
    ran = []
    monkeypatch.setattr("lookless.comparison.timing.shares", untimed)
    for module in ("run", "workspace"):
        counted = f"lookless.comparison.{module}.evaluate"
        monkeypatch.setattr(counted, lambda *a, **k: ran.append(1) or evaluate(*a, **k))
    again = run_table(reference, CHOSEN, folder, **options)
    assert len(ran) == 2 * (1 + len(TASKS))  # two settings on two tasks, and the dense answers of each task once
    assert sorted(o.model_dump_json() for o in again.outcomes) == sorted(o.model_dump_json() for o in results.outcomes)
    assert {*again.times} == {*results.times}
    other = {**whole, "hashes": {**whole["hashes"], TASKS[1]: ["of", "others"]}}
    path.write_text(json.dumps(other))
    with pytest.raises(PlanError, match="results of other samples of reference:counting"):
        run_table(reference, CHOSEN, folder, **options)
    path.write_text(json.dumps(whole))
    with pytest.raises(PlanError, match="6 questions and 2 calibration samples, not of reference with 7"):
        run_table(reference, CHOSEN, folder, **{**options, "questions": 7})


def test_a_file_is_tested_on_what_was_not_drawn(reference, tmp_path):
    """And scores that were measured on other lines than are drawn now are not used again."""
    lines = []
    for i, sample in enumerate(load_data(TASKS[0], limit=6)):
        sample.images[0].save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "question": sample.question, "answer": sample.answer}))
    mine = tmp_path / "mine.jsonl"

    def bench(count):
        mine.write_text("\n".join(lines[:count]))
        return Workspace(reference, [str(mine)], tmp_path, questions=9, samples=2, batch=2)

    first, second = bench(5), bench(6)
    for made, left in ((first, 3), (second, 4)):
        drawn, asked = made.calibration[str(mine)].hashes, made.test[str(mine)].hashes
        assert (len(drawn), len(asked), {*drawn} & {*asked}) == (2, left, set())
    calibrated = first.scores(str(mine), "ffn_effect")
    assert calibrated.data_hash == first.calibration[str(mine)].hash
    second.calibration = {str(mine): load_data(str(mine), split="calibration", limit=2, seed=9)}
    assert (
        second.scores(str(mine), "ffn_effect").data_hash == second.calibration[str(mine)].hash != calibrated.data_hash
    )


def test_the_document_keeps_what_others_wrote(table, tmp_path):
    results, _, _ = table
    text = document("# Mine\n\nwords\n", [results], METHODS, "images/x.png")
    assert text.startswith("# Mine\n\nwords\n\n" + BEGIN)
    assert "the control" in text
    for name in ("fastv", "random-tokens", "v-skip", "visipruner"):
        assert f"| {name} |" in text
    assert "* v-skip (60% of the FLOPs): its nearest plan keeps" in text
    alone = results.model_copy(update={"outcomes": tuple(o for o in results.outcomes if o.method not in CONTROLS)})
    assert "the control" not in document("", [alone], METHODS, "images/x.png")
    edited = text.replace("words", "other words") + "\nafterwards\n"
    again = document(edited, [results], METHODS, "images/x.png")
    assert again == edited
    assert again.count(BEGIN) == again.count(END) == 1
    save_figure(results_figure([results, results]), tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 10_000


def test_points_above_random_are_paired():
    mine, theirs = np.array([1.0, 1.0, 0.0, 1.0] * 20), np.array([1.0, 0.0, 0.0, 1.0] * 20)
    e = paired_difference(mine, theirs)
    assert e.value == 0.25
    assert 0.1 < e.low < 0.25 < e.high < 0.4  # the shared zeros and ones cancel


def test_what_was_traced_was_applied(reference):
    """The trace that prices a filter hangs on the projections; under a plan that withdraws, it sees text rows alone."""
    plan = METHODS["vtw"].build(geometry_of(reference.model))
    item = load_data("reference:chart", split="test", limit=1).items
    with apply(reference.model, plan), trace(reference.model) as counted:
        reference.model(**reference.inputs(item), logits_to_keep=1)
    assert counted.layers[-1]["key"] < 40 < counted.layers[0]["key"]
