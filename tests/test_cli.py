"""The command line, as a person uses it: results on standard output, one sentence and exit code 2 for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from helpers.cli import fails, run
from lookless import Geometry, Plan, Scores, Skip, load_data
from lookless.methods import METHODS
from lookless.plan import FILE_NAME


def test_help_has_an_example_everywhere():
    assert "lookless demo" in run("--help").output
    for command in (
        "demo",
        "calibrate",
        "plan v-skip",
        "plan fastv",
        "plan preset",
        "methods",
        "show",
        "eval",
        "generate",
        "flops",
    ):
        result = run(*command.split(), "--help")
        assert result.exit_code == 0
        assert f"Example: lookless {command}" in result.output, command
        assert "--json" in result.output, command
    assert run("--version").output.strip()


def test_calibrate_plan_show_eval_generate(tmp_path, image):
    scores, plan = tmp_path / "scores.json", tmp_path / "made"
    done = run("calibrate", "reference", "--data", "reference:chart", "--samples", 3, "--out", scores)
    assert done.exit_code == 0, done.output
    assert "visual information gain" in done.output
    assert Scores.load(scores).samples == 3
    done = run("plan", "v-skip", "--scores", scores, "--layers", 7, "--out", plan)
    assert done.exit_code == 0, done.output
    assert len(Plan.from_pretrained(plan).skipped("attention")) == 7
    assert done.output.count("skip") >= 7
    assert done.output == run("show", plan).output + "layers 7: as given.\n"
    told = run("plan", "v-skip", "--scores", scores, "--out", plan, "--overwrite")
    assert told.output.endswith("layers 7: scaled to 12 layers from 19 of 32.\n")
    shown = run("eval", "reference", "--data", "reference:chart", "--limit", 6, "--plan", plan)
    assert shown.exit_code == 0, shown.output
    assert "retention" in shown.output
    told = run("generate", "reference", "--image", image, "--prompt", "which bar is the tallest?", "--plan", plan)
    assert told.exit_code == 0, told.output
    assert told.stdout.strip()


def test_json_is_json_and_nothing_else(tmp_path, image, plan):
    scores = tmp_path / "s.json"
    for arguments, key in (
        (("calibrate", "reference", "--data", "reference:text", "--samples", 2, "--out", scores), "per_sample"),
        (("plan", "v-skip", "--scores", scores, "--layers", 2, "--out", tmp_path / "p"), "layers"),
        (("show", plan), "layers"),
        (("eval", "reference", "--data", "reference:text", "--limit", 2, "--plan", plan), "retention"),
        (("generate", "reference", "--image", image, "--prompt", "which bar is the tallest?"), "answer"),
        (("flops", "--geometry", "LLaVA-1.5-7B", "--visual", 576, "--text", 66.6), "dense"),
    ):
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        assert key in json.loads(result.stdout), arguments


def test_flops_prints_the_papers_figures(plan):
    told = run(
        "flops", "--geometry", "llava-1.5-7b", "--visual", 576, "--text", 66.6, "--method", "v-skip", "--layers", 19
    )
    for printed in ("8.54", "7.69", "90.1%"):
        assert printed in told.output
    # what the last layer does to visual tokens is read by nobody, and to text by nobody but the last row
    for runs in ("as it runs", "88.0%", "liveness of visual tokens alone", "97.7%", "liveness alone", "97.4%"):
        assert runs in told.output
    assert "12 layers and the model has 32" in fails(
        "flops", "--geometry", "LLaVA-1.5-7B", "--visual", 576, "--text", 66, "--plan", plan
    )


def test_plans_are_joined_and_priced_together(tmp_path):
    full = Plan.full(Geometry.preset("LLaVA-1.5-7B"))
    plans = {"attention": full.at([3, 4], attention=Skip()), "ffn": full.at([4, 5], ffn=Skip())}
    for name, plan in plans.items():
        plan.save_pretrained(tmp_path / name)
    a, b, out = tmp_path / "attention", tmp_path / "ffn", tmp_path / "both"
    assert run("plan", "join", a, b, "--out", out).exit_code == 0
    assert Plan.from_pretrained(out) == plans["attention"] | plans["ffn"]
    assert "both plans set attention of layer 3" in fails("plan", "join", a, b, a, "--out", tmp_path / "c")
    assert "is one plan, and joining takes two or more" in fails("plan", "join", a, "--out", tmp_path / "c")
    priced = ("flops", "--geometry", "LLaVA-1.5-7B", "--visual", 576, "--text", 66, "--json")
    one, other = (json.loads(run(*priced, "--plan", path).stdout) for path in (a, b))
    together = json.loads(run(*priced, "--plan", a, "--plan", b).stdout)
    for path, alone in ((a, one), (b, other)):
        assert together[str(path)] == alone[str(path)]
        assert together[f"{path}, as it runs"] == alone["as it runs"]


def test_every_method_is_a_command(tmp_path):
    """Knobs come from the signature; what is left out is the paper's, at the same relative depth."""
    at = ("--out", tmp_path / "p", "--overwrite")
    made = run("plan", "pyramiddrop", "--geometry", "reference", "--keep", "0.6,0.3,0.1", *at)
    assert made.exit_code == 0, made.output
    assert "0.3 by instruction_attention" in made.output
    rows = Plan.from_pretrained(tmp_path / "p").layers
    assert [i for i, row in enumerate(rows) if not row.is_full] == [3, 6, 9]
    assert run("plan", "gsop", "--geometry", "reference", "--order", "ffn:11,visible:2", *at).exit_code == 0
    assert Plan.from_pretrained(tmp_path / "p").skipped("visible") == (2,)
    assert run("plan", "preset", "shortv/llava-1.5-7b", *at).exit_code == 0
    assert len(Plan.from_pretrained(tmp_path / "p").skipped("ffn")) == 19
    told = run("plan", "fastv", "--help").output
    for words in ("attended to most in the layer before", "--layer", "The paper's: 2, of 32 layers.", "--geometry"):
        assert words in told
    assert "--scores" not in told
    assert "The paper's" not in run("plan", "gsop", "--help").output, "what no paper has is not called so"
    assert "Default: 1.0." in run("plan", "dop", "--help").output
    listed = run("plan", "--help").output
    assert all(name in listed for name in METHODS)
    priced = ("flops", "--geometry", "LLaVA-1.5-7B", "--visual", 576, "--text", 66.6)
    assert "58.8%" in run(*priced, "--method", "fastv", "--layer=3").output


