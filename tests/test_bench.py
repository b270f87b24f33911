"""The bench times what it says: real shapes, a floor of exactly the promised FLOPs, ratios of rounds."""

from __future__ import annotations

import io
import json
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from helpers.families import FAMILIES
from helpers.models import LAYERS
from helpers.plans import STATIC
from lookless import PRESETS, Filter, Geometry, Plan, Skip, apply, load_data, trace
from lookless.bench import timing as measure
from lookless.bench.dummy_model import shaped
from lookless.bench.lower_bound import floor_of
from lookless.bench.prefill import bench
from lookless.bench.prefill_report import (
    HEADS,
    bench_figure,
    bench_tables,
    break_even_table,
    cells,
    cut_note,
    document,
    save,
)
from lookless.bench.prefill_results import STOCK, BreakEven, Sweep
from lookless.bench.subjects import of_geometry
from lookless.bench.timing import peak_mib
from lookless.cli.main import app
from lookless.configs import Shape, shape_named
from lookless.errors import GeometryError, ModelError, PlanError
from lookless.flops import prefill
from lookless.methods import METHODS
from lookless.runtime.families import locate
from lookless.runtime.patching import applied, prompts_of

SMALL = Geometry(model_type="qwen3_vl", layers=LAYERS, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16)
V, BEFORE, AFTER = 40, 5, 7


@pytest.fixture(scope="module")
def small():
    return shaped(Shape(SMALL, "qwen3"), dtype=torch.float32)


@pytest.mark.parametrize(
    ("preset", "kind"), [("LLaVA-1.5-7B", "llama"), ("Qwen2.5-VL-7B", "qwen2"), ("Qwen3-VL-8B", "qwen3")]
)
@torch.no_grad()
def test_shapes_are_the_geometrys(preset, kind):
    assert shape_named(preset) == Shape(Geometry.preset(preset), kind)
    geometry = SMALL.model_copy(update={"model_type": Geometry.preset(preset).model_type})
    made = shaped(Shape(geometry, kind).cut(2), dtype=torch.bfloat16)
    assert made.geometry == geometry.model_copy(update={"model_type": "llava", "layers": 2})
    inputs = made.inputs(visual=V, before=BEFORE, after=AFTER, batch=2)
    assert {p.dtype for p in made.model.model.language_model.layers.parameters()} == {torch.bfloat16}
    with trace(made.model) as counted:
        logits = made.model(**inputs).logits
    assert logits.shape[:2] == (2, V + BEFORE + AFTER)
    assert counted.layers[0] == dict.fromkeys(("query", "key", "ffn"), 2 * (V + BEFORE + AFTER))
    block = made.model.model.language_model.layers[0].self_attn
    assert hasattr(block, "q_norm") == (kind == "qwen3")
    assert (block.q_proj.bias is not None) == (kind == "qwen2")


@pytest.mark.parametrize("plan", [None, *(name for name in STATIC if name != "keep, then window")])
@torch.no_grad()
def test_the_floor_is_the_promised_flops(small, plan):
    """No more and no less work than the formula prices: every product and attention call, at the plan's shapes."""
    inputs = small.inputs(visual=V, before=BEFORE, after=AFTER, batch=2)
    located = locate(small.model)
    table = None if plan is None else STATIC[plan]
    run = floor_of(located, prompts_of(located, inputs), table)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    expected = prefill(
        small.geometry, visual=V, text=BEFORE + AFTER, before=BEFORE, plan=None if table is None else table.live()
    )
    if plan == "top":  # the runtime asks scattered rows in one masked call; two calls would need fewer scores
        assert 0.99 * 2 * expected.total < counter.get_total_flops() < 2 * expected.total
    else:
        assert counter.get_total_flops() == 2 * expected.total


