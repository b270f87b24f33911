"""Plans of one's own as rows of a table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.cli import fails, run
from lookless import Plan, Skip, evaluate, load_data
from lookless.comparison.document import document
from lookless.comparison.run import run_table
from lookless.comparison.settings import PAPER, Setting
from lookless.errors import PlanError, PlanMismatchError
from lookless.methods import METHODS

TASK = "reference:chart"
CHOSEN = {name: METHODS[name] for name in ("vtw", "random-tokens")}
OPTIONS = {"tasks": [TASK], "questions": 4, "samples": 1, "batch": 4}


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """In place of minutes of timing."""
    monkeypatch.setattr(
        "lookless.comparison.timing.shares", lambda work, entries, batch, **_: ([1.0] * len(entries), 9.0)
    )


@pytest.fixture(scope="module")
def plans(reference):
    full = Plan.full(12)
    return {
        "mine/mild": full.at([8, 9], attention=Skip()),
        "mine/bold": full.at(range(5, 12), attention=Skip(), ffn=Skip()),
    }


def test_a_plan_is_a_row(reference, plans, tmp_path):
    results = run_table(reference, CHOSEN, tmp_path, plans=plans, budgets=[0.55], **OPTIONS)
    for name, plan in plans.items():
        [outcome] = results.of(name, PAPER)
        found = evaluate(reference, load_data(TASK, split="test", limit=4), plan, batch=4, progress=False)
        assert np.mean(outcome.right) == found.accuracy_plan.value
        assert results.plans[name] == plan.hash
    assert results.versions.keys() == {"lookless", "torch", "transformers"}
    at = Setting("flops", 0.55)
    assert results.of("mine/bold", at)[0].kept == results.of("mine/bold", PAPER)[0].kept
    assert not results.of("mine/mild", at)
    assert results.missed["mine/mild, 0.55"].startswith("its nearest plan keeps 8")
    text = document("", [results], METHODS, "x.png", plans)
    assert text.count("| mine/bold |") == 2
    assert text.count("| mine/mild |") == 1
    assert "| mine/" not in document("", [results], METHODS, "x.png")
    with pytest.raises(PlanError, match="holds results of another plan at mine/bold than there is now"):
        run_table(reference, CHOSEN, tmp_path, plans={"mine/bold": plans["mine/mild"]}, **OPTIONS)
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "versions": {"torch": "1"}}))
    with pytest.raises(PlanError, match="holds results of another version of torch"):
        run_table(reference, CHOSEN, tmp_path, plans=plans, **OPTIONS)


def test_plans_that_can_be_no_row(reference, plans, tmp_path):
    for name, said in (("vtw", r"give it another path, as \./vtw"), ("a, b", "without commas and bars")):
        with pytest.raises(PlanError, match=said):
            run_table(reference, CHOSEN, tmp_path, plans={name: plans["mine/mild"]}, **OPTIONS)
    with pytest.raises(PlanMismatchError, match="has 5 layers and the model has 12"):
        run_table(reference, CHOSEN, tmp_path, plans={"five": Plan.full(5)}, **OPTIONS)


def test_no_question_is_one_that_a_plan_was_calibrated_on(reference, plans, tmp_path):
    lines = []
    for i, sample in enumerate(load_data(TASK, limit=5)):
        sample.images[0].save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "question": sample.question, "answer": sample.answer}))
    mine = tmp_path / "mine.jsonl"
    mine.write_text("\n".join(lines))
    drawn = load_data(str(mine), split="calibration", limit=5)
    made = drawn.items[-1].hash  # the table itself calibrates on the first
    plan = plans["mine/mild"]
    plan = plan.model_copy(update={"provenance": plan.provenance.model_copy(update={"sample_hashes": (made,)})})
    results = run_table(
        reference, {}, tmp_path / "work", plans={"mine": plan}, **{**OPTIONS, "tasks": [str(mine)]}, step="answers"
    )
    assert len(results.of("mine", PAPER)[0].right) == 3


def test_the_command(plans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, plan in plans.items():
        plan.save_pretrained(name)
    words = ("table", "reference", "--method", "vtw", "--plan", "mine/mild", "--plan", "mine/bold", "--data", TASK)
    done = run(*words, "--questions", 2, "--samples", 1, "--out", "t.md")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "t.md").read_text()
    assert all(f"| {name} |" in text for name in plans)
    Plan.full(5).save_pretrained("five")
    assert "has 5 layers" in fails("table", "reference", "--plan", "five", "--out", "t.md")
    assert "no plan at" in fails("table", "reference", "--plan", "none", "--out", "t.md")
