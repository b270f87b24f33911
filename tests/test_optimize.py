"""`lookless optimize` from end to end, on a file of a user's own; what it resumes, and what it refuses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from helpers.cli import fails, run
from helpers.pages import parsed
from lookless import LayerPlan, Plan, Skip, load_data, reference
from lookless.bench.latency import TERMS, LatencyTable, Timed, layer_terms
from lookless.bench.timing import Timing
from lookless.certification.certificate import Certificate
from lookless.errors import DataError
from lookless.optimize.folder import Chain, Folder, Run, task_names
from lookless.optimize.scored import MEASURES
from lookless.optimize.split import PARTS, Sizes, split
from lookless.optimize.timed import timed
from lookless.runtime.families import geometry_of
from lookless.search import Candidate, Front
from lookless.search.additive import Additive
from lookless.search.fitting import Choices

SIZES = ("--samples", 1, "--tuning", 2, "--selection", 2, "--engine", "vllm")
SMALL = (*SIZES, "--proposals", 2)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A user's file: images on disk, questions and answers."""
    folder = tmp_path_factory.mktemp("mine")
    lines = []
    for i in range(14):
        image, question, answer = reference.question("chart", "test", i)
        image.save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "question": question, "answer": answer}))
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return folder / "mine.jsonl"


def test_the_parts_share_no_prompt(mine):
    for data in (str(mine), "reference:chart"):
        [task] = split("reference", [data], Sizes(3, 2, 2, 5))
        hashes = [one for part in PARTS for one in getattr(task, part).hashes]
        assert len(hashes) == len(set(hashes)) == 12
        assert [len(getattr(task, part)) for part in PARTS] == [3, 2, 2, 5]
        [again] = split("reference", [data], Sizes(3, 2, 2, 5))
        assert again.record == task.record
    [short] = split("reference", [str(mine)], Sizes(100, 100, 100, 100))
    assert len(short.certification) >= 7
    assert sum(len(getattr(short, part)) for part in PARTS) == 14
    every = split("reference-qwen3-vl", ["reference"], Sizes(1, 1, 1, 1))
    assert [task.name for task in every] == list(reference.tasks_of("reference-qwen3-vl"))


def test_the_certificate_shares_no_image_with_what_was_chosen_by(mine):
    """Of a file with three questions about each image, in turn."""
    lines = [json.loads(line) for line in mine.read_text().splitlines()]
    asked = [line | {"question": f"{line['question']} {i}"} for line in lines for i in range(3)]
    many = mine.parent / "many.jsonl"
    many.write_text("\n".join(map(json.dumps, asked)))
    [task] = split("reference", [str(many)], Sizes(4, 4, 5, 100))
    chosen = {image.path for part in PARTS[:-1] for item in getattr(task, part) for image in item.images}
    tested = [image.path for item in task.certification for image in item.images]
    assert not chosen & set(tested)
    assert len(tested) == len(set(tested)) == 14 - len(chosen)
    assert [len(getattr(task, part)) for part in PARTS[:-1]] == [4, 4, 5]
    assert len(chosen) <= 5  # thirteen questions, three about each image
    assert len({image.path for item in task.calibration for image in item.images}) > 1
    many.write_text("\n".join(json.dumps(lines[0] | {"question": f"how many {i}?"}) for i in range(20)))
    with pytest.raises(DataError, match="about too few images"):
        split("reference", [str(many)], Sizes(4, 4, 4, 4))


def test_names_of_tasks():
    names = task_names(["reference:chart", "a/chart.jsonl", "b/my data.jsonl", "chart"])
    assert names == ("chart", "chart-2", "my-data", "chart-3")


def test_too_few_prompts_are_refused(mine, tmp_path):
    few = mine.parent / "few.jsonl"
    few.write_text("\n".join([mine.read_text().splitlines()[0]] * 20))
    with pytest.raises(DataError, match="holds 1 different prompts"):
        split("reference", [str(few)], Sizes(1, 1, 1, 1))


def test_refusals(tmp_path, mine):
    begin = ("optimize", "reference", "--data", mine, "--out", tmp_path / "run")
    assert "none of them was given" in fails(*begin)
    assert "--flops and --retention was given" in fails(*begin, "--flops", 0.5, "--retention", 0.99)
    assert "engine 'x' is not one of" in fails(*begin, "--flops", 0.5, "--engine", "x")
    assert "loss 'x' is not one of" in fails(*begin, "--flops", 0.5, "--loss", "x")
    assert "by 'x' is not one of" in fails(*begin, "--retention", 0.99, "--by", "x")
    assert "no reference task 'poems'" in fails(*begin[:3], "reference:poems", *begin[4:], "--flops", 0.5)
    assert "is given twice" in fails(*begin, "--data", mine, "--flops", 0.5)
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(*begin[:-1], tmp_path / "file", "--flops", 0.5)


