"""What a table compares methods with: smaller images, equal times, and the statistics of both."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.families import FAMILIES
from lookless import Geometry, Loaded, Plan, load_data, load_model
from lookless.bench.timing import Timing
from lookless.comparison import timing
from lookless.comparison.contestants import DOWNSAMPLING, Published
from lookless.comparison.document import document
from lookless.comparison.downsampling import downsampled
from lookless.comparison.entry import STOCK, Entry, time_entries
from lookless.comparison.results import Outcome, Results
from lookless.comparison.run import run_table
from lookless.comparison.settings import PAPER, Setting, settings_of
from lookless.comparison.statistics import hard, retention_by_task
from lookless.comparison.workspace import Workspace
from lookless.errors import PlanError
from lookless.flops import prefill
from lookless.methods import METHODS
from lookless.runtime.families import locate

TASKS = ["reference:chart", "reference:counting"]
FASTER = Setting("time", 0.8)


@pytest.fixture(scope="module")
def qwen():
    return load_model("reference-qwen3-vl")


@pytest.mark.parametrize("name", ["reference", "reference-qwen3-vl"])
@pytest.mark.parametrize("side", [0.75, 0.5])
def test_a_smaller_image_is_the_stock_models(name, side, reference, qwen):
    """Against an image resized by hand, with as many placeholders as it has patches, in a direct stock forward."""
    loaded = reference if name == "reference" else qwen
    samples = load_data(TASKS[0], limit=2).items
    stock = loaded.inputs(samples)
    with downsampled(loaded, side) as smaller:
        inputs = smaller.inputs(samples)
        logits = loaded.model(**inputs).logits[:, -1]
    tokens = round(12 * side) ** 2
    visual = inputs["input_ids"] == loaded.model.config.image_token_id
    assert visual.sum(1).tolist() == [tokens] * 2
    expected = torch.cat([by_hand(loaded, sample, round(96 * side)) for sample in samples])
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
    again = loaded.inputs(samples)
    assert all(torch.equal(again[key], stock[key]) for key in stock), "the processor is as before"
    assert not locate(loaded.model).tower._forward_pre_hooks


def by_hand(loaded, sample, edge):
    """The last logits of one prompt, from its image resized beforehand to ``edge`` pixels."""
    image = sample.opened()[0].resize((edge, edge), Image.Resampling.BICUBIC)
    ids = loaded.inputs([sample])["input_ids"]
    visual = (ids == loaded.model.config.image_token_id)[0].nonzero().flatten()
    keep = torch.ones(ids.shape[1], dtype=torch.bool)
    keep[visual[(edge // 8) ** 2 :]] = False
    ids = ids[:, keep]
    pixels = loaded.processor.image_processor(image, do_resize=False, do_center_crop=False, return_tensors="pt")
    model = loaded.model
    if "image_grid_thw" in pixels:
        given = {"mm_token_type_ids": (ids == model.config.image_token_id).int(), **pixels}
        return model(input_ids=ids, **given).logits[:, -1]
    features = model.model.get_image_features(pixels["pixel_values"], interpolate_pos_encoding=True, return_dict=True)
    return model(input_ids=ids, mm_encoder_outputs={"image": features}).logits[:, -1]


def test_other_families_are_refused():
    """Where tiles, or a resampler, decide how many tokens an image is."""
    family = FAMILIES["llava_next"]
    loaded = Loaded(family.build(), SimpleNamespace(image_processor=SimpleNamespace()), "tiles", None)
    with (
        pytest.raises(PlanError, match="how many visual tokens tiles makes of a smaller image"),
        downsampled(loaded, 0.5),
    ):
        pass


@pytest.fixture
def bench(reference, tmp_path):
    return Workspace(reference, TASKS, tmp_path, questions=4, samples=1, batch=4)


def test_a_smaller_image_has_its_own_price(bench):
    """By the formula, of the tokens of a square of patches; the nearest square to a budget is chosen."""
    entry = DOWNSAMPLING.near(bench, TASKS[0], 0.6)
    dense = prefill(bench.geometry, visual=144, text=bench.text).total
    alone = Plan.full(bench.geometry).live()
    lean = {n: prefill(bench.geometry, visual=n * n, text=bench.text, plan=alone).total / dense for n in range(1, 13)}
    nearest = min(lean, key=lambda n: abs(lean[n] - 0.6))
    assert bench.lengths(entry.side) == (nearest**2, bench.text)
    assert bench.kept(entry) == pytest.approx(lean[nearest])
    papers = prefill(bench.geometry, visual=nearest**2, text=bench.text).total / dense
    assert bench.kept_papers(entry) == pytest.approx(papers)
    assert bench.lengths(DOWNSAMPLING.at_paper(bench, TASKS[0]).side)[0] == 64  # the square nearest to half of 144


def test_smaller_images_are_timed_as_they_are(bench, reference):
    """Fewer rows pass the layers; and nothing is left on the model."""
    rows = []
    hook = reference.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, given: rows.append(args[0].shape[1]), with_kwargs=True
    )
    try:
        samples = bench.test[TASKS[0]].items[:2]
        timed = time_entries(reference, samples, [STOCK, Entry(None, 0.5)], repeats=2, warm_up=1)
    finally:
        hook.remove()
    assert rows == [rows[0], rows[0] - 144 + 36] * 3
    assert [len(t.values_ms) for t in timed] == [2, 2]


def test_shares_are_of_the_stock_model_timed_around(bench, monkeypatch):
    """On a machine that slows down as it goes, by much more than plans differ."""
    entries = [Entry(None, 1 - n / 100) for n in range(1, 2 * timing.BETWEEN + 2)]

    def slowing(loaded, samples, order, **_):
        return [Timing((e.side * (100 + at),) * 3) for at, e in enumerate(order)]

    monkeypatch.setattr(timing, "time_entries", slowing)
    found, _ = timing.shares(bench, entries, 1, repeats=3, warm_up=0)
    assert found == pytest.approx([e.side for e in entries], rel=0.04)


CHOSEN = {name: METHODS[name] for name in ("random-tokens", "shortv", "v-skip", "vica")}


@pytest.fixture
def clock(monkeypatch):
    """Prefill time as if half of it were in proportion to FLOPs; counts what is timed."""
    calls = []

    def shares(work, entries, batch, **_):
        calls.append(len(entries))
        return [0.5 + 0.5 * work.kept(e) for e in entries], 10.0 * batch

    monkeypatch.setattr(timing, "shares", shares)
    return calls


def test_methods_are_brought_to_one_time(reference, tmp_path, clock):
    """In steps that neither answer nor time: by few timings, the nearest strength of each, or how near it comes."""
    options = {"tasks": TASKS, "budgets": (), "times": (0.8,), "questions": 2, "samples": 1, "batch": 4}

    def step(name):
        return run_table(reference, CHOSEN, tmp_path, step=name, **options)

    answered = step("answers")
    assert not clock
    assert answered.of("shortv", PAPER)
    assert not answered.of("shortv", FASTER)
    timed = step("times")
    assert len(timed.outcomes) == len(answered.outcomes)
    assert {*timed.times} == {f"{o.method}, paper" for o in answered.outcomes}
    results = step("answers")
    times = {key: rung.time for key, rung in results.rungs.items()}
    assert times["shortv, time 0.8"] == pytest.approx(0.8, abs=0.03)
    assert times["random-tokens, time 0.8"] == pytest.approx(0.8, abs=0.02)
    kept = results.of("random-tokens", FASTER)[0].kept
    assert 0.5 + 0.5 * kept == pytest.approx(times["random-tokens, time 0.8"])
    assert results.of(DOWNSAMPLING.name, FASTER), "a control has a row however near it comes"
    assert not results.of("v-skip", FASTER)
    assert results.missed["v-skip, time 0.8"] == f"its nearest plan takes {times['v-skip, time 0.8']:.0%}"
    assert results.missed["vica, time 0.8"] == "its published arguments are not one amount"
    assert sum(clock) < 40, "few strengths are timed"
    again = len(clock)
    results = step("times")
    assert len(clock) == again + len(timing.BATCHES), "no strength is chosen twice"
    assert results.times["shortv, time 0.8"] == pytest.approx(dict.fromkeys((1, 8), times["shortv, time 0.8"]))
    text = document("", [results], METHODS, "x.png")
    assert "### At 80% of the prefill time" in text
    assert "* v-skip (80% of the prefill time): its nearest plan takes" in text
    assert "Prefill of the stock decoder: 10.0 ms at batch 1, 80.0 ms at batch 8." in text


@pytest.mark.parametrize("slow", [0.0, 0.7])
def test_the_strength_of_a_time_is_found_in_few_steps(bench, slow):
    """Also of a method that is slower than the stock model until it does much."""
    climb = timing._Climb(Published(METHODS["random-tokens"]), bench)
    times = {strength: kept + slow * kept**2 for strength, kept in climb.kept.items()}
    while (step := climb.next(0.6)) is not None:
        climb.times[step[0]] = times[step[0]]
    assert climb.nearest(0.6).time == min(times.values(), key=lambda time: abs(time - 0.6))
    assert len(climb.times) <= timing.ROUNDS


def outcome(method, task, right, dense, draw=0):
    bits = [tuple(mark == "1" for mark in marks) for marks in (right, dense)]
    return Outcome(
        method=method, setting="0.6", task=task, draw=draw, kept=0.6, kept_papers=0.6, kept_live=0.6,
        right=bits[0], dense=bits[1], same=bits[0],
    )  # fmt: skip


def test_retention_is_averaged_over_tasks():
    """The mean of ratios, and an interval as from one resample after the other."""
    tasks = {"a": ("110011" * 8, "111111" * 8), "b": ("100000" * 8, "110000" * 8), "c": ("1" * 48, "0" * 48)}
    found = retention_by_task([outcome("m", task, *marks) for task, marks in tasks.items()])
    assert found.value == pytest.approx((4 / 6 + 1 / 2) / 2)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(2000):
        ratios = []
        for right, dense in list(tasks.values())[:2]:
            pairs = [(int(right[i]), int(dense[i])) for i in rng.integers(0, 48, 48)]
            ratios.append(sum(r for r, _ in pairs) / sum(d for _, d in pairs))
        drawn.append(np.mean(ratios))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert retention_by_task([outcome("m", "c", *tasks["c"])]) is None
    few = retention_by_task([outcome("m", "d", "10", "10")])  # a quarter of all resamples has no ratio
    assert (few.value, few.low, few.high) == (1, 1, 1)


def test_hard_questions_are_those_that_a_smaller_image_loses():
    control = [outcome(DOWNSAMPLING.name, "a", "1000", "1110"), outcome(DOWNSAMPLING.name, "b", "0110", "1010")]
    assert hard(control).tolist() == [False, True, True, False, True, False, False, False]
    mine = [outcome("fastv", "a", "0100", "1110"), outcome("fastv", "b", "1111", "1010")]
    geometry = Geometry.preset("LLaVA-1.5-7B")
    results = Results(model="m", geometry=geometry, questions=4, samples=1, outcomes=(*control, *mine))
    text = document("", [results], METHODS, "x.png")
    head, _, *rows = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    column = next(i for i, name in enumerate(head) if name == "right of the 3 hard questions, %")
    cells = {row[0].strip("| "): row[column] for row in rows}
    assert cells == {"fastv": "67", "down-sampling": "the control"}


def test_settings():
    """Their keys are those of the records, and what is no share is refused."""
    settings = settings_of([0.6], [0.8, 0.5])
    assert [Setting.of(s.key) for s in settings] == list(settings)
    assert [s.key for s in settings] == ["paper", "0.6", "time 0.8", "time 0.5"]
    assert sorted(settings, key=lambda s: s.place) == list(settings)
    with pytest.raises(PlanError, match=r"a time of 1\.5 is no share of the prefill's"):
        settings_of([], [1.5])
