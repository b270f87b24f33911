"""The bench times what it says: real shapes, a floor of exactly the promised FLOPs, ratios of rounds."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from lookless import Geometry, Plan, apply, trace
from lookless.bench import STOCK, Sweep, bench, of_geometry
from lookless.cli import app
from lookless.errors import GeometryError, ModelError, PlanError
from lookless.floor import floor_of
from lookless.flops import prefill
from lookless.models import locate
from lookless.report import bench_table
from lookless.runtime import prompts_of
from lookless.shapes import shaped
from test_cells import STATIC
from tiny import LAYERS

SMALL = Geometry(model_type="qwen3_vl", layers=LAYERS, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16)
V, BEFORE, AFTER = 40, 5, 7


@pytest.fixture(scope="module")
def small():
    return shaped(SMALL, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
@torch.no_grad()
def test_shapes_are_the_geometrys(kind):
    geometry = SMALL.model_copy(update={"model_type": kind})
    made = shaped(geometry, layers=2, dtype=torch.bfloat16)
    assert made.geometry == geometry.model_copy(update={"model_type": "llava", "layers": 2})
    inputs = made.inputs(visual=V, before=BEFORE, after=AFTER, batch=2)
    assert {p.dtype for p in made.model.model.language_model.layers.parameters()} == {torch.bfloat16}
    with trace(made.model) as counted:
        logits = made.model(**inputs).logits
    assert logits.shape[:2] == (2, V + BEFORE + AFTER)
    assert counted.layers[0] == dict.fromkeys(("query", "key", "ffn"), 2 * (V + BEFORE + AFTER))
    block = made.model.model.language_model.layers[0].self_attn
    assert hasattr(block, "q_norm") == (kind == "qwen3_vl")
    assert (block.q_proj.bias is not None) == (kind == "qwen2_5_vl")


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
    assert report.machine
    assert report.versions["torch"] == torch.__version__
    assert bench_table(report).row_count == 4
    assert not small.model.model.language_model._forward_hooks  # nothing is left on the model
    with apply(small.model, plans["keep"]):
        pass


def test_break_even(small):
    """From the longest down, as long as it pays."""
    inputs = small.inputs(visual=V, before=BEFORE, after=AFTER, batch=1)
    plans = {"a": Plan.full(LAYERS).live(), "b": Plan.full(LAYERS).live(), "c": Plan.full(LAYERS).live()}
    one = bench(small.model, inputs, plans, name="small", repeats=2, warm_up=0, progress=False)

    def at(visual, **kept):
        timed = [t.model_copy(update={"time_kept": kept[t.name]}) if t.name in kept else t for t in one.timed]
        return one.model_copy(update={"visual": visual, "timed": tuple(timed)})

    sweep = Sweep(reports=(at(8, a=0.9, b=1.1, c=0.9), at(16, a=1.2, b=0.9, c=0.9), at(32, a=1.1, b=0.8, c=0.7)))
    assert sweep.break_even == {"a": None, "b": 16, "c": 8}


@pytest.mark.long
def test_the_command(tmp_path):
    """The smallest that is honest: one layer of real shape, a few rounds, a sweep of two lengths."""
    out = tmp_path / "bench.json"
    words = ["bench", "--geometry", "Qwen2.5-VL-7B", "--layers", "1", "--visual", "16", "--visual", "32", "--text", "8"]
    words += ["--method", "v-skip", "--repeats", "2", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    sweep = Sweep.model_validate_json(out.read_text())
    assert [r.visual for r in sweep.reports] == [16, 32]
    assert [t.name for t in sweep.reports[0].timed] == [STOCK, "v-skip"]
    assert sweep.reports[0].geometry.hidden == 3584
    assert CliRunner().invoke(app, ["bench"]).exit_code == 2
    assert CliRunner().invoke(app, ["bench", "reference", "--visual", "5"]).exit_code == 2


def test_refusals(small):
    with pytest.raises(GeometryError, match="no geometry is called 'LLaVA-9B'"):
        of_geometry("LLaVA-9B", layers=1, dtype="bfloat16", device="cpu")
    with pytest.raises(ModelError, match="99 layers were asked for and llava has 32"):
        of_geometry("LLaVA-1.5-7B", layers=99, dtype="bfloat16", device="cpu")
    with pytest.raises(ModelError, match="dtype 'int3' is not one of float32"):
        of_geometry("LLaVA-1.5-7B", layers=1, dtype="int3", device="cpu")
    with pytest.raises(PlanError, match="no visual token"):
        bench(small.model, {"input_ids": torch.ones(1, 4, dtype=torch.int64)}, {}, name="x", progress=False)