@pytest.mark.long
def test_a_run_and_its_resumption(tmp_path, mine, monkeypatch):
    """Everything is there and agrees; a run that lost files makes them again, alike; other data are refused."""
    monkeypatch.setattr("lookless.optimize.run.LADDER", (0.8, 0.6))
    monkeypatch.setattr("lookless.search.seeds.STEPS", 3)
    monkeypatch.setattr("lookless.bench.latency.CHECKED", 2)
    out = tmp_path / "run"
    begin = ("optimize", "reference", "--data", mine, "--out", out, *SMALL)
    result = run(*begin, "--retention", 0.8, "--by", "flops")
    assert result.exit_code == 0, result.output
    record, folder = Run.load(out), Folder(out)
    assert result.stdout.startswith(record.lines[0])
    [data] = record.data
    parts = [set(getattr(data, part).sample_hashes) for part in PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts))
    front, chain = Front.load(folder.front), Chain.load(out)
    plan, certificate = Plan.from_pretrained(folder.plan), Certificate.load(folder.certificate)
    assert plan.provenance.method == "optimize"
    assert parts[3].isdisjoint(plan.provenance.sample_hashes)
    assert {one.plan.layers for one in chain.points} <= {one.plan.layers for one in front.candidates}
    assert certificate.level == pytest.approx(0.2)
    if record.chosen is None:
        assert plan.is_full
    else:
        assert plan.layers == chain.points[record.chosen].plan.layers
        assert f"lookless serve reference --plan {folder.plan}" in result.stdout
    page = parsed(folder.report.read_text(encoding="utf-8"))
    missing = {section.attributes["id"] for section in page.all("section") if section.all("p", class_="missing")}
    assert missing <= {"cases", "tokens"}  # where there is no plan to test
    _lose(folder)
    again = run(*begin, "--retention", 0.8, "--by", "flops")
    assert again.stdout == result.stdout
    assert Chain.load(out) == chain
    assert Certificate.load(folder.certificate) == certificate
    budget = run(*begin, "--flops", 0.7)
    assert budget.exit_code == 0, budget.output
    assert "What can be promised" in budget.stdout
    assert Chain.load(out).points[-1].kept <= 0.7
    other = ("optimize", "reference", "--data", "reference:chart", "--out", out, *SMALL)
    assert "holds a run on" in fails(*other, "--certification", 5, "--flops", 0.7)


@pytest.mark.long
def test_several_tasks_within_a_time(tmp_path, mine, monkeypatch):
    """Two files, one without answers: every part of the run has both tasks, and what is promised is on each."""
    monkeypatch.setattr("lookless.search.seeds.STEPS", 3)
    monkeypatch.setattr("lookless.optimize.run.measure_latency", _known_latency)
    monkeypatch.setattr("lookless.optimize.run.timed", lambda loaded, samples, plans, **_: plans)
    blind = [json.loads(line) | {"answer": ""} for line in mine.read_text().splitlines()]
    other = mine.parent / "other.jsonl"
    other.write_text("\n".join(json.dumps(line | {"question": f"{line['question']} now"}) for line in blind))
    out = tmp_path / "run"
    what = ("reference", "--data", mine, "--data", other, "--out", out)
    begun = run("search", *what, *SIZES, "--flops", 0.7, "--method", "operator-skipping")
    assert begun.exit_code == 0, begun.output
    assert "silent: " in begun.stdout
    assert f"lookless eval reference --data {mine} --plan {out}/searches/operator-skipping/plan" in begun.stdout
    calibrated = (out / "additive.json").read_bytes()
    words = ("optimize", *what, *SMALL, "--latency", 0.7)
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert (out / "additive.json").read_bytes() == calibrated  # it goes on from the search
    record, folder, chain = Run.load(out), Folder(out), Chain.load(out)
    assert record.tasks == ("mine", "other")
    assert record.loss == "changed"
    assert chain.price == "time"
    assert chain.points[-1].time <= 0.7
    assert set(chain.points[-1].by_task) == {"mine", "other"}
    chosen = folder.evaluations(record.chosen, record.tasks)
    certificate = Certificate.load(folder.certificate)
    assert [(task.task, task.n) for task in certificate.tests[-1].tasks] == [
        (evaluation.data, len(evaluation.answers)) for evaluation in chosen.values()
    ]
    changed = [sum(answer.dense != answer.plan for answer in one.answers) for one in chosen.values()]
    asked = sum(len(one.answers) for one in chosen.values())
    assert f"Tested on {asked} questions that nothing was chosen by: {sum(changed)} answers changed" in record.lines[1]
    assert f"The worst of 2 tasks is {certificate.tests[-1].worst.task}: {max(changed)} of" in record.lines[2]
    measured = {path.name for path in (out / "scores").iterdir()}
    assert measured >= {f"{task}.{measure}.json" for task in ("mine", "other") for measure in MEASURES}
    assert "other" in folder.report.read_text()
    assert run(*words).stdout == result.stdout
    none = run(*words[:-1], 0.02)
    assert none.exit_code == 0, none.output
    assert "no plan was found within 2% of the time on this machine, so the full model stays" in none.stdout
    assert Plan.from_pretrained(folder.plan).is_full


