"""Samples are read whole or refused in a sentence; the reference tasks are balanced, seeded and disjoint."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lookless import load_data, reference
from lookless.data import Sample, Samples
from lookless.errors import DataError
from lookless.reference.draw import draw
from lookless.reference.questions import pose
from lookless.reference.worlds import CHARACTERS, Scene


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 6), (200, 10, 10)).save(tmp_path / "pictures" / "red.png")
    Image.new("L", (5, 5)).save(tmp_path / "grey.jpg")
    return tmp_path


def write(folder, *lines):
    path = folder / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_jsonl(folder):
    samples = load_data(
        write(
            folder,
            {"image": "pictures/red.png", "question": "colour?", "answer": "red"},
            "",
            {"images": ["grey.jpg", "pictures/red.png"], "question": "both?", "answer": "yes"},
            {"question": "none?", "answer": "no"},
        )
    )
    assert [len(s.images) for s in samples] == [1, 2, 0]
    assert samples.items[1].images[0].mode == "RGB"
    assert samples.items[0].images[0].getpixel((0, 0)) == (200, 10, 10)
    assert len(load_data(str(folder / "data.jsonl"), limit=2)) == 2


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2 is not JSON"),
        ({"image": "gone.png", "question": "q", "answer": "a"}, "gone.png does not exist"),
        ({"image": "cut.png", "question": "q", "answer": "a"}, "cut.png cannot be read"),
        ({"image": "words.png", "question": "q", "answer": "a"}, "words.png cannot be read"),
        ({"image": "pictures", "question": "q", "answer": "a"}, "pictures cannot be read"),
        ({"image": "grey.jpg", "question": "q"}, "answer: field required"),
        ({"image": "grey.jpg", "question": "q", "answer": "a", "label": 1}, "unknown key 'label'"),
        ({"image": "grey.jpg", "images": ["grey.jpg"], "question": "q", "answer": "a"}, "not both"),
        ({"image": 3, "question": "q", "answer": "a"}, "image"),
    ],
)
def test_bad_lines_are_refused_in_one_sentence(folder, line, complaint):
    whole = (folder / "pictures" / "red.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "words.png").write_text("not an image")
    path = write(folder, {"image": "grey.jpg", "question": "q", "answer": "a"}, line)
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert complaint in str(caught.value)
    assert "line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_refused(folder):
    with pytest.raises(DataError, match="holds no sample"):
        load_data(write(folder, "", ""))
    with pytest.raises(DataError, match="No such file"):
        load_data(str(folder / "none.jsonl"))
    with pytest.raises(DataError, match="no reference task 'poetry'; choose one of existence"):
        load_data("reference:poetry")
    with pytest.raises(DataError, match="a limit of 0"):
        load_data("reference", limit=0)


def test_reference_splits():
    a, b = (load_data("reference:chart", split=s, limit=20) for s in ("calibration", "test"))
    assert a.hash == load_data("reference:chart", split="calibration", limit=20).hash
    assert a.hash != b.hash
    images = [s.images[0].tobytes() for s in (*a, *b)]
    assert len(set(images)) == len(images)
    mixed = load_data("reference", limit=12)
    assert [s.question for s in mixed][:6] == [reference.question(t, "test", 0)[1] for t in reference.TASKS]


def test_hash_sees_every_pixel_and_word():
    image = Image.new("RGB", (4, 4))
    other = image.copy()
    other.putpixel((3, 3), (0, 0, 1))
    variants = [(image, "q", "a"), (other, "q", "a"), (image, "p", "a"), (image, "q", "b")]
    assert len({Samples("s", (Sample((i,), q, a),)).hash for i, q, a in variants}) == 4


@pytest.mark.parametrize("task", reference.TASKS)
def test_tasks_are_open_to_no_guess(task):
    """The most common answer is right no oftener than chance and a margin says."""
    answers = Counter(pose(task, random.Random(f"balance:{i}"))[2] for i in range(600))
    ceiling = {"existence": 0.55, "counting": 0.25, "spatial": 0.35, "attribute": 0.2, "chart": 0.25, "text": 0.02}
    assert answers.most_common(1)[0][1] / 600 < ceiling[task]


@pytest.mark.parametrize("task", reference.TASKS)
def test_images_are_drawn_alike_and_answers_have_their_lengths(task):
    for i in range(20):
        world, question, answer = pose(task, random.Random(f"again:{i}"))
        again, *_ = pose(task, random.Random(f"again:{i}"))
        assert np.array_equal(np.asarray(draw(world)), np.asarray(draw(again)))
        assert draw(world).size == (96, 96)
        assert question == question.strip()
        if task == "text":
            assert 2 <= len(answer) <= 5
            assert set(answer) <= set(CHARACTERS)
        else:
            assert " " not in answer


def test_existence_negatives_are_adversarial():
    """Most absent objects have a colour that is there and a shape that is there."""
    near = total = 0
    for i in range(400):
        world, question, answer = pose("existence", random.Random(f"near:{i}"))
        assert isinstance(world, Scene)
        if answer == "no":
            total += 1
            words = set(question.rstrip("?").split())
            near += any(t.colour in words for t in world.things) and any(t.shape in words for t in world.things)
    assert near / total > 0.5
