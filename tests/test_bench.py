"""The bench times what it says: real shapes, a lower bound of exactly the FLOPs of the formula, ratios of rounds."""

from __future__ import annotations

from statistics import median
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.families import FAMILIES
from helpers.models import LAYERS
from helpers.plans import STATIC
from helpers.shapes import AFTER, BEFORE, SMALL, V
from lookless import Filter, Geometry, Plan, apply, trace
from lookless.bench import timing as measure
from lookless.bench.dummy_model import make_dummy_model
from lookless.bench.lower_bound import lower_bound_of
from lookless.bench.prefill import bench_prefill
from lookless.bench.prefill_report import (
    HEADS,
    bench_figure,
    break_even_table,
    cells,
    document,
    save,
)
from lookless.bench.prefill_results import STOCK, BreakEven, PrefillSeries
from lookless.bench.subjects import subject_of_geometry
from lookless.bench.timing import Timing, shares_of_stock, with_stock
from lookless.configs import Shape, shape_named
from lookless.errors import GeometryError, ModelError, PlanError
from lookless.flops import prefill
from lookless.runtime.families import locate
from lookless.runtime.prompts import prompts_of


@pytest.fixture(scope="module")
def small():
    return make_dummy_model(Shape(SMALL, "qwen3"), dtype=torch.float32)


@pytest.mark.parametrize(
    ("preset", "kind"), [("LLaVA-1.5-7B", "llama"), ("Qwen2.5-VL-7B", "qwen2"), ("Qwen3-VL-8B", "qwen3")]
)
@torch.no_grad()
def test_shapes_are_the_geometrys(preset, kind):
    assert shape_named(preset) == Shape(Geometry.preset(preset), kind)
    geometry = SMALL.model_copy(update={"model_type": Geometry.preset(preset).model_type})
    made = make_dummy_model(Shape(geometry, kind).cut(2), dtype=torch.bfloat16)
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


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("plan", [None, *(name for name in STATIC if name != "keep, then window")])
@torch.no_grad()
def test_the_lower_bound_is_the_flops_of_the_formula(small, plan):
    """No more and no less work than the formula prices: every product and attention call, at the plan's shapes."""
    inputs = small.inputs(visual=V, before=BEFORE, after=AFTER, batch=2)
    located = locate(small.model)
    table = None if plan is None else STATIC[plan]
    run = lower_bound_of(located, prompts_of(located, inputs), table)
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
    report = bench_prefill(small.model, inputs, plans, name="small", repeats=3, warm_up=1, progress=False)
    assert [t.name for t in report.timed] == [STOCK, *plans]
    assert (report.visual, report.text, report.batch) == (V, BEFORE + AFTER, 2)
    stock, live, keep, full = report.timed
    assert stock.time_kept == stock.flops_kept == full.flops_kept == 1.0
    assert stock.efficiency is full.efficiency is None
    token = 2 * 2 * 16 * 2 * 4  # keys and values of two heads, two prompts, float32
    assert stock.cache_mib == live.cache_mib == pytest.approx(LAYERS * (V + BEFORE + AFTER) * token / 2**20)
    kept = [V, V, 20, 3, 3]
    assert keep.cache_mib == pytest.approx(sum(BEFORE + AFTER + v for v in kept) * token / 2**20)
    assert live.efficiency == pytest.approx((1 - live.time_kept) / (1 - live.flops_kept))
    for timed in report.timed:
        assert timed.prefill_ms.low <= timed.prefill_ms.median <= timed.prefill_ms.high
        assert timed.times_lower_bound > 0
        assert timed.tower_ms is None  # features of a geometry are random
        assert timed.ttft_ms.median > timed.prefill_ms.median
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
    report = bench_prefill(
        model, inputs, {"live": Plan.full(LAYERS).live()}, name=name, repeats=2, warm_up=1, progress=False
    )
    assert calls.count(1000) == 2 * (1 + 2 + 1)  # warm-up, rounds, and the one that weighs
    for timed in report.timed:
        assert timed.tower_ms.median == 1000 * 1e3
        assert timed.prefill_ms.median == timed.tpot_ms.median == LAYERS * 1e3
        assert timed.ttft_ms.median == (1000 + 100 + LAYERS) * 1e3
    assert all(len(module._forward_hooks) == 1 for module in costs)


