"""The least time of a prefill: its FLOPs where rows are many, the reading of its weights where they are few."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.plans import STATIC
from helpers.shapes import AFTER, BEFORE, SMALL, V
from lookless import Plan, Skip
from lookless.bench.dummy_model import make_dummy_model
from lookless.bench.latency import LatencyTable, fit_terms
from lookless.bench.roofline import Rates, least_s, measured_rates
from lookless.configs import Shape, shape_named
from lookless.errors import PlanMismatchError
from lookless.flops import prefill
from lookless.geometry import PRESETS, Geometry

TEXT = BEFORE + AFTER
SLOW, FAST = 1e9, 1e30
GPU = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.parametrize("name", [None, *STATIC])
def test_what_reads_at_once_costs_its_flops(name):
    plan = None if name is None else STATIC[name]
    priced = prefill(SMALL, visual=V, text=TEXT, plan=plan, kept=1).total
    found = least_s(SMALL, Rates(SLOW, FAST), visual=V, text=TEXT, itemsize=2, plan=plan, batch=3, kept=1)
    assert found == pytest.approx(3 * priced / SLOW)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_costs_its_flops_where_reading_is_free(name):
    geometry = PRESETS[name]
    plan = Plan.full(geometry).at([1], attention=Skip(), ffn=Skip())
    priced = prefill(geometry, visual=V, text=TEXT, plan=plan).total
    found = least_s(geometry, Rates(SLOW, FAST), visual=V, text=TEXT, itemsize=2, plan=plan)
    assert found == pytest.approx(priced / SLOW)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("plan", [None, "freeze"])
def test_what_computes_at_once_reads_all_matrices_of_all_layers(kind, plan):
    """Also under a plan: text passes every layer."""
    made = make_dummy_model(Shape(SMALL, kind), dtype=torch.bfloat16)
    matrices = sum(w.numel() for w in made.model.model.language_model.layers.parameters() if w.dim() == 2)
    chosen = None if plan is None else Plan.full(SMALL).at([1, 2], attention=Skip(), ffn=Skip())
    for batch in (1, 8):
        found = least_s(SMALL, Rates(FAST, SLOW), visual=V, text=TEXT, itemsize=2, plan=chosen, batch=batch)
        assert found == pytest.approx(2 * matrices / SLOW)


def test_rows_read_the_experts_that_they_pick():
    geometry = shape_named("Qwen3-VL-30B-A3B").geometry.model_copy(update={"layers": 1})
    experts = geometry.experts

    def read(rows: int) -> float:
        return least_s(geometry, Rates(FAST, SLOW), visual=0, text=rows, itemsize=2) * SLOW / 2

    one = 3 * geometry.hidden * experts.intermediate
    assert read(100_000) - read(1) == pytest.approx((experts.count - experts.used) * one)
    assert read(10) - read(1) == pytest.approx((experts.read(10) - experts.used) * one)


def test_few_rows_cost_what_the_rows_that_hide_the_reading_do():
    """By hand: a frozen layer's products take 200 rows' time for 66 rows, and its attention what it has."""
    geometry = Geometry.preset("LLaVA-1.5-7B").model_copy(update={"layers": 2})
    rates = Rates(200e12, 1e12)  # in bfloat16, a weight is read while 200 rows pass it
    frozen = Plan.full(geometry).at([0, 1], attention=Skip(), ffn=Skip())
    found = least_s(geometry, rates, visual=576, text=66, itemsize=2, plan=frozen)
    d, m = geometry.hidden, geometry.intermediate
    products = 200 * (4 * d * d + 6 * d * m) + 642 * 4 * d * d  # query, output and FFN; keys and values of all rows
    assert found == pytest.approx(2 * (products + 4 * 66 * 642 * d) / rates.flops)
    assert rates.rows == 200
    assert found > prefill(geometry, visual=576, text=66, plan=frozen).total / rates.flops * 1.2


def test_another_models_plan_is_refused():
    other = SMALL.model_copy(update={"layers": SMALL.layers + 1})
    with pytest.raises(PlanMismatchError):
        least_s(SMALL, Rates(1, 1), visual=V, text=TEXT, itemsize=2, plan=Plan.full(other))


def test_a_machine_has_rates(monkeypatch):
    monkeypatch.setattr("lookless.bench.roofline.SIDE", {"cpu": 64})
    monkeypatch.setattr("lookless.bench.roofline.READ", {"cpu": 1 << 14})
    found = measured_rates(torch.float32, "cpu", repeats=2)
    assert found.flops > 0
    assert found.bytes > 0
    assert replace(found, bytes=found.flops).rows == 1


def test_the_gpu_script_writes_its_table_on_a_cpu(tmp_path, monkeypatch):
    """The same path as on a GPU, at the shipped model's widths."""
    monkeypatch.setattr("lookless.bench.roofline.SIDE", {"cpu": 64})
    monkeypatch.setattr("lookless.bench.roofline.READ", {"cpu": 1 << 14})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # vLLM takes minutes to start
    page = tmp_path / "page.md"
    words = "--device cpu --dtype float32 --rounds 2 --model reference:16:1 --model reference:16:2"
    paths = ["--runs", str(tmp_path), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", [str(GPU), *words.split(), *paths])
    runpy.run_path(str(GPU), run_name="__main__")
    written = page.read_text()
    assert written.count("| stock |") == 2
    assert written.count("| shortv |") == 2
    assert "vLLM is not installed" in written
    assert len([*tmp_path.glob("gpu-cpu-float32-whole-*.json")]) == 3  # two cases and the rates


def test_prices_in_milliseconds_have_the_reading_of_weights_in_them():
    """Fitted to a machine on which 66 rows cost what 200 do, a latency table prices plans that it has not seen as that
    machine does; FLOPs alone promise ten points too much."""
    geometry = Geometry.preset("LLaVA-1.5-7B").model_copy(update={"layers": 8})
    tokens, rates = {"visual": 576, "text": 66}, Rates(200e12, 1e12)

    def share(plan: Plan) -> float:
        return least_s(geometry, rates, **tokens, itemsize=2, plan=plan.as_run) / stock_s

    stock_s = least_s(geometry, rates, **tokens, itemsize=2)
    full, cells = Plan.full(geometry), {"attention": Skip(), "ffn": Skip()}
    rows = {"attention": {"attention": Skip()}, "ffn": {"ffn": Skip()}, "both": cells}
    fitted = {f"{name} {step}": full.at(range(0, 8, step), **row) for name, row in rows.items() for step in (1, 2)}
    shares = {name: share(plan) for name, plan in fitted.items()}
    terms = fit_terms(fitted, shares, geometry, **tokens, stock_ms=1e3 * stock_s)
    where = {"model": "none", "dtype": "bfloat16", "device": "cuda", "machine": "none", "threads": 1}
    found = {"stock_ms": 1e3 * stock_s, "terms": terms, "fitted": (), "checked": ()}
    table = LatencyTable(geometry=geometry, **tokens, batch=1, **where, **found)
    mixed = full.at([0, 3], attention=Skip()).at([1, 2], ffn=Skip()).at([4, 7], **cells)  # nothing in it is dead
    for plan in (mixed, full.at(range(2, 8), **cells)):
        assert table.share(plan) == pytest.approx(share(plan), abs=0.005)
    frozen = full.at(range(8), **cells)
    by_flops = prefill(geometry, **tokens, plan=frozen).total / prefill(geometry, **tokens).total
    assert table.share(frozen) - by_flops > 0.1
