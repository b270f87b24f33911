"""lookless certify: on a model, on a run's folder, and what it refuses."""

from __future__ import annotations

import json

import pytest

from helpers.cli import fails, run
from lookless import Plan, Skip, evaluate, load_data
from lookless.certification import Certificate, one_per_image
from lookless.data import ImageFile, Sample, Samples
from lookless.runtime.families import geometry_of


@pytest.fixture
def plans(tmp_path, reference):
    """A plan without effect on the answers, and one under which nothing is seen."""
    full = Plan.full(geometry_of(reference.model))
    made = {
        "mild": full.at([11], attention=Skip(), ffn=Skip()),
        "blind": full.at([0], visible=Skip()).at(range(12), visible=Skip()),
    }
    for name, plan in made.items():
        plan.save_pretrained(tmp_path / name)
    return {name: (tmp_path / name, plan) for name, plan in made.items()}


def certify(*arguments):
    return run("certify", "reference", "--data", "reference:chart", "--limit", 30, *arguments)


def test_a_chain_up_to_its_first_failure(tmp_path, plans):
    (mild, plan), (blind, other) = plans["mild"], plans["blind"]
    path = tmp_path / "certificate.json"
    last = ("--plan", tmp_path / "last", "--retention", 0.9, "--out", path)
    plan.at([10], ffn=Skip()).save_pretrained(tmp_path / "last")
    done = certify("--plan", mild, "--plan", blind, *last)
    assert done.exit_code == 0, done.output
    made = Certificate.load(path)
    assert [test.passed for test in made.tests] == [True, False]
    assert (made.level, made.untested, made.model) == (0.1, 1, "reference")
    assert made.covers(plan)
    assert not made.covers(other)
    assert f"{mild}: at most 10.00% of the questions" in done.stdout
    assert "1 more" in done.stdout
    printed = certify("--plan", blind, "--plan", mild, "--retention", 0.9, "--json")
    assert printed.exit_code == 1  # nothing is certified
    assert Certificate.model_validate_json(printed.stdout).verdict == "loses too much"


def test_one_plan_without_a_promise_and_too_few_questions(plans):
    mild = plans["mild"][0]
    found = Certificate.model_validate_json(certify("--plan", mild, "--json").stdout)
    assert (found.asked, found.verdict) == (False, "certified")
    assert found.level == pytest.approx(1 - 0.05 ** (1 / found.tests[0].tasks[0].n))  # none is lost
    few = certify("--plan", mild, "--retention", 0.99)
    assert few.exit_code == 1
    assert "not enough data" in few.stdout
    assert "needs about 299" in few.stdout


def test_a_run_of_optimize(tmp_path, plans, reference):
    """What it has answered is tested again, without the model."""
    from lookless.optimize.folder import Chain, Folder, Part, Run, Target, TaskData
    from lookless.search.front import Candidate

    samples = load_data("reference:chart", limit=30)
    part = Part(hash=samples.hash, sample_hashes=samples.hashes)
    data = TaskData(
        task="chart", data="reference:chart", calibration=part, tuning=part, selection=part, certification=part
    )
    target = Target(kind="retention", value=0.9)
    record = Run(model="reference", geometry=geometry_of(reference.model), data=(data,), target=target)
    points = tuple(
        Candidate(plan=plan, kept=kept, distance=0.1, by_task={"chart": 0.1}, risk=0.1, fidelity=1, found_by="joint")
        for (_, plan), kept in zip(plans.values(), (0.9, 0.5), strict=True)
    )
    folder = Folder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    folder.run.write_text(record.model_dump_json())
    folder.chain.write_text(Chain(price="kept", points=points).model_dump_json())
    for index, (_, plan) in enumerate(plans.values()):
        folder.point(index).mkdir(parents=True)
        found = evaluate(reference, samples, plan, progress=False)
        folder.evaluation(index, "chart").write_text(found.model_dump_json())
    made = Certificate.model_validate_json(run("certify", tmp_path / "run", "--json").stdout)
    assert [test.plan for test in made.tests] == ["point 0", "point 1"]
    assert [made.level, made.chosen.plan_hash] == [0.1, plans["mild"][1].hash]
    assert run("certify", tmp_path / "run", "--retention", 0.95).exit_code == 1  # 59 would do
    budget = {"target": Target(kind="flops", value=0.6), "chosen": 1, "confidence": 0.9, "loss": "changed"}
    folder.run.write_text(record.model_copy(update=budget).model_dump_json())
    of_budget = Certificate.model_validate_json(run("certify", tmp_path / "run", "--json").stdout)
    assert (of_budget.asked, of_budget.loss, of_budget.confidence) == (False, "changed", 0.9)
    assert of_budget.chosen.plan_hash == plans["blind"][1].hash
    folder.run.write_text(record.model_copy(update={**budget, "chosen": None}).model_dump_json())
    assert "for one plan, and there are 0" in fails("certify", tmp_path / "run")
    folder.run.write_text(record.model_dump_json())
    assert "leave out --plan" in fails("certify", tmp_path / "run", "--plan", "x")
    folder.evaluation(1, "chart").rename(folder.evaluation(0, "chart"))
    assert "answers of another plan" in fails("certify", tmp_path / "run")


