"""Files that somebody made to harm, or that a disk spoilt: each is one sentence and exit code 2, soon.

Every reader of the command line gets every one of them: plans, scores, data, answers, plan sets, runs, logs of
lmms-eval, fitted numbers, images and models.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import save

from helpers.cli import fails
from lookless import Geometry, Plan, Scores, load_data
from lookless.data import load_image
from lookless.errors import DataError, LooklessError
from lookless.files import check_inside
from lookless.fitted import Mean
from lookless.optimize.folder import OWN, Folder, Part, TaskData
from lookless.plan import FILE_NAME, WEIGHTS_NAME
from lookless.weights import Weights

GEOMETRY = Geometry.preset("LLaVA-1.5-7B")
SECONDS = 20  #: after which a read that hangs is given up


@contextlib.contextmanager
def soon():
    """A reader that waits is stopped, and fails."""

    def late(*_):
        raise AssertionError(f"not done after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


#: How each kind of file is read by a command. A ``*`` is the file.
READERS = {
    "plan": ("plan.json", ("show", "*")),
    "plan to join": ("plan.json", ("plan", "join", "*", "*", "--out", "out")),
    "scores": ("s.json", ("plan", "v-skip", "--scores", "*", "--layers", 2, "--out", "out")),
    "data": ("d.jsonl", ("eval", "reference", "--data", "*")),
    "table": ("d.csv", ("eval", "reference", "--data", "*")),
    "task file": ("t.json", ("eval", "reference", "--data", "*")),
    "parquet": ("d.parquet", ("eval", "reference", "--data", "*")),
    "page": ("any.json", ("report", "*", "--out", "page.html")),
    "answers": ("a.json", ("compare", "*", "*")),
    "log": ("0_samples_vqa.jsonl", ("compare", "*", "*")),
    "set": ("planset.json", ("eval", "reference", "--data", "reference", "--plan", ".")),
    "run": ("run.json", ("report", ".")),
    "image": ("i.png", ("generate", "reference", "--prompt", "?", "--image", "*")),
    "configuration": ("config.json", ("flops", "--geometry", ".", "--visual", 5, "--text", 5)),
    "model": ("config.json", ("eval", ".", "--data", "reference")),
}
CONTENTS = {
    "nothing": b"",
    "a byte order mark": b"\xef\xbb\xbf",
    "zeros": bytes(64),
    "a pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01x\x94.",
    "deep brackets": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a key twice": b'{"layers": [], "layers": [], "question": "?"}',
    "NaN": b'{"question": "?", "answer": NaN, "layers": NaN}',
    "infinity": b'{"question": "?", "answer": 1e999, "layers": -Infinity}',
    "a huge number": b'{"question": "?", "answer": ' + b"9" * 10_000 + b"}",
    "half a surrogate pair": b'{"question": "\\ud800", "answer": "", "layers": "\\udc00"}',
    "not UTF-8": b'{"question": "\xff\xfe", "answer": ""}',
    "a separator": '{"question": "a\u2028b"'.encode(),
    "a list": b"[1, 2]",
    "a string": b'"../../etc/passwd"',
}


def put(folder: Path, name: str, make) -> tuple:
    path = folder / name
    make(path)
    return path


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_contents(tmp_path, monkeypatch, reader, content):
    monkeypatch.chdir(tmp_path)
    name, command = READERS[reader]
    Path(name).write_bytes(CONTENTS[content])
    with soon():
        told = fails(*(name if word == "*" else word for word in command))
    assert len(told) < 500, told
    assert not Path("out").exists() or not list(Path("out").iterdir())


KINDS = {
    "a folder": lambda path: path.mkdir(),
    "a pipe that nobody writes to": os.mkfifo,
    "a device that never ends": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("gone"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_kinds_of_files(tmp_path, monkeypatch, reader, kind):
    """None is waited for."""
    monkeypatch.chdir(tmp_path)
    name, command = READERS[reader]
    KINDS[kind](Path(name))
    with soon():
        told = fails(*(name if word == "*" else word for word in command))
    assert len(told) < 500, told


def test_weights_of_a_model_that_are_a_pipe(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    with soon():
        assert "model.safetensors is a pipe or a device" in fails("eval", tmp_path, "--data", "reference")


# images


def png(path: Path, width: int, height: int) -> None:
    """One whose header claims a size, and which holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))))


