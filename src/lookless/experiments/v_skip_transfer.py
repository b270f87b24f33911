"""Calibrated on one task, tested on another: Figure 7b and Table 10 (V-Skip*) of arXiv 2606.08511."""

from __future__ import annotations

from ..comparison.results import Outcome
from ..comparison.statistics import retention_by_task
from ..errors import DataError
from ..methods import METHODS
from .answers import HEADS, Outcomes, row_of
from .charts import Matrix, matrix_figure
from .claims import alike, keeps
from .definition import Experiment
from .lab import Lab
from .report import Found, Table

GAIN = "visual_information_gain"
UNIVERSAL = ("one mask, mean of the tasks' gains", "mean"), ("one mask, mean of the tasks' ranks", "rank")


def run(lab: Lab) -> Found:
    """Raises: DataError: there is one task alone."""
    if len(lab.tasks) < 2:
        raise DataError("a mask of one task is tested on another, and there is one task: give --data twice.")
    [count] = lab.scaled(19)
    rows: dict[str, Outcomes] = {}
    for task in lab.tasks:
        plan = lab.plan("v-skip", task, layers=count)
        rows[lab.short[task]] = lab.everywhere(f"calibrated on {lab.short[task]}", plan)
    for name, by in UNIVERSAL:
        scores = [lab.scores(task, GAIN) for task in lab.tasks]
        plan = METHODS["v-skip-universal"].build(lab.geometry, scores, layers=count, by=by)
        rows[name] = lab.everywhere(name, plan)
    values = {name: [_retention(o) for o in outcomes] for name, outcomes in rows.items()}
    own = tuple(o for task in lab.tasks for o in rows[lab.short[task]] if o.task == task)
    others = tuple(o for task in lab.tasks for o in rows[lab.short[task]] if o.task != task)
    tables = (
        Table(
            title=f"Retention, {count} of {lab.layers} layers: calibrated on the row, tested on the column",
            heads=("calibrated on", *(f"{name}, %" for name in lab.short.values())),
            rows=tuple((name, *each) for name, each in values.items()),
        ),
        Table(
            title="Over all tasks",
            heads=("calibrated on", *HEADS),
            rows=(("the tested task", *row_of(own)), *((name, *row_of(outcomes)) for name, outcomes in rows.items())),
        ),
    )
    findings = (
        alike("Figure 7b", "a mask of another task keeps as much", others, own, "above a mask of the tested task"),
        *(
            keeps(
                "Table 10",
                f"{name} keeps 99.6 % (here: 99 % or more)",
                rows[name],
                0.99,
                f"at {count} of {lab.layers} layers",
            )
            for name, _ in UNIVERSAL
        ),
        *(
            alike("Table 10", f"{name} is as good as one for each task", rows[name], own, "above one for each task")
            for name, _ in UNIVERSAL
        ),
    )
    matrix = Matrix(
        [*values], [*lab.short.values()], [[float("nan") if v is None else v for v in r] for r in values.values()]
    )
    figure = matrix_figure(
        {"": matrix},
        title=f"Right answers kept, {count} of {lab.layers} layers ({lab.loaded.name})",
        x="tested on",
        y="calibrated on",
        low=0,
        high=1.0,
        size=0.75,
    )
    return Found(tables, findings, figure)


def _retention(outcome: Outcome) -> float | None:
    found = retention_by_task([outcome])
    return None if found is None else found.value


EXPERIMENT = Experiment(
    run, "2606.08511", "masks of one task on another, and one mask for all", "Figure 7b; Table 10 (V-Skip*)"
)