def test_a_report(small):
    plans = {"live": Plan.full(LAYERS).live(), "keep": STATIC["keep"], "full": Plan.full(LAYERS)}
    inputs = small.inputs(visual=V, before=BEFORE, after=AFTER, batch=2)
    report = bench(small.model, inputs, plans, name="small", repeats=3, warm_up=1, progress=False)
    assert [t.name for t in report.timed] == [STOCK, *plans]
    assert (report.visual, report.text, report.batch) == (V, BEFORE + AFTER, 2)
    stock, live, keep, full = report.timed
    assert stock.time_kept == stock.flops_kept == full.flops_kept == 1.0
    assert stock.realised is full.realised is None
    token = 2 * 2 * 16 * 2 * 4  # keys and values of two heads, two prompts, float32
    assert stock.cache_mib == live.cache_mib == pytest.approx(LAYERS * (V + BEFORE + AFTER) * token / 2**20)
    kept = [V, V, 20, 3, 3]
    assert keep.cache_mib == pytest.approx(sum(BEFORE + AFTER + v for v in kept) * token / 2**20)
    assert live.realised == pytest.approx((1 - live.time_kept) / (1 - live.flops_kept))
    for timed in report.timed:
        assert timed.prefill_ms.low <= timed.prefill_ms.median <= timed.prefill_ms.high
        assert timed.over_floor > 0
        assert timed.tower_ms is None  # features of a geometry are random
        assert timed.first_token_ms.median > timed.prefill_ms.median
    dense = prefill(small.geometry, visual=V, text=BEFORE + AFTER).total
    assert stock.prefill_tflops == pytest.approx(2 * dense / 1e12)  # of both prompts
    assert live.prefill_tflops == pytest.approx(live.flops_kept * stock.prefill_tflops)
    assert report.machine
    assert report.versions["torch"] == torch.__version__
    assert report.of("keep") == keep
    assert not small.model.model.language_model._forward_hooks  # nothing is left on the model
    with apply(small.model, plans["keep"]):
        pass


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "internvl-llama"])
def test_the_tower_and_the_first_token(name, monkeypatch):
    """The whole call holds the tower and the decoder, and no decode step counts: by a clock that counts calls."""
    model = FAMILIES[name].build()
    inputs = FAMILIES[name].batch("one image")
    located, calls = locate(model), []
    tower = located.tower
    others = [module for module in located.inner.children() if module is not located.decoder]
    assert tower is max(others, key=lambda module: sum(p.numel() for p in module.parameters()))
    costs = {tower: 1000, model.get_output_embeddings(): 100, **dict.fromkeys(located.layers, 1)}
    for module, cost in costs.items():
        module.register_forward_hook(lambda *_, cost=cost: calls.append(cost))
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: sum(calls)))
    report = bench(model, inputs, {"live": Plan.full(LAYERS).live()}, name=name, repeats=2, warm_up=1, progress=False)
    assert calls.count(1000) == 2 * (1 + 2 + 1)  # warm-up, rounds, and the one that weighs
    for timed in report.timed:
        assert timed.tower_ms.median == 1000 * 1e3
        assert timed.prefill_ms.median == timed.decode_ms.median == LAYERS * 1e3
        assert timed.first_token_ms.median == (1000 + 100 + LAYERS) * 1e3
    assert all(len(module._forward_hooks) == 1 for module in costs)


