"""Fitted cells: named by their numbers, kept beside the plan, checked when read, and what they cost.

That the runtime computes them is in test_cells.py.
"""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from helpers.families import FAMILIES, model_of
from helpers.plans import FULL, HIDDEN, linear, mean
from lookless import Geometry, LayerPlan, Plan, Skip, apply, flops
from lookless.errors import PlanError, PlanMismatchError
from lookless.fitted import Linear, Mean
from lookless.plan import FILE_NAME, WEIGHTS_NAME
from lookless.weights import Weights, read

PLAN = FULL.at([1], attention=mean(), ffn=linear(3)).at([3], ffn=linear(2))


def test_weights_are_their_numbers():
    assert mean() == mean() != mean(1)
    assert hash(mean()) == hash(mean())
    assert len({linear(3), linear(3), linear(2), mean()}) == 3
    for copied in (pickle.loads(pickle.dumps(PLAN)), copy.deepcopy(PLAN), PLAN.model_copy(deep=True)):
        assert copied == PLAN
        assert copied.weights[0].parts["constant"].tolist() == mean().weights.parts["constant"].tolist()
    same = Weights.of(np.float32([1, 2]), np.float32([[1, 2]]), np.float32([[1], [2]]))
    assert same.name != Weights.of(np.float32([1, 2]), np.float32([[1, 3]]), np.float32([[1], [2]])).name
    assert (same.rank, same.width) == (1, 2)
    assert str(PLAN.layers[1].ffn) == "linear 3"
    assert (Plan.full(5).at([1], attention=mean()) | Plan.full(5).at([1, 3], ffn=linear(2))).weights == (
        mean().weights,
        linear(2).weights,
    )


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Weights.of(np.zeros(3), np.zeros((2, 3)), np.zeros((2, 3))), r"\[rank, n\] and \[n, rank\], not"),
        (lambda: Weights.of(np.zeros(3), np.zeros((2, 3))), "constant"),
        (lambda: Weights.of([0.0, np.nan]), "the constant of an affine map holds NaN"),
        (lambda: Mean(linear(2).weights), "Mean is a constant, and its weights are of rank 2"),
        (lambda: Linear(mean().weights), "greater than 0"),
        (lambda: Linear(linear(2).weights, rank=3), "of rank 3, and its weights are of rank 2"),
        (lambda: Mean("abc"), "64 hex digits"),
    ],
)
def test_weights_that_are_none(make, complaint):
    with pytest.raises((ValueError, PlanError), match=complaint):
        make()


def test_numbers_lie_beside_the_plan(tmp_path):
    path = PLAN.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [FILE_NAME, WEIGHTS_NAME]
    for where in (tmp_path, path):
        found = Plan.from_pretrained(where)
        assert found == PLAN
        assert [w.parts["constant"].tobytes() for w in found.weights] == [
            w.parts["constant"].tobytes() for w in PLAN.weights
        ]
    Plan.full(2).save_pretrained(tmp_path / "full")
    assert [file.name for file in (tmp_path / "full").iterdir()] == [FILE_NAME]
    assert all(weights.name in path.read_text() for weights in PLAN.weights), "the hash is in the plan's JSON"


def test_other_numbers_are_refused(tmp_path):
    PLAN.save_pretrained(tmp_path)
    numbers = tmp_path / WEIGHTS_NAME
    content = bytearray(numbers.read_bytes())
    content[-1] ^= 1
    numbers.write_bytes(content)
    with pytest.raises(PlanError, match="are not those that were saved: their sha256 is"):
        Plan.from_pretrained(tmp_path)
    numbers.write_bytes(content[:-9])
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.from_pretrained(tmp_path)
    FULL.at([1], attention=mean(5)).save_pretrained(tmp_path / "other")
    numbers.write_bytes((tmp_path / "other" / WEIGHTS_NAME).read_bytes())
    with pytest.raises(PlanError, match="of a fitted cell of the plan are not beside it"):
        Plan.from_pretrained(tmp_path)
    numbers.unlink()
    with pytest.raises(PlanError, match=r"safetensors, .* cannot be read: No such file"):
        Plan.from_pretrained(tmp_path)


def test_a_plan_without_its_numbers_is_known_and_does_not_run(tmp_path):
    named = Plan.model_validate_json(PLAN.to_json())
    assert named == PLAN
    assert named.rows(16, 8) == PLAN.rows(16, 8)
    with pytest.raises(PlanError, match="only the name of its numbers is here"):
        apply(model_of("llava"), named)
    with pytest.raises(PlanError, match="only the name of its numbers is here"):
        named.save_pretrained(tmp_path)
    PLAN.save_pretrained(tmp_path)
    assert named.bound(read(tmp_path / WEIGHTS_NAME)).weights[1].rank == 3


def test_the_hub_gets_and_gives_both_files(tmp_path, monkeypatch):
    def upload(self, *, path_or_fileobj, path_in_repo, **_):
        (tmp_path / path_in_repo).write_bytes(path_or_fileobj)
        return type("Commit", (), {"commit_url": "there"})()

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_file", upload)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, revision: tmp_path / name)
    assert PLAN.push_to_hub("me/plan") == "there"
    assert Plan.from_pretrained("me/plan") == PLAN


def test_what_fitted_cells_cost():
    geometry = Geometry.preset("LLaVA-1.5-7B")
    skip = Plan.full(geometry).at([3], attention=Skip()).at([3, 4], ffn=Skip())
    unread = {"rank": 8, "weights": "0" * 64}
    fitted = Plan.full(geometry).at([3], attention=Mean("1" * 64)).at([3, 4], ffn=Linear(**unread))
    costs = [flops.prefill(geometry, visual=576, text=60, plan=plan) for plan in (skip, fitted)]
    maps = 2 * 2 * 576 * (4096 * 8 + 8 * 4096)
    assert costs[1].total - costs[0].total == costs[1].visual - costs[0].visual == maps
    assert fitted.is_prefix_cache_safe
    assert fitted.live().layers[3] == fitted.layers[3]
    assert Plan.full(2).at([1], ffn=mean()).live().layers[1] == LayerPlan(attention=Skip(), ffn=Skip())


def test_refusals():
    wide = Mean(Weights.of(np.zeros(HIDDEN * 2)))
    with pytest.raises(PlanMismatchError, match=f"of width {HIDDEN * 2}, and the model's are of width {HIDDEN}"):
        apply(model_of("llava"), FULL.at([1], ffn=wide))


def test_gradients_flow_after_inference_mode():
    """The numbers are put on the model's device once, and that must not be in inference mode for good."""
    family, model = FAMILIES["llava"], model_of("llava")
    arguments = family.batch("one image")
    plan = FULL.at([1], ffn=linear(2, seed=7))
    with apply(model, plan):
        with torch.inference_mode():
            model(**arguments)
        logits = model(**arguments).logits
        logits[0, -1].sum().backward()
    assert model.model.language_model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    model.zero_grad()
