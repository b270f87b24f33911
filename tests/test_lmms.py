"""What of the plug-in for lmms-eval needs no lmms-eval: it is named, it imports, and data becomes tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import yaml

from helpers.cli import run
from lookless import load_data
from lookless.errors import DataError
from lookless.lmms.export import parts, task_name, write_task
from lookless.lmms.names import PREFIX
from lookless.lmms.task import answer, images, question, score
from lookless.reference import TASKS


def test_it_imports_without_lmms_eval():
    code = "import sys; sys.modules['lmms_eval'] = None; import lookless.lmms.classes, lookless.lmms.planned"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_lists_it_imports_nothing_heavy():
    code = "import sys, lookless.lmms; sys.exit(bool({'torch', 'transformers', 'lmms_eval'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


def read(folder, name):
    """The task and its rows, with the functions it names."""
    text = (folder / f"{name}.yaml").read_text()
    task = yaml.safe_load(text.replace("!function ", ""))
    rows = [{"text": line} for line in (folder / task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()]
    functions = {}
    for key in ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results"):
        module, _, function = task[key].rpartition(".")
        functions[key] = getattr(import_module(module), function)
    assert functions == dict(zip(functions, (images, question, answer, score), strict=True))
    return task, rows


def test_a_task_asks_what_the_data_asks(tmp_path):
    samples = load_data("reference:text", limit=3)
    name = write_task(samples, tmp_path, "reference:text", tag="all", max_new_tokens=5)
    task, rows = read(tmp_path, name)
    assert (task["task"], task["tag"], task["dataset_path"]) == (name, "all", "text")
    assert task["generation_kwargs"]["max_new_tokens"] == 5
    assert len(rows) == 3
    for row, sample in zip(rows, samples, strict=True):
        assert (question(row), answer(row)) == (sample.question, sample.answer)
        assert [image.tobytes() for image in images(row)] == [image.tobytes() for image in sample.images]
    right = rows[0]
    assert score(right, [f" {answer(right).upper()}. "]) == {"exact_match": 1.0}
    assert score(right, ["something else"]) == {"exact_match": 0.0}


def test_a_users_file_keeps_its_images(tmp_path, image):
    """Their lines may hold what JSON's readers and shells stumble over."""
    lines = [
        {"image": image.name, "question": "When?\u2028 'a: b'", "answer": "2020-01-01"},
        {"images": [image.name, image.name], "question": "#", "answer": "null"},
        {"question": "No image.", "answer": "5"},
    ]
    path = tmp_path / "My photos: 1.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    told = run("lmms", "--data", str(path), "--out", str(tmp_path / "tasks"))
    assert told.exit_code == 0, told.output
    assert "3 questions in 1 task;" in told.output
    _, rows = read(tmp_path / "tasks", "lookless_my_photos_1")
    assert [(question(row), answer(row)) for row in rows] == [(line["question"], line["answer"]) for line in lines]
    assert [len(images(row)) for row in rows] == [1, 2, 0]
    assert not (tmp_path / "tasks" / "images").exists()


def test_the_suite_is_a_task_for_each_of_its_own(tmp_path):
    told = run("lmms", "--data", "reference", "--out", str(tmp_path), "--limit", "1")
    assert told.exit_code == 0, told.output
    assert "--tasks lookless_reference " in told.output
    names = {f"{PREFIX}reference_{task}" for task in TASKS}
    assert {path.stem for path in tmp_path.glob("*.yaml")} == names
    assert {read(tmp_path, name)[0]["tag"] for name in names} == {"lookless_reference"}
    assert [name for _, name in parts("reference")] == [f"reference:{task}" for task in TASKS]


def test_lines_that_a_plan_was_calibrated_on_are_left_out(tmp_path, plan, image):
    from lookless import Plan

    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"image": image.name, "question": str(i), "answer": "a"}) for i in range(4)))
    seen = load_data(str(path), split="calibration", limit=3)
    made = Plan.from_pretrained(plan).made_by(method="test", data=path.name, sample_hashes=seen.hashes)
    made.save_pretrained(tmp_path / "calibrated")
    run("lmms", "--data", str(path), "--out", str(tmp_path), "--plan", str(tmp_path / "calibrated"))
    [row] = read(tmp_path, "lookless_mine")[1]
    assert question(row) not in {sample.question for sample in seen}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "reference:nothing", "--out", "tasks"], "no reference task 'nothing'"),
        (["--data", "reference:chart", "--out", "file"], "is a file and the result is a folder"),
        (["--data", "reference:chart", "--out", "tasks", "--plan", "nowhere"], "nowhere"),
    ],
)
def test_what_is_refused(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    done = run("lmms", *words)
    assert done.exit_code == 2
    assert told in done.output


def test_names():
    assert task_name("reference:chart") == "lookless_reference_chart"
    assert task_name("Über 'mich'") == "lookless_ber_mich"


def test_a_task_scores_by_the_metric_of_the_data(tmp_path, image):
    """Several right answers, a suffix and a metric go along; what a task cannot say is refused."""
    lines = [{"image": image.name, "question": "Which?", "answer": ["a red bus", "a bus"]}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    samples = load_data(str(tmp_path / "data.jsonl"), prompt_suffix="\nBe brief.")
    _, [row] = read(tmp_path, write_task(replace(samples, metric="contains"), tmp_path, "data"))
    assert question(row) == "Which?\nBe brief."
    assert score(row, ["I see a bus there"]) == {"exact_match": 1.0}
    assert score(row, ["bus"]) == {"exact_match": 0.0}
    with pytest.raises(DataError, match="the metric mme is of all answers together"):
        write_task(replace(samples, metric="mme"), tmp_path, "data")
    video = replace(samples, items=(replace(samples.items[0], videos=((samples.items[0].images[0],),)),))
    with pytest.raises(DataError, match="line 1 has videos"):
        write_task(video, tmp_path, "data")
