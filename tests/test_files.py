"""Files are written whole or not at all, and only where they can be; and read as their writer meant, or refused."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from helpers.cli import fails
from lookless import Geometry, Plan, Scores
from lookless.errors import LooklessError
from lookless.files import check_out, write_bytes, write_text
from lookless.plan import FILE_NAME

PLAN = json.loads(Plan.full(Geometry.preset("LLaVA-1.5-7B")).to_json())
PLAIN = json.dumps(PLAN)
HALF = "half a surrogate pair"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (json.dumps(PLAN | {"layers": PLAN["layers"][:-1]}), "the plan has 31 rows and its geometry 32 layers"),
        (json.dumps(PLAN | {"schema_version": "99"}), "its schema version is '99', not a number from 1 to"),
        (json.dumps(PLAN | {"schema_version": -1}), "its schema version is -1"),
        (json.dumps(PLAN | {"schema_version": True}), "its schema version is True"),
        (json.dumps(PLAN | {"schema_version": None}), "its schema version is None"),
        ("[" * 100_000, "it is nested too deep"),
        ('{"a":' * 100_000, "it is nested too deep"),
        (PLAIN[:-1] + ', "layers": []}', "it has the key 'layers' twice"),
        (PLAIN.replace('"layers": 32', '"layers": 32, "layers": 31'), "it has the key 'layers' twice"),
        (PLAIN.replace('"method": null', '"method": "\\ud800"'), HALF),
        (PLAIN.replace('"method": null', '"\\udc00": 1'), HALF),
        (PLAIN.replace('"samples": null', '"samples": ' + "9" * 5000), "which is beyond 64 bits"),
        (PLAIN.replace('"samples": null', '"samples": NaN'), "it holds NaN, which is no JSON number"),
        (PLAIN.replace('"samples": null', '"samples": -Infinity'), "it holds -Infinity"),
        (PLAIN.replace('"knobs": {}', '"knobs": {"x": 1e999}'), "it holds the number 1e999, which is beyond 64 bits"),
        (PLAIN.encode("utf-16"), "it is not UTF-8"),
    ],
)
def test_plans_that_are_none_are_refused_in_one_sentence(tmp_path, content, complaint):
    path = tmp_path / FILE_NAME
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = fails("show", tmp_path)
    assert complaint in told
    assert str(path) in told
    assert len(told) < 300


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"\xef\xbb\xbf" + PLAIN.encode())
    assert Plan.from_pretrained(tmp_path).to_json() == json.dumps(PLAN, indent=2, sort_keys=True) + "\n"


@pytest.fixture
def scores(tmp_path):
    geometry = Geometry.preset("LLaVA-1.5-7B")
    return Scores(name="visual_information_gain", per_sample=((0.5,) * 32,), geometry=geometry).save(
        tmp_path / "s.json"
    )


@pytest.mark.parametrize(
    "command",
    [
        ("demo",),
        ("calibrate", "reference", "--data", "reference:chart"),
        ("plan", "v-skip", "--scores", "s.json"),
        ("plan", "preset", "shortv/LLaVA-1.5-7B"),
        ("table", "reference"),
        ("bench", "reference"),
    ],
    ids=" ".join,
)
def test_an_out_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, scores, command):
    """Nothing is loaded, asked or measured for it."""
    monkeypatch.chdir(tmp_path)
    import lookless.bench.subjects
    import lookless.demo
    import lookless.loading

    def work(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(lookless.loading, "load_model", work)
    monkeypatch.setattr(lookless.demo, "run_demo", work)
    monkeypatch.setattr(lookless.bench.subjects, "subject_of_model", work)
    for out in ("/proc/nothing/here", scores / "below", "x" * 300):
        told = fails(*command, "--out", out)
        assert "cannot be written (" in told
        assert "choose another place" in told
    assert not list(tmp_path.glob(".*")), "nothing temporary is left"


def test_a_result_takes_no_device_s_or_folder_s_place(tmp_path, scores):
    plan = ("plan", "preset", "shortv/LLaVA-1.5-7B", "--out")
    assert "is a file and the result is a folder" in fails(*plan, scores)
    assert "is a file and the result is a folder" in fails(*plan, os.devnull)
    assert "is a folder and the result is a file" in fails(
        "calibrate", "reference", "--data", "reference", "--out", tmp_path
    )
    before = os.stat(os.devnull)
    write_text(check_out(Path(os.devnull)), "gone")
    assert (os.stat(os.devnull).st_ino, stat.S_ISCHR(os.stat(os.devnull).st_mode)) == (before.st_ino, True)
    with pytest.raises(OSError, match="No space left"):
        write_text(check_out(Path("/dev/full")), "too much")
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(check_out(pipe), "through")
    reader.join()
    assert (read, stat.S_ISFIFO(pipe.stat().st_mode)) == (["through"], True)


def test_a_link_and_its_target_s_permissions_stay(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "mine", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    write_text(check_out(link), "new")
    assert link.is_symlink()
    assert (target.read_text(), stat.S_IMODE(target.stat().st_mode)) == ("new", 0o600)
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(LooklessError, match="round cannot be written"):
        check_out(tmp_path / "round")


def test_writers_at_once_leave_one_of_their_files_whole(tmp_path, monkeypatch):
    """Threads write one path while another reads it. The umask is the whole process's, so it is left alone."""
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask was changed"))
    path, contents = tmp_path / "out", {bytes([letter]) * 1_000_000 for letter in b"abcd"}
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            if path.exists():
                seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=lambda c=c: [write_bytes(path, c) for _ in range(5)]) for c in contents]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert seen | {path.read_bytes()} <= contents
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
