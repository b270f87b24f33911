"""`lookless optimize` from end to end, on a file of a user's own; what it resumes, and what it refuses."""

from __future__ import annotations

import json

import pytest

from helpers.cli import fails, run
from helpers.pages import parsed
from lookless import Plan, load_data, reference
from lookless.certification.certificate import Certificate
from lookless.errors import DataError
from lookless.optimize.folder import Chain, Folder, Run, task_names
from lookless.optimize.split import PARTS, Sizes, split
from lookless.search import Front

SMALL = ("--samples", 1, "--tuning", 2, "--selection", 2, "--proposals", 2, "--engine", "vllm")


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


def _lose(folder):
    """As a run that was killed: the front without its last steps, no plan, no certificate, one answer file less."""
    front = Front.load(folder.front)
    front.model_copy(update={"gains": front.gains[:-1]}).save(folder.front)
    folder.certificate.unlink()
    (folder.plan / "lookless_plan.json").unlink()
    folder.evaluation(0, "mine").unlink(missing_ok=True)


def test_a_reference_task_has_as_many_as_are_wanted():
    [task] = split("reference", ["reference:chart"], Sizes(2, 2, 2, 130))
    assert len(task.certification) == 130
    assert set(task.certification.hashes).isdisjoint(load_data("reference:chart", split="calibration", limit=6).hashes)