def test_scores_find_their_method(tmp_path):
    geometry = Geometry.preset("LLaVA-1.5-7B").model_copy(update={"layers": 4})
    paths = {}
    for name in ("visual_information_gain", "ffn_effect", "freeze_effect"):
        paths[name] = tmp_path / f"{name}.json"
        Scores(name=name, per_sample=((0.1, 0.2, 0.3, 0.4),), geometry=geometry).save(paths[name])
    at = ("--out", tmp_path / "p", "--overwrite")
    given = [word for path in paths.values() for word in ("--scores", path)]
    assert run("plan", "operator-skipping", *reversed_pairs(given), "--save", 0.3, *at).exit_code == 0
    made = Plan.from_pretrained(tmp_path / "p").provenance
    assert made.knobs["scores"] == "visual_information_gain, ffn_effect, freeze_effect", "whatever their order"
    assert "needs scores of visual_information_gain, ffn_effect, freeze_effect and was given ffn_effect" in fails(
        "plan", "operator-skipping", "--scores", paths["ffn_effect"], *at
    )
    other = ("plan", "v-skip", "--scores", paths["ffn_effect"], "--layers", 1, *at)
    assert "v-skip: scores of visual_information_gain are needed and ffn_effect was given" in fails(*other)
    assert run(*other, "--any-measure").exit_code == 0, "a variant of its own"
    made = Plan.from_pretrained(tmp_path / "p").provenance
    assert made.knobs["scores"] == "ffn_effect as visual_information_gain"
    universal = ("plan", "v-skip-universal", *given, "--by", "rank", *at)
    assert "and ffn_effect was given" in fails(*universal)
    assert run(*universal, "--any-measure").exit_code == 0
    assert "was given visual_information_gain, ffn_effect" in fails("plan", "v-skip", *given, *at)


