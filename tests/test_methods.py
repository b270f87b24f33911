"""Methods: every one is a table, at the paper's setting on any depth, signed, and refuses in one sentence."""

from __future__ import annotations

import importlib
import itertools
import random
from pathlib import Path

import pytest

from helpers.scores import SEVEN, of, risks, scored
from lookless import Filter, Full, Geometry, Keep, Neurons, Plan, Scores, Sink, Skip, Top, Window, methods
from lookless.calibration.sweep import INTERVENTIONS
from lookless.errors import PlanError, PlanMismatchError
from lookless.flops import prefill
from lookless.methods import METHODS, READY, Method, preset
from lookless.terminal import methods_document


def measured(geometry: Geometry) -> dict[str, Scores]:
    """Random scores of every measure."""
    draw = random.Random(0)
    names = {need for method in METHODS.values() for need in method.measures}
    rows = {name: tuple(draw.random() for _ in range(geometry.layers)) for name in sorted(names)}
    return {
        name: Scores(name=name, per_sample=(row, row), geometry=geometry, model="m", data="d", data_hash="h")
        for name, row in rows.items()
    }


def built(method: Method, geometry: Geometry) -> Plan:
    found = {
        n: method.knobs[n].scaled(v, geometry.layers, method.paper_layers) for n, v in method.example_arguments.items()
    }
    return method.build(geometry, measured(geometry), **found)


@pytest.mark.parametrize("layers", [12, 28, 32, 40])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_papers_setting_at_any_depth(method, layers, tmp_path):
    plan = built(method, of(layers))
    assert not plan.is_full or method.name == "vtw-search"  # no random score is under eta
    assert len(plan.layers) == layers
    plan.save_pretrained(tmp_path)
    assert Plan.from_pretrained(tmp_path) == plan
    assert len(str(plan).splitlines()) == layers + 1
    made = plan.provenance
    assert made.method == method.name
    assert set(made.knobs) == set(method.knobs) | ({"scores"} if method.measures else set())
    assert (made.model, made.data, made.samples) == (("m", "d", 2) if method.measures else (None, None, None))
    if plan.is_static:
        cost, dense = (prefill(of(layers), visual=576, text=66, plan=p).total for p in (plan, None))
        assert cost < dense or plan.is_full
    else:
        assert method.name == "visipruner"


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_records_are_whole(method):
    assert set(method.measures) <= {*INTERVENTIONS, "state_cosine"}
    assert method.idea.endswith(".")
    assert len(method.idea) < 120
    assert set(method.paper_arguments) | set(method.example_arguments) <= set(method.knobs)
    assert ("search" in method.needs) == bool(method.example_arguments) == (method.paper_kept is not None)
    for turned in (
        method.strength and method.strength(32, 0.5),
        method.prompt_arguments and method.prompt_arguments(576, 66),
    ):
        assert {*(turned or {})} <= {*method.knobs}
    module = importlib.import_module(method.make.__module__)
    assert method.paper in module.__doc__
    assert module.__name__.split(".")[-1] == method.make.__name__, "one file each, called like its function"
    assert getattr(methods, method.make.__name__) is method.make


def test_the_documents_have_a_row_for_each():
    """The table is written by `lookless methods --out docs/methods.md`."""
    page = (Path(__file__).parents[1] / "docs/methods.md").read_text()
    assert page == methods_document(page, METHODS)


def test_prefix_caches():
    unsafe = {name for name, method in METHODS.items() if not method.is_prefix_cache_safe}
    assert unsafe == {"fastv", "pyramiddrop", "sparsevlm", "st3", "visipruner", "halfv", "halfv-llava", "alvts"}


def test_relative_depth():
    assert METHODS["v-skip"].build(of(12), measured(of(12))).provenance.knobs["layers"] == 7  # 19 of 32
    stages = METHODS["pyramiddrop"].build(of(12))
    assert [i for i, row in enumerate(stages.layers) if row.keep != Full()] == [3, 6, 9]
    small = METHODS["sparsevlm"].build(of(6))
    assert [i for i, row in enumerate(small.layers) if row.keep != Full()] == [1, 2, 3], "stages stay apart"
    assert METHODS["fastv"].build(of(6)).provenance.knobs["layer"] == 1, "never the first layer"
    assert METHODS["fastv"].build(of(12), keep=0.25).layers[1].keep == Keep(0.25, rank="last_query_attention")


