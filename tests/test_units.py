"""What a figure is told in: a share, or MME's score, in every table and page."""

from __future__ import annotations

import io

from rich.console import Console

from lookless.answers import side_by_side, units_of
from lookless.certification import scored
from lookless.data import Sample, Samples
from lookless.estimates import figure, retained
from lookless.evaluation import Evaluation
from lookless.metrics import METRICS
from lookless.pages.material import Material
from lookless.pages.sections import _task_row
from lookless.pages.words import _answers
from lookless.terminal import evaluation_table


def test_each_figure_has_its_unit_wherever_it_is_told():
    """MME's score is no share: eval's table, the page of a run and `compare` say what it is."""
    units = {name: (METRICS[name].unit.name, METRICS[name].kept) for name in ("exact", "anls", "pope", "mme")}
    assert units == {
        "exact": ("accuracy", "right answers"),
        "anls": ("accuracy", "accuracy"),
        "pope": ("F1", "F1"),
        "mme": ("score", "score"),
    }
    rows = [("Yes", "yes", "yes", "count", "1"), ("No", "no", "no", "count", "1")]
    rows += [("Yes", "yes", "no", "OCR", "2"), ("No", "no", "no", "OCR", "2")]
    found = of_metric(rows, "mme")
    shown = text_of(evaluation_table([found]))
    assert "400.0 [400.0, 400.0]" in shown
    assert "250.0 [250.0, 250.0]" in shown
    assert ("dense score" in shown, "dense F1" in shown, "40000" in shown) == (True, False, False)
    assert "dense F1" in text_of(evaluation_table([of_metric(rows, "pope")]))
    row = _task_row("t", 0.1, found)
    assert row.figures == "score 400 → 250"
    assert _task_row("t", 0.1, of_metric(rows, "exact")).figures == "accuracy 100% → 75%"
    material = Material("files", evaluations={"t": found})
    assert _answers(material) == ["keeps 62.5% of the score on t"]
    assert scored(found).measure == "mme, question by question"
    assert scored(of_metric(rows, "gqa")).measure == "gqa"


def of_metric(rows, metric):
    """Of (right, dense, plan, task, id)."""
    asked = Samples("t", tuple(Sample((), "q", row[0], task=row[3], id=row[4]) for row in rows), metric=metric)
    made = side_by_side(asked, [row[1] for row in rows], [row[2] for row in rows])
    dense, plan = (units_of(made, who, metric) for who in ("dense", "plan"))
    return Evaluation(
        data="t", model="m", samples=len(made), metric=metric, answers=made,
        accuracy_dense=figure(dense), accuracy_plan=figure(plan), retention=retained(plan, dense),
    )  # fmt: skip


def text_of(table):
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()
