"""What commands write: only where they can, not in another result's place, and one run at a time.

The commands are those of the application itself, so that a new one is tested too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import lookless.bench.subjects
import lookless.demo
import lookless.loading
from helpers.cli import fails, run
from lookless import Geometry, Plan, Scores
from lookless.cli.main import app
from lookless.errors import LooklessError
from lookless.files import alone_in, remove_partial, write_text

GEOMETRY = Geometry.preset("LLaVA-1.5-7B")
#: Without an option to overwrite: runs, which know whether they are the same, and documents, whose text is kept.
GO_ON = {"optimize", "search", "table", "methods"}
#: What a command is given beside --out, where it is not a method's.
WORDS = {
    "demo": (),
    "calibrate": ("reference", "--data", "reference:chart"),
    "eval": ("reference", "--data", "reference:chart"),
    "certify": ("reference", "--data", "reference:chart", "--plan", "plan", "--retention", "0.9"),
    "optimize": ("reference", "--data", "reference:chart", "--flops", "0.5"),
    "search": ("reference", "--data", "reference:chart", "--flops", "0.5"),
    "table": ("reference",),
    "experiment": ("v-skip-masks", "reference"),
    "bench": ("reference",),
    "refit": ("reference", "--data", "reference:chart", "--plan", "plan"),
    "route": ("reference", "--data", "chart=reference:chart", "--plan", "chart=plan"),
    "report": ("scores.json",),
    "lmms": ("--data", "reference:chart"),
    "methods": (),
    "plan preset": ("shortv/LLaVA-1.5-7B",),
    "plan join": ("plan", "plan"),
}
#: One of each kind of result in a folder.
FILES = ("lookless_plan.json", "planset.json", "demo.json", "bench.json", "lookless_reference_chart.yaml")


def _commands(group, before=()):
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from _commands(command, (*before, name))
        else:
            yield " ".join((*before, name)), command


#: With a result, by name; and of each the type of the result.
WRITING = {
    name: next(param for param in command.params if "--out" in param.opts)
    for name, command in _commands(typer.main.get_command(app))
    if any("--out" in param.opts for param in command.params)
}
ASKING = {
    name
    for name, command in _commands(typer.main.get_command(app))
    if any("--overwrite" in param.opts for param in command.params)
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with scores and a plan, where no model can be loaded."""

    def work(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lookless.loading, "load_model", work)
    monkeypatch.setattr(lookless.demo, "run_demo", work)
    monkeypatch.setattr(lookless.bench.subjects, "subject_of_model", work)
    Scores(name="visual_information_gain", per_sample=((0.5,) * 32,), geometry=GEOMETRY).save(Path("scores.json"))
    Plan.full(GEOMETRY).save_pretrained("plan")
    return tmp_path


def _words(name: str) -> tuple[str, ...]:
    known = WORDS.get(name, () if name.startswith("plan ") else None)
    assert known is not None, f"WORDS says nothing of the new command {name}"
    return (*name.split(), *known)


@pytest.mark.parametrize("name", WRITING)
def test_an_out_that_cannot_be_written_is_found_before_the_work(here, name):
    """Nothing is loaded, asked or measured for it."""
    for out in ("/proc/nothing/here", "scores.json/below", "x" * 300):
        told = fails(*_words(name), "--out", out)
        assert "cannot be written (" in told
        assert "choose another place" in told
    if name == "table":
        assert "cannot be written (" in fails(*_words(name), "--work", "/proc/nothing")
    assert not [*here.glob(".*")], "nothing temporary is left"
    assert not [*here.glob("*.unfinished")]


def test_who_writes_asks_before_it_overwrites():
    assert WRITING.keys() - ASKING == GO_ON
    assert not ASKING - WRITING.keys()


@pytest.mark.parametrize("name", sorted(WRITING.keys() - GO_ON - {"experiment"}))
def test_a_result_that_is_there_is_not_overwritten(here, name):
    file, folder = here / "mine", here / "folder"
    file.write_text("of a week")
    folder.mkdir()
    for one in FILES:
        (folder / one).write_text("of a week")
    told = [fails(*_words(name), "--out", out) for out in (file, folder)]
    assert sum("is there already: give --overwrite to replace it, or choose another name" in one for one in told) == 1
    assert sum("choose another name." in one for one in told) == 2  # the other is no file, or no folder
    assert {file.read_text(), *((folder / one).read_text() for one in FILES)} == {"of a week"}
    assert not [*here.glob("*.unfinished")]


