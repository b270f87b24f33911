"""Real processes: two that split their work, started as users start them, and one that is killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.cli import run
from helpers.short_search import shorten
from lookless import Scores, reference
from lookless.calibration import sweep
from lookless.loading import Loaded

PATIENCE_S = 900  # on a busy machine
HERE = str(Path(__file__).parent)


def started(arguments, module="lookless", **environment) -> subprocess.Popen:
    """A process that finds the tests' modules, too."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), HERE)))
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path, **environment}, **pipes)


def launched(launcher, *arguments) -> str:
    """What processes print that ``launcher`` starts."""
    process = started(arguments, launcher)
    try:
        said, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return said


def by_two(*arguments, module="lookless") -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each of two processes, started as ``accelerate launch`` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [started(arguments, module, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    try:
        said = [one.communicate(timeout=PATIENCE_S) for one in both]
    finally:
        for one in both:
            one.kill()
    return [(one.returncode, *words) for one, words in zip(both, said, strict=True)]


def test_two_processes_share_work(tmp_path):
    (first, said, errors), (second, nothing, _) = by_two(tmp_path, module="helpers.split_work")
    assert (first, second, nothing) == (0, 0, ""), errors
    _check_shared(json.loads(said))


@pytest.mark.long
def test_accelerate_starts_two_processes_without_gpus(tmp_path):
    launch = ("--multi_gpu", "--num_processes", 2, "-m", "helpers.split_work", tmp_path)
    _check_shared(json.loads(launched("accelerate.commands.launch", *launch)))


def _check_shared(found):
    """As ``helpers.split_work`` prints it."""
    assert found["load"] == "process 0 does not know unknown"
    assert [square for square, _ in found["squares"]] == [0, 1, 4, 9, 16]
    where = [process for _, process in found["squares"]]
    assert where == [where[0], where[1]] * 2 + [where[0]]
    assert where[0] != where[1]
    assert [*found["kept"].values()] == found["squares"]
    assert found["failed"] == "-4 is negative"
    assert found["the group has ended"]  # its threads could abort a process that is ending


@pytest.mark.long
def test_two_processes_answer_as_one(tmp_path, plan):
    arguments = ("eval", "reference", "--data", "reference:text", "--plan", plan, "--limit", 5, "--batch", 2)
    assert run(*arguments, "--out", tmp_path / "one.json").exit_code == 0
    (first, said, errors), (second, nothing, _) = by_two(*arguments, "--out", tmp_path / "two.json")
    assert (first, second) == (0, 0), errors
    assert "retention" in said
    assert nothing == ""  # only the first prints
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "plan", "two.json"]


@pytest.mark.long
def test_a_whole_run_of_two_processes_is_that_of_one(tmp_path, monkeypatch):
    """Calibrated, searched, compared, tested and written, by ``torchrun``."""
    sizes = ("--samples", 1, "--tuning", 2, "--selection", 2, "--certification", 7, "--proposals", 2)
    target = ("--retention", 0.6, "--by", "flops", "--engine", "vllm", "--no-fitted")
    words = ("optimize", "reference", "--data", "reference:chart", *sizes, *target, "--out")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "helpers.short_search")
    assert "Certified" in launched(*torchrun, *words, tmp_path / "two")
    shorten(monkeypatch.setattr)
    assert run(*words, tmp_path / "one").exit_code == 0
    one, two = (_untimed(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys() > {"plan/lookless_plan.json", "certificate.json"}
    assert one == two


def _untimed(folder):
    """The JSON files of a run, without milliseconds and the sentences that tell them."""
    timed = {"seconds", "time", "made_from", "lines"}
    paths = [path for path in folder.rglob("*.json") if path.name != "latency.json"]
    return {
        str(path.relative_to(folder)): json.loads(
            path.read_text(), object_hook=lambda found: {key: found[key] for key in found.keys() - timed}
        )
        for path in paths
    }


@pytest.fixture
def lines(tmp_path):
    """The lines of a user's file, and where they are written."""
    found = []
    for i in range(3):
        image, question, answer = reference.question("chart", "test", i)
        image.save(tmp_path / f"{i}.png")
        found.append({"image": f"{i}.png", "question": question, "answer": answer})
    return found, tmp_path / "mine.jsonl"


@pytest.mark.long
def test_a_bad_sample_of_another_process_is_named(lines, tmp_path):
    found, path = lines
    found[1]["question"] += " <image>"  # refused when it is processed, by the second process
    path.write_text("\n".join(map(json.dumps, found)))
    arguments = ("eval", "reference", "--data", path, "--batch", 1, "--out", tmp_path / "out.json")
    (first, said, errors), (second, _, others) = by_two(*arguments)
    assert (first, second, said) == (2, 0, "")
    [sentence] = [line for line in errors.splitlines() if line.startswith("lookless:")]
    assert f"{path}, line 2: the question holds" in sentence
    assert "Traceback" not in errors + others
    assert "lookless:" not in others
    names = sorted(one.name for one in (tmp_path / "out.json.unfinished").iterdir())
    assert names == ["dense.0.json", "dense.2.json"]  # what the first has finished is kept


@pytest.mark.long
def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """SIGKILL loses the batch in flight alone."""
    arguments = ("eval", "reference", "--data", "reference:chart", "--limit", 40, "--batch", 1)
    out, kept = tmp_path / "out.json", tmp_path / "out.json.unfinished"
    killed, finished = started((*arguments, "--out", out)), 0
    until = time.monotonic() + PATIENCE_S
    while finished < 3 and killed.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
        finished = len([*kept.glob("dense.*.json")])
    killed.kill()
    killed.communicate()
    finished = len([*kept.glob("dense.*.json")])
    assert 3 <= finished < 40
    assert not out.exists()

    asked = []
    answer = Loaded.answer
    monkeypatch.setattr(Loaded, "answer", lambda self, *a, **k: asked.append(1) or answer(self, *a, **k))
    result = run(*arguments, "--out", out)
    assert result.exit_code == 0, result.output
    assert len(asked) == 40 - finished
    assert not kept.exists()
    assert run(*arguments, "--out", tmp_path / "whole.json").exit_code == 0
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.long
def test_calibration_goes_on_with_several_measures(tmp_path, monkeypatch):
    """It stops in the third sample; other measures do not go on from there, the same ones do."""
    out = tmp_path / "scores"
    arguments = ("calibrate", "reference", "--data", "reference:chart", "--samples", 4, "--out", out)
    measures = ("--measure", "ffn_effect", "--measure", "visual_information_gain")

    runs = []
    whole = sweep.full_run

    def stopping(*given):
        runs.append(1)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(sweep, "full_run", stopping)
    assert run(*arguments, *measures).exit_code == 130
    assert len([*(out / "unfinished").iterdir()]) == 2
    assert run(*arguments[:-1], tmp_path / "other", "--measure", "ffn_effect").exit_code == 0
    assert len(runs) == 3 + 4
    assert run(*arguments, *measures).exit_code == 0
    assert len(runs) == 3 + 4 + 2
    assert not (out / "unfinished").exists()
    names = sorted(path.name for path in out.iterdir())
    assert names == ["ffn_effect.json", "visual_information_gain.json"]
    alone = Scores.load(tmp_path / "other")
    assert Scores.load(out / "ffn_effect.json").per_sample == alone.per_sample
