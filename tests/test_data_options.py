"""The options on data: every command that takes data takes them, a run keeps them, and what is scored follows them."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace

import pytest
from typer.main import get_command

from helpers.cli import fails, run
from lookless import DataError, LooklessError, PlanError, load_data
from lookless.answers import Answer
from lookless.cli.main import app
from lookless.comparison.results import Results
from lookless.comparison.run import _resumed, per_question
from lookless.comparison.workspace import Workspace
from lookless.data import AS_IS, Reading
from lookless.experiments.lab import Lab, Sizes
from lookless.optimize.begin import start
from lookless.optimize.folder import Run, Target
from lookless.optimize.split import Sizes as Parts
from lookless.optimize.split import split
from lookless.pages.pictures import Album
from lookless.pages.reading import read

#: Options of a command that reads data, and of one that scores answers too.
OPTIONS = {"columns", "prompt_suffix", "skip_bad"}
READS_ALONE = {"bench", "calibrate", "refit", "report", "route"}
COLUMNS = {"image": "img", "question": "q", "answer": "a"}
READING = Reading(columns=COLUMNS, prompt_suffix=" In a word.", metric="contains")


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """Twelve questions whose keys have other names than ours; the model is never reached."""
    lines = []
    for i, sample in enumerate(load_data("reference:chart", limit=12)):
        sample.images[0].save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"img": f"{i}.png", "q": sample.question, "a": sample.answer, "junk": i}))
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_every_command_that_takes_data_has_the_options():
    commands = {
        name: {parameter.name: parameter for parameter in command.params}
        for name, command in get_command(app).commands.items()
    }
    assert {"optimize", "search", "table", "experiment", "eval", "certify", "lmms"} <= commands.keys()
    for name, known in commands.items():
        if "data" in known:
            wanted = OPTIONS if name in READS_ALONE else OPTIONS | {"metric"}
            assert wanted <= known.keys(), name
            assert {known[option].help for option in wanted} == {commands["eval"][option].help for option in wanted}
        else:
            assert not OPTIONS & known.keys(), name
    shown = run("optimize", "--help").stdout
    assert "How data are read and scored" in shown
    assert all(f"--{option.replace('_', '-')}" in shown for option in (*OPTIONS, "metric"))


def test_every_command_reads_by_them(odd, plan, tmp_path):
    """A column that is not there is told of by the one who reads."""
    out, wrong = tmp_path / "out", ("--columns", "image=nowhere")
    data = ("--data", odd)
    for words in (
        ("calibrate", "reference", *data, "--out", out),
        ("eval", "reference", *data),
        ("certify", "reference", "--plan", plan, *data),
        ("optimize", "reference", *data, "--flops", 0.5, "--out", out),
        ("search", "reference", *data, "--flops", 0.5, "--out", out),
        ("table", "reference", *data, "--work", out, "--out", out / "t.md"),
        ("experiment", "v-skip-masks", "reference", *data, "--out", out),
        ("refit", "reference", "--plan", plan, *data, "--out", out),
        ("route", "reference", "--plan", f"a={plan}", "--data", f"a={odd}", "--out", out),
        ("lmms", *data, "--out", out),
        ("bench", "reference", *data),
    ):
        assert "odd.jsonl, line 1: there is no 'nowhere', it has img, q, a, junk." in fails(*words, *wrong), words[0]
    assert "says how data are read, and there are none" in fails("bench", "--geometry", "LLaVA-1.5-7B", *wrong)
    assert "no metric is called 'bleu'" in fails(
        "optimize", "reference", *data, "--out", out, "--flops", 0.5, "--metric", "bleu"
    )


def test_a_reading_as_a_user_types_it(odd):
    assert str(AS_IS) == ""
    words = shlex.split(str(READING))
    assert words == [
        "--columns",
        "answer=a,image=img,question=q",
        "--prompt-suffix",
        " In a word.",
        "--metric",
        "contains",
    ]
    assert str(Reading(skip_bad=True)) == "--skip-bad"
    found = READING.load(str(odd), limit=3)
    assert (found.metric, {sample.suffix for sample in found}) == ("contains", {" In a word."})
    assert load_data("reference:chart", limit=1, metric="gqa").metric == "gqa"
    with pytest.raises(LooklessError, match="no metric is called 'bleu'"):
        load_data("reference:chart", metric="bleu")


def test_a_run_keeps_how_its_data_are_read(odd, tmp_path, reference):
    """Its parts are read and scored so, its page finds the images, and another reading is refused."""
    parts = split("reference", [str(odd)], Parts(2, 2, 2, 3), reading=READING)
    [task] = parts
    assert {getattr(task, part).metric for part in ("tuning", "certification")} == {"contains"}
    assert task.certification.items[0].suffix == " In a word."
    target, out = Target(kind="flops", value=0.5), tmp_path / "run"
    start(reference, parts, out, target, reading=READING)
    assert Run.load(out).reading == READING
    start(reference, parts, out, target, reading=READING)
    for other in (AS_IS, READING.model_copy(update={"metric": "gqa"})):
        with pytest.raises(PlanError, match=r"read with --columns .* --metric contains, and this one's are with"):
            start(reference, parts, out, target, reading=other)
    material = read([out])
    assert material.reading == READING
    [wanted] = task.certification.hashes[:1]
    assert [*Album(material.data, material.reading).samples("odd", [wanted])] == [wanted]
    with pytest.raises(DataError, match="MME's pairs"):
        split("reference", [str(odd)], Parts(2, 2, 2, 3), reading=READING.model_copy(update={"metric": "mme"}))


def test_a_run_leaves_out_what_the_processor_refuses(odd, reference):
    lines = [json.loads(line) for line in odd.read_text().splitlines()]
    for line in lines[:4]:
        line["q"] += reference.processor.image_token
    odd.write_text("\n".join(map(json.dumps, lines)))
    [task] = split("reference", [str(odd)], Parts(3, 3, 3, 3), reading=READING.model_copy(update={"skip_bad": True}))
    fit = task.fitting(reference)
    parts = fit.calibration, fit.tuning, fit.selection, fit.certification
    assert sum(map(len, parts)) == 8
    assert len(fit.bad) == 4


def test_tables_and_experiments_score_by_the_metric(odd, tmp_path, reference):
    work = Workspace(reference, [str(odd)], tmp_path, questions=4, samples=2, batch=4, reading=READING)
    assert work.test[str(odd)].metric == "contains"
    lab = Lab(reference, [str(odd)], tmp_path / "lab", Sizes(questions=2, samples=2), reading=READING)
    first, second = (sample.answer for sample in lab.work.test[str(odd)])
    assert Lab.short.func(SimpleNamespace(tasks=("a/val.parquet", "reference:chart"))) == {
        "a/val.parquet": "val",
        "reference:chart": "chart",
    }
    lab.dense = lambda task: [first, "nothing"]
    found = lab._outcome("m", str(odd), "", 0, [f"it is {first}", second], 1.0, None)
    assert (found.right, found.dense, found.same) == ((1, 1), (1, 0), (0, 0))
    answer = {"question": "q", "expected": "a", "dense": "x", "plan": "y", "dense_score": 0.75, "plan_score": 0.25}
    assert per_question([Answer(**answer)]) == {"right": (0.25,), "dense": (0.75,), "same": (0.0,)}
    with pytest.raises(DataError, match="under the metric choice, the right answer"):
        Workspace(
            reference,
            [str(odd)],
            tmp_path,
            questions=4,
            samples=2,
            batch=4,
            reading=Reading(columns=COLUMNS, metric="choice"),
        )


def test_a_table_of_another_metric_is_refused(odd, tmp_path, reference):
    work = Workspace(reference, [str(odd)], tmp_path, questions=4, samples=2, batch=4, reading=READING)
    path = tmp_path / "results.json"
    fresh = _resumed(path, work, 4, "", {})
    assert fresh.metrics == {str(odd): "contains"}
    path.write_text(fresh.model_dump_json())
    assert _resumed(path, work, 4, "", {}) == fresh
    for known in ({str(odd): "gqa"}, {}):  # an older library's, which knew exact match alone
        path.write_text(fresh.model_copy(update={"metrics": known}).model_dump_json())
        with pytest.raises(PlanError, match=r"holds results of another metric for .*odd\.jsonl than there is now"):
            _resumed(path, work, 4, "", {})
    old = {
        **json.loads(fresh.model_dump_json()),
        "outcomes": [
            {
                "method": "m",
                "setting": "paper",
                "task": "t",
                "kept": 1,
                "kept_papers": None,
                "kept_live": 1,
                "right": [True, False],
                "dense": [True, True],
                "same": [True, False],
            }
        ],
    }
    assert Results.model_validate_json(json.dumps(old)).outcomes[0].right == (1.0, 0.0)