def test_break_even(small):
    """From the longest down, as long as it pays, along each line of a sweep."""
    inputs = small.inputs(visual=V, before=BEFORE, after=AFTER, batch=1)
    plans = {"a": Plan.full(LAYERS).live(), "b": Plan.full(LAYERS).live(), "c": STATIC["keep"]}
    one = bench_prefill(small.model, inputs, plans, name="small", repeats=2, warm_up=0, progress=False)

    def at(visual, batch, **kept):
        timed = [t.model_copy(update={"time_kept": kept[t.name]}) if t.name in kept else t for t in one.timed]
        return one.model_copy(update={"visual": visual, "batch": batch, "timed": tuple(timed)})

    lengths = [at(8, 1, a=0.9, b=1.1, c=0.9), at(16, 1, a=1.2, b=0.9, c=0.9), at(32, 1, a=1.1, b=0.8, c=0.7)]
    assert PrefillSeries.of(lengths[:1]).break_even == ()
    along = PrefillSeries.of(lengths).break_even
    assert {b.name: b.pays_from for b in along} == {"a": None, "b": 16, "c": 8}
    assert {(b.along, b.at) for b in along} == {("visual", 1)}
    both = PrefillSeries.of([*lengths, at(32, 4, a=0.9, b=0.9, c=1.1), at(16, 4, a=0.9, b=0.9, c=1.2)]).break_even
    assert both[:3] == along
    assert BreakEven(name="a", along="visual", at=4, pays_from=16) in both
    assert BreakEven(name="a", along="batch", at=32, pays_from=4) in both
    assert BreakEven(name="b", along="batch", at=32, pays_from=1) in both
    assert BreakEven(name="c", along="batch", at=16, pays_from=None) in both
    assert not [b for b in both if (b.along, b.at) == ("batch", 8)]  # of one batch alone
    text = document(PrefillSeries.of(lengths), "x.png")
    assert "| a | never |\n| b | 16 |\n| c | 8 |" in text
    assert text.count("### ") == 3
    assert break_even_table(PrefillSeries.of(lengths)).row_count == 3


def test_files_of_a_bench(small, tmp_path):
    """One report as bars, and a sweep as lines, also where FLOPs are not known; numbers are the same everywhere."""
    inputs = small.inputs(visual=V, before=BEFORE, after=AFTER, batch=1)
    plans = {"keep": STATIC["keep"], "filter": Plan.full(LAYERS).at([2], keep=Filter())}
    one = bench_prefill(small.model, inputs, plans, name="small", repeats=2, warm_up=0, progress=False)
    assert one.of("filter").flops_kept is one.of("filter").lower_bound_ms is None
    longer = one.model_copy(update={"visual": 2 * V})
    for reports in ([one], [one, longer], [one, one.model_copy(update={"batch": 2})]):
        sweep = PrefillSeries.of(reports)
        save(sweep, tmp_path)
        assert PrefillSeries.model_validate_json((tmp_path / "bench.json").read_text()) == sweep
        assert (tmp_path / "bench.png").stat().st_size > 10_000
        text = (tmp_path / "bench.md").read_text()
        assert "| " + " | ".join(HEADS) + " |" in text
        assert all("| " + " | ".join(cells(t)) + " |" in text for t in one.timed)
    axes = bench_figure(PrefillSeries.of([one])).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [t.time_kept for t in one.timed]
    told = {c.get_label(): [x for x, _ in c.get_offsets()] for c in axes.collections}
    assert told["FLOPs kept"] == [1.0, pytest.approx(one.of("keep").flops_kept)]
    assert told["lower bound"][1] == pytest.approx(
        one.of("keep").lower_bound_ms.median / one.of(STOCK).prefill_ms.median
    )


def test_refusals(small):
    with pytest.raises(GeometryError, match="no geometry is called 'LLaVA-9B'"):
        subject_of_geometry("LLaVA-9B", layers=1, dtype="bfloat16", device="cpu")
    with pytest.raises(GeometryError, match="99 layers were asked for and llava has 32"):
        subject_of_geometry("LLaVA-1.5-7B", layers=99, dtype="bfloat16", device="cpu")
    with pytest.raises(ModelError, match="dtype 'int3' is not one of float32"):
        subject_of_geometry("LLaVA-1.5-7B", layers=1, dtype="int3", device="cpu")
    with pytest.raises(PlanError, match="no visual token"):
        bench_prefill(small.model, {"input_ids": torch.ones(1, 4, dtype=torch.int64)}, {}, name="x", progress=False)


@pytest.mark.parametrize(("count", "every"), [(1, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3), (2, 5)])
def test_shares_are_ratios_to_the_stock_timings_around(count, every):
    """On a machine that slows down from call to call: each share is exact where its two stock timings are its mean."""
    order = with_stock(0, list(range(1, count + 1)), every)
    assert [one for one in order if one] == list(range(1, count + 1))
    assert order[0] == order[-1] == 0
    timed = [Timing(tuple((10 + 0.1 * place) * (1 + one) for _ in range(3))) for place, one in enumerate(order)]
    shares, stock_ms = shares_of_stock(timed, every)
    stocks = [place for place, one in enumerate(order) if not one]
    for one, share in zip(range(1, count + 1), shares, strict=True):
        place = order.index(one)
        before, after = max(p for p in stocks if p < place), min(p for p in stocks if p > place)
        assert share == pytest.approx(timed[place].median_ms / ((20 + 0.1 * (before + after)) / 2))
    assert stock_ms == pytest.approx(median(10 + 0.1 * place for place in stocks))
