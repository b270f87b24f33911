"""The certificate as a record: what it says, and that it says so again from a file."""

from __future__ import annotations

import json

import pytest

from lookless import Keep, LooklessError, Plan, Skip
from lookless.certification import Certificate, PlanTest, TaskTest


def outcome(task="chart", p_value=0.01, needed=None, **fields):
    passed = p_value <= 0.05
    numbers = {"samples": 500, "n": 400, "bad": 1, "loss": 0.0025, "upper": 0.012} | fields
    return TaskTest(task=task, p_value=p_value, passed=passed, needed=needed, **numbers)


def certificate(*tests, **fields):
    return Certificate(level=0.01, confidence=0.95, tests=tests, **fields)


def test_a_plan_passes_where_every_task_does():
    plan = PlanTest(plan="mild", tasks=(outcome(), outcome("text", 0.2, needed=900)))
    assert not plan.passed
    assert (plan.worst.task, plan.p_value, plan.needed, plan.verdict) == ("text", 0.2, 900, "not enough data")
    hopeless = PlanTest(plan="wild", tasks=(*plan.tasks, outcome("table", 0.9)))
    assert (hopeless.needed, hopeless.verdict) == (None, "loses too much")
    assert PlanTest(plan="mild", tasks=(outcome(),)).verdict == "certified"


def test_what_a_certificate_says():
    mild, wild = PlanTest(plan="mild", tasks=(outcome(),)), PlanTest(plan="wild", tasks=(outcome(p_value=0.7, bad=9),))
    both = certificate(mild, wild, untested=2)
    assert (both.chosen, both.failed, both.verdict) == (mild, wild, "certified")
    assert str(both) == (
        "mild: at most 1.00% of the questions that the dense model answers right are answered wrong on chart, with 95% "
        "confidence. wild failed: 9 of 400 on chart, p = 0.7."
    )
    none = certificate(PlanTest(plan="mild", tasks=(outcome(p_value=0.2, needed=700),)))
    assert (none.chosen, none.certified, none.verdict) == (None, (), "not enough data")
    assert "Nothing is certified" in str(none)
    assert "about 700 questions" in str(none)
    assert certificate(mild).failed is None


def test_a_certificate_ends_at_the_first_failure():
    mild, wild = PlanTest(plan="mild", tasks=(outcome(),)), PlanTest(plan="wild", tasks=(outcome(p_value=0.7),))
    with pytest.raises(ValueError, match="first plan that fails"):
        certificate(wild, mild)


def test_round_trip(tmp_path):
    made = certificate(PlanTest(plan="mild", plan_hash="0" * 16, tasks=(outcome(data_hash="1" * 16),)), model="tiny")
    assert Certificate.load(made.save(tmp_path / "certificate.json")) == made
    assert Certificate.load(tmp_path) == made
    (tmp_path / "certificate.json").write_text(
        json.dumps(json.loads((tmp_path / "certificate.json").read_text()) | {"x": 1})
    )
    with pytest.raises(LooklessError, match="unknown key 'x'"):
        Certificate.load(tmp_path)
    with pytest.raises(LooklessError, match="does not exist"):
        Certificate.load(tmp_path / "none")


def test_a_plan_is_known_by_what_it_does(tmp_path):
    plan = Plan.full(4).at([1], attention=Skip()).at([2], keep=Keep(0.5, rank="diversity"))
    assert plan.made_by(method="mine", data="chart").hash == plan.hash
    plan.save_pretrained(tmp_path)
    assert Plan.from_pretrained(tmp_path).hash == plan.hash
    others = Plan.full(4), Plan.full(5), plan.at([2], keep=Keep(0.4, rank="diversity")), plan.at([1], visible=Skip())
    assert len({plan.hash, *(other.hash for other in others)}) == 5
    assert plan.hash == "5517b51ea37bb8ff"  # written in certificates, so it may not change
    test = PlanTest(plan="mild", plan_hash=plan.hash, tasks=(outcome(),))
    assert certificate(test).covers(plan)
    assert not certificate(test).covers(Plan.full(4))
