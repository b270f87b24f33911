"""Every command that a help text shows runs as it is written, in a folder where what it names is there."""

from __future__ import annotations

import doctest
import functools
import importlib
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from helpers import fake_vllm
from helpers.pages import run_folder
from lookless import Geometry, Plan, Scores, Skip, demo, load_data
from lookless.cli.main import app
from lookless.configs import geometry_named
from lookless.evaluation import Answer, Estimate, Evaluation
from lookless.geometry import PRESETS
from lookless.methods import METHODS
from lookless.serving.launch import command_for

#: What would take minutes takes seconds: the last of two options counts.
SHORTER = {
    "calibrate": "--samples 2",
    "experiment": "--questions 2 --samples 1 --seeds 2",
    "table": "--questions 2 --samples 1 --data reference:chart",
    "bench": "--repeats 2",
    "eval": "--limit 2",
    "refit": "--samples 2",
    "certify": "--limit 6 --retention 0.2",
    "optimize": "--samples 1 --tuning 1 --selection 1 --certification 4 --proposals 0 --engine vllm",
    "search": "--samples 1 --tuning 1 --engine vllm --proposals 0",
    "search --method": "--samples 1 --tuning 1 --engine vllm",
}
SMALL = Geometry(model_type="llava", layers=32, hidden=64, intermediate=96, heads=4, kv_heads=4, head_dim=16)


def commands(group, *path: str):
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


EXAMPLES = [
    pytest.param(path, line, id=line)
    for path, shown in commands(typer.main.get_command(app))
    for line in re.findall(r": (lookless .+)$", shown.help, flags=re.MULTILINE)
]


def test_every_command_has_one():
    shown = {example.values[0] for example in EXAMPLES}
    assert {path for path, _ in commands(typer.main.get_command(app))} == shown
    assert {("plan", name) for name in METHODS} < shown


@pytest.mark.parametrize(("path", "line"), EXAMPLES)
def test_it_runs(path, line, tmp_path, monkeypatch):
    kind = f"{path[0]} --method" if path[0] == "search" and "--method" in line else path[0]
    words = [*shlex.split(line)[1:], *shlex.split(SHORTER.get(kind, ""))]
    assert tuple(words[: len(path)]) == path
    monkeypatch.chdir(tmp_path)
    prepare(monkeypatch)
    if path == ("report",):
        run_folder(Path("my-run"))
    for there in words[words.index("--out") + 1 :][:1] if "--out" in words else ():
        shutil.rmtree(there, ignore_errors=True)
        Path(there).unlink(missing_ok=True)
    done = CliRunner().invoke(app, words, prog_name="lookless")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() or path == ("serve",)


def prepare(monkeypatch):
    """What examples name, in the folder that one is in; a small model for a large; and a vLLM that is played."""
    for measure in {need for method in METHODS.values() for need in method.measures}:
        Scores(name=measure, per_sample=(tuple(range(32)),), geometry=SMALL).save(f"{measure}.json")
    for folder in ("my-plan", "mild", "bold", "lookless-demo/chart/plan"):
        Plan.full(12).at([5], attention=Skip()).save_pretrained(folder)
    Plan.full(12).at([5], ffn=Skip()).save_pretrained("ffn-plan")
    answers = tuple(Answer(question=str(n), expected="a", dense="a", plan="a", sample_hash=str(n)) for n in range(4))
    sure = Estimate(value=1, low=1, high=1)
    found = Evaluation(data="chart", model="m", samples=4, accuracy_dense=sure, accuracy_plan=sure, answers=answers)
    for name in ("mild.json", "bold.json"):
        Path(name).write_text(found.model_dump_json())
    for folder in ("logs/stock", "logs/plan"):
        Path(folder).mkdir(parents=True)
        Path(folder, "20260806_123456_samples_gqa.jsonl").write_text('{"doc_id": 0, "target": "a", "exact_match": 1.0}')
    load_data("reference:chart", limit=1).items[0].images[0].save("photo.png")
    Path("mine.jsonl").write_text('{"image": "photo.png", "question": "which bar is the tallest?", "answer": "red"}')
    [line] = load_data("mine.jsonl")
    asked = Answer(question=line.question, expected="red", dense="red", plan="red", sample_hash=line.hash)
    mine = found.model_copy(update={"data": "mine.jsonl", "model": "reference", "samples": 1, "answers": (asked,)})
    Path("answers.json").write_text(mine.model_dump_json())
    shape = geometry_named("reference")
    named = {"name": "visual_information_gain", "geometry": shape, "model": "reference", "data": "mine.jsonl"}
    Scores(per_sample=(tuple(range(12)),), **named).save("scores.json")
    monkeypatch.setitem(PRESETS, "LLaVA-1.5-7B", SMALL)
    monkeypatch.setattr(demo, "tasks_of", lambda model: ["chart"])
    monkeypatch.setattr(demo, "CALIBRATION_SAMPLES", 2)
    monkeypatch.setattr(demo, "run_demo", functools.partial(demo.run_demo, test_samples=8))
    fake = (sys.executable, fake_vllm.__file__)
    monkeypatch.setenv("FAKE_VLLM", os.path.abspath("calls"))
    for module in ("traffic", "traffic_client"):
        monkeypatch.setattr(f"lookless.bench.{module}.VLLM", fake)
    monkeypatch.setattr("lookless.serving.launch.find_spec", lambda name: name)
    monkeypatch.setattr("lookless.bench.traffic.command_for", lambda *words: [*fake, *command_for(*words)[3:]])
    monkeypatch.setattr("os.execv", lambda *_: None)


@pytest.mark.parametrize(
    "name",
    [
        *("lookless.plan", "lookless.liveness", "lookless.scores", "lookless.flops"),
        *("lookless.methods.v_skip", "lookless.runtime.rows"),
    ],
)
def test_docstrings_run(name):
    """What is easy to get wrong has an example, which gives what it says."""
    module = importlib.import_module(name)
    found = doctest.testmod(module)
    assert found.attempted >= 3
    assert found.failed == 0