def _known_latency(loaded, samples, menu, **settings):
    """A table that was not timed: the time is that of the FLOPs, and a constant for a layer."""
    geometry = geometry_of(loaded.model)
    terms = dict.fromkeys(TERMS, 0.0) | dict.fromkeys(("query", "key", "pairs", "ffn"), 1.0) | {"layer": 0.001}
    stock = sum(terms[name] * x for name, x in layer_terms(LayerPlan(), geometry, 144.0, 12.0).items())
    return LatencyTable(
        model=loaded.name, geometry=geometry, visual=144.0, text=12.0, batch=1, dtype="", device="", machine="",
        threads=1, stock_ms=stock * geometry.layers, terms=terms, fitted=(),
        checked=(Timed(name="any", measured=0.5, predicted=0.5),), data_hash=settings["data_hash"],
    )  # fmt: skip


def _lose(folder):
    """As a run that was killed: the front without its last steps, no plan, no certificate, one answer file less."""
    front = Front.load(folder.front)
    front.model_copy(update={"gains": front.gains[:-1]}).save(folder.front)
    folder.certificate.unlink()
    (folder.plan / "lookless_plan.json").unlink()
    folder.evaluation(0, "mine").unlink(missing_ok=True)


def test_the_best_are_timed_in_turn_with_the_stock_model(monkeypatch):
    """On a machine that takes a millisecond for each layer that queries, and slows down from call to call."""
    full, calls = Plan.full(6), []

    def clocked(layers, plans, **_):
        calls.extend(plans)
        work = [6 if plan is None else sum(row.attention.is_full for row in plan.layers) for plan in plans]
        return [Timing((ms * (1 + 0.001 * len(calls)),)) for ms in work]

    monkeypatch.setattr("lookless.bench.timing._prefills", lambda loaded, inputs, plans: plans)
    monkeypatch.setattr("lookless.bench.timing.time_in_turn", clocked)
    monkeypatch.setattr("lookless.bench.timing.locate", lambda model: SimpleNamespace(layers=None))
    known = {"kept": 0.5, "time": 0.9, "distance": 0.0, "by_task": {"a": 0.0}, "risk": 0.1, "fidelity": 1.0}
    plans = [Candidate(plan=full.at(range(n), attention=Skip()), found_by="joint", **known) for n in range(1, 6)]
    loaded = SimpleNamespace(inputs=lambda samples: {}, model=None)
    found = timed(loaded, [], plans, progress=False)
    assert [one.time for one in found] == pytest.approx([(6 - n) / 6 for n in range(1, 6)])
    assert [one.plan for one in found] == [one.plan for one in plans]
    assert timed(loaded, [], [], progress=False) == ()


def test_a_reference_task_has_as_many_as_are_wanted():
    [task] = split("reference", ["reference:chart"], Sizes(2, 2, 2, 130))
    assert len(task.certification) == 130
    assert set(task.certification.hashes).isdisjoint(load_data("reference:chart", split="calibration", limit=6).hashes)


@pytest.mark.long
def test_a_run_with_fitted_cells(tmp_path, mine, monkeypatch):
    """Maps are fitted on samples that their risk is not measured on, end in the plan with their numbers, and are not
    fitted anew by a run that goes on."""
    monkeypatch.setattr("lookless.search.seeds.STEPS", 2)
    monkeypatch.setattr("lookless.bench.latency.CHECKED", 1)
    monkeypatch.setattr("lookless.search.fitting.RANKS", (4,))
    monkeypatch.setattr("lookless.optimize.run.budgets_of", lambda target: (target.value,))
    few = mine.parent / "few-fitted.jsonl"
    few.write_text("\n".join(mine.read_text().splitlines()))
    out = tmp_path / "run"
    sizes = ("--samples", 2, "--tuning", 1, "--selection", 2, "--certification", 3, "--proposals", 2)
    begin = ("optimize", "reference", "--data", few, "--out", out, *sizes, "--flops", 0.3)
    result = run(*begin)
    assert result.exit_code == 0, result.output
    folder, record = Folder(out), Run.load(out)
    assert record.fitted
    fitted, additive = Choices.load(folder.fitted), Additive.load(folder.additive)
    assert fitted.weights
    assert set(fitted.provenance.sample_hashes).isdisjoint(additive.provenance.sample_hashes)
    [data] = record.data
    both = {*fitted.provenance.sample_hashes, *additive.provenance.sample_hashes}
    assert both == set(data.calibration.sample_hashes)
    front = Front.load(folder.front)
    assert any(one.plan.weights for one in front.candidates)
    assert [gain.step for gain in front.gains] == ["additive", "methods", "joint", "refitted"]
    before = folder.fitted.stat().st_mtime_ns
    folder.additive.unlink()
    folder.chain.unlink()
    assert run(*begin).exit_code == 0
    assert folder.fitted.stat().st_mtime_ns == before
    assert "fitted True, and this one is with False" in fails(*begin, "--no-fitted")
