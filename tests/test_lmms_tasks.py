"""An lmms-eval task as data, over a played library: the real one is an environment of its own."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from PIL import Image

from helpers.cli import fails
from lookless import DataError, load_data


class Task:
    """What is used of an lmms-eval task."""

    OUTPUT_TYPE = "generate_until"

    def __init__(self, documents):
        self.eval_docs = documents

    def doc_to_visual(self, document):
        return [one if isinstance(one, str) else one.convert("RGB") for one in document["image"]]

    def doc_to_text(self, document):
        return f"{document['question']} Say yes or no."

    def doc_to_target(self, document):
        return document["answer"]


@pytest.fixture
def library(monkeypatch):
    """The played library; its tasks by name."""
    grey, red = Image.new("L", (4, 4), 9), Image.new("RGB", (4, 4), "red")
    documents = [
        {"image": [grey], "question": "a?", "answer": "Yes", "question_id": "one", "category": "OCR"},
        {"image": [grey], "question": "b?", "answer": "No", "question_id": "one", "category": "OCR"},
        {"image": [red, grey], "question": "c?", "answer": "x", "answers": ["x", "y"]},
    ]
    tasks = {"mme": Task(documents), "film": Task([{**documents[0], "image": ["film.mp4"]}]), "ranks": Task(documents)}
    tasks["ranks"].OUTPUT_TYPE = "loglikelihood"
    module, asked = ModuleType("lmms_eval.tasks"), []
    module.TaskManager = lambda include_path=None: asked.append(include_path)
    module.get_task_dict = lambda names, manager: {names[0]: tasks[names[0]]}
    monkeypatch.setitem(sys.modules, "lmms_eval", ModuleType("lmms_eval"))
    monkeypatch.setitem(sys.modules, "lmms_eval.tasks", module)
    return asked


def test_documents_are_samples(library):
    samples = load_data("lmms:folder/mme")
    assert library == ["folder"]
    assert [sample.question for sample in samples] == [f"{letter}? Say yes or no." for letter in "abc"]
    assert [sample.right for sample in samples] == [("Yes",), ("No",), ("x", "y")]
    assert [(sample.id, sample.task) for sample in samples] == [("one", "OCR"), ("one", "OCR"), ("2", None)]
    assert [[image.mode for image in sample.opened()] for sample in samples] == [["RGB"], ["RGB"], ["RGB", "RGB"]]
    a, b, c = (sample.images[0].key for sample in samples)
    assert a == b != c
    assert not any(isinstance(image, Image.Image) for sample in samples for image in sample.images)
    assert samples.items[1].where == "lmms:folder/mme, document 1"


def test_what_cannot_be_read_is_refused(library, monkeypatch):
    with pytest.raises(DataError, match="lmms:film, document 0: it shows a str, and only images are read"):
        load_data("lmms:film")
    with pytest.raises(DataError, match="lmms:ranks is loglikelihood, and not questions with an answer in words"):
        load_data("lmms:ranks")
    assert "lmms:none cannot be read as a task of lmms-eval: 'none'." in fails(
        "eval", "reference", "--data", "lmms:none"
    )
    monkeypatch.setitem(sys.modules, "lmms_eval.tasks", None)
    with pytest.raises(DataError, match=r"lmms:mme needs lmms-eval, which is not installed: pip install lmms-eval\."):
        load_data("lmms:mme")