@pytest.mark.parametrize(
    ("name", "model", "knobs", "said"),
    [
        ("v-skip", "LLaVA-1.5-7B", {"layers": 19}, "layers 19: the paper's setting for LLaVA-1.5-7B."),
        ("v-skip", "LLaVA-NeXT-13B", {"layers": 24}, "layers 24: the paper's setting for LLaVA-NeXT-13B."),
        ("v-skip", "Qwen2.5-VL-7B", {"layers": 7}, "layers 7: the paper's setting for Qwen2.5-VL-7B."),
        ("shortv", "Qwen2.5-VL-7B", {"layers": 7}, "layers 7: V-Skip's setting for Qwen2.5-VL-7B."),
        ("v-skip", "Qwen2-VL-7B", {"layers": 17}, "layers 17: scaled to 28 layers from 19 of 32."),
        ("vtw", "LLaVA-1.5-7B", {"after": 14}, "after 14: the paper's setting for LLaVA-1.5-7B."),
        ("vtw", "LLaVA-1.5-13B", {"after": 20}, "after 20: V-Skip's setting for LLaVA-1.5-13B."),
        ("vtw", "Qwen2.5-VL-7B", {"after": 7}, "after 7: V-Skip's setting for Qwen2.5-VL-7B."),
        ("vtw-search", "LLaVA-1.5-13B", {"eta": 0.0005, "start": 5}, "eta 0.0005, start 5: the paper's setting for "),
        ("fastv", "LLaVA-1.5-7B", {"layer": 2, "keep": 0.5}, "layer 2, keep 0.5: the paper's setting for LLaVA-1.5-7B"),
        (
            "fastv",
            "Qwen2.5-VL-7B",
            {"layer": 2},
            "layer 2: scaled to 28 layers from 2 of 32; keep 0.5: as in the paper.",
        ),
    ],
)
def test_the_papers_setting_for_a_model(name, model, knobs, said):
    """Where one is printed for a model it is that one, and not another model's at the same relative depth."""
    geometry, method = Geometry.preset(model), METHODS[name]
    made = method.build(geometry, measured(geometry)).provenance.knobs
    assert {knob: made[knob] for knob in knobs} == knobs
    assert method.setting(geometry).startswith(said)
    assert method.setting(geometry, **knobs).startswith(", ".join(f"{k} {v}" for k, v in knobs.items()) + ": as given")


def test_settings_of_a_comparison():
    """VTW and FastV as V-Skip compares with them: 4.94 TFLOPs need 17 layers that see the image."""
    withdrawn = preset("vtw/LLaVA-1.5-7B/v-skip")
    assert f"{prefill(SEVEN, visual=576, text=66.6, plan=withdrawn).total_tflops:.2f}" == "4.94"
    assert preset("vtw/LLaVA-1.5-7B").layers == methods.vtw(SEVEN).layers
    assert preset("fastv/LLaVA-1.5-7B/V-Skip").layers == methods.fastv(SEVEN, layer=3).layers
    for method in METHODS.values():
        for one in method.published:
            assert set(one.knobs or {}) <= set(method.knobs)
            layers = Geometry.preset(one.model).layers
            assert layers == method.paper_layers or one.knobs, "defaults are for as many layers"


def test_a_budget_is_priced_at_the_prompts_lengths():
    """The share saved is of prompts as they were measured on, not of LLaVA-1.5's."""
    rows = [tuple(random.Random(i).random() for _ in range(12)) for i in range(3)]
    here = [one.model_copy(update={"visual": 144.0, "text": 14.5}) for one in risks(*rows)]
    plan = methods.operator_skipping(*here, save=0.3)
    assert (plan.provenance.knobs["visual"], plan.provenance.knobs["text"]) == (144, 14.5)
    assert plan.layers == methods.operator_skipping(*risks(*rows), save=0.3, visual=144, text=14.5).layers
    elsewhere = methods.operator_skipping(*risks(*rows), save=0.3)
    assert (elsewhere.provenance.knobs["visual"], elsewhere.provenance.knobs["text"]) == (576, 66.6)
    small = [one.model_copy(update={"visual": 4.0, "text": 40.0}) for one in risks(*rows)]
    with pytest.raises(PlanError, match=r"freezing every layer saves 7\.6%"):
        methods.operator_skipping(*small, save=0.3)
    with pytest.raises(PlanError, match="a prompt of 0 visual and 0 text tokens costs nothing"):
        methods.operator_skipping(*risks(*rows), save=0.3, visual=0, text=0)
    assert METHODS["operator-skipping"].knobs["visual"].parsed("100") == 100.0