def test_peak_memory_is_of_what_is_held_at_once():
    mib = 2**20
    before = torch.zeros(8 * mib, dtype=torch.uint8)

    def call():
        first, second = (torch.empty(n * mib, dtype=torch.uint8) for n in (1, 2))
        del first
        second.add_(1)  # in place
        views = second[5:], second.view(2, -1), before[3:]
        del second  # its views hold it
        third = torch.empty(mib // 2, dtype=torch.uint8)
        del views
        return third, torch.empty(mib, dtype=torch.uint8)

    assert peak_mib(call, torch.device("cpu")) == 3.0
    assert peak_mib(call, torch.device("cpu")) == 3.0  # nothing is left of the first time


@torch.no_grad()
def test_peak_memory_is_what_the_allocator_says(small):
    """Nothing is held inside an operator that its tensors do not show."""
    from torch.profiler import ProfilerActivity, profile

    inputs = small.inputs(visual=V, before=BEFORE, after=AFTER, batch=2)

    def call():
        small.model(**inputs, logits_to_keep=1)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = list(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    assert peak_mib(call, torch.device("cpu")) == pytest.approx(max(held) / 2**20, rel=0.01)


THE_SPEED_ISSUES = ("v-skip", "shortv", "vtw", "fastv", "operator-skipping")


def peaks(model, inputs) -> dict[str, float]:
    """Most memory held in the first call under each plan, by stock's."""
    geometry = locate(model).geometry
    plans = {"nothing but liveness": Plan.full(geometry).live()}
    plans |= {name: METHODS[name].sample(geometry) for name in THE_SPEED_ISSUES}

    def peak(plan):
        with applied(model, plan):
            return peak_mib(lambda: model(**inputs, logits_to_keep=1), torch.device("cpu"))

    stock = peak(None)
    return {name: peak(plan) / stock for name, plan in plans.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("preset", ["LLaVA-1.5-7B", "Qwen2.5-VL-7B", "Qwen3-VL-8B"])
@torch.no_grad()
def test_no_plan_holds_more_than_stock(preset, dtype):
    """Less work is no more memory, in the proportions of real models (widths an eighth or less of theirs)."""
    real = Geometry.preset(preset)
    kv_heads = max(1, 4 * real.kv_heads // real.heads)
    widths = {"hidden": 256, "intermediate": 256 * real.intermediate // real.hidden, "head_dim": 64}
    small = real.model_copy(update={"layers": 5, "heads": 4, "kv_heads": kv_heads} | widths)
    made = shaped(Shape(small, shape_named(preset).block), dtype=dtype)
    for visual, batch in ((576, 1), (60, 1), (300, 3)):
        held = peaks(made.model, made.inputs(visual=visual, before=20, after=20, batch=batch))
        assert max(held.values()) <= 1, held


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "qwen3_vl"])
@torch.no_grad()
def test_no_plan_holds_much_more_than_stock_in_a_tiny_model(name):
    """Padded prompts and every kind of tower, where masks, norms of a few rows, and living rows beside the whole stream
    weigh most."""
    family = FAMILIES[name]
    model = family.build()
    for kind in ("one image", "padded left"):
        held = peaks(model, family.batch(kind))
        assert max(held.values()) <= 1.1, held


def test_break_even(small):
    """From the longest down, as long as it pays, along each line of a sweep."""
    inputs = small.inputs(visual=V, before=BEFORE, after=AFTER, batch=1)
    plans = {"a": Plan.full(LAYERS).live(), "b": Plan.full(LAYERS).live(), "c": STATIC["keep"]}
    one = bench(small.model, inputs, plans, name="small", repeats=2, warm_up=0, progress=False)

    def at(visual, batch, **kept):
        timed = [t.model_copy(update={"time_kept": kept[t.name]}) if t.name in kept else t for t in one.timed]
        return one.model_copy(update={"visual": visual, "batch": batch, "timed": tuple(timed)})

    lengths = [at(8, 1, a=0.9, b=1.1, c=0.9), at(16, 1, a=1.2, b=0.9, c=0.9), at(32, 1, a=1.1, b=0.8, c=0.7)]
    assert Sweep.of(lengths[:1]).break_even == ()
    along = Sweep.of(lengths).break_even
    assert {b.name: b.pays_from for b in along} == {"a": None, "b": 16, "c": 8}
    assert {(b.along, b.at) for b in along} == {("visual", 1)}
    both = Sweep.of([*lengths, at(32, 4, a=0.9, b=0.9, c=1.1), at(16, 4, a=0.9, b=0.9, c=1.2)]).break_even
    assert both[:3] == along
    assert BreakEven(name="a", along="visual", at=4, pays_from=16) in both
    assert BreakEven(name="a", along="batch", at=32, pays_from=4) in both
    assert BreakEven(name="b", along="batch", at=32, pays_from=1) in both
    assert BreakEven(name="c", along="batch", at=16, pays_from=None) in both
    assert not [b for b in both if (b.along, b.at) == ("batch", 8)]  # of one batch alone
    text = document(Sweep.of(lengths), "x.png")
    assert "| a | never |\n| b | 16 |\n| c | 8 |" in text
    assert text.count("### ") == 3
    assert break_even_table(Sweep.of(lengths)).row_count == 3


def test_files_of_a_bench(small, tmp_path):
    """One report as bars, and a sweep as lines, also where FLOPs are not known; numbers are the same everywhere."""
    inputs = small.inputs(visual=V, before=BEFORE, after=AFTER, batch=1)
    plans = {"keep": STATIC["keep"], "filter": Plan.full(LAYERS).at([2], keep=Filter())}
    one = bench(small.model, inputs, plans, name="small", repeats=2, warm_up=0, progress=False)
    assert one.of("filter").flops_kept is one.of("filter").floor_ms is None
    longer = one.model_copy(update={"visual": 2 * V})
    for reports in ([one], [one, longer], [one, one.model_copy(update={"batch": 2})]):
        sweep = Sweep.of(reports)
        save(sweep, tmp_path)
        assert Sweep.model_validate_json((tmp_path / "bench.json").read_text()) == sweep
        assert (tmp_path / "bench.png").stat().st_size > 10_000
        text = (tmp_path / "bench.md").read_text()
        assert "| " + " | ".join(HEADS) + " |" in text
        assert all("| " + " | ".join(cells(t)) + " |" in text for t in one.timed)
    axes = bench_figure(Sweep.of([one])).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [t.time_kept for t in one.timed]
    told = {c.get_label(): [x for x, _ in c.get_offsets()] for c in axes.collections}
    assert told["FLOPs kept"] == [1.0, pytest.approx(one.of("keep").flops_kept)]
    assert told["floor"][1] == pytest.approx(one.of("keep").floor_ms.median / one.of(STOCK).prefill_ms.median)


def test_the_command(tmp_path, monkeypatch):
    """Two layers, a few rounds, a sweep of two lengths and two batches."""
    monkeypatch.setitem(PRESETS, "Qwen2.5-VL-7B", SMALL.model_copy(update={"model_type": "qwen2_5_vl", "layers": 28}))
    words = ["bench", "--geometry", "Qwen2.5-VL-7B", "--layers", "2", "--visual", "16", "--visual", "32", "--text", "8"]
    words += ["--batch", "2", "--batch", "1", "--method", "v-skip", "--repeats", "2", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    sweep = Sweep.model_validate_json((tmp_path / "out" / "bench.json").read_text())
    assert [(r.visual, r.batch) for r in sweep.reports] == [(16, 1), (16, 2), (32, 1), (32, 2)]
    assert [t.name for t in sweep.reports[0].timed] == [STOCK, "v-skip"]
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


def timed(*words) -> Sweep:
    done = CliRunner().invoke(app, ["bench", *map(str, words), "--repeats", "2", "--json"])
    assert done.exit_code == 0, done.output
    return Sweep.model_validate_json(done.stdout)


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
    plan = METHODS["shortv"].sample(mine)
    kept = prefill(mine, visual=12, text=4, plan=plan.live()).total / prefill(mine, visual=12, text=4).total
    assert [t.whole_flops_kept for t in cut.timed] == [1.0, pytest.approx(kept)]
    told = cut_note(cut)
    assert "One layer in 4 is the last here" in told
    assert f"one in 8. Kept of the whole model's FLOPs: shortv {kept:.1%}." in told
    assert told in document(Sweep.of([cut]), "x.png")
    printed = Console(width=80, file=io.StringIO())
    printed.print(*bench_tables(cut))
    assert "One layer in 4 is the last here" in " ".join(printed.file.getvalue().split())


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
    assert {(b.along, b.name) for b in sweep.break_even} == {("visual", "v-skip")}
    [every] = timed("reference", "--data", tmp_path / "mine.jsonl", "--method", "v-skip", "--batch", 4).reports
    assert (every.visual, every.batch) == (288, 4)
    assert every.of("v-skip").floor_ms is None, "a floor has the shapes of one prompt"
    assert "prompts of mine.jsonl: 288 visual" in document(Sweep.of([every]), "x.png")
    refused = CliRunner().invoke(app, ["bench", "reference", "--data", str(tmp_path / "words.jsonl")])
    assert refused.exit_code == 2
    assert "no sample of" in refused.stderr


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
        of_geometry("LLaVA-1.5-7B", layers=None, dtype="bfloat16", device="cpu")


def test_refusals(small):
    with pytest.raises(GeometryError, match="no geometry is called 'LLaVA-9B'"):
        of_geometry("LLaVA-9B", layers=1, dtype="bfloat16", device="cpu")
    with pytest.raises(GeometryError, match="99 layers were asked for and llava has 32"):
        of_geometry("LLaVA-1.5-7B", layers=99, dtype="bfloat16", device="cpu")
    with pytest.raises(ModelError, match="dtype 'int3' is not one of float32"):
        of_geometry("LLaVA-1.5-7B", layers=1, dtype="int3", device="cpu")
    with pytest.raises(PlanError, match="no visual token"):
        bench(small.model, {"input_ids": torch.ones(1, 4, dtype=torch.int64)}, {}, name="x", progress=False)
