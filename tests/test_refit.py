"""Maps in place of what a plan skips: the regression, and the way through the layers on which it is fitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.cli import fails, run
from helpers.compare import far, text_of
from helpers.families import FAMILIES, model_of
from helpers.loaded import loaded_of, samples_of, tiny_loaded
from helpers.models import LAYERS
from helpers.plans import FULL, HIDDEN, mean
from lookless import Full, Keep, Plan, Skip, apply, load_data, load_model
from lookless.calibration.affine import OPERATORS, Fitter
from lookless.calibration.regression import Moments
from lookless.configs import geometry_named
from lookless.errors import ModelError, PlanError
from lookless.fitted import Linear
from lookless.search import Front, Menu, Objective, by_flops, joint_distance, joint_search, measure_additive
from lookless.search.additive import Additive
from lookless.search.fitting import with_fitted
from lookless.search.menu import ROWS
from lookless.weights import ARCHIVE


def fitter(loaded, samples) -> Fitter:
    return Fitter(loaded, samples, position="last", progress=False)


def slow_fit(x, y, weights, rank, ridge, metric):
    """Reduced-rank ridge regression by least squares on longer data: the ridge is rows of zeros to be explained."""
    share = weights / weights.sum()
    mean_x, mean_y = share @ x, share @ y
    width = x.shape[1]
    variance = (share[:, None] * (x - mean_x) ** 2).sum() / width
    root = np.linalg.cholesky(metric)
    tall = np.vstack([np.sqrt(share)[:, None] * (x - mean_x), np.sqrt(ridge * variance) * np.eye(width)])
    wide = np.vstack([np.sqrt(share)[:, None] * (y - mean_y), np.zeros((width, width))]) @ root
    solution = np.linalg.lstsq(tall, wide, rcond=None)[0]
    best = np.linalg.svd(tall @ solution)[2][:rank]
    mapped = solution @ best.T @ best @ np.linalg.inv(root)
    return mapped.T, mean_y - mean_x @ mapped


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_regression_is_the_slow_one(rank):
    rng = np.random.default_rng(rank)
    x, mix = rng.normal(size=(40, 6)), rng.normal(size=(6, 6))
    y, weights = x @ mix + 0.3 * rng.normal(size=(40, 6)) + 5, rng.random(40)
    root = rng.normal(size=(6, 6))
    metric = root @ root.T
    moments = Moments(6)
    for part in (slice(0, 15), slice(15, 40)):
        moments.add(*(torch.tensor(v[part]) for v in (x, y, weights)))
    fitted = moments.fit(rank=rank, ridge=0.1, metric=torch.tensor(metric)).parts
    damped = np.linalg.eigvalsh(metric).mean() * 1e-2 * np.eye(6)  # what counts nothing counts a little
    wanted, constant = slow_fit(x, y, weights, rank, 0.1, metric + damped)
    assert np.allclose(fitted["up"] @ fitted["down"], wanted, atol=1e-5)
    assert np.allclose(fitted["constant"], constant, atol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_maps_that_can_say_all_give_the_full_model_back(name):
    """Of full rank, fitted to fewer visual tokens than a state has numbers: each operator's output exactly, on the
    states that the fitted cells before it leave. With dropped tokens, several images, and DeepStack."""
    family, model = FAMILIES[name], model_of(name)
    arguments = family.batch("two images")
    text, samples = text_of(family, arguments), samples_of("any")
    pruned = [FULL.at([1], keep=Keep(0.6, rank="random")), FULL.at([0], keep=Keep(0.6, rank="tower_attention"))]
    for first in (FULL, *pruned):
        plan = first.at([1, 3], attention=Skip()).at([0, 1, 3], ffn=Skip())
        fitted = fitter(loaded_of(model, arguments), samples).refit(plan, rank=HIDDEN, ridge=0)
        assert [i for i, row in enumerate(fitted.layers) if isinstance(row.attention, Linear)] == [1, 3]
        assert [i for i, row in enumerate(fitted.layers) if isinstance(row.ffn, Linear)] == [0, 1, 3]
        with apply(model, first):
            wanted = model(**arguments).logits[text]
        with apply(model, plan):
            skipped = model(**arguments).logits[text]
        with apply(model, fitted):
            found = model(**arguments).logits[text]
        assert far(skipped, wanted) > 0.1
        assert far(found, wanted) < 5e-3


def test_the_mean_is_that_of_what_the_operator_adds():
    """Over all visual tokens of all samples, each by how much it is read: once more with hooks and gradients on the
    stock model. A fitted cell is fitted anew."""
    loaded, samples = tiny_loaded(), samples_of("one image", "two images")
    layer, directions = loaded.model.model.language_model.layers[2], torch.Generator().manual_seed(0)
    modules = {"attention": layer.self_attn.o_proj, "ffn": layer.mlp}
    sums = {name: [torch.zeros(HIDDEN), 0.0] for name in modules}
    for sample in samples:
        arguments, seen = loaded.inputs([sample]), {}
        hooks = [
            module.register_forward_hook(lambda _, __, out, name=name, seen=seen: seen.update({name: out}))
            for name, module in modules.items()
        ]
        logits = loaded.model(**arguments).logits[0, -1:]
        for hook in hooks:
            hook.remove()
        squares = dict.fromkeys(modules, 0.0)
        for _ in range(2):
            read = (logits * torch.randn(logits.shape, generator=directions)).sum()
            for name, gradient in zip(
                seen, torch.autograd.grad(read, [*seen.values()], retain_graph=True), strict=True
            ):
                squares[name] = squares[name] + gradient[0].square().sum(-1) / 2
        for name, out in seen.items():
            for j in (~text_of(FAMILIES["llava"], arguments)[0]).nonzero().flatten():
                weight = squares[name][j] ** 0.5
                sums[name][0] += weight * out[0, j].detach()
                sums[name][1] += weight
    for name, (total, weight) in sums.items():
        for before in (Skip(), mean()):
            fitted = fitter(loaded, samples).refit(FULL.at([2], **{name: before}), rank=0)
            constant = torch.from_numpy(getattr(fitted.layers[2], name).weights.parts["constant"])
            assert far(constant, total / weight) < 1e-4, name


def test_cells_alone_are_those_of_plans_that_skip_one_operator():
    loaded, samples = tiny_loaded(), samples_of("one image")
    fits = fitter(loaded, samples)
    cells = fits.alone(ranks=(0, 2))
    assert cells.keys() == {(layer, name) for layer in range(LAYERS - 1) for name in OPERATORS}
    for layer, name in ((0, "attention"), (2, "ffn")):
        for rank in (0, 2):
            plan = FULL.at([layer], **{name: Skip()})
            fitted = fits.refit(plan, rank=rank)
            assert getattr(fitted.layers[layer], name) == cells[layer, name][rank]


def test_fitted_again_each_cell_has_its_rank_and_skips_stay():
    """As if the cells had been fitted in this plan to begin with, one after the other; and the same the second time."""
    loaded, samples = tiny_loaded(), samples_of("one image", "two images")
    fits = fitter(loaded, samples)
    cells = fits.alone(ranks=(2, 3))
    plan = FULL.at([0], keep=Keep(0.6, rank="diversity")).at([2], attention=Skip())
    given = plan.at([1], ffn=cells[1, "ffn"][3]).at([3], attention=cells[3, "attention"][2])
    again = fits.again(given)
    first = fits.refit(plan.at([1], ffn=Skip()).at([2], attention=Full()), rank=3).layers[1].ffn
    assert again.layers[1].ffn.rank == first.rank == 3
    assert again.layers[2] == plan.layers[2]
    assert again.layers[3].attention.rank == 2
    assert again.layers[1].ffn != given.layers[1].ffn  # the pruning before it has changed its rows
    assert again.layers[1].ffn == first  # nothing is fitted before it
    assert fits.again(again) == again
    assert fits.again(plan) == plan


def test_a_search_with_fitted_cells_keeps_and_reads_their_numbers(tmp_path):
    """Rows of the menu, of the additive table, and of plans found; resumed from files without fitting anew."""
    samples = samples_of("one image", "two images")
    objective = Objective(tiny_loaded(), samples, position="last", progress=False)
    fits, plain = fitter(tiny_loaded(), samples), Menu(LAYERS, rows=ROWS[:3], shares=(), ranks=())
    menu = with_fitted(plain, fits, ranks=(1, 4))
    assert [len(menu.at(layer)) for layer in range(LAYERS)] == [10] * (LAYERS - 1) + [3]  # nothing reads the last
    measure_additive(objective, menu, progress=False).save(tmp_path / "additive.json")
    additive = Additive.load(tmp_path / "additive.json")
    assert plain.having(additive.rows) == menu
    prices = by_flops(objective.geometry, objective.visual, objective.text)
    given = {"tasks": ("a",), "budgets": (0.8, 0.6), "kept": prices, "progress": False, "path": tmp_path / "front.json"}
    front = joint_search(objective, menu, additive, refit=fits.again, proposals=8, **given)
    chosen = [one for one in front.candidates if one.plan.weights]
    assert {one.found_by for one in chosen} >= {"joint"}
    assert [gain.step for gain in front.gains] == ["additive", "methods", "joint", "refitted"] * 2
    read = Front.load(tmp_path / "front.json")
    assert read == front
    assert all(weights.is_bound for one in read.candidates for weights in one.plan.weights)
    evaluations = objective.evaluations
    joint_search(objective, menu, additive, refit=fits.again, proposals=8, **given)
    assert objective.evaluations == evaluations
    (tmp_path / ARCHIVE).unlink()
    with pytest.raises(PlanError, match=f"of a fitted cell in .*additive.json are not in {ARCHIVE}"):
        Additive.load(tmp_path / "additive.json")


def test_dead_work_stays_skipped_and_the_plan_says_what_it_saw():
    loaded, samples = tiny_loaded(), samples_of("one image")
    plan = FULL.at([1, 4], ffn=Skip()).at([3], keep=Keep(0)).made_by(method="ffn_skip", sample_hashes=("earlier",))
    fitted = fitter(loaded, samples).refit(plan, rank=2, ridge=0.5)
    assert isinstance(fitted.layers[1].ffn, Linear)
    assert fitted.layers[2:] == plan.layers[2:]
    assert fitted.provenance.method == "ffn_skip"
    assert fitted.provenance.knobs == {"fitted_rank": 2, "fitted_ridge": 0.5, "fitted_on": samples.hash}
    assert fitted.provenance.sample_hashes == ("earlier", *samples.hashes)


@pytest.mark.parametrize(
    ("plan", "rank", "complaint"),
    [
        (FULL, 2, "nothing to fit"),
        (FULL.at([LAYERS - 1], ffn=Skip()), 2, "whose result is read"),
        (FULL.at([1], ffn=Skip()), HIDDEN + 1, "a map of rank 65 was asked for, and hidden states have 64"),
    ],
)
def test_what_cannot_be_fitted(plan, rank, complaint):
    with pytest.raises(PlanError, match=complaint):
        fitter(tiny_loaded(), samples_of("one image")).refit(plan, rank=rank)


def test_no_rows_and_no_numbers_are_refused():
    moments = Moments(2)
    with pytest.raises(ModelError, match="no visual row was seen"):
        moments.fit(rank=1)
    moments.add(torch.tensor([[1.0, torch.inf]]), torch.ones(1, 2))
    with pytest.raises(ModelError, match="is not finite"):
        moments.fit(rank=1)


def test_the_command_writes_a_plan_that_runs(tmp_path):
    plan = Plan.full(geometry_named("reference")).at([3], attention=Skip(), ffn=Skip())
    plan.save_pretrained(tmp_path / "skip")
    given = ("refit", "reference", "--plan", tmp_path / "skip", "--data", "reference:chart", "--samples", 2)
    result = run(*given, "--rank", 3, "--out", tmp_path / "fitted")
    assert result.exit_code == 0, result.output
    assert "linear 3" in result.stdout
    fitted = Plan.from_pretrained(tmp_path / "fitted")
    assert [weights.rank for weights in fitted.weights] == [3, 3]
    assert joint_distance(load_model("reference"), load_data("reference:chart", split="test", limit=1), fitted) >= 0
    refused = fails(*given, "--cell", "mean", "--rank", 3, "--out", tmp_path / "other")
    assert "--cell mean is a constant and has no rank, and --rank is 3" in refused
