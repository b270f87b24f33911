"""A user's folder: what commands in documents and help texts name is there, and what takes minutes takes seconds."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from helpers import fake_vllm
from helpers.pages import run_folder
from lookless import Geometry, Keep, Plan, Scores, Skip, demo, load_data, reference
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
SKIPS = ("my-plan", "mild", "bold", "chart-plan", "text-plan", "plan-for-all", "PLAN_DIR", "lookless-demo/chart/plan")
#: Any model is one whose tower takes images of any size.
MODELS = {
    "my-model": "reference",
    "FOLDER": "reference",
    "MODEL": "reference-qwen3-vl",
    "my-hybrid": "reference-qwen3-5",
}


def run(words: list[str]) -> Result:
    """``lookless ...``, in this process; what is before ``>`` alone goes to the file behind it."""
    words, where = (words[:-2], words[-1]) if ">" in words else (words, None)
    _, name, *_ = words = [*words, ""]
    kind = f"{name} --method" if name == "search" and "--method" in words else name
    shorter = SHORTER.get(kind, "")
    done = CliRunner().invoke(app, [*words[1:-1], *shlex.split(shorter)], prog_name="lookless")
    if where is not None:
        Path(where).write_text(done.stdout)
    return done


def folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills the folder that one is in; a small model is in the place of a large one, and vLLM is played."""
    models()
    questions()
    plans()
    results()
    run_folder(Path("RUN_DIR"))
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


def without_results(commands: Iterable[list[str]]) -> None:
    """Takes away what one of these commands will write: a result that is there is not replaced unasked."""
    for words in commands:
        for option, value in pairwise(words):
            where = Path(value)
            if option == "--out" and where.exists():
                shutil.rmtree(where) if where.is_dir() else where.unlink()


def models() -> None:
    for name, shipped in MODELS.items():
        Path(name).symlink_to(reference.SHIPPED[shipped], target_is_directory=True)


def questions(lines: int = 40) -> None:
    """``mine.jsonl`` and ``other.jsonl`` with their images, and the same as ``val.parquet``."""
    Path("images").mkdir()
    for file, part in (("mine.jsonl", "test"), ("other.jsonl", "calibration")):
        written = []
        for i in range(lines):
            image, question, answer = reference.question("chart", part, i)
            path = f"images/{i}.png" if part == "test" else f"images/other-{i}.png"
            image.save(path)
            written.append({"image": path, "question": question, "answer": answer})
        Path(file).write_text("\n".join(map(json.dumps, written)))
    for name in ("photo.png", "a.png", "b.png"):
        Image.open("images/0.png").save(name)
    table(lines)


def table(lines: int) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [json.loads(line) for line in Path("mine.jsonl").read_text().splitlines()[:lines]]
    columns = {
        "img": [Path(row["image"]).read_bytes() for row in rows],
        "question": [row["question"] for row in rows],
        "query": [row["question"] for row in rows],
        "label": [row["answer"] for row in rows],
        "answers": [[row["answer"]] * 10 for row in rows],
    }
    parquet.write_table(pyarrow.table(columns), "val.parquet")


def plans() -> None:
    for name in SKIPS:
        Plan.full(12).at([5], attention=Skip()).save_pretrained(name)
    Plan.full(12).at([5], ffn=Skip()).save_pretrained("ffn-plan")
    Plan.full(12).at([2], keep=Keep(0.5, rank="diversity")).save_pretrained("my-fastv")


def results() -> None:
    """Scores, answers and logged samples."""
    for measure in {need for method in METHODS.values() for need in method.measures}:
        Scores(name=measure, per_sample=(tuple(range(32)),), geometry=SMALL).save(f"{measure}.json")
    shape = geometry_named("reference")
    made = {"name": "visual_information_gain", "geometry": shape, "model": "reference", "data": "mine.jsonl"}
    Scores(per_sample=(tuple(range(12)),), **made).save("scores.json")
    answers = tuple(Answer(question=str(n), expected="a", dense="a", plan="a", sample_hash=str(n)) for n in range(4))
    sure = Estimate(value=1, low=1, high=1)
    found = Evaluation(data="chart", model="m", samples=4, accuracy_dense=sure, accuracy_plan=sure, answers=answers)
    for path in ("mild.json", "bold.json", "mild-results/chart.json", "bold-results/chart.json"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(found.model_dump_json())
    [line, *_] = load_data("mine.jsonl")
    asked = Answer(question=line.question, expected="red", dense="red", plan="red", sample_hash=line.hash)
    mine = found.model_copy(update={"data": "mine.jsonl", "model": "reference", "samples": 1, "answers": (asked,)})
    Path("answers.json").write_text(mine.model_dump_json())
    for logs in ("logs/stock", "logs/plan", "runs/stock", "runs/plan"):
        Path(logs).mkdir(parents=True)
        task = "gqa" if logs.startswith("logs") else "lookless_reference_chart"
        logged = {"doc_id": 0, "target": "a", "input": "q", "exact_match": 1.0}
        Path(logs, f"20260806_123456_samples_{task}.jsonl").write_text(json.dumps(logged))