def reversed_pairs(words):
    return [word for i in range(len(words) - 2, -1, -2) for word in words[i : i + 2]]


def test_plans_are_refused_in_one_sentence(tmp_path):
    seven = ("--geometry", "LLaVA-1.5-7B", "--out", tmp_path / "p")
    assert "fastv has no knob --keeep; its knobs are --layer INT, --keep FLOAT" in fails(
        "plan", "fastv", "--keeep", 1, *seven
    )
    assert "layer is 'x' and should be INT. Its knobs are --layer INT" in fails("plan", "fastv", "--layer", "x", *seven)
    assert "'deep' belongs to no option" in fails("plan", "fastv", "deep", *seven)
    assert "no method 'fastw'; choose one of alvts" in fails("plan", "fastw", *seven)
    assert "fastv needs --geometry" in fails("plan", "fastv", *seven[2:])
    assert "v-skip needs --scores FILE, of visual_information_gain" in fails("plan", "v-skip", *seven[2:])
    assert "no ready plan is called 'x'" in fails("plan", "preset", "x", *seven[2:])
    assert "choose one of LLaVA-1.5-7B" in fails("plan", "fastv", "--geometry", "x", *seven[2:])
    assert not (tmp_path / "p" / FILE_NAME).exists()


def test_a_folder_is_a_geometry(tmp_path):
    from lookless import reference as shipped

    assert run("plan", "fastv", "--geometry", shipped.MODEL, "--out", tmp_path / "p").exit_code == 0
    (tmp_path / "config.json").write_text('{"model_type": "mystery"}')
    assert "cannot be read as a configuration" in fails(
        "plan", "fastv", "--geometry", tmp_path, "--out", tmp_path / "new"
    )