def test_a_result_is_replaced_where_that_is_asked_for(here):
    preset = ("plan", "preset", "shortv/LLaVA-1.5-7B", "--out", "plan")
    assert "--overwrite" in fails(*preset)
    assert Plan.from_pretrained("plan").is_full
    result = run(*preset, "--overwrite")
    assert result.exit_code == 0, result.output
    assert not Plan.from_pretrained("plan").is_full
    for _ in range(2):  # text around the block stays
        assert run("methods", "--out", "methods.md").exit_code == 0


def test_of_several_measures_each_is_asked_for(here):
    scores = here / "scores"
    write_text(scores / "ffn_effect.json", "of a week")
    words = ("calibrate", "reference", "--data", "reference:chart", "--measure", "visual_information_gain", "--out")
    assert "ffn_effect.json is there already" in fails(*words, scores, "--measure", "ffn_effect")
    write_text(scores / "unfinished" / "sample.0.json", "{}")  # the run was killed when it wrote its results
    assert isinstance(run(*words, scores, "--measure", "ffn_effect").exception, AssertionError)


@pytest.mark.parametrize("name", WRITING)
def test_two_at_once_do_not_write_one_result(here, name):
    out = {"table": "work/reference", "experiment": "out/reference"}.get(name, "out")
    words = (*_words(name), *(("--work", "work") if name == "table" else ("--out", "out")))
    for locked in (out, f"{out}.unfinished"):
        with alone_in(here / locked, "out", passing=True):
            told = run(*words)
            if "is being written by another run: wait for its end" in told.stderr:
                assert told.exit_code == 2
                break
    else:
        pytest.fail(f"{name} took no notice")


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path):
    place = tmp_path / "out.json.unfinished"
    held = (
        "import sys, time, pathlib\nfrom lookless.files import alone_in\n"
        "with alone_in(pathlib.Path(sys.argv[1]), 'out'):\n    print('held', flush=True)\n    time.sleep(900)"
    )
    process = subprocess.Popen([sys.executable, "-c", held, str(place)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LooklessError, match=r"out\.json is being written by another run"), alone_in(place, "out.json"):
        pytest.fail("both hold it")
    assert place.is_dir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with alone_in(place, "out.json", passing=True):
        assert place.is_dir()
    assert not place.exists()


def test_what_a_killed_process_left_half_written_goes(here):
    half = [here / ".out.0123456789abcdef", here / "out" / "points" / "0" / ".a.json.0123456789abcdef"]
    for path in (*half, here / ".mine", here / ".other.0123456789abcdef"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("hal")
    assert isinstance(run("eval", "reference", "--data", "reference:chart", "--out", "out2").exception, AssertionError)
    assert all(path.exists() for path in half)
    run("optimize", "reference", "--data", "reference:chart", "--flops", "0.5", "--out", "out")
    assert [path.exists() for path in half] == [True, False]
    run("report", "scores.json", "--out", "page")
    assert half[0].exists()
    half[1].parent.rmdir()
    half[1].parent.parent.rmdir()
    (here / "out").rmdir()
    run("report", "scores.json", "--out", "out")
    assert not half[0].exists()
    assert (here / ".mine").exists()
    assert (here / ".other.0123456789abcdef").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--kills", "--full"])
def test_what_is_killed_or_has_no_room_goes_on_to_the_same_bytes(how):
    """A few times; the script itself does it fifty times for every command."""
    script = Path(__file__).parents[1] / "benchmarks" / "kills.py"
    ended = subprocess.run(
        [sys.executable, str(script), "calibrate", "eval", how, "4"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("always the same") == 2


def test_what_another_process_is_writing_stays(tmp_path, monkeypatch):
    """Also when it is in a folder that a run takes for its own."""
    seen = []

    def meanwhile(handle):
        remove_partial(tmp_path)
        seen.extend(tmp_path.glob(".*"))

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_text(tmp_path / "a.json", "whole")
    assert len(seen) == 1
    assert (tmp_path / "a.json").read_text() == "whole"


def test_a_full_disk_leaves_the_old_result_or_none(here, monkeypatch):
    """Whatever a write comes to on the way: what was there is there, whole, and nothing beside it."""
    preset = ("plan", "preset", "shortv/LLaVA-1.5-7B", "--overwrite", "--out")

    def full(handle):
        raise OSError(28, os.strerror(28))

    before = (here / "plan" / "lookless_plan.json").read_bytes()
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        told = fails(*preset, "plan")
        assert "No space left on device" in told
        assert str(here / "plan" / "lookless_plan.json") in told
        assert "make room and start again, what is finished is kept" in told
        assert "No space left on device" in fails(*preset, "new")
    assert (here / "plan" / "lookless_plan.json").read_bytes() == before
    assert [*here.rglob(".*")] == []
    assert not [*(here / "new").glob("*")] if (here / "new").exists() else True
    assert run(*preset, "new").exit_code == 0
