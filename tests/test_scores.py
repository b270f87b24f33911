"""Scores and the method that acts on them."""

from __future__ import annotations

import json

import pytest

from lookless import Geometry, Plan, Scores, Skip, v_skip
from lookless.errors import PlanError, ScoresError
from lookless.scores import pooled

SMALL = Geometry(model_type="llava", layers=4, hidden=8, intermediate=16, heads=2, kv_heads=2, head_dim=4)


def scores(*rows):
    return Scores(name="visual_information_gain", per_sample=rows, geometry=SMALL, model="m", data="d", data_hash="h")


def test_mean_spread_error():
    s = scores((0.0, 2.0, 4.0, 1.0), (2.0, 2.0, 0.0, 1.0))
    assert s.mean == (1.0, 2.0, 2.0, 1.0)
    assert s.spread == pytest.approx((2**0.5, 0.0, 8**0.5, 0.0))
    assert s.error == pytest.approx((1.0, 0.0, 2.0, 0.0))
    assert scores((1.0, 2.0, 3.0, 4.0)).spread == (0.0,) * 4


def test_lowest_in_order_and_ties_go_deeper():
    s = scores((3.0, 1.0, 0.0, 1.0))
    assert [s.lowest(n) for n in range(5)] == [(), (2,), (2, 3), (1, 2, 3), (0, 1, 2, 3)]
    for n in (-1, 5):
        with pytest.raises(ScoresError, match=f"{n} layers were asked for and the model has 4"):
            s.lowest(n)


def test_v_skip_is_the_lowest_rows():
    plan = v_skip(scores((3.0, 1.0, 0.0, 2.0)), layers=2)
    assert plan == Plan.full(SMALL).at([1, 2], attention=Skip()).made_by(
        method="v-skip",
        knobs={"layers": 2, "scores": "visual_information_gain"},
        model="m",
        data="d",
        data_hash="h",
        samples=1,
    )
    with pytest.raises(PlanError, match="asked to skip 5 layers and the model has 4"):
        v_skip(scores((3.0, 1.0, 0.0, 2.0)), layers=5)
    assert v_skip(scores((3.0, 1.0, 0.0, 2.0)), layers=0).is_full


def test_save_and_load_are_the_identity(tmp_path):
    s = scores((3.0, 1.0, 0.0, 2.0), (0.1, 0.2, 0.3, 0.4))
    assert Scores.load(s.save(tmp_path / "a" / "scores.json")) == s


def test_pooled_scores_are_those_of_all_samples():
    a, b = scores((3.0, 1.0, 0.0, 2.0)), scores((1.0, 1.0, 4.0, 0.0), (0.0, 0.0, 0.0, 0.0))
    found = pooled([a.model_copy(update={"sample_hashes": ("x",)}), b.model_copy(update={"sample_hashes": ("y", "z")})])
    assert found.per_sample == (*a.per_sample, *b.per_sample)
    assert (found.sample_hashes, found.data) == (("x", "y", "z"), "d + d")
    assert pooled([a, b.model_copy(update={"sample_hashes": ("y", "z")})]).sample_hashes is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"per_sample": [[1, 2, 3]]}, "sample 0 has 3 scores and the model 4 layers"),
        ({"per_sample": []}, "per_sample"),
        ({"per_sample": [[1, 2, 3, "many"]]}, "per_sample.0.3"),
        ({"odd": 1}, "unknown key 'odd'"),
        ({"schema_version": 7}, "schema version 7"),
    ],
)
def test_bad_files(tmp_path, change, complaint):
    path = scores((3.0, 1.0, 0.0, 2.0)).save(tmp_path / "s.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ScoresError) as caught:
        Scores.load(path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
