"""The experiment on a hybrid: which layers skip at equal FLOPs, and what it says of a model without kinds."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from PIL import Image
from transformers import Qwen3_5ForConditionalGeneration

from lookless import Geometry, Plan, Scores, evaluate, flops, load_data, load_model
from lookless.comparison.results import Outcome
from lookless.data import Sample, Samples
from lookless.errors import PlanMismatchError
from lookless.experiments import hybrid_mixers
from lookless.experiments.hybrid_mixers import ATTENTION, DELTA, EITHER, SKIPPED
from lookless.experiments.lab import Lab, Sizes
from lookless.experiments.report import FAILS, HOLDS, Report
from lookless.experiments.run import lab_of, run_experiment
from lookless.reference import HYBRID, TASKS, tasks_of
from lookless.runtime.families import geometry_of

NAME = "Qwen3.5-9B"


class Stub(Lab):
    """A lab without a model: layer l of ``n`` has the score (7 l) mod n, ten questions are lost by each that skips."""

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
        lost = 10 * (len(plan.skipped("attention")) + len(plan.skipped("ffn")))
        right = tuple(float(i >= lost) for i in range(60))
        return Outcome(
            method=name, setting=setting, task=task, draw=draw, kept=self.kept(plan), kept_papers=None, kept_live=0.9,
            right=right, dense=(1.0,) * 60, same=right,
        )  # fmt: skip


@pytest.fixture
def lab():
    whole = Geometry.preset(NAME)
    delta = whole.delta.model_copy(update={"layers": tuple(i for i in range(12) if i % 4 != 3)})
    return Stub(whole.model_copy(update={"layers": 12, "delta": delta}))


def test_layers_of_both_kinds_spare_as_much(lab):
    found = hybrid_mixers.run(lab)
    attention = [3, 7]  # what the last one does is dead
    for what, _ in SKIPPED.values():
        for budget in (1, 2):
            plans = {k: lab.plans[f"{what} skipped, {k}", f"{budget} {ATTENTION}"] for k in (ATTENTION, DELTA, EITHER)}
            kept = {kind: lab.kept(two[0]) for kind, two in plans.items()}
            # one layer more or less is the nearest that can be had
            assert kept[DELTA] == pytest.approx(kept[ATTENTION], abs=0.02)
            assert kept[EITHER] == pytest.approx(kept[ATTENTION], abs=0.02)
            changed = {k: [i for i, row in enumerate(two[0].layers) if not row.is_full] for k, two in plans.items()}
            assert changed[ATTENTION] == sorted(sorted(attention, key=lambda i: 7 * i % 12)[:budget])
            assert all(layer % 4 != 3 for layer in changed[DELTA])
            if what == "FFN":  # which are alike in all layers
                assert len(changed[DELTA]) == len(changed[EITHER]) == budget
            if what == "reading":
                assert len(changed[DELTA]) >= budget  # each of which spares no more than attention
            assert 11 not in {layer for layers in changed.values() for layer in layers}
    layers, means, kept = found.tables
    assert len(layers.rows) == 11
    assert [row[:2] for row in means.rows] == [(DELTA, 9), (ATTENTION, 2)]
    assert means.rows[0][2] == pytest.approx(sum(7 * i % 12 for i in range(11) if i % 4 != 3) / 9)
    assert len(kept.rows) == 3 * 2 * 3


def test_what_is_found_is_what_the_layers_say(lab):
    """More layers with a gated delta rule skip when reading is spared, and so this lab's answers are worse there."""
    findings = hybrid_mixers.run(lab).findings
    assert [finding.verdict for finding in findings[:4]] == [FAILS] * 4
    assert "more on 0 of 2 tasks" in findings[0].measured  # (7 l) mod 12 is larger where l mod 4 is not 3
    lab.scores = lambda task, measure, seed=0, stock=lab.scores: flipped(stock(task, measure))
    assert [finding.verdict for finding in hybrid_mixers.run(lab).findings[:3]] == [HOLDS] * 3


def flipped(scores):
    return scores.model_copy(update={"per_sample": tuple(tuple(-x for x in row) for row in scores.per_sample)})


def test_a_model_with_one_kind_of_mixer_is_refused():
    with pytest.raises(PlanMismatchError, match=r"^this experiment compares layers .* of llava are all of one kind"):
        hybrid_mixers.run(Stub(Geometry.preset("LLaVA-1.5-7B")))


# on the shipped hybrid


@pytest.fixture(scope="module")
def shipped():
    return load_model("reference-qwen3-5")


def test_the_hybrid_loads_with_stock_classes(shipped):
    assert type(shipped.model) is Qwen3_5ForConditionalGeneration
    assert geometry_of(shipped.model).delta.layers == (0, 1, 2, 4, 5, 6, 8, 9, 10)
    assert sum(path.stat().st_size for path in HYBRID.iterdir()) <= 30e6
    assert set(tasks_of("reference-qwen3-5")) == set(TASKS)


@pytest.mark.long
@pytest.mark.parametrize("task", ["chart", "attribute"])
def test_the_hybrid_sees(shipped, task):
    """No worse than its card says, within what so few questions, here and on the card, can tell; and blind it fails."""
    card, count = json.loads((HYBRID / "scores.json").read_text()), 60
    seen = load_data(f"reference:{task}", limit=count)
    stated = card["accuracy"][task]
    error = (max(stated * (1 - stated), 0.01) * (1 / count + 1 / card["questions"])) ** 0.5
    assert evaluate(shipped, seen, progress=False).accuracy_dense.value >= stated - 3 * error
    grey = Image.new("RGB", (96, 96), "grey")
    blind = Samples("blind", tuple(Sample((grey,), s.question, s.answer) for s in seen))
    assert evaluate(shipped, blind, progress=False).accuracy_dense.value < 0.5


@pytest.mark.long
def test_the_experiment_runs_and_resumes(shipped, tmp_path):
    tasks, sizes = ("reference:chart", "reference:attribute"), Sizes(questions=2, samples=1, seeds=2)
    report = run_experiment(hybrid_mixers.EXPERIMENT, lab_of(shipped, tasks, tmp_path, sizes))
    assert all(len(row) == len(table.heads) for table in report.tables for row in table.rows)
    lab = lab_of(shipped, tasks, tmp_path, sizes)
    assert Report.model_validate_json((lab.folder / "hybrid-mixers.json").read_text()) == report
    written = {path: path.stat().st_mtime_ns for path in lab.store.folder.glob("*.json")}
    run_experiment(hybrid_mixers.EXPERIMENT, lab)
    assert written == {path: path.stat().st_mtime_ns for path in lab.store.folder.glob("*.json")}
