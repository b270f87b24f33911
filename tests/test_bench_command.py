"""lookless bench: the reference model, geometries and prompts of one's own, and what cannot be timed."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import transformers
from rich.console import Console
from typer.testing import CliRunner

from helpers.shapes import SMALL
from lookless import PRESETS, Geometry, Plan, Skip, load_data
from lookless.bench.prefill_report import (
    bench_tables,
    cut_note,
    document,
)
from lookless.bench.prefill_results import STOCK, PrefillSeries
from lookless.bench.subjects import subject_of_geometry
from lookless.bench.timed_plans import LIVENESS
from lookless.cli.main import app
from lookless.errors import ModelError
from lookless.flops import prefill
from lookless.methods import METHODS
from lookless.reference import NAMES


def test_the_command(tmp_path, monkeypatch):
    """Two layers, a few rounds, a sweep of two lengths and two batches."""
    monkeypatch.setitem(PRESETS, "Qwen2.5-VL-7B", SMALL.model_copy(update={"model_type": "qwen2_5_vl", "layers": 28}))
    words = ["bench", "--geometry", "Qwen2.5-VL-7B", "--layers", "2", "--visual", "16", "--visual", "32", "--text", "8"]
    words += ["--batch", "2", "--batch", "1", "--method", "v-skip", "--repeats", "2", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    sweep = PrefillSeries.model_validate_json((tmp_path / "out" / "bench.json").read_text())
    assert [(r.visual, r.batch) for r in sweep.reports] == [(16, 1), (16, 2), (32, 1), (32, 2)]
    assert [t.name for t in sweep.reports[0].timed] == [STOCK, LIVENESS, "v-skip"]
    assert sweep.reports[0].geometry == SMALL.model_copy(update={"model_type": "llava", "layers": 2})
    assert "a plan is faster than stock from" in done.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"bench.json", "bench.md", "bench.png"}


def test_the_command_refuses(tmp_path):
    """Before a model is made."""
    file = tmp_path / "bench.json"
    file.write_text("mine")
    for words, told in (
        ([], "name either a MODEL or a --geometry"),
        (["reference", "--visual", "5"], "--visual is for a --geometry"),
        (["reference", "--batch", "0"], "Error"),
        (["reference", "--out", str(file)], "is a file and the result is a folder"),
    ):
        done = CliRunner().invoke(app, ["bench", *words])
        assert done.exit_code == 2
        assert told in done.output
    assert file.read_text() == "mine"


#: A configuration that no preset has, of a decoder of another kind than its family's usual one.
MINE = {
    "model_type": "llava_onevision",
    "text_config": {
        "model_type": "qwen2",
        "num_hidden_layers": 8,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "vision_config": {"model_type": "siglip_vision_model"},
}


def timed(*words) -> PrefillSeries:
    done = CliRunner().invoke(app, ["bench", *map(str, words), "--repeats", "2", "--json"])
    assert done.exit_code == 0, done.output
    return PrefillSeries.model_validate_json(done.stdout)


def test_a_geometry_of_ones_own(tmp_path):
    """A folder with nothing but a configuration, under a plan made for that; and what a few layers do not show."""
    (tmp_path / "config.json").write_text(json.dumps(MINE))
    mine = Geometry.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    Plan.full(mine).at([3], attention=Skip()).save_pretrained(tmp_path / "plan")
    size = ("--visual", 12, "--text", 4)
    [whole] = timed("--geometry", tmp_path, "--plan", tmp_path / "plan", *size).reports
    assert whole.geometry == mine.model_copy(update={"model_type": "llava"})
    assert whole.whole_layers is None
    assert cut_note(whole) == ""
    [cut] = timed("--geometry", tmp_path, "--layers", 4, "--method", "shortv", *size).reports
    assert cut.whole_layers == 8
    stock = prefill(mine, visual=12, text=4).total
    alone, kept = (
        prefill(mine, visual=12, text=4, plan=plan, kept=1).total / stock
        for plan in (Plan.full(mine).live(), METHODS["shortv"].sample(mine))
    )
    assert [t.whole_flops_kept for t in cut.timed] == [1.0, pytest.approx(alone), pytest.approx(kept)]
    told = cut_note(cut)
    assert "One layer in 4 is the last one here" in told
    assert f"one in 8. Kept of the whole model's FLOPs: {LIVENESS} {alone:.1%}, shortv {kept:.1%}." in told
    assert told in document(PrefillSeries.of([cut]), "x.png")
    printed = Console(width=80, file=io.StringIO())
    printed.print(*bench_tables(cut))
    assert "One layer in 4 is the last one here" in " ".join(printed.file.getvalue().split())


def test_prompts_of_ones_own(tmp_path):
    """One's own questions and images: the shortest, the middle and the longest, and no prompt without an image."""
    image = load_data("reference:chart", limit=1).items[0].images[0]
    image.save(tmp_path / "a.png")
    lines = [{"images": ["a.png"] * count, "question": "which? " * count, "answer": ""} for count in (3, 1, 0, 2, 2)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "words.jsonl").write_text(json.dumps(lines[2]))
    sweep = timed("reference", "--data", tmp_path / "mine.jsonl", "--method", "v-skip")
    assert [(r.visual, r.data) for r in sweep.reports] == [(144 * n, "mine.jsonl") for n in (1, 2, 3)]
    assert len({r.text for r in sweep.reports}) == 3
    assert {(b.along, b.name) for b in sweep.break_even} == {("visual", LIVENESS), ("visual", "v-skip")}
    [every] = timed("reference", "--data", tmp_path / "mine.jsonl", "--method", "v-skip", "--batch", 4).reports
    assert (every.visual, every.batch) == (288, 4)
    assert every.of("v-skip").lower_bound_ms is None, "a lower bound has the shapes of one prompt"
    assert "prompts of mine.jsonl: 288 visual" in document(PrefillSeries.of([every]), "x.png")
    refused = CliRunner().invoke(app, ["bench", "reference", "--data", str(tmp_path / "words.jsonl")])
    assert refused.exit_code == 2
    assert "no sample of" in refused.stderr


