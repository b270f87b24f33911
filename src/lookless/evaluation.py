"""What a plan costs in answers: accuracy, retention, and fidelity to the answers of the dense model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict

from .answers import Answer as Answer
from .answers import scored_by, side_by_side, units_of
from .data import Sample, Samples, SeenWarning, overlap
from .each import each
from .estimates import CONFIDENCE as CONFIDENCE
from .estimates import RESAMPLES as RESAMPLES
from .estimates import Estimate as Estimate
from .estimates import Units, figure, mean_retained, retained
from .estimates import mean_estimate as mean_estimate
from .estimates import paired_difference as paired_difference
from .estimates import retention_estimate as retention_estimate
from .loading import Loaded
from .metrics import DEFAULT
from .metrics import normal as normal
from .plan import Plan
from .processes import Worker, team_of
from .provenance import Provenance
from .runtime.patching import applied
from .unfinished import Unfinished
from .version import __version__, installed


class IdleWarning(UserWarning):
    """A plan is run on prompts in which there is nothing that it could skip."""


class TaskResult(BaseModel):
    """What :class:`Evaluation` says, of one of its tasks."""

    model_config = ConfigDict(frozen=True)

    task: str
    samples: int
    accuracy_dense: Estimate
    accuracy_plan: Estimate | None = None
    retention: Estimate | None = None


class Evaluation(BaseModel):
    """A model on one set of samples, dense and with a plan.

    Attributes:
        accuracy_dense, accuracy_plan: the figure of :attr:`metric`; by default the share of answers that match exactly,
            apart from case and a final full stop.
        retention: ``accuracy_plan / accuracy_dense`` of all questions together; None if the latter is 0.
        retention_of_tasks: the mean of the retentions of each task, as papers average them; None if there is one task,
            or one without a retention.
        fidelity: share of the plan's answers that equal the dense model's, right or wrong; needs no labels.
        answers: each question with both answers.
        data_hash: sha256 of the samples, 16 hex digits.
        calibration_hash: the same of the samples that the plan was calibrated on; None if the plan does not name them.
        seen: how many of the samples the plan was calibrated on; None if the plan does not name them.
        left_out: how many lines of the data were left out because the plan was calibrated on them.
        plan_hash: :attr:`lookless.Plan.hash`; None without a plan, and under a plan set.
        versions: of lookless, torch and transformers; empty in files of an older lookless.
        metric: by which answers are scored, one of :data:`lookless.metrics.METRICS`.
        tasks: each task by itself, if there are several.
        skipped: what is wrong with each sample that was skipped.
    """

    model_config = ConfigDict(frozen=True)

    data: str
    model: str
    samples: int
    accuracy_dense: Estimate
    accuracy_plan: Estimate | None = None
    retention: Estimate | None = None
    fidelity: Estimate | None = None
    answers: tuple[Answer, ...]
    data_hash: str | None = None
    calibration_hash: str | None = None
    seen: int | None = 0
    left_out: int = 0
    plan_hash: str | None = None
    versions: dict[str, str] = {}
    metric: str = DEFAULT
    retention_of_tasks: Estimate | None = None
    tasks: tuple[TaskResult, ...] = ()
    skipped: tuple[str, ...] = ()


def evaluate(
    loaded: Loaded,
    samples: Samples,
    plan: Plan | None = None,
    *,
    batch: int = 25,
    max_new_tokens: int = 32,
    dense: Sequence[str] | None = None,
    metric: str | None = None,
    progress: bool = True,
    kept: Unfinished | None = None,
) -> Evaluation:
    """Answer every sample greedily, dense and under ``plan``, and compare.

    Args:
        loaded: the model and its processor.
        samples: the questions.
        plan: None evaluates the dense model alone.
        batch: prompts answered together.
        max_new_tokens: length of the longest answer.
        dense: answers of the dense model, if they are known.
        metric: by which answers are scored, one of :data:`lookless.metrics.METRICS`; by default the samples' own.
        progress: show a progress bar on a terminal.
        kept: where answers are kept as they come, and those of a run that was killed are found.

    Raises:
        DataError: the right answers are of no use to the metric.
        PlanMismatchError: the plan is for another architecture.
        ModelError: the model has a plan on it already, or gives logits that are not finite.

    Warns:
        SeenWarning: the plan was calibrated on some of the samples. Leave them out with
            ``load_data(..., without=plan.provenance.sample_hashes)``.
        IdleWarning: no sample has an image.
    """
    samples = scored_by(samples, metric)
    if plan is not None:
        warn_if_idle(plan, samples)
    dense = dense_answers(loaded, samples, batch, max_new_tokens, progress, kept) if dense is None else dense
    if plan is None:
        return _of_dense(loaded.name, samples, dense)
    planned = _answers(loaded, samples, plan, batch, max_new_tokens, progress, kept)
    found = compared(loaded.name, samples, dense, planned, plan.provenance)
    return found.model_copy(update={"plan_hash": plan.hash})


def warn_if_idle(plan: Plan, samples: Samples) -> None:
    """Warns: IdleWarning: no sample has an image, so that the plan would be taken for one that loses nothing."""
    if not plan.is_full and not any(sample.pictures for sample in samples):
        warnings.warn(
            f"{samples.name} has no image, so the plan skips nothing: the answers are the stock model's.",
            IdleWarning,
            stacklevel=3,
        )


def dense_answers(
    loaded: Loaded,
    samples: Samples,
    batch: int,
    max_new_tokens: int,
    progress: bool,
    kept: Unfinished | None = None,
) -> list[str]:
    """The stock model's greedy answers.

    Raises:
        ModelError: the model has a plan on it, or gives logits that are not finite.
    """
    return _answers(loaded, samples, None, batch, max_new_tokens, progress, kept)


def compared(
    model: str, samples: Samples, dense: Sequence[str], planned: Sequence[str], made: Provenance
) -> Evaluation:
    """Answers of the dense model beside those under what was ``made`` for it.

    Warns:
        SeenWarning: it was calibrated on some of the samples.
    """
    seen = _seen(samples, made)
    if seen != 0:
        warnings.warn(_seen_sentence(samples.name, len(samples), seen), SeenWarning, stacklevel=3)
    found = _of_dense(model, samples, dense, planned)
    of_dense, of_plan = (units_of(found.answers, who, found.metric) for who in ("dense", "plan"))
    return found.model_copy(
        update={
            "accuracy_plan": figure(of_plan),
            "retention": retained(of_plan, of_dense),
            "retention_of_tasks": mean_retained(of_plan, of_dense) if len(of_dense.names) > 1 else None,
            "fidelity": mean_estimate(_agree(planned, dense)),
            "calibration_hash": made.data_hash,
            "seen": seen,
        }
    )


def _of_dense(model: str, samples: Samples, dense: Sequence[str], planned: Sequence[str] | None = None) -> Evaluation:
    """The dense model alone, beside the answers under a plan where there is one."""
    answers = side_by_side(samples, dense, planned)
    units = units_of(answers, "dense", samples.metric)
    return Evaluation(
        data=samples.name,
        model=model,
        samples=len(samples),
        accuracy_dense=figure(units),
        answers=answers,
        data_hash=samples.hash,
        left_out=samples.left_out,
        versions=installed(),
        metric=samples.metric,
        tasks=_by_task(answers, units, None if planned is None else units_of(answers, "plan", samples.metric)),
        skipped=samples.bad,
    )


def _by_task(answers: Sequence[Answer], dense: Units, plan: Units | None) -> tuple[TaskResult, ...]:
    """Each task by itself, if there are several."""
    tasks = []
    for task in dense.names if len(dense.names) > 1 else ():
        of_dense, of_plan = dense.of(task), None if plan is None else plan.of(task)
        tasks.append(
            TaskResult(
                task=task,
                samples=sum(answer.task == task for answer in answers),
                accuracy_dense=figure(of_dense),
                accuracy_plan=None if of_plan is None else figure(of_plan),
                retention=None if of_plan is None else retained(of_plan, of_dense),
            )
        )
    return tuple(tasks)


def _seen(samples: Samples, made: Provenance) -> int | None:
    """How many of ``samples`` the plan was calibrated on; None if it names data of this name but no samples."""
    if made.sample_hashes is None:
        return None if made.data is not None and samples.name in made.data.split(" + ") else 0
    return overlap(samples.hashes, made.sample_hashes)


def _seen_sentence(data: str, samples: int, seen: int | None) -> str:
    if seen is None:
        return (
            f"the plan was calibrated on {data} and does not say on which lines: some of these {samples} may be among "
            f"them, and other samples may give lower accuracy, so calibrate anew."
        )
    return (
        f"the plan was calibrated on {seen} of these {samples} samples of {data}: other samples may give lower "
        f"accuracy, so evaluate on samples that it has not seen."
    )


def _answers(
    loaded: Loaded,
    samples: Samples,
    plan: Plan | None,
    batch: int,
    max_new_tokens: int,
    progress: bool,
    kept: Unfinished | None = None,
) -> list[str]:
    """Batches are split over processes whole: an answer may depend on the padding that its neighbours cause."""
    items = samples.items
    chunks = [items[i : i + batch] for i in range(0, len(items), batch)]
    who = "dense" if plan is None else "plan"
    if kept is not None:
        plan_hash = None if plan is None else plan.hash
        made_from = loaded.fingerprint, samples.hash, plan_hash, batch, max_new_tokens, __version__
        kept = kept.of(who, *made_from)
    work = partial(answering, plan=plan, max_new_tokens=max_new_tokens)
    said = each(team_of(loaded), chunks, work, what=f"{who} answers to {samples.name}", progress=progress, kept=kept)
    return [answer for answers in said for answer in answers]


def answering(
    worker: Worker, chunks: Iterable[Sequence[Sample]], *, plan: Plan | None, max_new_tokens: int
) -> Iterator[list[str]]:
    """The greedy answers to each batch under ``plan``."""
    with applied(worker.loaded.model, plan):
        for chunk in chunks:
            yield worker.loaded.answer(chunk, max_new_tokens=max_new_tokens)


def _agree(answers: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """1.0 where two answers are equal, else 0.0, ``[questions]``."""
    return np.array([normal(a) == normal(b) for a, b in zip(answers, others, strict=True)], dtype=float)
