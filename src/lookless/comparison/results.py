"""What is measured of each method: the records that ``results.json`` holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..evaluation import Estimate, mean_estimate, retention_estimate
from ..geometry import Geometry

SCHEMA_VERSION = 2
PAPER = "paper"


class Outcome(BaseModel):
    """One plan on one task.

    Attributes:
        method, setting, task: whose plan; ``paper`` or the budget, a share of FLOPs; on what.
        draw: number of the draw, from 0, for a method with random choices.
        kept: FLOPs run, as a share of the stock model's prefill; decoder only.
        kept_papers: as papers count: dead work is counted in plan and model; None where what runs is decided prompt by
            prompt.
        kept_live: dead work is counted in neither: FLOPs run, as a share of those run under liveness alone.
        right: per question, whether the plan's answer is right; ``dense``: whether the dense model's is.
        same: per question, whether plan and dense model answer alike.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    setting: str
    task: str
    draw: int = 0
    kept: float
    kept_papers: float | None
    kept_live: float
    right: tuple[bool, ...]
    dense: tuple[bool, ...]
    same: tuple[bool, ...]


class Results(BaseModel):
    """All outcomes on one model so far, and their times.

    Attributes:
        times: ``method, setting`` to its decoder's prefill time on the first task, as a share of the dense one's.
        missed: ``method, setting`` to why there is no plan, or how near the budget its nearest plan is.
        notes: ``method, setting`` to a note on the row.
        hashes: by task, of the calibration samples and of the questions, which share no prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model: str
    geometry: Geometry
    questions: int
    samples: int
    outcomes: tuple[Outcome, ...] = ()
    times: dict[str, float] = {}
    dense_ms: float | None = None
    missed: dict[str, str] = {}
    notes: dict[str, str] = {}
    machine: str = ""
    hashes: dict[str, tuple[str, str]] = {}

    def of(self, method: str, setting: str) -> tuple[Outcome, ...]:
        return tuple(o for o in self.outcomes if (o.method, o.setting) == (method, setting))


def by_question(outcomes: Sequence[Outcome], field: str = "right") -> NDArray[np.float64]:
    """``field`` of each question, ``[questions of all tasks]``; the mean over draws."""
    tasks = dict.fromkeys(o.task for o in outcomes)
    return np.concatenate([np.mean([getattr(o, field) for o in outcomes if o.task == task], axis=0) for task in tasks])


def accuracy(outcomes: Sequence[Outcome]) -> Estimate:
    return mean_estimate(by_question(outcomes))


def retention(outcomes: Sequence[Outcome]) -> Estimate | None:
    return retention_estimate(by_question(outcomes), by_question(outcomes, "dense"))
