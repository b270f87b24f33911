"""Answers beside the right ones, and what a metric makes of them."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from .data import Sample, Samples, SkippedWarning
from .errors import DataError
from .estimates import Units
from .metrics import exact, metric_named, said

Who = Literal["dense", "plan"]


class Answer(BaseModel):
    """One question with its answers.

    Attributes:
        question, expected: of the sample; of several right answers the first.
        dense: the dense model's answer.
        plan: the answer under the plan; None if no plan was evaluated.
        sample_hash: :attr:`lookless.Sample.hash` of the prompt.
        image_hashes: :attr:`lookless.Sample.image_hashes`; None in files of an older lookless.
        others: further right answers.
        id, task: of the sample.
        dense_score, plan_score: of the answers, in [0, 1], by the evaluation's metric; by exact match in files of an
            older library, which have none.
    """

    model_config = ConfigDict(frozen=True)

    question: str
    expected: str
    dense: str
    plan: str | None = None
    sample_hash: str | None = None
    image_hashes: tuple[str, ...] | None = None
    others: tuple[str, ...] = ()
    id: str | None = None
    task: str | None = None
    dense_score: float
    plan_score: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _scored(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "dense_score" in values or not {"expected", "dense"} <= values.keys():
            return values
        dense, plan, right = values["dense"], values.get("plan"), values["expected"]
        if not all(isinstance(one, str) for one in (dense, plan, right) if one is not None) or None in (dense, right):
            return values  # which is refused
        return {
            **values,
            "dense_score": exact(dense, right),
            "plan_score": None if plan is None else exact(plan, right),
        }

    @property
    def right(self) -> tuple[str, ...]:
        """All right answers."""
        return (self.expected, *self.others)

    def under(self, other: Answer) -> Answer:
        """This question with the answer under another plan, and its score."""
        return self.model_copy(update={"plan": other.plan, "plan_score": other.plan_score})


def scored_by(samples: Samples, name: str | None = None) -> Samples:
    """``samples``, to be scored by the metric called ``name``; None: by their own.

    Raises:
        LooklessError: there is no such metric.
        DataError: it can make nothing of the right answers, or of the ids, of a sample, which is named.

    Warns:
        SkippedWarning: under MME, a question is left out whose pair is not there.
    """
    metric = metric_named(samples.metric if name is None else name)
    for sample in samples:
        fault = metric.fault(sample.right)
        if fault is not None:
            raise DataError(f"{_place(sample)}: under the metric {metric.name}, {fault}.")
    samples = replace(samples, metric=metric.name)
    return _in_pairs(samples) if metric.total == "mme" else samples


def _in_pairs(samples: Samples) -> Samples:
    """Those that share their task and id with one other.

    Raises:
        DataError: a sample has no id or no task, more than two share one, or none is left.
    """
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.id is None or sample.task is None:
            raise DataError(
                f"{_place(sample)}: MME's score needs an id, which the two questions about an image share, and a "
                f"task, their category."
            )
        groups[sample.task, sample.id].append(sample)
    for (task, name), group in groups.items():
        if len(group) > 2:
            raise DataError(f"{_place(group[2])}: a third question has the id {name!r} of {task}, and MME's are pairs.")
    items = tuple(sample for sample in samples if len(groups[sample.task or "", sample.id or ""]) == 2)
    if not items:
        raise DataError(f"no two questions of {samples.name} share a task and an id, and MME's score is of such pairs.")
    if len(items) < len(samples):
        warnings.warn(
            f"{len(samples) - len(items)} of {len(samples)} questions of {samples.name} are left out, because the "
            f"other of their pair is not there, and MME's score is of pairs.",
            SkippedWarning,
            stacklevel=4,
        )
    return replace(samples, items=items)


def _place(sample: Sample) -> str:
    return sample.where or f"the sample {sample.question[:60]!r}"


def side_by_side(samples: Samples, dense: Sequence[str], planned: Sequence[str] | None) -> tuple[Answer, ...]:
    """The answers of the dense model and under a plan, if there is one, scored by the metric of ``samples``."""
    plans: Sequence[str | None] = [None] * len(dense) if planned is None else planned
    score = metric_named(samples.metric).score
    return tuple(
        Answer(
            question=s.question,
            expected=s.answer,
            dense=d,
            plan=p,
            sample_hash=s.hash,
            image_hashes=s.image_hashes,
            others=s.others,
            id=s.id,
            task=s.task,
            dense_score=score(d, s.right),
            plan_score=None if p is None else score(p, s.right),
        )
        for s, d, p in zip(samples, dense, plans, strict=True)
    )


def units_of(answers: Sequence[Answer], who: Who, name: str) -> Units:
    """What the metric called ``name`` sums, of the answers of the dense model or under the plan."""
    metric, tasks = metric_named(name), [answer.task or "" for answer in answers]
    scores = np.array([_score(answer, who) for answer in answers], dtype=float)
    if metric.total == "mme":
        return _pairs(answers, scores)
    if metric.total == "f1":
        yes = [said(one.right[0]) == "yes" for one in answers]
        given = [said((one.dense if who == "dense" else one.plan) or "") for one in answers]
        hit = np.array([is_yes and one == "yes" for is_yes, one in zip(yes, given, strict=True)], float)
        # An answer that is neither yes nor no is no miss, as POPE's evaluation counts.
        miss = np.array([one == ("no" if is_yes else "yes") for is_yes, one in zip(yes, given, strict=True)], float)
        return replace(Units.plain(2 * hit, tasks), bottom=2 * hit + miss)
    return Units.plain(scores, tasks)


def _score(answer: Answer, who: Who) -> float:
    score = answer.dense_score if who == "dense" else answer.plan_score
    assert score is not None, "there is no answer of a plan"
    return score


def _pairs(answers: Sequence[Answer], scores: np.ndarray) -> Units:
    """MME's: a pair has 50 for each right answer, 50 + 50, and 100 more if both are; a category its mean, and the whole
    is their sum."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for answer, score in zip(answers, scores, strict=True):
        groups[answer.task or "", answer.id or ""].append(float(score))
    values = np.array([50 * sum(pair) + 100 * (sum(pair) == 2) for pair in groups.values()])
    tasks = [task for task, _ in groups]
    names = list(dict.fromkeys(tasks))
    return replace(Units.plain(values, tasks), stratum=np.array([names.index(task) for task in tasks]))
