"""Peak memory: counted as held at once, as the allocator counts it, and no plan holds more than stock."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch

from helpers.families import FAMILIES
from helpers.shapes import AFTER, BEFORE, SMALL, V
from lookless import Geometry
from lookless.bench.dummy_model import make_dummy_model
from lookless.bench.timed_plans import timed_plans
from lookless.bench.timing import peak_mib
from lookless.configs import Shape, shape_named
from lookless.runtime.families import locate
from lookless.runtime.patching import applied


@pytest.fixture(scope="module")
def small():
    return make_dummy_model(Shape(SMALL, "qwen3"), dtype=torch.float32)


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


COMPARED = ("v-skip", "shortv", "vtw", "fastv", "operator-skipping")


def peaks(model, inputs) -> dict[str, float]:
    """Most memory held in the first call under each plan, by stock's."""
    plans = timed_plans(locate(model).geometry, COMPARED)

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
    made = make_dummy_model(Shape(small, shape_named(preset).block), dtype=dtype)
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
