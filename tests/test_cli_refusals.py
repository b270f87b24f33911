"""Bad input to the command line: one sentence, exit code 2, and what was there before is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from helpers.cli import fails, run
from lookless import Plan, Skip
from lookless.plan import FILE_NAME
from lookless.runtime.families import geometry_of


def test_refusals_are_one_sentence(tmp_path, image, plan):
    flops = ("flops", "--visual", 1, "--text", 1)
    assert "choose one of LLaVA-1.5-7B" in fails(*flops, "--geometry", "gpt")
    seven = (*flops, "--geometry", "LLaVA-1.5-7B")
    assert "either --plan or --method" in fails(*seven, "--plan", plan, "--method", "v-skip")
    assert "33 layers and the model has 32" in fails(*seven, "--method", "v-skip", "--layers", 33)
    assert "layers is 'many' and should be INT" in fails(*seven, "--method", "v-skip", "--layers", "many")
    assert "vtw-search costs depends on scores" in fails(*seven, "--method", "vtw-search")
    assert "dop needs attention, which is found by search" in fails(*seven, "--method", "dop")
    assert "--layers is no option of lookless flops" in fails(*seven, "--layers", 3)
    assert "no method 'x'" in fails(*seven, "--method", "x", "--layers", 3)
    assert "does not exist" in fails("show", tmp_path)
    assert "has no config.json" in fails("eval", tmp_path, "--data", "reference")
    assert "no reference task" in fails("eval", "reference", "--data", "reference:poems")
    assert "does not exist" in fails("generate", "reference", "--image", tmp_path / "no.png", "--prompt", "x")
    cut = tmp_path / "cut.png"
    cut.write_bytes(image.read_bytes()[:200])
    assert "damaged" in fails("generate", "reference", "--image", cut, "--prompt", "x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "mystery"}')
    assert "cannot be loaded" in fails("eval", tmp_path / "model", "--data", "reference")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    assert "models of type 'bert' are not supported; supported are llava" in fails(
        "eval", tmp_path / "model", "--data", "reference"
    )


def test_plans_that_do_not_fit(tmp_path, reference):
    Plan.full(9).at([0], attention=Skip()).save_pretrained(tmp_path / "nine")
    eval_with = ("eval", "reference", "--data", "reference:chart", "--limit", 2, "--plan")
    assert "9 layers and the model has 12" in fails(*eval_with, tmp_path / "nine")
    other = geometry_of(reference.model).model_copy(update={"hidden": 4096})
    Plan.full(other).save_pretrained(tmp_path / "other")
    assert "another architecture" in fails(*eval_with, tmp_path / "other")
    newer = json.loads(Plan.full(12).to_json()) | {"schema_version": 99}
    (tmp_path / "nine" / FILE_NAME).write_text(json.dumps(newer))
    assert "upgrade lookless" in fails(*eval_with, tmp_path / "nine")


def test_what_was_there_stays(tmp_path, image):
    """A command that fails leaves the files it would have written as they were."""
    scores, plan = tmp_path / "scores.json", tmp_path / "plan"
    run("calibrate", "reference", "--data", "reference:chart", "--samples", 2, "--out", scores)
    run("plan", "v-skip", "--scores", scores, "--layers", 2, "--out", plan)
    before = scores.read_bytes(), (plan / FILE_NAME).read_bytes()
    assert "asked to skip 13 layers and the model has 12" in fails(
        "plan", "v-skip", "--scores", scores, "--layers", 13, "--out", plan, "--overwrite"
    )
    (tmp_path / "words.jsonl").write_text('{"question": "q", "answer": "a"}')
    anew = ("--out", scores, "--overwrite")
    assert "has an image" in fails("calibrate", "reference", "--data", tmp_path / "words.jsonl", *anew)
    (tmp_path / "empty.jsonl").write_text("")
    assert "holds no sample" in fails("calibrate", "reference", "--data", tmp_path / "empty.jsonl", *anew)
    assert "not one of last, answer" in fails(
        "calibrate", "reference", "--data", "reference", *anew, "--position", "first"
    )
    assert (scores.read_bytes(), (plan / FILE_NAME).read_bytes()) == before
    assert "is a folder" in fails("calibrate", "reference", "--data", "reference", "--out", plan)
    assert "is a file" in fails("plan", "v-skip", "--scores", scores, "--layers", 2, "--out", scores)
    assert "cannot be written" in fails("plan", "v-skip", "--scores", scores, "--layers", 2, "--out", scores / "below")


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "1e300", "many"])
def test_numbers_that_are_none_exit_with_two(number):
    sizes = {"--visual": "5", "--text": "5"}
    for option in sizes:
        words = [word for pair in {**sizes, option: number}.items() for word in pair]
        done = run("flops", "--geometry", "LLaVA-1.5-7B", *words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"Invalid value for '{option}'" in done.output
    done = run("table", "--budget", number)
    assert done.exit_code == 2
    assert "Invalid value for '--budget'" in done.output


def test_a_reader_that_has_read_enough():
    """What is left of a table goes nowhere, without a traceback and without a word."""
    for words in (["methods"], ["methods", "--json"]):
        command = [sys.executable, "-m", "lookless", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 141


def test_an_interrupt_is_one_sentence(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lookless.methods.all_methods", interrupted)
    done = run("methods")
    assert (done.exit_code, done.stderr) == (130, "lookless: interrupted.\n")


@pytest.mark.parametrize(
    "problem", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 5 bytes")]
)
def test_memory_that_runs_out_is_one_sentence(monkeypatch, problem):
    def raised(*_):
        raise problem

    monkeypatch.setattr("lookless.methods.all_methods", raised)
    assert "there is not enough memory (" in fails("methods")


def test_typos_exit_with_two():
    assert run("calibrat").exit_code == 2
    assert run("flops", "--geometry", "LLaVA-1.5-7B", "--visual", "many", "--text", 3).exit_code == 2


def test_as_a_process(tmp_path):
    """Once from outside: no traceback, and nothing but the sentence on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "lookless", "eval", "reference", "--data", "nowhere.jsonl"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("lookless: nowhere.jsonl cannot be read as data (No such file or directory)")
    assert done.stderr.count("\n") == 1
