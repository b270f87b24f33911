"""A plan inside lmms-eval: the answers of `lookless eval`, the prompts and answers of the stock classes without it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from loguru import logger

import lookless
from lookless.lmms.export import parts, write_task
from lookless.reference import NAMES
from lookless.runtime.families import geometry_of
from runs import answers, prompts, run, shares
from schemas import SCHEMAS, task_of, write

ROOT = Path(__file__).parents[2]
MODELS = {"qwen3_vl": "reference-qwen3-vl", "llava_hf": "reference"}
LINES = 4
PATIENCE_S = 600  # lmms-eval reads its two thousand tasks first: five seconds, or minutes on a busy machine
ASKED = ("reference:chart", "reference:counting", "reference:text")
OURS = tuple(name.replace(":", "_").join(("lookless_", "")) for name in ASKED)


@pytest.fixture(scope="module")
def include(tmp_path_factory: Any) -> Path:
    """Our own tasks, and the copies of others."""
    folder = tmp_path_factory.mktemp("tasks")
    for data in ASKED:
        [(where, name)] = parts(data)
        write_task(lookless.load_data(where, limit=LINES), folder, name)
    write(folder)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def name(request: Any) -> str:
    """Of lmms-eval's class."""
    return request.param


def loaded_as(name: str) -> lookless.Loaded:
    """The shipped model in the type that lmms-eval's class loads it in."""
    return lookless.load_model(MODELS[name], dtype="bfloat16")


@pytest.fixture(scope="module")
def plan(name: str, tmp_path_factory: Any) -> Path:
    """Harsh enough to change answers."""
    geometry = geometry_of(loaded_as(name).model)
    made = lookless.Plan.full(geometry).at(range(3, 12), attention=lookless.Skip()).at([6, 9], ffn=lookless.Skip())
    folder = tmp_path_factory.mktemp("plans") / name
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(name: str, include: Path, plan: Path, tmp_path_factory: Any) -> dict[str, Any]:
    """Stock, ours without a plan, and ours with one, on all tasks."""
    tasks, out = [*OURS, *map(task_of, SCHEMAS)], tmp_path_factory.mktemp("out")
    pretrained = NAMES[MODELS[name]]
    return {
        "stock": run(name, tasks, include, out, pretrained=pretrained),
        "without": run(f"lookless_{name}", tasks, include, out, pretrained=pretrained),
        "plan": run(f"lookless_{name}", tasks, include, out, pretrained=MODELS[name], plan=plan),
    }


def test_answers_are_those_of_lookless_eval(name, runs, plan):
    loaded = loaded_as(name)
    for data, task in zip(ASKED, OURS, strict=True):
        samples = lookless.load_data(data, limit=LINES)
        found = lookless.evaluate(loaded, samples, lookless.Plan.from_pretrained(plan), batch=1, max_new_tokens=8)
        assert [a.strip() for a in answers(runs["stock"], task)] == [a.dense for a in found.answers]
        assert [a.strip() for a in answers(runs["plan"], task)] == [a.plan for a in found.answers]
        for run_of, estimate in (("stock", found.accuracy_dense), ("plan", found.accuracy_plan)):
            assert runs[run_of]["results"][task]["exact_match,none"] == pytest.approx(estimate.value)


def test_without_a_plan_it_is_the_stock_class(runs):
    for task in [*OURS, *map(task_of, SCHEMAS)]:
        assert prompts(runs["without"], task) == prompts(runs["stock"], task)
        assert answers(runs["without"], task) == answers(runs["stock"], task)
        assert runs["without"]["results"][task] == runs["stock"]["results"][task]
    assert shares(runs["without"]) == {}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_real_tasks_run(runs, plan, schema):
    task = task_of(schema)
    assert prompts(runs["plan"], task) == prompts(runs["stock"], task)
    for which in ("stock", "plan"):
        found = runs[which]["results"][task]
        kept = {key.split(",")[0]: value for key, value in found.items() if isinstance(value, (int, float))}
        assert {*SCHEMAS[schema].metrics} <= kept.keys()
        assert all(math.isfinite(kept[metric]) for metric in SCHEMAS[schema].metrics)
        assert len(answers(runs[which], task)) == 4
    expected = {"lookless_plan": lookless.Plan.from_pretrained(plan).hash}
    metadata = runs["plan"]["configs"][task]["metadata"]
    assert expected in (metadata if isinstance(metadata, list) else [{"lookless_plan": metadata["lookless_plan"]}])
    assert "lookless_plan" not in str(runs["without"]["configs"][task].get("metadata"))


def test_the_plan_took_hold(runs):
    changed = [t for t in [*OURS, *map(task_of, SCHEMAS)] if answers(runs["plan"], t) != answers(runs["stock"], t)]
    assert len(changed) > len(SCHEMAS) / 2, changed
    found = shares(runs["plan"])
    assert found["query"] < 0.6
    assert found["ffn"] < 0.9
    assert found["key"] == 1


