"""The experiment on a hybrid: which layers skip at equal FLOPs, and what it says of a model without kinds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lookless import Geometry, Plan, Scores, flops
from lookless.comparison.results import Outcome
from lookless.errors import PlanMismatchError
from lookless.experiments import hybrid_mixers
from lookless.experiments.hybrid_mixers import ATTENTION, DELTA, EITHER, SKIPPED
from lookless.experiments.lab import Lab
from lookless.experiments.report import FAILS, HOLDS

NAME = "Qwen3.5-9B"


class Stub(Lab):
    """A lab without a model: layer l of ``n`` has the score (7 l) mod n, a question is kept by how many layers skip."""

    def __init__(self, geometry: Geometry) -> None:
        self.loaded, self.tasks = SimpleNamespace(name="stub"), ("one", "other")
        self.work = SimpleNamespace(geometry=geometry, kept=lambda entry: self.kept(entry.plan))
        self.plans: dict[tuple[str, str], list[Plan]] = {}

    def kept(self, plan):
        full, mine = (
            flops.prefill(self.geometry, visual=900, text=100, plan=p).total
            for p in (Plan.full(self.geometry), plan.as_run)
        )
        return mine / full

    def scores(self, task, measure, seed=0):
        row = tuple(float(7 * layer % self.layers) for layer in range(self.layers))
        return Scores(
            name=measure, unit="nats", model="stub", data=task, geometry=self.geometry, per_sample=(row, row),
            visual=900, text=100, position="last",
        )  # fmt: skip

    def answers(self, name, task, plan, *, setting="", draw=0, side=1):
        self.plans.setdefault((name, setting), []).append(plan)
        right = tuple(float(i >= len(plan.skipped("attention")) + len(plan.skipped("ffn"))) for i in range(60))
        return Outcome(
            method=name, setting=setting, task=task, draw=draw, kept=self.kept(plan), kept_papers=None, kept_live=0.9,
            right=right, dense=(1.0,) * 60, same=right,
        )  # fmt: skip


@pytest.fixture
def lab():
    return Stub(Geometry.preset(NAME))


def test_layers_of_both_kinds_spare_as_much(lab):
    found = hybrid_mixers.run(lab)
    attention = [layer for layer in range(31) if layer % 4 == 3]
    assert len(attention) == 7  # the last of eight is dead
    for what, _ in SKIPPED.values():
        for budget in (4, 7):
            plans = {k: lab.plans[f"{what} skipped, {k}", f"{budget} {ATTENTION}"] for k in (ATTENTION, DELTA, EITHER)}
            kept = {kind: lab.kept(two[0]) for kind, two in plans.items()}
            # one layer more or less is the nearest that can be had
            assert kept[DELTA] == pytest.approx(kept[ATTENTION], abs=0.02)
            assert kept[EITHER] == pytest.approx(kept[ATTENTION], abs=0.02)
            changed = {k: [i for i, row in enumerate(two[0].layers) if not row.is_full] for k, two in plans.items()}
            assert changed[ATTENTION] == sorted(sorted(attention, key=lambda i: 7 * i % 32)[:budget])
            assert all(layer % 4 != 3 for layer in changed[DELTA])
            if what == "FFN":  # which are alike in all layers
                assert len(changed[DELTA]) == len(changed[EITHER]) == budget
            if what == "reading":
                assert len(changed[DELTA]) > budget
            assert 31 not in {layer for layers in changed.values() for layer in layers}
    layers, means, kept = found.tables
    assert len(layers.rows) == 31
    assert [row[:2] for row in means.rows] == [(DELTA, 24), (ATTENTION, 7)]
    assert means.rows[0][2] == pytest.approx(sum(7 * i % 32 for i in range(31) if i % 4 != 3) / 24)
    assert len(kept.rows) == 3 * 2 * 3


def test_what_is_found_is_what_the_layers_say(lab):
    """More layers with a gated delta rule skip when reading is spared, and so this lab's answers are worse there."""
    findings = hybrid_mixers.run(lab).findings
    assert [finding.verdict for finding in findings[:4]] == [FAILS] * 4
    assert "more on 0 of 2 tasks" in findings[0].measured  # (7 l) mod 32 is larger where l mod 4 is not 3
    lab.scores = lambda task, measure, seed=0, stock=lab.scores: flipped(stock(task, measure))
    assert [finding.verdict for finding in hybrid_mixers.run(lab).findings[:3]] == [HOLDS] * 3


def flipped(scores):
    return scores.model_copy(update={"per_sample": tuple(tuple(-x for x in row) for row in scores.per_sample)})


def test_a_model_with_one_kind_of_mixer_is_refused():
    with pytest.raises(PlanMismatchError, match=r"^this experiment compares layers .* of llava are all of one kind"):
        hybrid_mixers.run(Stub(Geometry.preset("LLaVA-1.5-7B")))