def test_methods_are_listed():
    listed = json.loads(run("methods", "--json").stdout)
    assert list(listed) == list(METHODS)
    assert listed["shortv"]["needs"] == ["layer_contribution"]
    assert listed["shortv"]["prefix_cache_safe"]
    assert not listed["fastv"]["prefix_cache_safe"]
    printed = subprocess.run(
        [sys.executable, "-m", "lookless", "methods"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
        check=True,
    ).stdout
    assert max(map(len, printed.splitlines())) <= 100
    assert all(f"│ {name} " in printed for name in METHODS)


def test_a_broken_plug_in_is_named_and_stops_nothing(tmp_path):
    """Installed in a folder on the path, as pip leaves a package; in a process, as its import may do anything."""
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "broken-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    points = "[lookless.methods]\nsquint = nowhere_at_all:METHOD\n"
    (tmp_path / "broken-1.0.dist-info" / "entry_points.txt").write_text(points)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def process(*words):
        command = [sys.executable, "-m", "lookless", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    listed = process("methods", "--json")
    assert listed.returncode == 0
    assert list(json.loads(listed.stdout)) == list(METHODS)
    assert listed.stderr.startswith("lookless: PluginWarning: the entry point 'squint' of lookless.methods")
    assert listed.stderr.count("\n") == 1
    for words in (
        ("plan", "fastv", "--geometry", "LLaVA-1.5-7B", "--out", "p"),
        ("flops", "--geometry", "LLaVA-1.5-7B", "--visual", "5", "--text", "5", "--method", "fastv"),
    ):
        done = process(*words)
        assert (done.returncode, done.stderr) == (0, ""), "what is another's is not imported"
    for words in (
        ("plan", "squint"),
        ("flops", "--geometry", "reference", "--visual", "5", "--text", "5", "--method", "squint"),
    ):
        done = process(*words)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert (
            "cannot be used (ModuleNotFoundError: No module named 'nowhere_at_all'): mend or uninstall" in done.stderr
        )


def test_another_measure(tmp_path):
    scores = tmp_path / "s.json"
    told = run(
        "calibrate",
        "reference",
        "--data",
        "reference:chart",
        "--samples",
        1,
        "--measure",
        "withdrawal",
        "--out",
        scores,
    )
    assert told.exit_code == 0, told.output
    assert "lookless plan vtw-search --scores" in told.output
    assert Scores.load(scores).name == "withdrawal"
    assert "no measure is called 'x'; choose one of visual_information_gain, ffn_effect" in fails(
        "calibrate", "reference", "--data", "reference", "--measure", "x", "--out", scores
    )


def test_screening(tmp_path):
    scores = tmp_path / "s.json"
    words = ("calibrate", "reference", "--data", "reference:chart", "--samples", 3, "--out", scores)
    told = run(*words, "--screen", 5)
    assert told.exit_code == 0, told.output
    assert "measured" in told.output
    assert "--layers 5" in told.output
    found = Scores.load(scores)
    assert found.passes < 7
    assert not all(map(all, found.measured))
    assert "the model has 12: give 1 to 11" in fails(*words, "--screen", 12, "--overwrite")
    assert "'withdrawal' cannot be screened" in fails(*words, "--screen", 5, "--measure", "withdrawal")
    assert "calibrate reference --data reference:chart --screen 7" in run("calibrate", "--help").output


def test_jsonl_of_ones_own(tmp_path, image, plan):
    (tmp_path / "mine.jsonl").write_text(
        json.dumps({"image": image.name, "question": "which bar is the tallest?", "answer": "red"})
    )
    done = run("eval", "reference", "--data", tmp_path / "mine.jsonl", "--plan", plan, "--json")
    assert json.loads(done.stdout)["samples"] == 1


def test_a_file_is_not_its_own_calibration_set(tmp_path):
    """Lines that were drawn for calibration are not tested on, or it is said."""
    lines = []
    for i, sample in enumerate(load_data("reference:chart", limit=5)):
        sample.images[0].save(tmp_path / f"{i}.png")
        lines.append({"image": f"{i}.png", "question": sample.question, "answer": sample.answer})
    mine, scores, plan = tmp_path / "mine.jsonl", tmp_path / "scores.json", tmp_path / "made"
    mine.write_text("\n".join(map(json.dumps, lines)))

    def calibrated(*more):
        done = run("calibrate", "reference", "--data", mine, "--out", scores, "--overwrite", *more)
        assert done.exit_code == 0, done.output
        made = run("plan", "v-skip", "--scores", scores, "--layers", 7, "--out", plan, "--overwrite")
        assert made.exit_code == 0
        return done.stderr

    told = ("eval", "reference", "--data", mine, "--plan", plan, "--max-new-tokens", 1, "--json")
    assert "SeenWarning" not in calibrated("--samples", 2, "--seed", 3)
    assert Scores.load(scores).seed == Plan.from_pretrained(plan).provenance.seed == 3
    unseen = run(*told)
    assert "2 lines of" in unseen.stderr
    found = json.loads(unseen.stdout)
    assert (found["samples"], found["seen"], found["left_out"]) == (3, 0, 2)
    assert found["calibration_hash"] == Scores.load(scores).data_hash != found["data_hash"]
    both = run(*told, "--include-seen")
    assert "SeenWarning: the plan was calibrated on 2 of these 5 samples" in both.stderr
    assert (json.loads(both.stdout)["samples"], json.loads(both.stdout)["seen"]) == (5, 2)
    assert "all 5 lines of" in calibrated()
    assert "all 5 prompts of" in fails(*told)


def test_a_local_folder_is_a_model(tmp_path, image):
    """The shipped model's folder, given by path, goes through the loading every other model does."""
    from lookless import reference as shipped

    told = [
        run("generate", name, "--image", image, "--prompt", "which bar is the tallest?", "--dtype", "float32").stdout
        for name in ("reference", shipped.MODEL)
    ]
    assert told[0] == told[1]
