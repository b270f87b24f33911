"""Samples are read whole or refused in a sentence; the reference tasks are balanced, seeded and disjoint."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tracemalloc
import warnings
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lookless import Plan, Scores, evaluate, load_data, reference, v_skip
from lookless.data import Sample, Samples, SeenWarning, load_image
from lookless.errors import DataError
from lookless.reference.draw import draw
from lookless.reference.questions import TASKS, pose
from lookless.reference.worlds import CHARACTERS, COLOURS, SHAPES, Scene
from lookless.runtime.families import geometry_of


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 6), (200, 10, 10)).save(tmp_path / "pictures" / "red.png")
    Image.new("L", (5, 5)).save(tmp_path / "grey.jpg")
    return tmp_path


def write(folder, *lines):
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(map(as_bytes, lines)))
    return str(path)


def as_bytes(line):
    if isinstance(line, bytes):
        return line
    return (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)).encode()


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
    assert samples.items[1].opened()[0].mode == "RGB"
    assert samples.items[0].opened()[0].getpixel((0, 0)) == (200, 10, 10)
    assert len(load_data(str(folder / "data.jsonl"), limit=2)) == 2


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2 cannot be read: it is not JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"question": "q", "question": "p", "answer": "a"}', "the key 'question' twice"),
        ('{"question": "\\ud800", "answer": "a"}', "half a surrogate pair"),
        ('{"question": "q", "answer": NaN}', "NaN, which is no JSON number"),
        ("[]", "a row is an object, and here is a list"),
        (b"\xff\xfe", "it is not UTF-8"),
        ({"image": "bomb.png", "question": "q", "answer": "a"}, "more than 89 million pixels"),
        ({"image": "short.jpg", "question": "q", "answer": "a"}, "short.jpg cannot be read (image file is truncated"),
        ({"image": "pipe", "question": "q", "answer": "a"}, "pipe cannot be read (it is a pipe, and not a file)"),
        ({"image": "float.tiff", "question": "q", "answer": "a"}, "pixels of mode F have no known range"),
        ({"image": "\0", "question": "q", "answer": "a"}, "cannot be read"),
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
    Image.effect_noise((64, 64), 50).save(folder / "short.jpg")
    (folder / "short.jpg").write_bytes((folder / "short.jpg").read_bytes()[:-500])
    size = (20_000).to_bytes(4, "big")  # of a picture whose pixels are not there
    header = b"IHDR" + 2 * size + whole[24:29]
    (folder / "bomb.png").write_bytes(whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:])
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(folder / "float.tiff")
    os.mkfifo(folder / "pipe")
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
    first = [reference.question(task, "test", 0)[1] for task in reference.TASKS]
    assert [s.question for s in mixed][: len(first)] == first


def test_lines_end_at_newlines_alone(folder):
    """A question may hold what Unicode calls a line separator; an editor may write a byte order mark and \\r\\n."""
    question = "one\u2028two\u0085three\x0bfour?"
    line = as_bytes({"image": "grey.jpg", "question": question, "answer": "a"})
    for content in (line, b"\xef\xbb\xbf" + line + b"\r\n" + line + b"\r\n", b"\xef\xbb\xbf\n" + line):
        assert {s.question for s in load_data(write(folder, content))} == {question}
    with pytest.raises(DataError, match=r"line 4 cannot"):
        load_data(write(folder, line, b"", line, b"{"))


def test_pictures_are_upright_and_sixteen_bits_are_scaled(tmp_path):
    wide = Image.new("RGB", (4, 2))
    wide.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    wide.save(tmp_path / "turned.png", exif=exif)
    turned = load_image(tmp_path / "turned.png")
    assert (turned.size, turned.getpixel((1, 0))) == ((2, 4), (255, 0, 0))
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep.astype(np.int32), "I").save(tmp_path / "deeper.tiff")
    for name in ("deep.png", "deeper.tiff"):
        assert np.asarray(load_image(tmp_path / name))[0, :, 1].tolist() == [0, 1, 128, 255]


def test_a_file_of_photos_takes_the_memory_of_one(tmp_path):
    """Twenty pictures of 3 MB, all of which are read and hashed; and again when they are used."""
    lines = []
    for i in range(20):
        Image.new("RGB", (1000, 1000), (i, i, i)).save(tmp_path / f"{i}.png")
        lines.append({"image": f"{i}.png", "question": "q", "answer": str(i)})
    path = write(tmp_path, *lines)
    tracemalloc.start()
    samples = load_data(path)
    assert len(set(samples.hashes)) == 20
    assert [s.opened()[0].getpixel((9, 9))[0] for s in samples] == list(range(20))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 3_000_000
    assert peak < 15_000_000
    assert not any(isinstance(image, Image.Image) for s in samples for image in s.images)


def of_tasks(folder, **counts):
    """A file sorted by task, with an image of its own for each line."""
    lines = []
    for task, count in counts.items():
        for i in range(count):
            name = f"{task}{i}.png"
            Image.new("RGB", (4, 4), (len(lines), i, 0)).save(folder / name)
            lines.append({"image": name, "question": task, "answer": str(i), "task": task})
    return write(folder, *lines, {"question": "no image", "answer": "a"})


def test_calibration_is_drawn_and_the_test_is_what_was_not(tmp_path):
    path = of_tasks(tmp_path, a=12, b=3, c=30)
    drawn = load_data(path, split="calibration", limit=9)
    assert Counter(s.question for s in drawn) == {"a": 3, "b": 3, "c": 3}, "equally many of each task"
    assert [s.answer for s in drawn if s.question == "c"] != ["0", "1", "2"], "and not the first"
    assert drawn.seed == 0
    assert drawn.hashes == load_data(path, split="calibration", limit=9).hashes
    assert drawn.hashes == load_data(path, split="calibration", limit=20).hashes[:9], "a larger draw holds a smaller"
    assert set(drawn.hashes) != set(load_data(path, split="calibration", limit=9, seed=1).hashes)
    test = load_data(path, without=drawn.hashes)
    assert (len(test), test.left_out) == (46 - 9, 9)
    assert not set(test.hashes) & set(drawn.hashes)
    assert load_data(path, split="calibration").drawn_from == 45, "a line without an image is nothing to calibrate on"
    with pytest.raises(DataError, match="all 46 prompts of"):
        load_data(path, without=load_data(path).hashes)
    with pytest.raises(DataError, match="a seed of its own"):
        load_data("reference", seed=1)


def test_what_a_plan_has_seen_is_said(tmp_path, reference):
    """Hashes go from samples through scores into the plan, so that any later evaluation can tell."""
    path = of_tasks(tmp_path, a=6)
    drawn = load_data(path, split="calibration", limit=2, seed=5)
    rows = ((0.1,) * 12,) * 2
    geometry = geometry_of(reference.model)
    scores = Scores(
        name="visual_information_gain",
        per_sample=rows,
        geometry=geometry,
        data=drawn.name,
        data_hash=drawn.hash,
        sample_hashes=drawn.hashes,
        seed=drawn.seed,
    )
    plan = v_skip(Scores.load(scores.save(tmp_path / "s.json")), layers=3)
    plan.save_pretrained(tmp_path)
    plan = Plan.from_pretrained(tmp_path)
    assert (plan.provenance.sample_hashes, plan.provenance.seed) == (drawn.hashes, 5)
    assert (plan | Plan.full(geometry)).provenance.sample_hashes == drawn.hashes
    words = {"max_new_tokens": 1, "progress": False}
    with pytest.warns(SeenWarning, match="calibrated on 2 of these 7 samples of data.jsonl"):
        result = evaluate(reference, load_data(path), plan, **words)
    assert (result.seen, result.calibration_hash) == (2, drawn.hash)
    assert tuple(answer.sample_hash for answer in result.answers) == load_data(path).hashes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unseen = evaluate(reference, load_data(path, without=drawn.hashes), plan, **words)
    assert (unseen.seen, unseen.left_out, unseen.samples) == (0, 2, 5)
    assert unseen.data_hash not in (result.data_hash, drawn.hash)
    old = plan.made_by(sample_hashes=None)
    with pytest.warns(SeenWarning, match="does not say on which lines"):
        assert evaluate(reference, load_data(path), old, **words).seen is None


def test_hashes_are_of_pixels_and_words():
    """Those of prompts are in plans' files, so they may not change; those of images say which are the same."""
    red, blue = (Image.new("RGB", (3, 2), color) for color in ("red", "blue"))
    red_bytes, blue_bytes = (b"(3, 2)" + image.tobytes() for image in (red, blue))
    sample = Sample((red, blue), "which?", "a")
    assert sample.hash == hashlib.sha256(red_bytes + blue_bytes + b"'which?'").hexdigest()[:16]
    assert sample.image_hashes == tuple(hashlib.sha256(one).hexdigest()[:16] for one in (red_bytes, blue_bytes))
    assert Sample((), "which?", "a").image_hashes == ()