def test_rows_are_those_that_the_model_ran(name, include, plan, tmp_path):
    """Counted a second time, around the model of `lookless eval`."""
    task = OURS[0]
    found = run(f"lookless_{name}", [task], include, tmp_path, pretrained=MODELS[name], plan=plan)
    loaded, samples = loaded_as(name), lookless.load_data(ASKED[0], limit=LINES)
    totals = []
    for made in (lookless.Plan.full(12), lookless.Plan.from_pretrained(plan)):
        with lookless.apply(loaded.model, made), lookless.trace(loaded.model) as counted:
            for sample in samples:
                loaded.answer([sample], max_new_tokens=8)
        totals.append({operator: sum(row[operator] for row in counted.layers) for operator in counted.layers[0]})
    dense, planned = totals
    assert shares(found) == pytest.approx({operator: planned[operator] / dense[operator] for operator in planned})


def test_prompts_are_looked_up_under_the_baselines_name(runs, name):
    """MMMU asks a Qwen3-VL in words of its own."""
    own = [text.endswith("Answer with the option letter only.") for text in prompts(runs["plan"], task_of("mmmu"))[::2]]
    assert own == [name == "qwen3_vl"] * 2


def test_another_plan_in_the_same_folder_gets_no_cached_answers(include, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # in a checkout, the cache forgets at each commit
    geometry = geometry_of(loaded_as("qwen3_vl").model)
    full = lookless.Plan.full(geometry)
    found = []
    for made in (full.at([1], ffn=lookless.Skip()), full.at(range(12), attention=lookless.Skip(), ffn=lookless.Skip())):
        made.save_pretrained(tmp_path / "plan")
        for _ in range(2):
            args = {"pretrained": "reference-qwen3-vl", "plan": tmp_path / "plan"}
            done = run("lookless_qwen3_vl", [OURS[0]], include, tmp_path, use_cache=tmp_path / "cache", **args)
            found.append((answers(done, OURS[0]), bool(shares(done))))
    (first, ran), (again, ran_again), (second, ran_second), _ = found
    assert first == again
    assert (ran, ran_again, ran_second) == (True, False, True)
    assert first != second


def test_what_fails_is_no_empty_answer(include, tmp_path, monkeypatch):
    """LLaVA's class logs what `generate` raises, and goes on with an empty answer."""
    lookless.Plan.full(12).at([3], attention=lookless.Skip()).save_pretrained(tmp_path / "plan")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory is left")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fail)
    args = {"pretrained": NAMES["reference"]}
    assert set(answers(run("llava_hf", [OURS[0]], include, tmp_path, **args), OURS[0])) == {""}
    with pytest.raises(RuntimeError, match="no memory is left"):
        run("lookless_llava_hf", [OURS[0]], include, tmp_path, plan=tmp_path / "plan", **args)


def test_a_plan_that_skips_nothing_is_told(include, tmp_path):
    lookless.Plan.full(12).save_pretrained(tmp_path / "plan")
    args = {"pretrained": "reference-qwen3-vl", "plan": tmp_path / "plan"}
    told: list[str] = []
    log = logger.add(told.append)
    done = run("lookless_qwen3_vl", [OURS[0]], include, tmp_path, **args)
    logger.remove(log)
    assert set(shares(done).values()) == {1}
    assert [line for line in told if "lookless: the plan skipped nothing" in line]


def test_the_command_line_and_the_comparison_of_two_runs(include, tmp_path):
    """As docs/lmms_eval.md has them."""
    lookless.Plan.full(12).at(range(1, 12), attention=lookless.Skip()).save_pretrained(tmp_path / "plan")
    models = {
        "stock": ("qwen3_vl", f"pretrained={NAMES['reference-qwen3-vl']}"),
        "plan": ("lookless_qwen3_vl", f"pretrained=reference-qwen3-vl,plan={tmp_path / 'plan'}"),
    }
    for which, (model, args) in models.items():
        words = ["--model", model, "--model_args", f"{args},device_map=cpu", "--device", "cpu", "--limit", LINES]
        words += ["--include_path", include, "--tasks", "lookless_reference_chart", "--log_samples"]
        told = finished("-m", "lmms_eval", *words, "--output_path", f"runs/{which}", folder=tmp_path)
        results = [*(tmp_path / "runs" / which).rglob("*_results.json")]
        assert len(results) == 1, told  # it exits with 0 after an error, too
        counted = "avg_lookless_query_rows" in json.loads(results[0].read_text())["throughput"]
        assert counted == (which == "plan"), told
    [code] = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/lmms_eval.md").read_text(), re.MULTILINE | re.DOTALL)
    told = finished("-c", code, folder=tmp_path)
    [lost, won] = map(int, re.findall(rf"{LINES} questions, (\d) lost, (\d) won", told)[0])
    assert lost > 0 == won
    assert "p = " in told


def finished(*words: Any, folder: Path) -> str:
    """What Python prints, run in ``folder``."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([sys.executable, *map(str, words)], **pipes, text=True, cwd=folder, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout
    return done.stdout