def test_lowest_are_changed():
    scores = scored(0.3, 0.1, 0.2, 0.1)
    assert methods.v_skip(scores, layers=2).skipped("attention") == (1, 3)
    assert methods.v_skip(scores, layers=1).skipped("attention") == (3,), "ties go to the deeper layer"
    assert methods.ffn_skip(scores.use_as("ffn_effect"), layers=3).skipped("ffn") == (1, 2, 3)
    frozen = methods.shortv(scores.use_as("layer_contribution"), layers=1)
    assert frozen.skipped("attention") == frozen.skipped("ffn") == (3,)
    turned = methods.state_cosine(scored(0.1, 0.01, 0.5, name="state_cosine"), layers=1)  # 1 - cos
    assert turned.skipped("attention") == turned.skipped("ffn") == (1,)
    assert methods.logit_cosine(scored(0.1, 0.01, 0.5, name="logit_cosine"), layers=1).skipped("attention") == (1,)
    draws = {methods.random_layers(8, layers=3, seed=seed).skipped("attention") for seed in range(9)}
    assert len(draws) > 1
    assert all(len(draw) == 3 for draw in draws)
    assert methods.random_layers(8, layers=3) == methods.random_layers(8, layers=3)


def test_one_mask_for_several_tasks():
    loud, quiet = scored(10, 0, 30, data="a"), scored(0.1, 0.3, 0.2, data="b")
    both = methods.v_skip_universal(loud, quiet, layers=1)
    assert both.skipped("attention") == (1,), "the mean hears the loud task"
    assert (both.provenance.data, both.provenance.samples, both.provenance.data_hash) == ("a + b", 2, None)
    again = methods.v_skip_universal(loud, quiet, layers=1, by="rank")
    assert again.skipped("attention") == (0,), "places: 1 0 2 and 0 2 1"
    assert methods.v_skip_universal(loud, layers=2).layers == methods.v_skip(loud, layers=2).layers


def test_withdrawal_and_its_search():
    plan = methods.vtw(SEVEN, after=16)
    assert [i for i, row in enumerate(plan.layers) if not row.is_full] == [17]
    assert plan.layers[17].keep == Keep(0)
    found = methods.vtw_search(scored(0, 0.5, 0.002, 0.5, 0.001, name="withdrawal"), start=1)
    assert [i for i, row in enumerate(found.layers) if not row.is_full] == [2], "the first, whatever follows"
    assert methods.vtw_search(scored(1.0, 1.0, name="withdrawal"), start=0).is_full, "none: the image stays"


def test_windows_and_neurons_have_orders_of_their_own():
    ffn = scored(4, 3, 2, 1, name="neuron_effect")
    plan = methods.redundancylens((3, 1, 0, 2), ffn, attention_layers=1, ffn_layers=2)
    assert [row.attention for row in plan.layers] == [Full(), Full(), Full(), Window(256)]
    assert [row.ffn for row in plan.layers] == [Full(), Full(), Neurons(0.2, probe=0.1), Neurons(0.2, probe=0.1)]
    assert methods.redundancylens([1, 0], [0, 1], attention_layers=1, ffn_layers=0).geometry is None


def test_visipruner():
    rows = methods.visipruner(12, shallow=2).layers
    assert (rows[0].visible, rows[0].attention) == (Sink(), Skip())
    assert [row.visible for row in rows[1:]] == [Skip()] * 2 + [Full()] * 9
    assert [row.keep for row in rows] == [Full()] * 4 + [Filter()] * 8


def test_tables_by_hand():
    dash = methods.dash(4, layer=1, ratio=0.25).layers
    assert [row.ffn for row in dash] == [Full(), Full(), *[Top(0.25, rank="attention_norm")] * 2]
    vica = methods.vica(4, layers=(0, 2))
    assert vica.skipped("visible") == (1, 3)
    assert vica.skipped("attention") == vica.skipped("ffn") == (0, 1, 2, 3)
    depths = methods.dop(4, attention=1, ffn=3, keep=0.5)
    assert depths.skipped("attention") == (1, 2, 3)
    assert depths.skipped("ffn") == (3,)
    assert depths.layers[0].keep == Keep(0.5, rank="tower_attention_then_diversity")
    greedy = methods.gsop(4, order=(("ffn", 3), ("visible", 2), ("attention", 0)), steps=2)
    assert (greedy.skipped("ffn"), greedy.skipped("visible"), greedy.skipped("attention")) == ((3,), (2,), ())
    merged = methods.sparsevlm(SEVEN).layers
    assert [row.keep.of(576) for row in (merged[3], merged[7], merged[16])] == [300, 200, 110]
    assert merged[3].keep.recycle == 0.3
    assert methods.sparsevlm(SEVEN, version=2, budget=64).layers[3].keep.recycle == 0
    lazy = methods.v2drop(28)
    assert lazy.alive(576)[22:] == (1,) * 6, "one token is left"