def test_hash_sees_every_pixel_and_word():
    image = Image.new("RGB", (4, 4))
    other = image.copy()
    other.putpixel((3, 3), (0, 0, 1))
    variants = [(image, "q", "a"), (other, "q", "a"), (image, "p", "a"), (image, "q", "b")]
    assert len({Samples("s", (Sample((i,), q, a),)).hash for i, q, a in variants}) == 4


@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_open_to_no_guess(task):
    """The most common answer is right no oftener than chance and a margin says."""
    answers = Counter(pose(task, random.Random(f"balance:{i}"))[2] for i in range(600))
    ceiling = {"existence": 0.55, "counting": 0.25, "spatial": 0.35, "attribute": 0.2, "chart": 0.25, "text": 0.02}
    ceiling |= {"relation": 0.1, "comparison": 0.1, "table": 0.1, "listing": 0.02}
    assert answers.most_common(1)[0][1] / 600 < ceiling[task]


@pytest.mark.parametrize("task", TASKS)
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
        elif task == "listing":
            assert len(answer.split(", ")) == len(world.things)
        else:
            assert " " not in answer


def beside(scene: Scene, thing, side: str):
    """The nearest of those that share the row or the column of a 4 x 4 lattice, by a search of all of them."""
    row, column = thing.y // 24, thing.x // 24
    if side in ("above", "below"):
        line = [
            t for t in scene.things if t.x // 24 == column and (t.y < thing.y if side == "above" else t.y > thing.y)
        ]
        return min(line, key=lambda t: abs(t.y - thing.y)) if line else None
    line = [t for t in scene.things if t.y // 24 == row and (t.x < thing.x if side == "left" else t.x > thing.x)]
    return min(line, key=lambda t: abs(t.x - thing.x)) if line else None


def test_chains_lead_where_they_say():
    hops = Counter()
    for i in range(200):
        scene, question, answer = pose("relation", random.Random(f"chain:{i}"))
        words = question.rstrip("?").split()
        [thing] = [t for t in scene.things if {t.shape, t.colour} & set(words)]
        sides = [w for w in words if w in ("left", "right", "above", "below")]
        for side in reversed(sides):  # the last one said is the first one gone
            thing = beside(scene, thing, side)
        assert answer == (thing.colour if words[1] == "colour" else thing.shape)
        hops[len(sides)] += 1
    assert min(hops[1], hops[2]) > 60


def test_comparisons_count_everything():
    for i in range(200):
        scene, question, answer = pose("comparison", random.Random(f"most:{i}"))
        counts = Counter(t.colour if answer in COLOURS else t.shape for t in scene.things)
        words = question.rstrip("?").split()
        rivals = [w for w in words if w in COLOURS or w in SHAPES] or list(counts)
        assert all(counts[answer] > counts[rival] for rival in rivals if rival != answer)


def test_tables_are_read_at_the_crossing():
    for i in range(200):
        table, question, answer = pose("table", random.Random(f"cell:{i}"))
        cells = {
            (shape, colour, table.cells[row][column])
            for row, shape in enumerate(table.rows)
            for column, colour in enumerate(table.columns)
        }
        words = question.rstrip("?").split()
        [found] = [cell for cell in cells if len(set(cell) & set(words)) == (1 if "heads" in words else 2)]
        assert answer in set(found) - set(words)


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
