"""One side of a comparison: a score for every question of a task, and what tells that the other side had the same."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..errors import LooklessError
from ..evaluation import Evaluation
from ..metrics import DEFAULT, metric_named

EXACT_MATCH = "exact match"


class Side(BaseModel):
    """Where scores come from.

    Attributes:
        name: the file, or the data.
        model: its name.
        plan_hash: :attr:`lookless.Plan.hash`; None for the dense model, under a plan set, and where it is not known.
        data_hash: of the samples.
        versions: of the software that gave the answers; empty where they are not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str | None = None
    plan_hash: str | None = None
    data_hash: str | None = None
    versions: dict[str, str] = {}


@dataclass(frozen=True, eq=False)
class Scored:
    """The answers to one task.

    Attributes:
        task: its name.
        measure: what a score is: ``exact match``, or the name of a field.
        side: where they come from.
        questions: of each question, what is the same on both sides; first what names it to a reader.
        scores: ``[questions]``; higher is better.
        images: of each question, what names its images; None where that is not known.
        prompts: of each question, if they may differ between the sides.
    """

    task: str
    measure: str
    side: Side
    questions: tuple[tuple[Hashable, ...], ...]
    scores: np.ndarray
    images: tuple[frozenset[str], ...] | None = None
    prompts: tuple[str, ...] | None = None


def scored(evaluation: Evaluation, *, dense: bool = False) -> Scored:
    """How right the answers of an evaluation are: the plan's, or the dense model's where there is no plan.

    Args:
        dense: those of the dense model in any case.

    Raises:
        LooklessError: it has no answers.
    """
    answers = evaluation.answers
    if not answers:
        raise LooklessError(f"the evaluation of {evaluation.data} has no answers, so there is nothing to compare.")
    scores = [one.dense_score if dense or one.plan_score is None else one.plan_score for one in answers]
    images = [frozenset(one.image_hashes) for one in answers if one.image_hashes is not None]
    return Scored(
        task=evaluation.data,
        measure=EXACT_MATCH if evaluation.metric == DEFAULT else metric_named(evaluation.metric).one_by_one,
        side=Side(
            name=evaluation.data,
            model=evaluation.model,
            plan_hash=None if dense else evaluation.plan_hash,
            data_hash=evaluation.data_hash,
            versions=evaluation.versions,
        ),
        questions=tuple((one.question, one.expected, one.sample_hash) for one in answers),
        scores=np.array(scores, float),
        images=tuple(images) if len(images) == len(answers) else None,
    )