def test_the_knapsack_is_the_best_of_all():
    """Against every assignment of four actions to five layers."""
    draw = random.Random(1)
    attention, ffn = ([draw.random() for _ in range(5)] for _ in range(2))
    three = risks(attention, ffn, [a + f + draw.uniform(-0.3, 0.3) for a, f in zip(attention, ffn, strict=True)])
    prices = {}
    for actions in itertools.product([(0, 0), (1, 0), (0, 1), (1, 1)], repeat=5):
        plan = Plan.full(of(5))
        for layer, (a, f) in enumerate(actions):
            plan = plan.at([layer], attention=Skip() if a else Full(), ffn=Skip() if f else Full())
        saved = 1 - prefill(of(5), visual=576, text=66.6, plan=plan).total / prefill(of(5), visual=576, text=66.6).total
        prices[actions] = (
            saved,
            sum(
                {(0, 0): 0, (1, 0): a, (0, 1): f, (1, 1): b}[action]
                for action, a, f, b in zip(actions, *(s.mean for s in three), strict=True)
            ),
        )
    for budget in (0.0, 0.05, 0.2, 0.4, 0.6, 0.75):
        plan = methods.operator_skipping(*three, save=budget)
        chosen = tuple((int(r.attention == Skip()), int(r.ffn == Skip())) for r in plan.layers)
        saved, risk = prices[chosen]
        assert saved >= budget - 1e-9
        assert risk == pytest.approx(min(r for s, r in prices.values() if s >= budget - 1e-9))


def test_labels():
    three = risks((0.5, 0.1, 0.0), (0.1, 0.5, 0.0), (0.6, 0.6, 0.001))
    assert methods.labels(*three, tau=0.01) == ("attention-dominant", "ffn-dominant", "silent")
    with pytest.raises(PlanMismatchError, match="different models"):
        methods.labels(three[0], three[1], scored(1, 2, name="freeze_effect"), tau=0.1)


@pytest.mark.parametrize("name", READY)
def test_presets(name):
    plan = preset(name.upper())
    assert plan.provenance.method == f"preset {name}"
    assert plan.geometry == Geometry.preset(name.split("/")[1])
    assert not plan.is_full


def test_presets_by_hand():
    frozen = preset("shortv/LLaVA-1.5-13B")
    assert len(frozen.skipped("attention")) == len(frozen.skipped("ffn")) == 24
    assert [len(preset(f"shortv/LLaVA-{m}-7B").skipped("ffn")) for m in ("1.5", "NeXT")] == [19, 19]
    twenty = preset("operator-skipping/Qwen3-VL-8B/20")
    assert twenty.skipped("ffn") == tuple(range(24, 36))
    assert twenty.skipped("attention") == (2, 4, 17, 18, *range(20, 36))
    all_of_it = preset("operator-skipping/LLaVA-1.5-7B/32")
    assert all(row.attention == Skip() or row.ffn == Skip() for row in all_of_it.layers)
    assert [i for i in range(24) if all_of_it.layers[i].ffn == Skip()] == [2, 10]
    with pytest.raises(PlanError, match="no ready plan is called 'x'; there are shortv/"):
        preset("x")


@pytest.mark.parametrize("name", [name for name in READY if name.startswith("operator-skipping")])
def test_a_policys_number_is_how_many_layers_it_changes(name):
    assert sum(not row.is_full for row in preset(name).layers) == int(name.split("/")[2])


def test_methods_compose():
    scores = scored(*range(32))
    both = methods.fastv(SEVEN) | methods.v_skip(scores, layers=19)
    assert both.provenance.method == "fastv | v-skip"
    assert both.layers[2].keep != Full()
    near = methods.redundancylens(scores.use_as("window_effect"), scores.use_as("neuron_effect")) | methods.fastv(SEVEN)
    assert near.layers[2] == near.layers[2].model_copy(update={"attention": Window(256)})
    with pytest.raises(PlanError, match="both plans set keep of layer 2"):
        methods.fastv(SEVEN) | methods.random_tokens(SEVEN)