def test_refusals(tmp_path, plans):
    mild, blind = plans["mild"][0], plans["blind"][0]
    task = ("--data", "reference:chart")
    assert "--plan is missing" in fails("certify", "reference", *task)
    assert "--data is missing" in fails("certify", "reference", "--plan", mild)
    assert "--plan is given twice" in fails("certify", "reference", *task, "--plan", mild, "--plan", mild)
    assert "there are 2" in fails("certify", "reference", *task, "--plan", mild, "--plan", blind)
    one = ("certify", "reference", *task, "--plan", mild)
    for number in ("1", "0", "nan", "2"):
        assert "is not between 0 and 1" in fails(*one, "--retention", number)
    assert "confidence of 1.0 is not between" in fails(*one, "--limit", 2, "--retention", 0.9, "--confidence", 1)
    assert "choose one of lost, changed" in fails(*one, "--loss", "harm")
    assert "is a folder" in fails(*one, "--out", tmp_path)
    Plan.full(9).save_pretrained(tmp_path / "nine")
    assert "9 layers and the model has 12" in fails(*one[:-1], tmp_path / "nine", "--retention", 0.9)


def test_questions_that_share_an_image_or_were_seen(tmp_path, image, plans):
    other = tmp_path / "other.png"
    other.write_bytes(image.read_bytes())
    lines = [(image.name, "a?"), (image.name, "b?"), (other.name, "a, again?"), (image.name, "c?")]
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(json.dumps({"image": i, "question": q, "answer": "x"}) for i, q in lines))
    calibrated = load_data(str(data)).hashes[:1]
    plans["mild"][1].made_by(sample_hashes=calibrated).save_pretrained(tmp_path / "fitted")
    done = run("certify", "reference", "--plan", tmp_path / "fitted", "--data", data, "--loss", "changed", "--json")
    assert "1 lines of" in done.stderr
    assert "1 of 3 questions of" in done.stderr
    assert Certificate.model_validate_json(done.stdout).tests[0].tasks[0].samples == 2


def test_one_question_of_each_image_is_drawn():
    from pathlib import Path

    shared = [Sample((ImageFile(Path("a.png")),), str(i), "") for i in range(6)]
    pair = Sample((ImageFile(Path("a.png")), ImageFile(Path("b.png"))), "both", "")
    text = Sample((), "no image", "")
    samples = Samples("mine", (*shared, pair, text))
    kept = {seed: [one.question for one in one_per_image(samples, seed)] for seed in range(40)}
    assert all(len(names) == 2 and names[1] == "no image" for names in kept.values())
    assert {names[0] for names in kept.values()} == {"0", "1", "2", "3", "4", "5", "both"}