def test_images_of_several_sizes(tmp_path):
    """Of the middle prompt, scaled as it is, where the model's processor leaves it so."""
    free = shutil.copytree(NAMES["reference-qwen3-vl"], tmp_path / "free")
    settings = json.loads((free / "processor_config.json").read_text())
    settings["image_processor"]["size"] = {"shortest_edge": 64, "longest_edge": 40_000}
    (free / "processor_config.json").write_text(json.dumps(settings))
    image = load_data("reference:chart", limit=1).items[0].images[0]
    for side in (96, 48):
        image.resize((96, side)).save(tmp_path / f"{side}.png")
    lines = [{"image": f"{side}.png", "question": "which?", "answer": ""} for side in (96, 48, 48)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sizes = ("--image-size", 96, "--image-size", 48)
    sweep = timed(free, "--data", tmp_path / "mine.jsonl", *sizes, "--method", "v-skip")
    assert [report.visual for report in sweep.reports] == [6 * 3, 12 * 6]
    assert {b.along for b in sweep.break_even} == {"visual"}
    [alone] = timed(free, "--image-size", 48, "--method", "v-skip").reports
    assert alone.visual == 6 * 6
    for words, told in (
        (["reference", "--image-size", "96", "--image-size", "192"], "images of 96, 192 pixels have 144 visual tokens"),
        (["--geometry", "LLaVA-1.5-7B", "--image-size", "96"], "--image-size is for a MODEL"),
        (["reference", "--engine", "vllm", "--image-size", "9", "--image-size", "8"], "2 image sizes are named"),
    ):
        done = CliRunner().invoke(app, ["bench", *words, "--method", "v-skip"])
        assert done.exit_code == 2, done.output
        assert told in done.output


def test_what_cannot_be_timed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "LLaVA-1.5-7B", SMALL.model_copy(update={"layers": 32, "model_type": "llava"}))
    Plan.full(32).at([5], attention=Skip()).save_pretrained("plan32")
    Path("config.json").write_text(json.dumps({**MINE, "text_config": {**MINE["text_config"], "model_type": "gemma"}}))
    seven = ("--geometry", "LLaVA-1.5-7B", "--layers", "8", "--repeats", "2")
    for words, told in (
        (("reference", "--plan", "plan32"), "the plan has 32 layers and the model has 12"),
        ((*seven, "--plan", "plan32"), "the plan has 32 layers and the model has 8"),
        ((*seven, "--device", "charm"), "device 'charm' cannot be used: Expected one of cpu"),
        ((*seven, "--device", "meta"), "device 'meta' cannot be used"),
        ((*seven, "--visual", "10000000", "--batch", "100000"), "prompts of 10000066 tokens take"),
        (("--geometry", "."), "the decoder of . is of kind 'gemma'; known are llama"),
        (("--geometry", "no/such"), "no/such/config.json cannot be read as a configuration"),
        (("reference", "--layers", "4"), "--layers is for a --geometry"),
        (("reference", "--text", "4"), "--text is for a --geometry"),
        ((*seven, "--data", "mine.jsonl"), "--data is for a MODEL"),
    ):
        done = CliRunner().invoke(app, ["bench", *words])
        assert done.exit_code == 2, done.output
        [line] = done.stderr.strip().splitlines()
        assert line.startswith("lookless: ")
        assert told in line
    for words in (("--layers", "1"), ("--visual", "0"), ("--visual", "1" + "0" * 30), ("--batch", "-1")):
        done = CliRunner().invoke(app, ["bench", "--geometry", "LLaVA-1.5-7B", *words])
        assert done.exit_code == 2
        assert f"Invalid value for '{words[0]}'" in done.output


def test_weights_that_do_not_fit_are_refused(monkeypatch):
    """Before any is made: where memory is lent that is not there, the process would end without a word."""
    monkeypatch.setattr("lookless.bench.timing._free", lambda: 2**30)
    with pytest.raises(
        ModelError, match=r"32 layers of it, in torch.bfloat16, take 12.1 GiB of memory or more, and 1.0"
    ):
        subject_of_geometry("LLaVA-1.5-7B", layers=None, dtype="bfloat16", device="cpu")