@pytest.mark.parametrize("size", [(10_000, 9_500), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_would_fill_the_memory(tmp_path, size):
    """No pixel of it is decoded; the least is what Pillow only warns of."""
    png(tmp_path / "big.png", *size)
    told = fails("generate", "reference", "--prompt", "?", "--image", tmp_path / "big.png")
    assert "it has more than 89 million pixels" in told
    (tmp_path / "d.jsonl").write_text('{"image": "big.png", "question": "?", "answer": ""}')
    assert "line 1: the image" in fails("eval", "reference", "--data", tmp_path / "d.jsonl")


def test_an_image_of_many_bytes_is_not_read(tmp_path):
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(2**40)  # of a sparse file
    told = fails("generate", "reference", "--prompt", "?", "--image", tmp_path / "long.png")
    assert "it has 1,048,576 MiB, and at most 256 are read" in told


def test_an_image_that_is_read_is_not_bounded_by_the_others(tmp_path):
    Image.new("RGB", (3000, 3000)).save(tmp_path / "large.png")
    assert load_image(tmp_path / "large.png").size == (3000, 3000)


# text


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\x0b", "\x1c", "\x85"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_what_some_take_for_the_end_of_a_line_is_a_letter(tmp_path, letter, kind):
    question = f"what{letter}now?"
    lines = {
        "jsonl": json.dumps({"question": question, "answer": "a"}, ensure_ascii=False),
        "csv": f"question,answer\n{question},a\n",
    }
    path = tmp_path / f"d.{kind}"
    path.write_text(lines[kind], encoding="utf-8", newline="")
    [sample] = load_data(str(path))
    assert (sample.question, sample.answer) == (question, "a")


# fitted numbers


@pytest.mark.parametrize("cut", [0, 4, 8, 40, -1])
def test_numbers_that_are_cut_off(tmp_path, cut):
    plan = Plan.full(GEOMETRY).at([1], attention=Mean(Weights.of([0.5] * GEOMETRY.hidden)))
    plan.save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:cut])
    assert "cannot be read" in fails("show", tmp_path)


def test_numbers_of_another_plan(tmp_path):
    plan = Plan.full(GEOMETRY).at([1], attention=Mean(Weights.of([0.5] * GEOMETRY.hidden)))
    plan.save_pretrained(tmp_path)
    import numpy as np

    name = plan.weights[0].name
    (tmp_path / WEIGHTS_NAME).write_bytes(save({f"{name}.constant": np.zeros(GEOMETRY.hidden, "float32")}))
    assert "are not those that were saved" in fails("show", tmp_path)
    (tmp_path / WEIGHTS_NAME).write_bytes(save({f"../{name}.constant": np.zeros(4, "float32")}))
    fails("show", tmp_path)


# names in files, and links in folders


@pytest.mark.parametrize("name", ["../out", "a/b", "/etc/x", "..", "", "a\x00b", "a\nb"])
def test_a_name_in_a_file_is_no_path(tmp_path, name):
    part = Part(hash="x", sample_hashes=("y",))
    parts = dict.fromkeys(("calibration", "tuning", "selection", "certification"), part)
    with pytest.raises(ValueError, match="task"):
        TaskData(task=name, data="d", **parts)
    plan = json.loads(Plan.full(GEOMETRY).to_json())
    plan["layers"][1]["attention"] = {"kind": "mean", "weights": name}
    (tmp_path / FILE_NAME).write_text(json.dumps(plan))
    assert "64 hex digits" in fails("show", tmp_path)


def test_a_run_that_would_write_elsewhere(tmp_path):
    """A page is written into a run's folder, and so are results: a link in a folder that came from somebody else would
    have them take the place of any file."""
    mine, run = tmp_path / "mine.txt", tmp_path / "run"
    mine.write_text("mine")
    (run / "points" / "0").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    for place in ("report.html", "plan", "points/0/chart.json"):
        link = run / place
        link.symlink_to(mine)
        assert "outside of" in fails("report", run)
        link.unlink()
    (run / "attention.json").symlink_to("run.json")  # inside
    check_inside(run, OWN)
    assert mine.read_text() == "mine"
    assert {path.name for path in vars(Folder).values() if isinstance(path, Path)} <= set(OWN)


def test_every_file_of_a_run_is_looked_at():
    folder = Folder(Path("run"))
    names = [name for name, one in vars(Folder).items() if isinstance(one, property)]
    assert {getattr(folder, name).name for name in names} <= set(OWN)


def test_scores_that_are_no_numbers_cannot_be_made():
    with pytest.raises(ValueError, match="finite number"):
        Scores(name="ffn_effect", per_sample=((float("nan"),) * 32,), geometry=GEOMETRY)


def test_an_image_that_is_named_by_what_is_no_name(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"image": "a\0b.png", "question": "?", "answer": ""}))
    with pytest.raises(DataError, match="line 1: the image"):
        load_data(str(tmp_path / "d.jsonl"))
    assert issubclass(DataError, LooklessError)
